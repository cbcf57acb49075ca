"""Packing laws and what the quantizer promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgegemma.config import TextConfig
from edgegemma.errors import CheckpointError, InputError
from export.configuration import parse
from quant import policy
from quant.pack import pack, unpack
from quant.report import Meter, Report
from quant.rtn import F32, Quantized, dequantize, quantize
from tests import tiny

COLUMNS = 64
bit_counts = st.sampled_from((2, 4, 8))
blocks = st.sampled_from((0, 16, 32))
matrices = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 2), st.just(COLUMNS)),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)


def text_config(variant: str) -> TextConfig:
    return parse(tiny.config(variant)).text


def squared_error(w: F32, q: Quantized) -> F32:
    groups = (dequantize(q).astype(np.float64) - w).reshape(len(w), q.scale.shape[1], -1)
    return np.asarray((groups**2).sum(-1))


def plain(w: F32, bits: int, block: int) -> Quantized:
    """Absmax, as one would write it first."""
    groups = w.reshape(len(w), -1, block or w.shape[1])
    half = 1 << (bits - 1)
    scale = np.abs(groups).max(-1) / np.float32(half - 1)
    safe = np.where(scale > 0, scale, np.float32(1))
    codes = np.clip(np.rint(groups / safe[..., None]) + half, 0, 2 * half - 1)
    zero = np.full(scale.shape, half, np.uint8)
    return Quantized(codes.reshape(w.shape).astype(np.uint8), safe, zero)


@settings(deadline=None, max_examples=60)
@given(bits=bit_counts, rows=st.integers(1, 5), data=st.data())
def test_pack_and_unpack_are_inverses(bits: int, rows: int, data: st.DataObject) -> None:
    codes = data.draw(hnp.arrays(np.uint8, (rows, 24), elements=st.integers(0, (1 << bits) - 1)))
    packed = pack(codes, bits)
    assert packed.shape == (rows, 24 * bits // 8)
    assert np.array_equal(unpack(packed, bits), codes)


@settings(deadline=None, max_examples=60)
@given(bits=bit_counts, packed=hnp.arrays(np.uint8, (3, 8)))
def test_unpack_and_pack_are_inverses(bits: int, packed: np.ndarray) -> None:
    assert np.array_equal(pack(unpack(packed, bits), bits), packed)


def test_low_bits_come_first() -> None:
    assert pack(np.array([[1, 2, 3, 0]], np.uint8), 2).tolist() == [[0b00_11_10_01]]
    assert pack(np.array([[1, 2]], np.uint8), 4).tolist() == [[0x21]]


@pytest.mark.parametrize(("bits", "columns"), [(3, 8), (2, 6), (4, 3)])
def test_pack_refuses_what_does_not_fit(bits: int, columns: int) -> None:
    with pytest.raises(CheckpointError, match="pack"):
        pack(np.zeros((1, columns), np.uint8), bits)


@settings(deadline=None, max_examples=60)
@given(w=matrices, bits=bit_counts, block=blocks, asymmetric=st.booleans())
def test_every_code_is_the_nearest_level(w: F32, bits: int, block: int, asymmetric: bool) -> None:
    q = quantize(w, bits, block, asymmetric)
    scale = np.repeat(q.scale, COLUMNS // q.scale.shape[1], axis=1).astype(np.float64)
    off = np.abs(dequantize(q) - w.astype(np.float64))
    clipped = (q.codes == 0) | (q.codes == (1 << bits) - 1)
    assert np.all((off <= scale / 2 + 1e-6 * np.abs(w) + 1e-30) | clipped)
    # a clipped weight lies outside of the levels, on its code's side
    toward = np.where(q.codes == 0, -1.0, 1.0) * (w - dequantize(q).astype(np.float64))
    assert np.all((toward >= -scale / 2 - 1e-6 * np.abs(w) - 1e-30) | ~clipped)


@settings(deadline=None, max_examples=60)
@given(w=matrices, bits=bit_counts, block=blocks)
def test_scale_search_never_loses_to_absmax(w: F32, bits: int, block: int) -> None:
    ours, theirs = (
        squared_error(w, quantize(w, bits, block)),
        squared_error(w, plain(w, bits, block)),
    )
    assert np.all(ours <= theirs * (1 + 1e-5) + 1e-30)


@settings(deadline=None, max_examples=60)
@given(w=matrices, bits=bit_counts)
def test_a_zero_point_never_costs(w: F32, bits: int) -> None:
    w = np.abs(w) + np.float32(1)  # far from symmetric
    free = squared_error(w, quantize(w, bits, asymmetric=True))
    assert np.all(free <= squared_error(w, plain(w, bits, 0)) * (1 + 1e-5) + 1e-30)


def test_zero_points_serve_a_row_that_is_all_positive() -> None:
    w = np.random.default_rng(3).uniform(1, 2, (16, COLUMNS)).astype(np.float32)
    symmetric, free = quantize(w, 4), quantize(w, 4, asymmetric=True)
    assert squared_error(w, free).sum() < 0.6 * squared_error(w, symmetric).sum()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("block", [0, 32])
@pytest.mark.parametrize("value", [0.0, 3.5, -3.5, 0.1, 1e-30, 3e38])
def test_flat_group_is_exact(bits: int, block: int, value: float) -> None:
    w = np.full((3, COLUMNS), value, np.float32)
    w[1, ::3] *= -1
    assert np.array_equal(dequantize(quantize(w, bits, block)), w)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_row_of_levels_comes_back(bits: int) -> None:
    rng = np.random.default_rng(1)
    half = 1 << (bits - 1)
    levels = rng.integers(-half, half, (8, 256))
    levels[:, 0], levels[:, 1] = -half, half - 1
    w = (levels * 0.25).astype(np.float32)
    assert np.array_equal(dequantize(quantize(w, bits)), w)


@pytest.mark.parametrize(("bits", "most"), [(2, 0.40), (4, 0.115), (8, 0.009)])
def test_gaussian_rows_lose_little(bits: int, most: float) -> None:
    # The best uniform quantizers of a Gaussian lose 0.345 at 2 bits and 0.107 at 4 (Max, 1960).
    w = np.random.default_rng(0).standard_normal((64, 1536)).astype(np.float32)
    error = np.linalg.norm(dequantize(quantize(w, bits)) - w) / np.linalg.norm(w)
    assert error < most


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(bad: float) -> None:
    w = np.zeros((4, COLUMNS), np.float32)
    w[2, 5] = bad
    with pytest.raises(CheckpointError, match=r"layers\.0\.q_proj: .* at row 2, column 5"):
        quantize(w, 4, name="layers.0.q_proj")


@pytest.mark.parametrize(("bits", "block"), [(3, 0), (4, 48), (4, 128)])
def test_impossible_bits_and_blocks_are_refused(bits: int, block: int) -> None:
    with pytest.raises(CheckpointError, match="w: "):
        quantize(np.zeros((1, COLUMNS), np.float32), bits, block, name="w")


@pytest.mark.parametrize(
    ("variant", "module", "bits"),
    [
        ("e2b", "lm_head", 2),
        ("e2b", "model.language_model.embed_tokens", 2),
        ("e2b", "model.language_model.embed_tokens_per_layer", 4),
        ("e4b", "model.language_model.embed_tokens_per_layer", 2),
        ("e2b", "model.language_model.layers.9.self_attn.q_proj", 4),
        ("e2b", "model.language_model.layers.4.mlp.up_proj", 4),
        ("e2b", "model.language_model.layers.5.mlp.up_proj", 2),
        ("e4b", "model.language_model.layers.11.mlp.up_proj", 4),
        ("e2b", "model.language_model.layers.5.per_layer_input_gate", 8),
        ("e2b", "model.language_model.layers.5.per_layer_projection", 8),
        ("e2b", "model.audio_tower.layers.2.self_attn.q_proj", 2),
        ("e2b", "model.audio_tower.layers.2.lconv1d.linear_start", 4),
        ("e2b", "model.audio_tower.layers.2.lconv1d.linear_end", 2),
        ("moe", "model.language_model.layers.5.experts.down_proj", 2),
        ("moe", "model.language_model.layers.5.mlp.up_proj", 4),
        ("dense", "model.language_model.layers.5.self_attn.k_proj", 4),
    ],
)
def test_mobile_preset_is_googles_mix(variant: str, module: str, bits: int) -> None:
    rule = policy.preset("mobile", text_config(variant), False).rule(module)
    assert (rule.bits, rule.block) == (bits, policy.ROW)


def test_default_preset_follows_the_source() -> None:
    text = text_config("e2b")
    assert policy.preset(None, text, True).name == "qat-mobile"
    assert policy.preset(None, text, False).name == "mobile"


@pytest.mark.parametrize(
    ("name", "quantized", "message"),
    [
        ("q3", False, "want one of qat-mobile, mobile, q4, q8, float"),
        ("qat-mobile", False, "keeps the codes of a QAT-mobile checkpoint, and this one has none"),
        ("q4", True, "quantized already"),
    ],
)
def test_a_preset_that_does_not_fit_is_refused(name: str, quantized: bool, message: str) -> None:
    with pytest.raises(InputError, match=message):
        policy.preset(name, text_config("e2b"), quantized)


def test_report_adds_up_chunks() -> None:
    w = np.random.default_rng(2).standard_normal((8, COLUMNS)).astype(np.float32)
    whole, cut = Meter("w", 4, 32), Meter("w", 4, 32)
    whole.quantized(w, quantize(w, 4, 32))
    for part in (w[:3], w[3:]):
        cut.quantized(part, quantize(part, 4, 32))
    row = cut.row()
    assert row == whole.row()
    assert row.bits_per_weight == 5.0  # a float32 scale for 32 weights
    error = np.linalg.norm(dequantize(quantize(w, 4, 32)) - w) / np.linalg.norm(w)
    assert row.relative_error == pytest.approx(error, rel=1e-4)


def test_report_counts_clipped_weights() -> None:
    w = np.zeros((1, COLUMNS), np.float32)
    w[0, :2] = 10, 0.9
    half = np.full((1, 1), 2, np.uint8)
    codes = np.full((1, COLUMNS), 2, np.uint8)
    codes[0, :2] = 3
    meter = Meter("w", 2, COLUMNS)
    meter.quantized(w, Quantized(codes, np.ones((1, 1), np.float32), half))
    assert meter.row().saturated == pytest.approx(1 / COLUMNS, rel=1e-4)


def test_table_folds_layers_and_shows_the_worst() -> None:
    report = Report("q4", "rtn")
    for layer in range(3):
        meter = Meter(f"model.layers.{layer}.mlp.up_proj.weight", 4, 32)
        w = np.random.default_rng(layer).standard_normal((4, COLUMNS)).astype(np.float32)
        meter.quantized(w, quantize(w, 4, 32))
        report.rows.append(meter.row())
    table = report.table()
    assert list(table.columns[0].cells) == ["model.layers.*.mlp.up_proj.weight × 3"]
    assert report.bits_per_weight == 5.0
    assert len(report.to_json()["tensors"]) == 3
