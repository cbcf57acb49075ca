"""Norms, rotary, attention, caches and decoder layers: compiled against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgegemma.errors import InputError
from edgegemma.kernels import decoder, gather, kvcache, norms, rotary, stack
from edgegemma.kernels import reference_layers as reference
from export import functions_text
from tests.layers import F32, Maker, distance, shared

some = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(["float32", "int8"])
FLOAT_TOLERANCE = 1e-5
CODE_TOLERANCE = 0.03  # an activation on the edge of two int8 codes may fall either way


@some
@given(rows=st.integers(0, 5), width=st.integers(1, 70), weighted=st.booleans(), seed=seeds)
def test_norms_agree_with_reference(rows: int, width: int, weighted: bool, seed: int) -> None:
    make = Maker(seed, "float")
    x, y = make.rows(rows, width, scale=30), make.rows(rows, width)
    weight = make.vector(width)
    got = norms.rms_norm(x, weight if weighted else None, 1e-6)
    assert distance(got, reference.rms_norm(x, weight if weighted else None, 1e-6)) <= 1e-6
    want = reference.add_rms_norm(x, y, weight, 1e-6, 0.5)
    assert distance(norms.add_rms_norm(x, y, weight, 1e-6, 0.5), want) <= 1e-6


@some
@given(rows=st.integers(0, 3), width=st.integers(1, 70), scale=st.floats(0.01, 100), seed=seeds)
def test_activations_agree_with_reference(rows: int, width: int, scale: float, seed: int) -> None:
    make = Maker(seed, "float")
    a, b = make.rows(rows, 2 * width, scale=scale), make.rows(rows, 2 * width)
    room = 5e-7 * np.abs(a)
    assert np.all(
        np.abs(norms.gelu_gate(a, b) - reference.gelu_gate(a, b)) <= room * np.abs(b) + 1e-37
    )
    assert np.all(np.abs(norms.silu(a) - reference.silu(a)) <= room + 1e-37)
    gated = np.abs(norms.glu(a) - reference.glu(a))
    assert np.all(gated <= room[:, :width] + 1e-37)


@pytest.mark.parametrize("width", [1, 4095, 4097, 9000])
def test_softcap_agrees_with_reference_on_wide_rows(width: int) -> None:
    x = Maker(1, "float").rows(2, width, scale=40)
    assert np.abs(norms.softcap(x, 30.0) - reference.softcap(x, 30.0)).max() <= 1e-5


def test_activations_pass_nan_on_and_saturate_at_infinity() -> None:
    x = np.array([[np.nan, np.inf, -np.inf, 200, -200]], np.float32)
    assert np.isnan(norms.silu(x)[0, 0])
    assert np.isnan(norms.softcap(x, 30.0)[0, 0])
    np.testing.assert_array_equal(norms.softcap(x, 30.0)[0, 1:3], [30, -30])
    np.testing.assert_allclose(norms.silu(x)[0, 3:], [200, 0], atol=1e-30)


@some
@given(rows=st.integers(1, 5), heads=st.integers(1, 4), half=st.integers(1, 40), seed=seeds)
def test_rotation_agrees_with_reference(rows: int, heads: int, half: int, seed: int) -> None:
    make = Maker(seed, "float")
    positions = make.rng.integers(0, 131072, rows)
    inv_freq = (1e4 ** -make.rng.uniform(0, 1, half)).astype(np.float32)
    cos, sin = rotary.rotary_table(positions, inv_freq)
    want = reference.rotary_table(positions, inv_freq)
    np.testing.assert_allclose([cos, sin], want, atol=1e-7)
    x = make.rows(rows, heads, 2 * half)
    assert distance(rotary.rotate(x, cos, sin), reference.rotate(x, cos, sin)) <= 1e-6


@some
@given(
    count=st.integers(0, 9),
    static=st.booleans(),
    dtype=dtypes,
    start=st.integers(0, 40),
    seed=seeds,
)
def test_appending_agrees_with_reference(
    count: int, static: bool, dtype: str, start: int, seed: int
) -> None:
    make = Maker(seed, "float")
    caches = [make.cache(9, 2, 6, dtype) for _ in range(2)]
    keys, values = make.rows(count, 2, 6), make.rows(count, 2, 6)
    keys[:1] = 0  # a head of zeros has no scale of its own
    scales = (0.03, 0.02) if static else (0.0, 0.0)
    kvcache.append(keys, values, start, caches[0], *scales)
    reference.append(keys, values, start, caches[1], *scales)
    for got, want in zip(*caches, strict=True):
        np.testing.assert_array_equal(got, want)


@some
@given(
    rows=st.integers(1, 4), bits=st.sampled_from([2, 4, 8]), groups=st.integers(1, 3), seed=seeds
)
def test_gathered_codes_have_the_bits_of_the_reference(
    rows: int, bits: int, groups: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    packed = rng.integers(0, 256, (rows, 6 * bits)).astype(np.uint8)
    scale = rng.uniform(0.01, 1, (rows, groups)).astype(np.float32)
    got = gather.gather_rows(packed, scale, bits, 39.25)
    np.testing.assert_array_equal(got, reference.gather_rows(packed, scale, bits, 39.25))


@pytest.mark.parametrize("bits", [16, 32])
def test_gathered_float_rows_are_widened(bits: int) -> None:
    rows = (Maker(0, "float").rows(3, 8).view(np.uint32) >> 16 << 16).view(np.float32)
    raw = rows if bits == 32 else (rows.view(np.uint32) >> 16).astype(np.uint16)
    packed = raw.view(np.uint8).reshape(3, -1)
    one = np.ones((1, 1), np.float32)
    np.testing.assert_array_equal(gather.gather_rows(packed, one, bits, 2.0), 2 * rows)
    np.testing.assert_array_equal(reference.gather_rows(packed, one, bits, 2.0), 2 * rows)


def run(
    kernels: Any,
    make: Maker,
    layer: decoder.DecoderLayerWeights,
    dtype: str,
    x: F32,
    cuts: list[int],
) -> F32:
    """Run a layer and a shared one after it over x in pieces, with a ring as small as can be."""
    pieces = np.split(np.arange(len(x)), sorted(cuts))
    longest = max(len(p) for p in pieces)
    capacity = layer.window - 1 + longest if layer.window else len(x)
    cache = make.cache(capacity, layer.kv_heads, layer.head_dim, dtype)
    inv_freq = np.linspace(1, 0, layer.head_dim // 2).astype(np.float32)
    cos, sin = rotary.rotary_table(np.arange(len(x)), inv_freq)
    ple = np.tanh(x[:, : decoder.matrix_shape(layer.per_layer_input_gate)[0]])
    out = []
    for p in pieces:
        if len(p):
            state = ple[p], cos[p], sin[p], int(p[0]), cache
            y = kernels.decoder_layer(x[p], *state, layer)
            out.append(kernels.decoder_layer(y, *state, shared(layer)))
    return np.concatenate(out)


layers = st.tuples(
    st.sampled_from([32, 96]), st.sampled_from([16, 32]), st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    st.sampled_from([16, 32]), st.integers(0, 12),
)  # fmt: skip


@pytest.mark.parametrize("kind", ["float", "codes"])
@settings(deadline=None, max_examples=12)
@given(sizes=layers, count=st.integers(1, 9), dtype=dtypes, seed=seeds)
def test_decoder_layers_agree_with_reference(
    kind: str, sizes: tuple[int, int, tuple[int, int], int, int], count: int, dtype: str, seed: int
) -> None:
    make = Maker(seed, kind)
    hidden, width, heads, head_dim, window = sizes
    layer = make.decoder_layer(hidden, width, *heads, head_dim, window)
    x = make.rows(count, hidden)
    got = run(stack, make, layer, dtype, x, [])
    want = run(reference, make, layer, dtype, x, [])
    tight = kind == "float" and dtype == "float32"
    assert np.abs(got - want).mean() <= (FLOAT_TOLERANCE if tight else CODE_TOLERANCE) * want.std()


@pytest.mark.parametrize("kind", ["float", "codes"])
@settings(deadline=None, max_examples=12)
@given(sizes=layers, cuts=st.lists(st.integers(0, 20), max_size=20), dtype=dtypes, seed=seeds)
def test_decoder_layers_have_the_same_bits_for_every_cut(
    kind: str,
    sizes: tuple[int, int, tuple[int, int], int, int],
    cuts: list[int],
    dtype: str,
    seed: int,
) -> None:
    make = Maker(seed, kind)
    hidden, width, heads, head_dim, window = sizes
    layer = make.decoder_layer(hidden, width, *heads, head_dim, window)
    x = make.rows(20, hidden)
    whole = run(stack, make, layer, dtype, x, [])
    np.testing.assert_array_equal(run(stack, make, layer, dtype, x, cuts), whole)


def test_a_row_of_nan_stays_in_its_row() -> None:
    make = Maker(9, "float")
    layer = make.decoder_layer(32, 16, 2, 1, 16, 4)
    x = make.rows(8, 32)
    clean = run(stack, make, layer, "float32", x, [])
    x[7] = np.nan
    got = run(stack, make, layer, "float32", x, [])
    np.testing.assert_array_equal(got[:7], clean[:7])
    assert np.isnan(got[7]).all()


def test_weights_are_in_the_order_of_the_function() -> None:
    names = [slot.name for slot in functions_text.LAYER]
    assert list(decoder.DecoderLayerWeights._fields[: len(names)]) == names
    names = [slot.name for slot in functions_text.LAYER_SHARED]
    assert list(decoder.DecoderLayerSharedWeights._fields[: len(names)]) == names


@pytest.mark.parametrize("kind", ["float", "codes"])
def test_head_agrees_with_reference_and_with_itself_row_by_row(kind: str) -> None:
    make = Maker(2, kind)
    x, norm, w = make.rows(3, 96, scale=4), make.vector(96), make.matrix(50, 96)
    got = decoder.head(x, norm, w, 30.0, 1e-6)
    assert distance(got, reference.head(x, norm, w, 30.0, 1e-6)) <= CODE_TOLERANCE
    alone = [decoder.head(x[i : i + 1], norm, w, 30.0, 1e-6) for i in range(3)]
    np.testing.assert_array_equal(got, np.concatenate(alone))


@pytest.mark.parametrize("layers", [1, 3, 5])
def test_per_layer_inputs_agree_with_reference(layers: int) -> None:
    make = Maker(2, "float")
    x, tokens, norm = make.rows(6, 64), make.rows(6, 5, 16), make.vector(16)
    rows = make.bfloat16(80, 64)[: layers * 16]
    got = decoder.per_layer_inputs(x, tokens, rows, norm, 1e-6)
    assert distance(got, reference.per_layer_inputs(x, tokens, rows, norm, 1e-6)) <= 1e-5


def test_a_layer_refuses_inputs_that_do_not_fit_it() -> None:
    make = Maker(0, "float")
    layer = make.decoder_layer(32, 16, 2, 1, 16, 4)
    cache, cos = make.cache(8, 1, 16, "float32"), make.rows(2, 8)
    x, ple = make.rows(2, 32), make.rows(2, 16)
    for wrong in ((x[:, 1:], ple, cos), (x, ple[:1], cos), (x, ple, cos[:, 1:])):
        with pytest.raises(InputError, match="decoder layer: got"):
            stack.decoder_layer(*wrong, cos, 0, cache, layer)
    with pytest.raises(InputError, match="float64"):
        stack.decoder_layer(x.astype(np.float64), ple, cos, cos, 0, cache, layer)
    one = stack.Stack([stack.HeldLayer(layer)], [0], [stack.HeldCache(cache)])
    for flat in (ple, ple[0], np.repeat(ple[:, None], 2, axis=1)):
        with pytest.raises(InputError, match="per-layer input"):
            stack.decoder_layers(x, flat, [cos], [cos], 0, one)


def test_layers_of_two_kinds_are_not_run_as_one() -> None:
    make = Maker(0, "float")
    layer = make.decoder_layer(32, 16, 2, 1, 16, 4)
    cache = stack.HeldCache(make.cache(8, 1, 16, "float32"))
    layers = [stack.HeldLayer(layer), stack.HeldLayer(shared(layer))]
    with pytest.raises(InputError, match="several kinds"):
        stack.Stack(layers, [0, 0], [cache, cache])


@pytest.mark.parametrize("kind", ["float", "codes"])
def test_layers_in_a_row_agree_with_reference(kind: str) -> None:
    make = Maker(6, kind)
    layers = [stack.HeldLayer(make.decoder_layer(32, 16, 2, 1, 16, window)) for window in (0, 4, 0)]
    x, ple = make.rows(5, 32), make.rows(15, 16).reshape(5, 3, 16)
    cos, sin = ([make.rows(5, 8) for _ in range(2)] for _ in range(2))

    def run(kernels: Any) -> F32:
        caches = [stack.HeldCache(make.cache(8, 1, 16, "float32")) for _ in layers]
        whole = stack.Stack(layers, [0, 1, 0], caches)
        done: F32 = kernels.decoder_layers(x, ple, cos, sin, 0, whole)
        return done

    got, want = run(stack), run(reference)
    tolerance = FLOAT_TOLERANCE if kind == "float" else CODE_TOLERANCE
    assert np.abs(got - want).mean() <= tolerance * want.std()
