"""Graphs of packages: what the loader and the ABI refuse, and how they say it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgegemma.engine import abi, graph, graphs
from edgegemma.engine.graphs import DECODER
from edgegemma.engine.model import open_model
from edgegemma.errors import PackageError, UnsupportedError
from edgegemma.package import Package
from export import functions
from tests import packages
from tests.fake_source import CONFIG, FakeSource
from tests.packages import attribute, entry, external, node, tensor

Edit = Callable[[onnx.ModelProto], object]
LAYER = "model.language_model.layers.0"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packages.small(tmp_path_factory.mktemp("packages") / "small")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "package"))


# What is known


def test_the_engine_knows_the_bodies_that_the_exporter_writes() -> None:
    assert {name: set(digests) for name, digests in functions.hashes().items()} == abi.BODIES


def test_the_loader_hashes_bodies_as_the_exporter_does(original: Path) -> None:
    loaded = graphs.load(Package.open(original))[DECODER]
    written = functions.hashes()
    assert loaded.functions.keys() >= {"DecoderLayer", "DecoderLayerShared", "Head", "Linear"}
    for function in loaded.functions.values():
        assert function.sha256 in written[function.name]


def test_tensors_are_views_of_the_map(original: Path) -> None:
    package = Package.open(original)
    loaded = graphs.load(package)[DECODER]
    for found in loaded.tensors.values():
        array = found.array(package)
        assert array.shape == found.shape
        assert not array.flags.writeable
        assert array.flags.aligned
        if found.data is None:
            assert np.shares_memory(array, package.map(found.location))


def test_a_tied_head_is_the_bytes_of_the_table(original: Path) -> None:
    package = Package.open(original)
    head = graphs.load(package)[DECODER].tensors["lm_head.weight"]
    assert head.location == "embed_tokens.bin"
    open_model(original)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["bfloat16", "codes"])
def test_every_kind_of_package_opens(tmp_path: Path, kind: Any, tied: bool) -> None:
    open_model(packages.small(tmp_path / "package", kind, tied))


def test_static_activations_open(tmp_path: Path) -> None:
    open_model(packages.write(tmp_path / "p", FakeSource(CONFIG, "codes", static=True)))


# What is unknown


def unknown_op(model: onnx.ModelProto) -> None:
    node(model, "Split").op_type = "Einsum"


def unknown_function(model: onnx.ModelProto) -> None:
    function = model.functions.add()
    function.CopyFrom(model.functions[0])
    function.name = "Spy"


def other_body(model: onnx.ModelProto) -> None:
    body = next(f for f in model.functions if f.name == "Head")
    body.node[0].name = "changed"


def alone(model: onnx.ModelProto) -> None:
    node(model, "Head").op_type = "Linear"


def no_body(model: onnx.ModelProto) -> None:
    kept = [f for f in model.functions if f.name != "Head"]
    del model.functions[:]
    model.functions.extend(kept)


def other_domain(model: onnx.ModelProto) -> None:
    node(model, "Head").domain = "com.microsoft"


def opset(domain: str, version: int) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        next(o for o in model.opset_import if o.domain == domain).version = version

    return edit


def new_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("ai.spy", 1))


def subgraph(model: onnx.ModelProto) -> None:
    node(model, "Split").attribute.append(
        helper.make_attribute("body", helper.make_graph([], "g", [], []))
    )


def reference(model: onnx.ModelProto) -> None:
    attribute(model, "Split", "axis").ref_attr_name = "axis"


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (unknown_op, "'Split'|unknown op 'Einsum'"),
        (unknown_function, r"unknown function 'edgegemma\.Spy'; update"),
        (other_body, r"function 'Head' has another body .*; update"),
        (alone, "'Linear' stands alone"),
        (no_body, "function 'Head' has no body"),
        (other_domain, r"unknown op 'com\.microsoft\.Head'"),
        (opset("", 24), r"got version 24 of 'ai\.onnx'; want 23"),
        (opset("edgegemma", 2), "got version 2 of 'edgegemma'; want 1"),
        (new_domain, r"got version 1 of 'ai\.spy'; want None"),
        (lambda model: setattr(model, "ir_version", 11), "got IR version 11; want 10"),
        (subgraph, "attribute 'body': got a subgraph"),
        (reference, "attribute 'axis': got a subgraph, a reference"),
        (sparse, "got SparseTensorProto; want none"),
        (
            lambda m: setattr(external(m), "data_type", TensorProto.DOUBLE),
            "got type 11; want one of",
        ),
        (lambda m: setattr(external(m), "data_type", 999), "got type 999; want one of"),
    ],
)
def test_what_the_engine_does_not_know_is_refused_by_name(
    folder: Path, edit: Edit, message: str
) -> None:
    packages.edit_graph(folder, "decoder", edit)
    with pytest.raises(UnsupportedError, match=rf"^decoder\.onnx: .*{message}"):
        open_model(folder)


@pytest.mark.parametrize("edit", [other_body, unknown_op, opset("edgegemma", 2)])
def test_nor_does_stock_onnxruntime_get_it(folder: Path, edit: Edit) -> None:
    packages.edit_graph(folder, "decoder", edit)
    with pytest.raises(UnsupportedError, match=r"^decoder\.onnx: "):
        open_model(folder, "onnxruntime")


# What does not hold


def many_nodes(model: onnx.ModelProto) -> None:
    model.graph.node.extend([onnx.NodeProto(op_type="Identity")] * graph.NODE_LIMIT)


def test_keys_and_values_are_for_layers_only(folder: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        node(model, "RotaryTable").input[0] = "past_key_values.0.key"

    packages.edit_graph(folder, "decoder", edit)
    with pytest.raises(PackageError, match=r"rotary_emb.*: got no array"):
        step(folder)


def step(folder: Path) -> None:
    model = open_model(folder)
    model.forward(*model.embed(np.array([1, 2])), model.new_cache(4), 1)


def sizes_as(value: Any) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        sizes = node(model, "Split").input[1]
        constant = next(n for n in model.graph.node if n.output[0] == sizes)
        constant.ClearField("attribute")
        constant.attribute.append(helper.make_attribute("value_ints", value))

    return edit


def place(key: str, value: str) -> Edit:
    return lambda model: setattr(entry(external(model), key), "value", value)


def longer(model: onnx.ModelProto) -> None:
    proto = external(model)
    proto.dims[0] += 1
    entry(proto, "length").value = str(int(entry(proto, "length").value) * 2)


def cycle(model: onnx.ModelProto) -> None:
    last, first = model.graph.node[-1], node(model, "PerLayerInputs")
    first.input[0] = last.output[0]


def twice(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def shadow(model: onnx.ModelProto) -> None:
    node(model, "Head").output[0] = model.graph.initializer[0].name


def overlap(model: onnx.ModelProto) -> None:
    near = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    large = max(near, key=lambda t: int(entry(t, "length").value))
    other = next(t for t in near if entry(t, "length").value != entry(large, "length").value)
    entry(other, "offset").value = str(int(entry(large, "offset").value))
    entry(other, "location").value = entry(large, "location").value


def typed(model: onnx.ModelProto) -> None:
    proto = tensor(model, f"{LAYER}.layer_scalar")
    proto.ClearField("raw_data")
    proto.float_data.append(1.0)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (place("location", "../secret"), r"got data in '\.\./secret'; want a file of the manifest"),
        (place("location", "manifest.json"), "want a file of the manifest"),
        (place("offset", "-4096"), "offset: got '-4096'; want a number of bytes"),
        (place("offset", "0x10"), "offset: got '0x10'; want"),
        (place("offset", "7"), "got offset 7; want a multiple of 4096"),
        (place("offset", str(1 << 40)), r"want at most \d+"),
        (place("offset", "9" * 5000), "offset: got '9999"),
        (place("length", "16"), r"got 16 bytes; want \d+ for"),
        (longer, r"got \d+ bytes; want \d+ for"),
        (lambda m: external(m).dims.__setitem__(0, -1), "got shape .*; want sizes of 1"),
        (lambda m: external(m).dims.__setitem__(0, 1 << 62), "got shape .*; want sizes of 1"),
        (lambda m: external(m).dims.extend([1] * 9), "got shape .*; want sizes of 1"),
        (cycle, "input 'logits' is not given before it is used"),
        (twice, "got tensor .* twice"),
        (shadow, "value .* is given twice"),
        (typed, r"layer_scalar: got 0 raw bytes; want 4 for float32 \[1\]"),
        (many_nodes, r"got 16,\d+ nodes; want at most 16,384"),
        (lambda m: m.graph.output.pop(), "outputs: 'present.3.value' is missing"),
        (lambda m: m.graph.input.pop(0), "input 'inputs_embeds' is not given"),
    ],
)
def test_what_does_not_hold_is_refused_by_tensor_and_file(
    folder: Path, edit: Edit, message: str
) -> None:
    packages.edit_graph(folder, "decoder", edit)
    with pytest.raises(PackageError, match=rf"^decoder\.onnx: .*{message}"):
        open_model(folder)


@pytest.mark.parametrize("edit", [sizes_as("abc"), sizes_as([1.5, 2.5])])
def test_sizes_of_another_kind_are_refused(folder: Path, edit: Edit) -> None:
    packages.edit_graph(folder, "decoder", edit)
    with pytest.raises(PackageError, match=r"^decoder\.onnx: "):
        step(folder)


def test_tensors_do_not_overlap(folder: Path) -> None:
    packages.edit_graph(folder, "decoder", overlap)
    with pytest.raises(PackageError, match=r"\.bin: .*: got bytes that .* has too"):
        open_model(folder)


def test_tensors_of_two_graphs_do_not_overlap(folder: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        entry(external(model), "location").value = "embed_tokens.bin"
        entry(external(model), "offset").value = "0"

    packages.edit_graph(folder, "decoder", edit)
    with pytest.raises(PackageError, match=r"^embed_tokens\.bin: .*: got bytes that .* has too"):
        graphs.load(Package.open(folder))


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, b"\x08", b"{}" * 1000])
def test_bytes_that_are_no_graph_are_refused(folder: Path, data: bytes) -> None:
    (folder / DECODER).write_bytes(data)
    packages.sign(folder)
    with pytest.raises(PackageError, match=r"^decoder\.onnx: "):
        open_model(folder)


def test_a_huge_graph_file_is_not_parsed(folder: Path) -> None:
    with (folder / DECODER).open("r+b") as file:
        file.truncate(graph.FILE_LIMIT_BYTES + 1)
    packages.sign(folder)
    with pytest.raises(PackageError, match=r"^decoder\.onnx: got \d+ bytes; want at most"):
        open_model(folder)


def test_a_missing_graph_is_named(folder: Path) -> None:
    (folder / DECODER).unlink()
    packages.sign(folder)
    with pytest.raises(PackageError, match=r"'decoder\.onnx' is not among its files"):
        open_model(folder)
