"""Calls of functions bound to kernels: every weight and value is looked at before compiled code reads it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from edgegemma.engine.model import open_model
from edgegemma.errors import PackageError
from tests import packages
from tests.packages import attribute, node, tensor

Edit = Callable[[onnx.ModelProto], object]
LAYER = "model.language_model.layers.0"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packages.small(tmp_path_factory.mktemp("packages") / "small")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "package"))


def number(op: str, name: str, value: int) -> Edit:
    return lambda model: setattr(attribute(model, op, name), "i", value)


def reshaped(name: str, *dims: int) -> Edit:
    def edit(model: onnx.ModelProto) -> None:
        proto = tensor(model, name)
        del proto.dims[:]
        proto.dims.extend(dims)

    return edit


def swapped(model: onnx.ModelProto) -> None:
    first = [n for n in model.graph.node if n.op_type == "DecoderLayer"][:2]
    one, two = first[0].input[5], first[1].input[5]
    first[0].input[5], first[1].input[5] = two, one


def computed(model: onnx.ModelProto) -> None:
    node(model, "DecoderLayer").input[7] = "inputs_embeds"


def dropped(model: onnx.ModelProto) -> None:
    attributes = node(model, "DecoderLayer").attribute
    del attributes[[a.name for a in attributes].index("window")]


def added(model: onnx.ModelProto) -> None:
    node(model, "DecoderLayer").attribute.append(helper.make_attribute("extra", 1))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (reshaped(f"{LAYER}.input_layernorm.weight", 8, 8), r"input_layernorm\.weight: got float32 \[8, 8\]; want float32 \[64\]"),
        (number("DecoderLayer", "q_proj_in", 128), "got .*; want"),
        (number("DecoderLayer", "q_proj_bits", 3), "q_proj_bits: got 3; want one of"),
        (number("DecoderLayer", "q_proj_block", 24), "q_proj_block: got 24; want a multiple of 16"),
        (number("DecoderLayer", "head_dim", 2**40), "head_dim: got .*; want 1 to"),
        (number("DecoderLayer", "window", 5), r"window: got \(4, 1, 16, 5\); want \(4, 1, 16, 4\)"),
        (number("DecoderLayer", "kv_heads", 3), "heads: got 4; want a multiple of 3"),
        (number("Head", "lm_head_out", 100), "lm_head.weight: got"),
        (swapped, "keys: got .*; want those of one layer"),
        (computed, "input_layernorm: got a computed value; want a weight"),
        (dropped, "window: got NoneType; want int"),
        (added, "unknown input or attribute 'extra'"),
        (lambda m: node(m, "DecoderLayer").input.pop(), r"got \d+ inputs and 3 outputs; want"),
    ],
)  # fmt: skip
def test_weights_and_attributes_that_do_not_fit_are_refused_by_name(
    folder: Path, edit: Edit, message: str
) -> None:
    packages.edit_graph(folder, "decoder", edit)
    with pytest.raises(PackageError, match=rf"^decoder\.onnx: .*{message}"):
        open_model(folder)


def test_glue_that_hands_on_other_shapes_is_refused_before_a_kernel_reads(folder: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:  # rows of two layers where one is wanted
        split = node(model, "Split")
        constant = next(n for n in model.graph.node if n.output[0] == split.input[1])
        values = list(constant.attribute[0].ints)
        constant.attribute[0].ints[:] = [values[0] + 1, *values[1:-1], values[-1] - 1]

    packages.edit_graph(folder, "decoder", edit)
    opened = open_model(folder)
    with pytest.raises(PackageError, match=r"^decoder\.onnx: .*got float32 \[1, 3, 2, 32\]; want"):
        opened.forward(*opened.embed(np.array([1, 2, 3])), opened.new_cache())


def test_wrong_positions_are_refused_before_a_kernel_writes(folder: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        at = [n.op_type for n in model.graph.node].index("DecoderLayer")
        model.graph.node.insert(at, helper.make_node("Neg", ["position_ids"], ["back"]))
        node(model, "DecoderLayer").input[4] = "back"

    packages.edit_graph(folder, "decoder", edit)
    opened = open_model(folder)
    with pytest.raises(PackageError, match=r"got other positions than the 3 before 3"):
        opened.forward(*opened.embed(np.array([1, 2, 3])), opened.new_cache())
