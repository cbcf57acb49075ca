"""Names of a checkpoint's tensors: every spelling read, what does not belong refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgegemma.errors import CheckpointError
from export import names
from export.checkpoint import Checkpoint, TensorInfo
from export.configuration import parse
from tests import tiny


@pytest.mark.parametrize(
    ("stored", "known"),
    [
        ("model.layers.0.mlp.up_proj.weight", "model.language_model.layers.0.mlp.up_proj.weight"),
        ("language_model.model.norm.weight", "model.language_model.norm.weight"),
        ("model.language_model.norm.weight", "model.language_model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        (
            "model.audio_tower.layers.0.self_attn.post.linear.weight_scale",
            "model.audio_tower.layers.0.self_attn.post.weight_scale",
        ),
        (
            "model.language_model.embed_tokens.embedding_quantized",
            "model.language_model.embed_tokens.weight",
        ),
        (
            "model.language_model.embed_tokens.embedding_scale",
            "model.language_model.embed_tokens.weight_scale",
        ),
        ("model.vision_tower.patch_embedder.input_proj.weight", None),
        ("model.embed_vision.embedding_projection.weight", None),
    ],
)
def test_every_spelling_has_one_canonical_name(stored: str, known: str | None) -> None:
    assert names.canonical(stored) == known


def test_unused_keys_and_values_of_shared_layers_are_no_surprise(tmp_path: Path) -> None:
    raw, found = tiny.config("e2b"), tiny.tensors("e2b")
    for layer, part in ((4, "x_proj"), (9, "k_proj"), (9, "v_proj"), (9, "k_norm")):
        name = f"model.language_model.layers.{layer}.self_attn.{part}.weight"
        found[name] = np.zeros((32, 128), np.uint16)
    found["model.vision_tower.something.weight"] = np.zeros(2, np.uint16)
    tiny.save_bf16(found, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        matched = names.match(parse(raw), checkpoint.tensors, tied=True)
    assert matched.unexpected == ("model.language_model.layers.4.self_attn.x_proj.weight",)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("norm.weight", None, r"tensor model.language_model.norm.weight \[128\] is missing"),
        ("norm.weight", np.zeros(64, np.uint16), r"norm.weight: got \[64\]; want \[128\]"),
        ("norm.weight", np.zeros(128, np.int8), r"norm.weight: got I8; want floats"),
        ("layers.0.mlp.up_proj.weight", np.zeros((128, 256), np.uint16), r"want \[256, 128\]"),
        ("layers.0.mlp.up_proj.weight", np.zeros((256, 48), np.uint8), "want 2- or 4-bit codes"),
        ("layers.0.mlp.up_proj.weight", np.zeros((256, 32), np.uint8), "weight_scale is missing"),
    ],
)
def test_a_wrong_tensor_is_named_with_got_and_want(
    tmp_path: Path, name: str, array: np.ndarray | None, message: str
) -> None:
    found = tiny.tensors("e2b")
    found[f"model.language_model.{name}"] = array
    kept = {k: v for k, v in found.items() if v is not None}
    tiny.save_bf16(kept, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint, pytest.raises(CheckpointError, match=message):
        names.match(parse(tiny.config("e2b")), checkpoint.tensors, tied=True)


@pytest.mark.parametrize(
    "name",
    [
        "model.language_model.layers.0.self_attn.q_proj.bias",
        "model.language_model.layers.0.self_attn.q_proj.weight_zero_point",
        "model.language_model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.language_model.embed_tokens.weight_zero_point",
        "model.audio_tower.layers.0.self_attn.post.linear.bias",
        "lm_head.bias",
    ],
)
def test_a_part_of_a_weight_that_is_not_known_is_refused(name: str) -> None:
    known = {n: TensorInfo(Path("m"), "BF16", s, 0) for n, s in tiny.shapes(tiny.config("e2b"))}
    other = {name: TensorInfo(Path("m"), "BF16", (128,), 0)}
    with pytest.raises(CheckpointError, match=f"^m: {name}: belongs to a weight"):
        names.match(parse(tiny.config("e2b")), known | other, tied=True)


def test_a_scale_beside_floats_is_refused(tmp_path: Path) -> None:
    found = tiny.tensors("e2b")
    name = "model.language_model.layers.0.mlp.up_proj"
    found[f"{name}.weight_scale"] = np.ones((256, 1), np.float32)
    tiny.save_bf16(found, tmp_path / "model.safetensors")
    message = f"{name}.weight_scale: a scale, but {name}.weight is BF16; want codes"
    with Checkpoint.open(tmp_path) as checkpoint, pytest.raises(CheckpointError, match=message):
        names.match(parse(tiny.config("e2b")), checkpoint.tensors, tied=True)


def test_wrong_scales_are_named(tmp_path: Path) -> None:
    found = tiny.tensors("e2b-qat-mobile")
    name = "model.language_model.layers.0.mlp.up_proj.weight_scale"
    found[name] = np.ones((256, 2), np.float32)
    tiny.save_bf16(found, tmp_path / "model.safetensors")
    message = r"up_proj.weight_scale: got F32 \[256, 2\]; want F32 \[256, 1\]"
    with Checkpoint.open(tmp_path) as checkpoint, pytest.raises(CheckpointError, match=message):
        names.match(parse(tiny.config("e2b-qat-mobile")), checkpoint.tensors, tied=False)
