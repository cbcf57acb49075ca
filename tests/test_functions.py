"""Each function body alone in onnxruntime, against plain numpy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from export.audio import query_scale, relative_keys
from export.builder import Attribute, Graph, body_hash
from export.functions import bodies, hashes, needed
from tests import naive
from tests.fake_source import Weight

F32 = npt.NDArray[np.float32]
Arrays = dict[str, npt.NDArray[Any]]
TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int64): TensorProto.INT64}
EPS: dict[str, Attribute] = {"eps": 1e-6}
OFF = np.zeros(2, np.float32)


def call(
    folder: Path,
    function: str,
    inputs: Arrays,
    weights: Arrays,
    attributes: dict[str, Attribute],
    quantized: bool = False,
) -> list[F32]:
    """Run one call; names of inputs and weights are the function's own, in any order."""
    g = Graph("one", folder)
    signature = bodies(quantized)[function]
    assert set(signature.attribute) == set(attributes)
    for name in signature.input:
        if name in inputs:
            g.input(name, inputs[name].shape, TYPES[inputs[name].dtype])
        else:
            g.tensor(name, weights[name])
    g.call(function, list(signature.input), attributes, list(signature.output), "call")
    g.outputs = [helper.make_empty_tensor_value_info(name) for name in signature.output]
    g.save(needed(g.nodes, quantized), {})
    session = ort.InferenceSession(str(folder / "one.onnx"))
    return [np.asarray(y) for y in session.run(None, inputs)]


def draw(seed: int, *shape: int) -> F32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def code_matrix(n: int, k: int, bits: int, block: int, columns: int) -> tuple[Arrays, F32]:
    """Draw a packed matrix; give its tensors and its numbers, packed here value by value."""
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 2**bits, (n, k))
    packed = np.zeros((n, k * bits // 8), np.uint8)
    for i in range(k):
        packed[:, i * bits // 8] |= (codes[:, i] << (i * bits % 8)).astype(np.uint8)
    scale = rng.uniform(0.1, 0.2, (n, columns)).astype(np.float32)
    numbers = (codes - 2 ** (bits - 1)) * np.repeat(scale, k // columns, axis=1)
    tensors: Arrays = {"weight": packed.reshape(n, k // block, -1), "scale": scale}
    return tensors, numbers.astype(np.float32)


def sizes(n: int, k: int, bits: int, block: int) -> dict[str, Attribute]:
    return {"in": k, "out": n, "bits": bits, "block": block}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("block", "columns"), [(128, 1), (32, 8), (16, 16)])
def test_quantized_linear_rounds_inputs_by_block(
    tmp_path: Path, bits: int, block: int, columns: int
) -> None:
    tensors, numbers = code_matrix(48, 256, bits, block, columns)
    x = draw(1, 5, 256)
    (y,) = call(
        tmp_path, "Linear", {"x": x[None]}, {**tensors, "activation": OFF},
        sizes(48, 256, bits, block), quantized=True,
    )  # fmt: skip
    # Where onnxruntime has no int8 kernel for a shape it leaves the inputs in float.
    either = [naive.linear(x, Weight(numbers, block=by)) for by in (block, 0)]
    room = 1e-5 * np.abs(x) @ np.abs(numbers).T
    assert any(np.all(np.abs(y[0] - want) < room) for want in either)


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
def test_float_linear_is_a_product(tmp_path: Path, dtype: type) -> None:
    w, x = draw(1, 24, 40), draw(2, 3, 40)
    bits = (w.view(np.uint32) >> 16).astype(np.uint16)
    seen = (bits.astype(np.uint32) << 16).view(np.float32) if dtype is np.uint16 else w
    weights: Arrays = {"weight": bits if dtype is np.uint16 else w, "activation": OFF}
    weights["scale"] = np.ones((1, 1), np.float32)
    bits_attribute = 16 if dtype is np.uint16 else 32
    (y,) = call(tmp_path, "Linear", {"x": x[None]}, weights, sizes(24, 40, bits_attribute, 0))
    np.testing.assert_allclose(y[0], x @ seen.T, atol=1e-5)


def static_case(tmp_path: Path, quantized: bool, activation: F32) -> tuple[F32, F32, F32]:
    """Give x, y and the weights of a linear with static scales."""
    x = draw(3, 6, 128)
    x[0, :3] = 100.0, -100.0, activation[0] * 2.5  # both ends, and a tie
    if quantized:
        tensors, numbers = code_matrix(32, 128, 4, 128, 1)
        attributes = sizes(32, 128, 4, 128)
    else:
        numbers = draw(4, 32, 128)
        tensors, attributes = {"weight": numbers}, sizes(32, 128, 32, 0)
        tensors["scale"] = np.ones((1, 1), np.float32)
    weights = {**tensors, "activation": activation}
    (y,) = call(tmp_path, "Linear", {"x": x[None]}, weights, attributes, quantized)
    return x, y[0], numbers


def test_static_input_scale_rounds_half_to_even_and_saturates(tmp_path: Path) -> None:
    x, y, numbers = static_case(tmp_path, False, np.array([0.02, 0], np.float32))
    codes = np.clip(np.rint(x / np.float32(0.02)), -128, 127)
    assert codes[0, :3].tolist() == [127, -128, 2]
    np.testing.assert_allclose(y, (codes * np.float32(0.02)) @ numbers.T, atol=1e-4)


def test_static_output_scale_gives_whole_steps(tmp_path: Path) -> None:
    x, y, numbers = static_case(tmp_path, False, np.array([0, 0.25], np.float32))
    want = np.clip(np.rint((x @ numbers.T) / 0.25), -128, 127) * 0.25
    assert np.abs(y - want).max() <= 0.25  # a sum near a tie may fall on either side
    assert (y == want).mean() > 0.98


def test_quantized_linear_rounds_statically_before_its_own_rounding(tmp_path: Path) -> None:
    x, y, numbers = static_case(tmp_path, True, np.array([0.02, 0], np.float32))
    want = naive.linear(x, Weight(numbers, (0.02, 0.0), block=128))
    np.testing.assert_allclose(y, want, rtol=0, atol=5e-3 * np.abs(want).max())  # one tie


def test_clipped_linear_clamps_both_ends(tmp_path: Path) -> None:
    x, w = draw(1, 4, 16), draw(2, 8, 16)
    clip = np.array([-0.5, 0.75, -1.0, 2.0], np.float32)
    weights: Arrays = {"weight": w, "scale": np.ones((1, 1), np.float32), "activation": OFF}
    weights["clip"] = clip
    (y,) = call(tmp_path, "ClippedLinear", {"x": x[None]}, weights, sizes(8, 16, 32, 0))
    np.testing.assert_allclose(y[0], np.clip(np.clip(x, -0.5, 0.75) @ w.T, -1, 2), atol=1e-5)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("groups", [1, 3])
def test_gathered_rows_are_decoded(tmp_path: Path, bits: int, groups: int) -> None:
    tensors, numbers = code_matrix(20, 96, bits, 96, groups)
    weights: Arrays = {"table": tensors["weight"][:, 0], "scale": tensors["scale"]}
    ids = np.array([[7, 0, 19, 7]])
    attributes: dict[str, Attribute] = {"width": 96, "bits": bits, "multiplier": 1.5}
    (y,) = call(tmp_path, "GatherRows", {"input_ids": ids}, weights, attributes, quantized=True)
    np.testing.assert_allclose(y, numbers[ids] * 1.5, rtol=1e-6)


def test_rotary_table_has_the_angles_of_float32(tmp_path: Path) -> None:
    positions = np.array([[0, 1, 131071]])
    steps = np.array([1.0, 0.1, 0.0], np.float32)
    cos, sin = call(tmp_path, "RotaryTable", {"position_ids": positions}, {"inv_freq": steps}, {})
    angles = positions[0, :, None].astype(np.float32) * steps
    np.testing.assert_allclose(cos[0], np.cos(angles.astype(np.float64)), atol=1e-6)
    np.testing.assert_allclose(sin[0], np.sin(angles.astype(np.float64)), atol=1e-6)


def test_per_layer_inputs_average_both_sources(tmp_path: Path) -> None:
    x, rows, projection, norm = draw(1, 5, 24), draw(2, 5, 3, 8), draw(3, 24, 24), draw(4, 8)
    (y,) = call(
        tmp_path,
        "PerLayerInputs",
        {"inputs_embeds": x[None], "per_layer_inputs": rows[None]},
        {"projection_weight": projection, "norm_weight": norm},
        {"layers": 3, "width": 8, "hidden_size": 24, **EPS},
    )
    np.testing.assert_allclose(y[0], naive.per_layer_inputs(x, rows, projection, norm), atol=1e-5)


# Attention alone: a layer whose feed-forward and per-layer blocks add nothing.


def attention_layer(
    tmp_path: Path, window: int, past: int, kv_heads: int
) -> tuple[list[F32], Arrays, Arrays]:
    """Run DecoderLayer on 4 positions after ``past`` ones; o_proj passes the heads through."""
    heads, width, hidden = 4, 8, 32
    weights: Arrays = {}
    attributes: dict[str, Attribute] = {
        "heads": heads, "kv_heads": kv_heads, "head_dim": width, "window": window,
        "k_cache_scale": 0.0, "v_cache_scale": 0.0, **EPS,
    }  # fmt: skip
    shapes = {
        "q_proj": (32, 32), "k_proj": (kv_heads * width, 32), "v_proj": (kv_heads * width, 32),
        "o_proj": (32, 32), "gate_proj": (16, 32), "up_proj": (16, 32), "down_proj": (32, 16),
        "per_layer_input_gate": (8, 32), "per_layer_projection": (32, 8),
    }  # fmt: skip
    for seed, (name, shape) in enumerate(shapes.items()):
        weights[f"{name}_weight"] = draw(seed, *shape)
        weights[f"{name}_scale"] = np.ones((1, 1), np.float32)
        weights[f"{name}_activation"] = OFF
        attributes |= {f"{name}_{k}": v for k, v in sizes(*shape, 32, 0).items()}
    weights["o_proj_weight"] = np.eye(32, dtype=np.float32)
    for name in bodies(False)["DecoderLayer"].input:
        if name.endswith("norm"):
            weights[name] = np.ones(width if name in ("q_norm", "k_norm") else hidden, np.float32)
    for name in ("post_feedforward_layernorm", "post_per_layer_input_norm"):
        weights[name] = np.zeros(hidden, np.float32)
    weights["layer_scalar"] = np.array([0.5], np.float32)
    positions = np.arange(past, past + 4)
    angles = (positions[:, None] * np.array([1.0, 0.3, 0.1, 0.0])).astype(np.float32)
    inputs: Arrays = {
        "hidden_states": draw(20, 1, 4, hidden), "per_layer_input": draw(21, 1, 4, 1, 8),
        "cos": np.cos(angles)[None], "sin": np.sin(angles)[None], "position_ids": positions[None],
        "past_key": draw(22, 1, kv_heads, past, width),
        "past_value": draw(23, 1, kv_heads, past, width),
    }  # fmt: skip
    return call(tmp_path, "DecoderLayer", inputs, weights, attributes), inputs, weights


@pytest.mark.parametrize("window", [0, 1, 3, 64])
@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_decoder_layer_sees_its_window(
    tmp_path: Path, window: int, past: int, kv_heads: int
) -> None:
    (out, key, value), inputs, weights = attention_layer(tmp_path, window, past, kv_heads)
    x = inputs["hidden_states"][0].astype(np.float64)
    y = naive.rms(x)
    angles = np.arctan2(inputs["sin"][0], inputs["cos"][0])

    def heads(name: str) -> npt.NDArray[Any]:
        return (y @ weights[f"{name}_weight"].T).reshape(4, -1, 8)

    q = naive.rotate(naive.rms(heads("q_proj")), angles)
    k = naive.rotate(naive.rms(heads("k_proj")), angles)
    old = [inputs[name][0].transpose(1, 0, 2) for name in ("past_key", "past_value")]
    k = np.concatenate([old[0], k])
    v = np.concatenate([old[1], naive.rms(heads("v_proj"))])
    np.testing.assert_allclose(key[0].transpose(1, 0, 2), k, atol=1e-5)
    np.testing.assert_allclose(value[0].transpose(1, 0, 2), v, atol=1e-5)
    seen = naive.attend(q, k, v, window, past).reshape(4, 32)
    np.testing.assert_allclose(out[0], (x + naive.rms(seen)) * 0.5, atol=1e-5)


def test_head_caps_its_logits(tmp_path: Path) -> None:
    x, w, norm = draw(1, 2, 16) * 9, draw(2, 8, 16) * 9, draw(3, 16)
    weights: Arrays = {"norm_weight": norm, "lm_head_weight": w, "lm_head_activation": OFF}
    weights["lm_head_scale"] = np.ones((1, 1), np.float32)
    linear = {f"lm_head_{key}": value for key, value in sizes(8, 16, 32, 0).items()}
    (y,) = call(
        tmp_path, "Head", {"hidden_states": x[None]}, weights, {"softcap": 30.0, **EPS, **linear}
    )
    assert np.abs(y).max() <= 30
    np.testing.assert_allclose(y[0], 30 * np.tanh(naive.rms(x, norm) @ w.T / 30), atol=1e-4)


def subsample(tmp_path: Path, x: F32, mask: F32, past: Sequence[F32]) -> list[F32]:
    weights: Arrays = {
        "conv0_weight": draw(1, 6, 1, 3, 3), "norm0_weight": draw(2, 6),
        "conv1_weight": draw(3, 2, 6, 3, 3), "norm1_weight": draw(4, 2),
        "projection_weight": draw(5, 10, 64),
    }  # fmt: skip
    inputs: Arrays = {"input_features": x[None], "mask": mask[None]}
    inputs |= {"past_features": past[0], "past_conv": past[1]}
    return call(tmp_path, "AudioSubsample", inputs, weights, {"eps": 1e-6})


def test_subsampling_in_steps_is_two_padded_convolutions(tmp_path: Path) -> None:
    x, mask = draw(9, 24, 128), np.ones(24, np.float32)
    mask[21:] = 0
    convs, norms = [draw(1, 6, 1, 3, 3), draw(3, 2, 6, 3, 3)], [draw(2, 6), draw(4, 2)]
    want = naive.subsample(x, mask, convs, norms, draw(5, 10, 64))
    past: Sequence[F32] = np.zeros((1, 1, 128), np.float32), np.zeros((1, 6, 1, 64), np.float32)
    heard = []
    for start, stop in ((0, 4), (4, 16), (16, 24)):
        y, *past = subsample(tmp_path, x[start:stop], mask[start:stop], past)
        heard.append(y[0])
    np.testing.assert_allclose(np.concatenate(heard), want, atol=1e-3)


def test_audio_head_projects_after_its_norm(tmp_path: Path) -> None:
    x, output, bias, embedding = draw(1, 3, 8), draw(2, 12, 8), draw(3, 12), draw(4, 16, 12)
    weights: Arrays = {"output_weight": output, "output_bias": bias, "embedding_weight": embedding}
    (y,) = call(tmp_path, "AudioHead", {"hidden_states": x[None]}, weights, EPS)
    np.testing.assert_allclose(y[0], naive.rms(x @ output.T + bias) @ embedding.T, atol=1e-5)


def test_relative_keys_start_with_the_sine_and_cosine_of_zero() -> None:
    keys = relative_keys(np.eye(8, dtype=np.float32), 3)
    np.testing.assert_array_equal(keys[0], [0, 0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_allclose(
        keys[2, [0, 3, 4]], np.array([np.sin(2), np.sin(2e-4), np.cos(2)]), 1e-6
    )


def test_query_scale_holds_the_softplus() -> None:
    zero = query_scale(np.zeros(16, np.float32))
    np.testing.assert_allclose(zero, np.full(16, 0.25), rtol=1e-6)  # softplus(0) is ln 2


def test_bodies_survive_a_round_trip_with_their_hash() -> None:
    for quantized in (False, True):
        for function in bodies(quantized).values():
            copy = onnx.FunctionProto()
            copy.ParseFromString(function.SerializeToString())
            assert body_hash(copy) == body_hash(function)


def test_only_what_unpacks_or_rounds_has_two_bodies() -> None:
    two = {name for name, found in hashes().items() if len(found) == 2}
    assert two == {"Linear", "GatherRows", "ExpertLinear"}
