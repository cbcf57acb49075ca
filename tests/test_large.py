"""Packages of the larger models: experts, values made of keys, no per-layer inputs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgegemma.engine.model import Model, open_model
from edgegemma.engine.session import EngineModel
from edgegemma.errors import PackageError
from tests import packages, tiny
from tests.conftest import Exporter
from tests.packages import attribute, tensor

LAYER = "model.language_model.layers.0"
EXPERTS, CHOSEN, LAYERS = 16, 4, 6


@pytest.fixture(scope="module")
def moe(package: Exporter) -> Path:
    return package("moe", "mobile")


def engine(path: Path) -> EngineModel:
    opened = open_model(path)
    assert isinstance(opened, EngineModel)
    return opened


def read(model: Model, ids: np.ndarray[Any, Any]) -> int:
    """Bytes of experts that these tokens read."""
    before = model.counters.read_bytes["experts"]
    model.forward(*model.embed(ids), model.new_cache())
    return model.counters.read_bytes["experts"] - before


def expert_bytes() -> int:
    """Bytes of one expert in two bits, with a scale a row."""
    text = tiny.config("moe")["text_config"]
    hidden, inner = text["hidden_size"], text["moe_intermediate_size"]
    return int(3 * hidden * inner // 4 + 4 * (2 * inner + hidden))


def test_a_token_reads_the_experts_it_chose_and_no_others(moe: Path) -> None:
    assert read(engine(moe), np.array([7])) == LAYERS * CHOSEN * expert_bytes()


def test_a_chunk_reads_an_expert_once_whoever_chose_it(moe: Path) -> None:
    opened = engine(moe)
    same = read(opened, np.full(2, 7))
    assert LAYERS * CHOSEN * expert_bytes() <= same < 2 * LAYERS * CHOSEN * expert_bytes()
    ids = np.random.default_rng(0).integers(0, tiny.VOCAB, 128)
    many = read(opened, ids)
    assert many % expert_bytes() == 0
    assert LAYERS * EXPERTS * expert_bytes() * 0.8 < many <= LAYERS * EXPERTS * expert_bytes()


def test_a_layer_is_one_call(moe: Path) -> None:
    steps = [step.call.node for step in engine(moe).decoder_plan(logits=True).steps]
    ops = [node.op for node in steps if node.op.startswith("DecoderLayer")]
    assert ops == ["DecoderLayerExperts"] * 5 + ["DecoderLayerExpertsTied"]


@pytest.mark.parametrize("variant", ["moe", "dense"])
def test_a_row_has_the_same_bits_alone_and_in_a_chunk(package: Exporter, variant: str) -> None:
    opened = engine(package(variant, "mobile"))
    ids = np.random.default_rng(1).integers(0, tiny.VOCAB, 20)
    whole = opened.forward(*opened.embed(ids), opened.new_cache(), num_logits=20)
    cache = opened.new_cache()
    alone = [opened.forward(*opened.embed(ids[i : i + 1]), cache)[0] for i in range(20)]
    np.testing.assert_array_equal(np.stack(alone), whole)


@pytest.mark.parametrize("executor", ["edgegemma", "onnxruntime"])
def test_there_are_no_per_layer_rows(moe: Path, executor: str) -> None:
    opened = open_model(moe, executor)
    embeds, per_layer = opened.embed(np.array([1, 2, 3]))
    assert embeds.shape == (3, 128)
    assert per_layer.shape == (3, LAYERS, 0)


def number(name: str, value: int) -> Callable[[onnx.ModelProto], object]:
    return lambda model: setattr(attribute(model, "DecoderLayerExperts", name), "i", value)


def reshaped(name: str, *dims: int) -> Callable[[onnx.ModelProto], object]:
    def edit(model: onnx.ModelProto) -> None:
        proto = tensor(model, f"{LAYER}.{name}")
        del proto.dims[:]
        proto.dims.extend(dims)

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (number("top_k", 17), "top_k: got 17; want at most 16"),
        (number("experts", 8), r"router.proj.weight: got .*; want .*\[8, 128\]"),
        (number("expert_down_in", 32), "expert_gate_up_out: got 128; want 64"),
        (number("expert_down_bits", 4), "experts.down_proj.weight: got .*; want"),
        (reshaped("experts.down_proj.weight", 8, 256, 1, 16), r"want uint8 \[16, 128, 1, 16\]"),
        (reshaped("router.per_expert_scale", 4, 4), r"want float32 \[16\]"),
    ],
)
def test_experts_that_do_not_fit_are_refused_by_name(
    moe: Path, tmp_path: Path, edit: Callable[[onnx.ModelProto], object], message: str
) -> None:
    folder = Path(shutil.copytree(moe, tmp_path / "package"))
    packages.edit_graph(folder, "decoder", edit)
    with pytest.raises(PackageError, match=rf"^decoder\.onnx: .*{message}"):
        open_model(folder)
