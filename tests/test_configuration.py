"""Configs and downloads of checkpoints: every spelling read, the rest refused by name."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors

from edgegemma.errors import CheckpointError, InputError
from export import huggingface
from export.configuration import parse, source_quantized
from tests import tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("variant", tiny.VARIANTS)
def test_a_config_saved_again_is_the_same_model(variant: str) -> None:
    raw = tiny.config(variant)
    again = copy.deepcopy(raw)
    text = again["text_config"]
    full = [i for i, kind in enumerate(text["layer_types"]) if kind == tiny.F]
    wide = {"head_dim": text.pop("global_head_dim")}
    if heads := text.pop("num_global_key_value_heads"):
        wide["num_key_value_heads"] = heads
    text["per_layer_config"] = {f"{i:02}": dict(wide) for i in full}
    again["transformers_version"] = "5.23.0"
    del again["eoa_token_index"]
    assert parse(again) == parse(raw)


def test_a_config_by_layer_type_is_read() -> None:
    raw = tiny.config("e2b")
    raw["text_config"]["per_layer_config"] = {tiny.F: {"head_dim": 64, "num_key_value_heads": 2}}
    assert parse(raw).text.num_global_key_value_heads == 2


def test_the_larger_models_are_read() -> None:
    moe, dense = (parse(tiny.config(variant)).text for variant in ("moe", "dense"))
    assert (moe.num_experts, moe.top_k_experts, moe.moe_intermediate_size) == (16, 4, 64)
    assert dense.num_experts == moe.hidden_size_per_layer_input == 0
    assert [dense.values_of_keys(i) for i in range(6)] == [False] * 5 + [True]
    assert (dense.heads_of(0), dense.heads_of(5)) == ((2, 32), (1, 64))
    assert not parse(tiny.config("e2b")).text.values_of_keys(4)


def test_more_experts_than_there_are_cannot_be_chosen() -> None:
    raw = tiny.config("moe")
    raw["text_config"]["top_k_experts"] = 17
    with pytest.raises(CheckpointError, match="top_k_experts: got 17 of 16"):
        parse(raw)


def test_a_text_only_config_has_no_audio() -> None:
    raw = tiny.config("e2b")
    text = raw["text_config"] | {"architectures": ["Gemma4ForCausalLM"]}
    assert parse(text).text == parse(raw).text
    assert parse(text).audio is None
    assert parse(text).tokens.audio is None


def test_generation_config_says_what_stops() -> None:
    raw = tiny.config("e2b")
    assert parse(raw).tokens.eos == (1, 106, 50)
    assert parse(raw, {"eos_token_id": [1, 7]}).tokens.eos == (1, 7)
    assert parse(raw, {"eos_token_id": 3}).tokens.eos == (3,)


@pytest.mark.parametrize("spelling", ["eoa_token_id", "eoa_token_index"])
def test_either_spelling_of_the_end_of_audio_is_read(spelling: str) -> None:
    raw = {k: v for k, v in tiny.config("e2b").items() if not k.startswith("eoa")}
    assert parse(raw | {spelling: 505}).tokens.eoa == 505


@pytest.mark.parametrize(("window", "keys"), [(None, 12), (12, 12), (13, 13)])
def test_audio_window_is_a_choice(window: int | None, keys: int) -> None:
    audio = parse(tiny.config("e2b"), audio_window=window).audio
    assert audio is not None
    assert audio.window == keys


def test_other_audio_windows_are_refused() -> None:
    with pytest.raises(InputError, match=r"got 14; want 12 \(transformers\) or 13 \(JAX\)"):
        parse(tiny.config("e2b"), audio_window=14)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (
            None,
            {"architectures": ["LlamaForCausalLM"]},
            "architecture LlamaForCausalLM: want Gemma4",
        ),
        (
            None,
            {"architectures": ["Gemma4UnifiedForConditionalGeneration"]},
            "12B.*not supported yet",
        ),
        (None, {"architectures": ["Gemma4AssistantForCausalLM"]}, "drafter.*not supported yet"),
        (None, {"architectures": None, "model_type": "gemma3"}, "architecture gemma3"),
        (None, {"text_config": None}, "text_config: got NoneType; want an object"),
        (None, {"eoa_token_id": None, "eoa_token_index": None}, "eoa_token_id is missing"),
        (None, {"eos_token_id": []}, "eos_token_id"),
        ("text_config", {"enable_moe_block": True}, "experts beside per-layer inputs are not"),
        ("text_config", {"attention_k_eq_v": True}, "values made of keys beside per-layer inputs"),
        ("text_config", {"use_bidirectional_attention": "all"}, "got 'all'; only None is"),
        ("text_config", {"hidden_size_per_layer_input": 0}, "shared K/V without per-layer inputs"),
        (
            "text_config",
            {"hidden_size": None},
            "text_config: hidden_size: got None; want an integer",
        ),
        ("text_config", {"hidden_size": "128"}, "hidden_size: got '128'"),
        ("text_config", {"hidden_size": True}, "hidden_size: got True"),
        ("text_config", {"num_attention_heads": -4}, "num_attention_heads: got -4"),
        ("text_config", {"num_key_value_heads": 3}, "4 query heads do not divide into 3"),
        ("text_config", {"layer_types": ["x"] * 10}, "layer_types: want 10 entries"),
        ("text_config", {"layer_types": [tiny.S] * 9}, "layer_types: want 10 entries"),
        ("text_config", {"layer_types": [[tiny.S]] * 10}, "layer_types: want 10 entries"),
        ("text_config", {"num_kv_shared_layers": 6}, "no layer of the same type owns K/V"),
        ("text_config", {"num_kv_shared_layers": 10}, "num_kv_shared_layers: got 10 of 10"),
        ("text_config", {"rms_norm_eps": 0}, "rms_norm_eps: got 0; want a positive number"),
        ("text_config", {"rope_parameters": {}}, "rope_parameters: sliding_attention"),
        ("text_config", {"hidden_activation": "silu"}, "only 'gelu_pytorch_tanh' is supported"),
        ("audio_config", {"attention_context_right": 2}, "attention_context_right: got 2"),
        ("audio_config", {"num_attention_heads": 3}, "hidden_size 64 does not divide into 3"),
        ("audio_config", {"subsampling_conv_channels": [1]}, "want two"),
        ("audio_config", {"subsampling_conv_channels": [128.9, 32]}, "want two positive integers"),
        ("audio_config", {"subsampling_conv_channels": [128, "32"]}, "want two positive integers"),
        ("audio_config", {"subsampling_conv_channels": [128, 0]}, "want two positive integers"),
        ("audio_config", {"use_clipped_linears": "no"}, "use_clipped_linears: got 'no'"),
    ],
)
def test_a_config_that_cannot_run_is_refused(
    section: str | None, change: dict[str, Any], message: str
) -> None:
    raw = tiny.config("e2b")
    (raw if section is None else raw[section]).update(change)
    with pytest.raises(CheckpointError, match=message):
        parse(raw)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("factor", 8.0, "full_attention: factor: got 8.0; only 1 is supported"),
        ("partial_rotary_factor", 1.5, "partial_rotary_factor: got 1.5; .* at most 1$"),
    ],
)
def test_rotary_positions_that_cannot_be_run_are_refused(
    field: str, value: float, message: str
) -> None:
    raw = tiny.config("e2b")
    raw["text_config"]["rope_parameters"][tiny.F][field] = value
    with pytest.raises(CheckpointError, match=message):
        parse(raw)


def test_foreign_quantization_is_refused_by_name() -> None:
    assert source_quantized(tiny.config("e2b-qat-mobile"))
    assert not source_quantized(tiny.config("e2b"))
    with pytest.raises(CheckpointError, match="quant_method 'compressed-tensors': not supported"):
        source_quantized({"quantization_config": {"quant_method": "compressed-tensors"}})


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    found = huggingface.fetch(tmp_path)
    assert (found.path, found.id, found.revision) == (tmp_path, tmp_path.name, "local")
    with pytest.raises(InputError, match="a revision needs a repository"):
        huggingface.fetch(tmp_path, "main")


def test_a_folder_of_the_hubs_cache_knows_its_commit(tmp_path: Path) -> None:
    path = tmp_path / "models--google--gemma-4-E2B" / "snapshots" / COMMIT
    path.mkdir(parents=True)
    found = huggingface.fetch(path)
    assert (found.id, found.revision) == ("google/gemma-4-E2B", COMMIT)


@pytest.mark.parametrize("source", ["no-such-folder", "a/b/c", "../gemma", "google/gemma 4"])
def test_what_is_neither_folder_nor_repository_is_refused(source: str) -> None:
    with pytest.raises(InputError, match="not a folder with a checkpoint, nor owner/name"):
        huggingface.fetch(source)


def test_a_download_is_pinned_to_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def download(name: str, **options: Any) -> object:
        asked.append(options)
        return [] if options.get("dry_run") else str(tmp_path / "snapshots" / COMMIT)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = huggingface.fetch("google/gemma-4-E2B", "main")
    assert (found.id, found.revision) == ("google/gemma-4-E2B", COMMIT)
    assert asked[-1]["revision"] == "main"
    assert "*.safetensors" in asked[-1]["allow_patterns"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            hub_errors.LocalEntryNotFoundError("x"),
            "not in the cache, and the hub cannot be reached",
        ),
        (hub_errors.OfflineModeIsEnabled("x"), "HF_HUB_OFFLINE"),
        (ConnectionError("refused"), r"the download failed \(refused\); run it again to resume"),
        (RuntimeError("Data processing error"), "the download failed .Data processing error.; run"),
    ],
)
def test_hub_errors_are_one_clear_line(
    error: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(name: str, **options: Any) -> object:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(InputError, match=message) as caught:
        huggingface.fetch("google/gemma-4-E2B")
    assert "\n" not in str(caught.value)


def test_a_download_that_does_not_fit_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = SimpleNamespace(file_size=1 << 62, will_download=True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: [plan])
    with pytest.raises(InputError, match=r"bytes free; google/gemma-4-E2B needs .* set HF_HOME$"):
        huggingface.fetch("google/gemma-4-E2B")


def test_offline_takes_nothing_from_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="google/gemma-4-E2B: not in the cache"):
        huggingface.fetch("google/gemma-4-E2B")
