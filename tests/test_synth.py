"""The maker of full-size random checkpoints: published names and shapes, sane values, whole or not at all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from bench import random_package, shapes, stand_in, synth
from edgegemma.engine.model import open_model
from edgegemma.errors import InputError
from edgegemma.package import Package
from export import verify, witness
from export.recording import Recorder

# Totals of the published checkpoints: tensors, elements (vision tower included, tied head absent).
PUBLISHED = {
    "E2B": (1951, 5_104_298_467),
    "E4B": (2076, 7_941_101_802),
    "26B-A4B": (1013, 25_805_936_206),
    "31B": (1188, 31_273_088_876),
}


@pytest.fixture
def small() -> dict[str, Any]:
    """A config with the structure of E2B and a thousandth of its size."""
    return shrunk("E2B")


def shrunk(model: str) -> dict[str, Any]:
    """The config of a model with small sizes."""
    config = shapes.published(model)
    text = config["text_config"]
    config["text_config"] |= {
        "vocab_size": 1100, "vocab_size_per_layer_input": 1100, "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 10,
        "num_kv_shared_layers": 5 if text["num_kv_shared_layers"] else 0,
        "layer_types": text["layer_types"][:10], "head_dim": 32, "global_head_dim": 64,
        "hidden_size_per_layer_input": 32 if text["hidden_size_per_layer_input"] else 0,
    }  # fmt: skip
    if config["audio_config"]:
        config["audio_config"] |= {
            "hidden_size": 64, "num_hidden_layers": 2, "output_proj_dims": 96,
            "subsampling_conv_channels": [128, 8],
        }  # fmt: skip
    if text["num_experts"]:
        config["text_config"] |= {"num_experts": 12, "moe_intermediate_size": 48}
    for number, name in enumerate(n for n in config if re.search(r"_token_(id|index)$", n)):
        if name != "eos_token_id":
            config[name] = 1000 + number
    return config


def read(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every tensor, as the safetensors library sees them."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "numpy") as reader:
            for name in reader.keys():  # noqa: SIM118 (not a mapping)
                piece = reader.get_slice(name)
                found[name] = (piece.get_dtype(), tuple(piece.get_shape()))
    return found


@pytest.mark.parametrize("model", shapes.MODELS)
def test_totals_are_the_published_ones(model: str) -> None:
    found = list(shapes.tensors(shapes.published(model, vision=True)))
    elements = sum(int(np.prod(shape, dtype=np.int64)) for _, shape in found)
    assert (len(found), elements) == PUBLISHED[model]


def test_early_uploads_carry_sixty_more() -> None:
    config = shapes.published("E2B", vision=True)
    names = {name for name, _ in shapes.tensors(config)}
    more = {name for name, _ in shapes.tensors(config, unused=True)} - names
    assert len(more) == 60
    assert all(re.search(r"layers\.(1[5-9]|2\d|3\d)\.self_attn\.(k|v)_", name) for name in more)


def test_mobile_format_gives_each_module_its_bits() -> None:
    found = {e.name: e for e in synth.entries(synth.config_of("E2B", "qat-mobile"))}
    layer = "model.language_model.layers.{}."
    H = 1536
    assert found["lm_head.weight"].shape == (262144, H // 4)
    assert found["model.language_model.embed_tokens_per_layer.embedding_scale"].shape == (
        262144,
        35,
    )
    assert found[layer.format(14) + "mlp.gate_proj.weight"].shape == (6144, H // 2)
    assert found[layer.format(15) + "mlp.gate_proj.weight"].shape == (12288, H // 4)
    assert found[layer.format(20) + "self_attn.q_proj.weight"].shape == (2048, H // 2)
    assert found[layer.format(3) + "per_layer_projection.weight"].dtype == "I8"
    assert found["model.language_model.per_layer_model_projection.weight"].dtype == "BF16"
    assert layer.format(14) + "self_attn.k_cache_scale" in found
    assert layer.format(15) + "self_attn.k_cache_scale" not in found
    e4b = {e.name: e for e in synth.entries(synth.config_of("E4B", "qat-mobile"))}
    assert e4b[layer.format(41) + "mlp.up_proj.weight"].shape == (10240, 2560 // 2)


def test_mobile_format_of_the_larger_models() -> None:
    found = {e.name: e for e in synth.entries(synth.config_of("26B-A4B", "qat-mobile"))}
    layer = "model.language_model.layers.0."
    experts = found[layer + "experts.gate_up_proj.weight"]
    assert (experts.dtype, experts.shape) == ("U8", (128, 1408, 2816 // 4))
    assert found[layer + "experts.gate_up_proj.weight_scale"].shape == (128, 1408, 1)
    assert found[layer + "mlp.gate_proj.weight"].shape == (2112, 2816 // 2)
    assert found[layer + "router.proj.weight"].dtype == "BF16"
    assert "model.language_model.layers.5.self_attn.v_proj.weight" not in found
    assert not any("per_layer" in name for name in found)


@pytest.mark.parametrize("model", ["26B-A4B", "31B"])
def test_a_package_of_a_larger_model_keeps_its_codes_and_runs(model: str, tmp_path: Path) -> None:
    config = shrunk(model)
    synth._make_mobile(config)
    made = random_package.write(config, tmp_path / "made", "qat-mobile")
    ids = np.arange(5, 20)
    logits = []
    for executor in ("edgegemma", "onnxruntime"):
        opened = open_model(made, executor)
        logits.append(opened.forward(*opened.embed(ids), opened.new_cache(), num_logits=15))
    recorder = Recorder(Package.open(made), 1)
    verify.outputs(recorder)
    assert max(difference.share for difference in witness.compare(recorder, made)) < 0.5
    assert np.isfinite(logits).all()


def test_files_hold_what_the_config_says(small: dict[str, Any], tmp_path: Path) -> None:
    folder = synth.write(small, tmp_path / "made", shard=60_000)
    found = read(folder)
    assert found == {name: ("BF16", shape) for name, shape in shapes.tensors(small)}
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == found.keys()
    assert set(index["weight_map"].values()) == {p.name for p in folder.glob("*.safetensors")}


def test_values_are_scaled_and_rows_differ(small: dict[str, Any], tmp_path: Path) -> None:
    table = next(e for e in synth.entries(small) if e.name.endswith("embed_tokens.weight"))
    bits = np.concatenate(list(synth.Pools(0).stream(table)))
    rows = (bits.astype(np.uint32) << 16).view(np.float32).reshape(table.shape)
    assert abs(rows.std() * table.shape[1] ** 0.5 - 1) < 0.02
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_pool_wraps_around_in_large_tensors() -> None:
    entry = synth.Entry("x", "F32", (3, synth.POOL), "uniform")
    first, *rest = synth.Pools(0).stream(entry)
    whole = np.concatenate([first, *rest])
    assert whole.size == entry.count
    assert np.array_equal(whole[: synth.POOL], whole[synth.POOL : 2 * synth.POOL])


def test_mobile_head_is_a_copy_of_the_table(small: dict[str, Any], tmp_path: Path) -> None:
    synth._make_mobile(small)
    folder = synth.write(small, tmp_path / "made")
    table = "model.language_model.embed_tokens.embedding_"
    with safe_open(folder / "model.safetensors", "numpy") as reader:
        codes = reader.get_tensor("lm_head.weight")
        assert np.array_equal(codes, reader.get_tensor(table + "quantized"))
        assert np.array_equal(
            reader.get_tensor("lm_head.weight_scale"), reader.get_tensor(table + "scale")
        )
        assert reader.get_tensor("lm_head.input_activation_scale") == 0
    share = np.bincount(codes.reshape(-1) & 3, minlength=4) / codes.size
    assert np.all(share > 0.05)


def test_same_seed_same_bytes(small: dict[str, Any], tmp_path: Path) -> None:
    first, again, other = (
        synth.write(small, tmp_path / name, seed=seed) / "model.safetensors"
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first.read_bytes() == again.read_bytes() != other.read_bytes()


def test_stand_in_tokenizer_has_the_right_size_and_ids(
    small: dict[str, Any], tmp_path: Path
) -> None:
    stand_in.write(tmp_path, small)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == small["text_config"]["vocab_size"]
    assert tokenizer.token_to_id("<audio|>") == small["eoa_token_id"]
    ids = tokenizer.encode("<|turn>user\nTranscribe é<turn|>").ids
    assert ids[0] == 105
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|turn>user\nTranscribe é<turn|>"


def test_interrupted_run_leaves_nothing(small: dict[str, Any], tmp_path: Path) -> None:
    def stop(_what: str, done: int, _total: int) -> None:
        if done > 50_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synth.write(small, tmp_path / "made", report=stop)
    assert list(tmp_path.iterdir()) == []


def test_refuses_what_it_cannot_make(small: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is there already"):
        synth.write(small, tmp_path)
    with pytest.raises(InputError, match="E9B"):
        synth.config_of("E9B", "bf16")
    with pytest.raises(InputError, match="int3"):
        synth.config_of("E2B", "int3")
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        synth.write(small, tmp_path / "made", tokenizer=tmp_path)
