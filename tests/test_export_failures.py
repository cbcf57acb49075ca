"""An export that fails, for whatever reason, leaves nothing that looks like a package."""

from __future__ import annotations

import errno
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from edgegemma.cli import app
from edgegemma.errors import CheckpointError, EdgeGemmaError, InputError
from export import huggingface, pipeline
from export.pipeline import export
from tests.test_export import changed, with_config

LANGUAGE = "model.language_model"
LAYER = f"{LANGUAGE}.layers.3.self_attn"
Checkpoints = Callable[[str], Path]


def test_a_missing_untied_head_is_named(checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = changed(checkpoint("e2b"), tmp_path / "s", lambda t: None)
    with_config(folder, lambda raw: raw.update(tie_word_embeddings=False))
    with pytest.raises(CheckpointError, match=r"tensor lm_head\.weight \[512, 128\] is missing"):
        export(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("model.audio_tower.layers.0.self_attn.q_proj.input_min"),
            "q_proj.input_min is missing",
        ),
        (
            lambda t: t[f"{LANGUAGE}.layers.2.mlp.up_proj.weight"].__setitem__((3, 5), 0x7FC0),
            r"layers\.2\.mlp\.up_proj\.weight: nan at row 3, column 5",
        ),
        (
            lambda t: t[f"{LANGUAGE}.norm.weight"].__setitem__(5, 0x7F80),
            r"norm\.weight: inf at row 5",
        ),
        (
            lambda t: t.update({f"{LAYER}.k_cache_scale": np.array(-0.5, np.float32)}),
            r"k_cache_scale, v_cache_scale: got \[-0\.5, 0\.0\]; want none below 0",
        ),
        (
            lambda t: t.update({f"{LAYER}.v_cache_scale": np.array(np.nan, np.float32)}),
            r"v_cache_scale: nan at row 0",
        ),
    ],
)
def test_a_bad_tensor_stops_the_export_and_leaves_nothing(
    checkpoint: Checkpoints,
    tmp_path: Path,
    change: Callable[[dict[str, Any]], object],
    message: str,
) -> None:
    folder = changed(checkpoint("e2b"), tmp_path / "s", change)
    with pytest.raises(CheckpointError, match=message):
        export(folder, tmp_path / "out", "mobile")
    assert [p.name for p in tmp_path.iterdir()] == ["s"]


def test_codes_are_not_rounded_again_where_the_config_does_not_tell_of_them(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint("e2b-qat-mobile"), tmp_path / "s")
    with_config(folder, lambda raw: raw.pop("quantization_config"))
    with pytest.raises(CheckpointError, match=r"got codes, but config\.json has no quantization_c"):
        export(folder, tmp_path / "out", "q8")


def test_a_size_no_package_may_have_is_refused_before_the_weights_are_looked_at(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint("e2b"), tmp_path / "s")
    with_config(folder, lambda raw: raw["text_config"].update(max_position_embeddings=1 << 25))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"^config\.json: text\.max_position_embeddings: got"):
        export(folder, tmp_path / "out")


def test_a_pointer_in_place_of_the_tokenizer_is_refused_before_the_weights_are_looked_at(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint("e2b"), tmp_path / "s")
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: got 'version .*git-lfs pointer"):
        export(folder, tmp_path / "out")


def test_a_missing_tokenizer_is_named(checkpoint: Checkpoints, tmp_path: Path) -> None:
    folder = changed(checkpoint("e2b"), tmp_path / "s", lambda t: None)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: missing"):
        export(folder, tmp_path / "out")


def test_an_existing_place_is_not_touched(checkpoint: Checkpoints, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        export(checkpoint("e2b"), out)
    assert (out / "precious").read_text() == "mine"


def test_a_place_without_parent_is_refused(checkpoint: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        export(checkpoint("e2b"), tmp_path / "no" / "out")


def test_two_exports_to_one_place_do_not_mix(checkpoint: Checkpoints, tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    with pytest.raises(InputError, match="another export is running"):
        export(checkpoint("e2b"), tmp_path / "out")
    assert (tmp_path / ".out.partial").exists()


def test_a_success_leaves_the_next_export_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def rename_and_begin_another(self: Path, target: Path) -> None:
        rename(self, target)
        self.mkdir()

    monkeypatch.setattr(Path, "rename", rename_and_begin_another)
    with pipeline._partial(tmp_path / "out"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [".out.partial", "out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "."], "exists already"),
        (["--out", "no/out"], "the folder no does not exist"),
        (["--out", "new", "--preset", "q5"], "preset 'q5': want one of"),
    ],
)
def test_the_command_line_refuses_what_cannot_work_before_a_download(
    monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    def fetch(*_: object) -> object:
        raise AssertionError("a download")

    monkeypatch.setattr(huggingface, "fetch", fetch)
    result = CliRunner().invoke(app.app, ["export", "google/gemma-4-E2B", *options])
    assert message in result.stderr


def test_a_small_disk_is_refused_before_the_first_byte(
    checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"1,000 bytes free; the package needs about \d"):
        export(checkpoint("e2b"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


STAGES = ("embed", "decoder", "audio", "copy", "seal", "inspect")


def fail_at(monkeypatch: pytest.MonkeyPatch, stage: str, error: BaseException) -> dict[str, Any]:
    """Arrange for a failure after a stage of the pipeline; give export's extra arguments."""
    places = {
        "embed": "build_embed", "decoder": "build_decoder", "audio": "build_audio_encoder",
        "copy": "_copy", "seal": "_seal",
    }  # fmt: skip

    def after(*arguments: Any) -> None:
        original(*arguments)
        raise error

    if stage == "inspect":
        original: Callable[..., object] = lambda _: None  # noqa: E731
        return {"inspect": after}
    original = getattr(pipeline, places[stage])
    monkeypatch.setattr(pipeline, places[stage], after)
    return {}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (RuntimeError("a bug"), RuntimeError),
        (OSError(errno.ENOSPC, "No space left on device"), InputError),
    ],
)
def test_a_failure_at_any_stage_leaves_nothing(
    checkpoint: Checkpoints,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    error: BaseException,
    raised: type[BaseException],
) -> None:
    extra = fail_at(monkeypatch, stage, error)
    with pytest.raises(raised):
        export(checkpoint("e2b"), tmp_path / "out", "float", **extra)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", [1, 40, 150])
def test_ctrl_c_in_the_middle_of_a_tensor_leaves_nothing(
    checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    calls = 0

    def interrupted(self: object, size: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt

    monkeypatch.setattr(pipeline._Throttle, "advance", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export(checkpoint("e2b"), tmp_path / "out", "float")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [1000, 300_000])
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(
    checkpoint: Checkpoints, tmp_path: Path, limit: int
) -> None:
    folder = checkpoint("e2b")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(InputError, match="no room to write the package"):
            export(folder, tmp_path / "out", "float")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_noise_in_any_small_file_is_refused_in_our_words(
    checkpoint: Checkpoints, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for name in ("config.json", "generation_config.json", "model.safetensors", "edgegemma.json"):
        folder = shutil.copytree(checkpoint("e2b"), tmp_path / name)
        (folder / name).write_bytes(rng.bytes(100))
        with pytest.raises(EdgeGemmaError, match=name.replace(".", r"\.")):
            export(folder, tmp_path / "out")
    assert not any(p.name.endswith(("out", ".partial")) for p in tmp_path.iterdir())
