"""What a package holds: every weight in its place, bit for bit where nothing is rounded."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgegemma.package import Package
from export import pipeline
from export.pipeline import export
from export.readback import places
from export.weights import UNCLIPPED, Weights
from quant.pack import unpack
from tests import tiny
from tests.conftest import Exporter

LANGUAGE = "model.language_model"
CONVERSION = [
    ("e2b", "float"),
    ("e2b", "mobile"),
    ("e2b", "q4"),
    ("e2b", "q8"),
    ("e4b", "mobile"),
    ("e2b-qat-mobile", "qat-mobile"),
    ("e2b-qat-mobile", "float"),
    ("moe", "mobile"),
    ("dense", "q8"),
]
Checkpoints = Callable[[str], Path]


def changed(source: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Copy a tiny checkpoint with other tensors."""
    shutil.copytree(source, folder)
    found = tiny.tensors("e2b-qat-mobile" if "qat" in source.name else "e2b")
    change(found)
    tiny.save_bf16(found, folder / "model.safetensors")
    return folder


def with_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    return folder


def stored(package: Path, tensor: str, dtype: Any) -> np.ndarray:
    place = places(package)[tensor]
    return np.frombuffer(place.read(0, place.size), dtype)


def graph(package: Path, name: str) -> onnx.ModelProto:
    return onnx.load(package / name, load_external_data=False)


@pytest.mark.parametrize(("variant", "preset"), CONVERSION)
def test_a_package_is_complete_and_checks_out(package: Exporter, variant: str, preset: str) -> None:
    path = package(variant, preset)
    opened = Package.open(path, verify=True)
    assert opened.manifest["preset"] == preset
    assert opened.manifest["source"] == {"id": variant, "revision": "local"}
    assert opened.manifest["name"] == variant
    assert "in its original language" in opened.prompts["transcribe"]
    graphs = {"decoder", "embed_tokens"} | ({"audio_encoder"} if variant in tiny.HEARING else set())
    copied = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    names = {f"{g}.{kind}" for g in graphs for kind in ("onnx", "bin")} | copied
    assert names | {"quantization.json"} <= opened.members.keys()
    assert {p.name for p in path.iterdir()} == opened.members.keys() | {"manifest.json"}


def test_mobile_codes_pass_through_bit_for_bit(package: Exporter) -> None:
    path, source = package("e2b-qat-mobile", "qat-mobile"), tiny.tensors("e2b-qat-mobile")
    checked = 0
    for name, array in source.items():
        module, _, part = name.rpartition(".")
        module = module.removesuffix(".linear")
        if part in ("weight", "embedding_quantized") and array.dtype == np.uint8:
            want = array
        elif part == "weight" and array.dtype == np.int8:
            want = (array.astype(np.int16) + 128).astype(np.uint8)
        elif part in ("weight_scale", "embedding_scale"):
            want, module = array, f"{module}.weight_scale"
        else:
            continue
        tensor = module if module.endswith("_scale") else f"{module}.weight"
        assert np.array_equal(stored(path, tensor, want.dtype), want.reshape(-1)), name
        checked += 1
    assert checked == 2 * sum(np.asarray(a).dtype in (np.uint8, np.int8) for a in source.values())


def test_activation_scales_pass_through(package: Exporter) -> None:
    path, source = package("e2b-qat-mobile", "qat-mobile"), tiny.tensors("e2b-qat-mobile")
    for module, wrapped in (
        (f"{LANGUAGE}.layers.3.mlp.up_proj", ""),
        ("model.audio_tower.layers.1.lconv1d.linear_start", ".linear"),
        ("lm_head", ""),
    ):
        want = [source[f"{module}{wrapped}.{way}_activation_scale"] for way in ("input", "output")]
        assert stored(path, f"{module}.activation_scales", np.float32).tolist() == want


def test_cache_scales_reach_the_layers_that_read_them(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    def scale(found: dict[str, Any]) -> None:
        for part, value in (("k", 0.125), ("v", 0.5)):
            name = f"{LANGUAGE}.layers.3.self_attn.{part}_cache_scale"
            found[name] = np.array(value, np.float32)

    folder = changed(checkpoint("e2b-qat-mobile"), tmp_path / "qat", scale)
    path = export(folder, tmp_path / "out")
    calls = {n.name: n for n in graph(path, "decoder.onnx").graph.node if n.name}
    for layer, want in ((3, (0.125, 0.5)), (5, (0.125, 0.5)), (4, (0.0, 0.0))):
        found = {a.name: a.f for a in calls[f"{LANGUAGE}.layers.{layer}"].attribute}
        assert (found["k_cache_scale"], found["v_cache_scale"]) == want


def test_float_weights_keep_their_bits(package: Exporter) -> None:
    path, source = package("e2b", "float"), tiny.tensors("e2b")
    name = f"{LANGUAGE}.layers.0.mlp.up_proj.weight"
    assert np.array_equal(stored(path, name, np.uint16), source[name].reshape(-1))


def test_float_of_codes_is_what_they_stand_for(package: Exporter) -> None:
    path, source = package("e2b-qat-mobile", "float"), tiny.tensors("e2b-qat-mobile")
    name = f"{LANGUAGE}.layers.7.mlp.up_proj"
    levels = unpack(source[f"{name}.weight"], 2).astype(np.float32) - 2
    want = levels * source[f"{name}.weight_scale"]
    assert np.array_equal(stored(path, f"{name}.weight", np.float32), want.reshape(-1))


def test_stacked_experts_keep_their_bits_and_their_order(package: Exporter) -> None:
    path, source = package("moe", "float"), tiny.tensors("moe")
    for part in ("gate_up_proj", "down_proj"):
        name = f"{LANGUAGE}.layers.5.experts.{part}"
        assert np.array_equal(stored(path, f"{name}.weight", np.uint16), source[name].reshape(-1))


def test_half_precision_sources_are_widened_exactly(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    name = f"{LANGUAGE}.layers.0.mlp.up_proj.weight"
    half = tiny.values(name, (256, 128)).astype(np.float16)
    folder = changed(checkpoint("e2b"), tmp_path / "f16", lambda t: t.update({name: half}))
    path = export(folder, tmp_path / "out", "float")
    want = half.astype(np.float32).reshape(-1)
    assert np.array_equal(stored(path, name, np.float32), want)


@pytest.mark.parametrize("variant", ["e2b", "e2b-qat-mobile"])
def test_a_tied_head_is_the_embeddings_bytes(package: Exporter, variant: str) -> None:
    preset = "mobile" if variant == "e2b" else "qat-mobile"
    found = places(package(variant, preset))
    assert found["lm_head.weight"] == found[f"{LANGUAGE}.embed_tokens.weight"]
    assert found["lm_head.weight"].path.name == "embed_tokens.bin"


def test_a_head_of_its_own_is_kept(checkpoint: Checkpoints, tmp_path: Path) -> None:
    other = tiny.to_bf16(tiny.values("another", (tiny.VOCAB, 128)))
    folder = changed(
        checkpoint("e2b"), tmp_path / "s", lambda t: t.update({"lm_head.weight": other})
    )
    with_config(folder, lambda raw: raw.update(tie_word_embeddings=False))
    path = export(folder, tmp_path / "out", "float")
    assert np.array_equal(stored(path, "lm_head.weight", np.uint16), other.reshape(-1))


def test_a_head_of_its_own_is_kept_though_the_config_ties_it(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    other = tiny.to_bf16(tiny.values("another", (tiny.VOCAB, 128)))
    folder = changed(
        checkpoint("e2b"), tmp_path / "s", lambda t: t.update({"lm_head.weight": other})
    )
    path = export(folder, tmp_path / "out", "float")
    assert np.array_equal(stored(path, "lm_head.weight", np.uint16), other.reshape(-1))


def test_a_text_only_checkpoint_exports_without_ears(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    def text_only(found: dict[str, Any]) -> None:
        text = {k.replace(LANGUAGE, "model"): v for k, v in found.items() if LANGUAGE in k}
        found.clear()
        found.update(text)

    folder = changed(checkpoint("e2b"), tmp_path / "s", text_only)
    text = tiny.config("e2b")["text_config"] | {"architectures": ["Gemma4ForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(text))
    path = export(folder, tmp_path / "out", "float")
    assert not (path / "audio_encoder.onnx").exists()
    assert Package.open(path, verify=True).config.audio is None


def test_clip_bounds_may_be_infinite_or_absent(checkpoint: Checkpoints, tmp_path: Path) -> None:
    module = "model.audio_tower.layers.0.self_attn.q_proj"
    other = "model.audio_tower.layers.0.self_attn.k_proj"

    def change(found: dict[str, Any]) -> None:
        found[f"{module}.output_max"] = np.array(np.inf, np.float32)
        for bound in ("input_min", "input_max", "output_min", "output_max"):
            del found[f"{other}.{bound}"]

    path = export(changed(checkpoint("e2b"), tmp_path / "s", change), tmp_path / "out", "float")
    clip = stored(path, f"{module}.clip", np.float32)
    assert clip[3] == np.float32(UNCLIPPED)
    assert np.all(np.abs(clip[:3]) < 4)
    assert np.all(np.abs(stored(path, f"{other}.clip", np.float32)) == np.float32(UNCLIPPED))


def test_clip_bounds_are_off_where_the_config_does_not_clip(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint("e2b"), tmp_path / "s")
    with_config(folder, lambda raw: raw["audio_config"].update(use_clipped_linears=False))
    with pipeline.opened(folder, "float") as weights:
        clip = weights.linear("model.audio_tower.layers.0.self_attn.q_proj").clip
    assert clip is not None
    assert clip.tolist() == [-UNCLIPPED, UNCLIPPED] * 2


def test_unknown_tensors_are_named_and_left_out(
    checkpoint: Checkpoints, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"{LANGUAGE}.layers.0.surprise.weight"
    extra = {name: np.zeros(4, np.float32), "model.vision_tower.x.weight": np.zeros(4, np.float32)}
    folder = changed(checkpoint("e2b"), tmp_path / "s", lambda t: t.update(extra))
    with caplog.at_level(logging.WARNING):
        export(folder, tmp_path / "out", "float")
    assert [r.getMessage().split(": ")[1] for r in caplog.records] == [
        f"tensor {name} is not known; not exported"
    ]


def test_the_same_source_gives_the_same_bytes(checkpoint: Checkpoints, tmp_path: Path) -> None:
    one, other = (export(checkpoint("e2b"), tmp_path / n, "mobile") for n in ("one", "other"))
    assert Package.open(one).manifest["files"] == Package.open(other).manifest["files"]


def test_report_covers_every_matrix_once(package: Exporter) -> None:
    report = json.loads((package("e2b", "mobile") / "quantization.json").read_text())
    names = [row["tensor"] for row in report["tensors"]]
    assert len(names) == len(set(names))
    linears = [row for row in report["tensors"] if ".self_attn.q_proj" in row["tensor"]]
    assert len(linears) == 13
    assert all(0 < row["relative_error"] < 1 for row in report["tensors"] if row["bits"] < 16)
    assert all(row["relative_error"] == 0 for row in report["tensors"] if row["bits"] >= 16)


def test_copied_codes_are_reported_as_exact(package: Exporter) -> None:
    report = json.loads((package("e2b-qat-mobile", "qat-mobile") / "quantization.json").read_text())
    assert all(row["relative_error"] == 0 for row in report["tensors"])


def test_prompts_of_the_checkpoint_win(checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = changed(checkpoint("e2b"), tmp_path / "s", lambda t: None)
    own = {"prompts": {"transcribe": "Write down:", "translate": "Say in German:"}}
    (folder / "edgegemma.json").write_text(json.dumps(own))
    assert Package.open(export(folder, tmp_path / "out", "float")).prompts == own["prompts"]


def test_a_template_inside_the_tokenizer_config_becomes_a_file(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    folder = changed(checkpoint("e2b"), tmp_path / "s", lambda t: None)
    (folder / "chat_template.jinja").unlink()
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": "{{ yes }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    path = export(folder, tmp_path / "out", "float")
    assert (path / "chat_template.jinja").read_text() == "{{ yes }}"


def test_only_the_default_of_a_list_of_templates_matters() -> None:
    named = [{"name": ["odd"]}, "odd", {"name": "default", "template": "{{ yes }}"}]
    assert pipeline._embedded_template({"chat_template": named}) == "{{ yes }}"


def test_progress_ends_at_the_total(checkpoint: Checkpoints, tmp_path: Path) -> None:
    heard: dict[str, tuple[int, int]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        heard[stage] = done, total

    export(checkpoint("e2b"), tmp_path / "out", "float", progress=progress)
    assert list(heard) == ["weights", "comparing with the source", "checksums"]
    assert all(done == total > 0 for done, total in heard.values())


def test_weights_are_read_in_chunks_of_rows(checkpoint: Checkpoints) -> None:
    sizes: list[int] = []
    with pipeline.opened(checkpoint("e2b"), "q4", advance=sizes.append) as weights:
        assert isinstance(weights, Weights)
        for chunk, scale in weights.table(f"{LANGUAGE}.embed_tokens_per_layer").chunks:
            assert chunk.shape[1] * 2 == scale.shape[1] * 32
    assert sum(sizes) == tiny.VOCAB * 320 * 2
