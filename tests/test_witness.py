"""Comparing executors call by call: what agrees passes, and what differs is named."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import FunctionProto, helper, numpy_helper

from edgegemma.errors import PackageError
from edgegemma.kernels import reference
from edgegemma.kernels.linear import CodeMatrix, linear
from edgegemma.package import Package
from export import verify, witness
from export.exact import exact_linear_body
from export.functions_linear import linear_body
from export.readback import places
from export.recording import Recorder
from tests.conftest import Exporter

F32 = NDArray[np.float32]
LAYER = "model.language_model.layers.2"
QUANTIZED = [
    ("e2b", "mobile"),
    ("e2b-qat-mobile", "qat-mobile"),
    ("moe", "mobile"),
    ("dense", "q4"),
]


def judged(package: Path, other: Path) -> str:
    """Run the engine on one package and onnxruntime on another; compare call by call."""
    recorder = Recorder(Package.open(package), 1)
    verify.outputs(recorder)
    return verify.check_calls(witness.compare(recorder, other))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_results_that_are_not_finite_are_infinitely_far_apart(bad: float) -> None:
    x = np.array([1, bad], np.float32)
    assert witness.apart(x, x) == np.inf


def changed(package: Path, folder: Path, tensor: str, change: int) -> Path:
    """Copy a package with bits of one byte of a tensor flipped, in the middle of it and its highest."""
    place = places(package)[tensor]
    path = shutil.copytree(package, folder / "changed")
    at = place.size // 2 // 4 * 4 + 3
    if place.inline is None:
        with (path / place.path.name).open("r+b") as file:
            file.seek(place.offset + at)
            byte = file.read(1)[0]
            file.seek(place.offset + at)
            file.write(bytes([byte ^ change]))
        return path
    model = onnx.load(path / "decoder.onnx", load_external_data=False)
    (found,) = (t for t in model.graph.initializer if t.name == tensor)
    data = bytearray(found.raw_data)
    data[at] ^= change
    found.raw_data = bytes(data)
    (path / "decoder.onnx").write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(("variant", "preset"), QUANTIZED)
@pytest.mark.parametrize(
    ("part", "change"), [("mlp.up_proj.weight", 1), ("self_attn.q_proj.weight_scale", 128)]
)
def test_one_changed_weight_is_found_by_the_name_of_its_linear(
    package: Exporter, tmp_path: Path, variant: str, preset: str, part: str, change: int
) -> None:
    good = package(variant, preset)
    bad = changed(good, tmp_path, f"{LAYER}.{part}", change)
    module = f"{LAYER}.{part}".rpartition(".")[0].replace(".", r"\.")
    with pytest.raises(PackageError, match=rf"decoder\.onnx: {module}: .* apart on the same"):
        judged(bad, good)


@pytest.mark.parametrize(("variant", "preset"), [*QUANTIZED, ("e4b", "float")])
def test_one_changed_norm_is_found_by_the_name_of_its_layer(
    package: Exporter, tmp_path: Path, variant: str, preset: str
) -> None:
    good = package(variant, preset)
    tensor = f"{LAYER}.post_feedforward_layernorm.weight"
    bad = changed(good, tmp_path, tensor, 128)
    with pytest.raises(PackageError, match=rf"decoder\.onnx: {LAYER}, .* apart on the same"):
        judged(bad, good)


@pytest.mark.parametrize("part", ["gate_up_proj", "down_proj"])
def test_one_changed_expert_is_found_by_the_name_of_its_layer(
    package: Exporter, tmp_path: Path, part: str
) -> None:
    good = package("moe", "mobile")
    bad = changed(good, tmp_path, f"{LAYER}.experts.{part}.weight_scale", 128)
    with pytest.raises(PackageError, match=rf"decoder\.onnx: {LAYER}, .* apart on the same"):
        judged(bad, good)


@pytest.mark.parametrize(("variant", "preset"), QUANTIZED)
def test_calls_of_a_good_package_are_far_from_their_limits(
    package: Exporter, variant: str, preset: str
) -> None:
    path = package(variant, preset)
    recorder = Recorder(Package.open(path), 1)
    verify.outputs(recorder)
    found = list(witness.compare(recorder, path))
    assert max(difference.share for difference in found) < 0.5
    # Where no activation fell on the other side, and that is nearly everywhere, only sums differ.
    assert np.quantile([difference.got for difference in found], 0.9) < 1e-6


def test_a_result_that_is_not_finite_is_infinitely_far() -> None:
    one = np.ones(3, np.float32)
    assert witness.apart(one * np.float32(np.nan), one) == np.inf
    assert witness.apart(one, one) == 0


def matrix(bits: int, block: int, static: float) -> CodeMatrix:
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 256, (24, 256 * bits // 8), np.uint8)
    scale = rng.uniform(0.1, 0.2, (24, 1)).astype(np.float32)
    return CodeMatrix(codes, scale, np.array([static, 0], np.float32), bits, block)


def in_onnxruntime(body: FunctionProto, x: F32, w: CodeMatrix) -> F32:
    """Run one body of Linear."""
    sizes: dict[str, Any] = {"in": 256, "out": 24, "bits": w.bits, "block": w.block}
    codes = w.codes.reshape(24, 256 // w.block, -1)
    weights: dict[str, NDArray[Any]] = {
        "weight": codes,
        "scale": w.scale,
        "activation": w.activation,
    }
    node = helper.make_node("Linear", ["x", *weights], ["y"], domain="edgegemma", **sizes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    versions = {"": 23, "com.microsoft": 1, "edgegemma": 1}
    opsets = [helper.make_opsetid(*version) for version in versions.items()]
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets, functions=[body])
    session = ort.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(None, {"x": x[None]})[0][0])


def near_edges(static: float, block: int) -> F32:
    """Draw rows where many activations are within a last bit of the middle between two codes."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((16, 256 // block, block)).astype(np.float32)
    top = np.abs(x).max(axis=2, keepdims=True)
    step = np.full_like(top, static) if static else top / np.float32(127)
    halves = rng.integers(-127, 127, x.shape) + np.float32(0.5)
    edges = (halves * step * (1 + rng.integers(-3, 4, x.shape) * 2.0**-24)).astype(np.float32)
    x = np.where((np.abs(x) == top) | (rng.random(x.shape) < 0.5), x, edges)
    if static:
        x[0, :, :3] = [-1000, 1000, -128 * static]  # saturate
    x[1, 0] = 0
    return np.ascontiguousarray(x.reshape(16, 256), np.float32)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("block", [16, 128])
@pytest.mark.parametrize("static", [0.0, 0.02])
def test_the_spelled_out_body_is_the_definition(bits: int, block: int, static: float) -> None:
    w, x = matrix(bits, block, static), near_edges(static, block)
    got = in_onnxruntime(exact_linear_body(), x, w)
    error = np.abs(got - reference.linear(x, w)) / witness._terms(x, w)
    assert error.max() < witness.LINEAR_LIMIT  # one code the other way would be 100 times this


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="ARM rounds otherwise")
@pytest.mark.parametrize("bits", [4, 8])
def test_the_engine_rounds_activations_as_onnxruntime_does_on_x86(bits: int) -> None:
    w, x = matrix(bits, 128, 0), near_edges(0, 128)
    theirs = in_onnxruntime(linear_body(quantized=True), x, w)
    assert (np.abs(linear(x, w) - theirs) / witness._terms(x, w)).max() < witness.LINEAR_LIMIT
