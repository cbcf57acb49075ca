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

from edgegemma.errors import CheckpointError, EdgeGemmaError, InputError
from export import pipeline
from export.pipeline import export
from tests.test_export import changed, with_config

LANGUAGE = "model.language_model"
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
