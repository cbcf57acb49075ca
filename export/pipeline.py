"""Checkpoint in, package out, or nothing at all.

A package is written into ``.NAME.partial`` beside its final place and renamed at the end; whatever goes
wrong on the way, Ctrl-C and a full disk included, that folder is removed. The manifest is written
last, so that even a folder left by a power cut is not taken for a package.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgegemma.config import ModelConfig
from edgegemma.engine.dimensions import check_config
from edgegemma.errors import CheckpointError, InputError, PackageError
from export.audio import build_audio_encoder
from export.checkpoint import Checkpoint
from export.configuration import parse, source_quantized
from export.decoder import build_decoder
from export.embed import build_embed
from export.huggingface import Folder, fetch, read_json
from export.readback import compare
from export.source import Matrix
from export.weights import Advance, Weights
from quant.policy import check_name, preset

Progress = Callable[[str, int, int], None]
"""Called with a stage ("weights", "checksums", …), bytes done and bytes in all."""

FORMAT = "edgegemma"
FORMAT_VERSION = FUNCTION_VERSION = 1
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)
SLACK_BYTES = 64 << 20
"""Room for the graphs, small tensors and copied files when the disk space is estimated."""
REPORT_SECONDS = 0.1

# The speech prompt of the model card, for a language that is not known.
TRANSCRIBE = (
    "Transcribe the following speech segment in its original language.\n\n"
    "Follow these specific instructions for formatting the answer:\n"
    "*   Only output the transcription, with no newlines.\n"
    "*   When transcribing numbers, write the digits, i.e. write 1.7 and not one point seven, "
    "and write 3 instead of three."
)

log = logging.getLogger(__name__)


def export(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    preset_name: str | None = None,
    revision: str | None = None,
    audio_window: int | None = None,
    progress: Progress = lambda *_: None,
    inspect: Callable[[Path], object] = lambda _: None,
) -> Path:
    """Export a checkpoint to a package.

    Parameters
    ----------
    source : str or path
        A folder, or ``owner/name`` on the hub.
    out : str or path
        The package's folder, which must not exist.
    preset_name : str, optional
        One of `quant.policy.PRESETS`. By default the source's own codes, or "mobile".
    revision : str, optional
        Branch, tag or commit on the hub; the manifest records the commit.
    audio_window : int, optional
        Keys an audio query sees; see `export.configuration.parse`.
    progress : callable
        See `Progress`.
    inspect : callable
        Gets the finished folder before it is renamed; if it raises, there is no package.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    InputError
        ``out`` exists, the disk is too small, the preset does not fit the source, the hub says no.
    CheckpointError
        The checkpoint is not what its config says.
    """
    out = Path(out)
    refuse_existing(out)
    check_name(preset_name)
    folder = fetch(source, revision)
    _check_tokenizer(folder.path / "tokenizer.json")
    meter = _Throttle(progress, "weights")
    with opened(folder.path, preset_name, audio_window, meter.advance) as weights:
        for name in weights.unexpected:
            log.warning("%s: tensor %s is not known; not exported", folder.path, name)
        with _partial(out) as partial:
            _check_room(out, weights.matrices().values())
            meter.total = weights.source_bytes()
            _build(weights, partial)
            meter.finish()
            report = json.dumps(weights.report.to_json(), indent=1)
            (partial / "quantization.json").write_text(report + "\n", "utf-8")
            _read_back(partial, weights, progress)
            _copy(folder.path, partial)
            _seal(partial, _manifest(folder, weights), progress)
            inspect(partial)
    return out


@contextmanager
def opened(
    path: Path,
    preset_name: str | None = None,
    audio_window: int | None = None,
    advance: Advance = lambda _: None,
) -> Iterator[Weights]:
    """Open the weights of a checkpoint's folder under a preset, all names and shapes checked."""
    raw = read_json(path / "config.json")
    config = parse(raw, _optional_json(path / "generation_config.json"), audio_window)
    _check_sizes(config)
    chosen = preset(preset_name, config.text, source_quantized(raw))
    with Checkpoint.open(path) as checkpoint:
        yield Weights(checkpoint, config, chosen, _tied(raw), _clipped(raw), advance)


def _check_sizes(config: ModelConfig) -> None:
    """Refuse now what would make a package that does not open."""
    try:
        check_config(config)
    except PackageError as error:
        field = str(error).removeprefix("manifest.json: config.")
        raise CheckpointError(f"config.json: {field}") from error


def refuse_existing(out: Path) -> None:
    """Refuse a place for a package that is taken, or whose folder does not exist."""
    if out.exists() or out.is_symlink():
        raise InputError(f"{out}: exists already; choose another place or remove it")
    if not out.parent.is_dir():
        raise InputError(f"{out}: the folder {out.parent} does not exist")


@contextmanager
def _partial(out: Path) -> Iterator[Path]:
    """Give a folder that becomes ``out`` if the block succeeds and vanishes if it does not."""
    partial = out.parent / f".{out.name}.partial"
    try:
        partial.mkdir()
    except FileExistsError:
        raise InputError(
            f"{partial}: exists; another export is running, or one was killed and you may remove it"
        ) from None
    except OSError as error:
        raise InputError(f"{partial}: cannot be made: {error.strerror}") from error
    try:
        yield partial
        refuse_existing(out)
        partial.rename(out)
    except BaseException as error:
        # A second Ctrl-C while removing is the user's wish.
        shutil.rmtree(partial, ignore_errors=True)
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if isinstance(error, OSError) and error.errno in full:
            raise InputError(f"{out}: no room to write the package: {error.strerror}") from error
        raise
    _sync(out.parent)


def _check_room(out: Path, matrices: Iterable[Matrix]) -> None:
    """Refuse an export that cannot fit, before its first byte."""
    need = SLACK_BYTES + sum(
        m.rows * (m.row_bytes + (4 * m.scale_columns if m.block else 0)) for m in matrices
    )
    free = shutil.disk_usage(out.parent).free
    if need > free:
        raise InputError(f"{out.parent}: {free:,} bytes free; the package needs about {need:,}")


def _build(weights: Weights, partial: Path) -> None:
    build_embed(weights.config, weights, partial)
    build_decoder(weights.config, weights, partial)
    if weights.config.audio is not None:
        build_audio_encoder(weights.config, weights, partial)


def _read_back(partial: Path, weights: Weights, progress: Progress) -> None:
    """Compare what was written with the source, where nothing was rounded."""
    if weights.preset.method == "rtn":
        return
    meter = _Throttle(progress, "comparing with the source", weights.source_bytes())
    compare(partial, weights.again(meter.advance))
    meter.finish()


def _check_tokenizer(path: Path) -> None:
    """Refuse at once what cannot be a tokenizer; `export.verify` opens what can."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    with path.open("rb") as file:
        start = file.read(40).lstrip()
    if not start.startswith(b"{"):
        raise CheckpointError(
            f"{path}: got {start.decode('utf-8', 'replace')!r}; want a JSON object; "
            "if it is a git-lfs pointer, download the file itself"
        )


def _copy(source: Path, partial: Path) -> None:
    """Copy what the tokenizer and the prompt need."""
    for name in COPIED:
        if (source / name).exists():
            shutil.copyfile(source / name, partial / name)
    template = partial / "chat_template.jinja"
    if not template.exists():
        text = _embedded_template(_optional_json(source / "tokenizer_config.json") or {})
        if text is None:
            log.warning("%s: no chat template; the package can only continue text", source)
        else:
            template.write_text(text, "utf-8")


def _embedded_template(tokenizer: dict[str, Any]) -> str | None:
    """Give the template inside ``tokenizer_config.json``: a string, or the default of a named list."""
    found = tokenizer.get("chat_template")
    if isinstance(found, list):
        named = (t for t in found if isinstance(t, dict) and t.get("name") == "default")
        found = next(named, {}).get("template")
    return found if isinstance(found, str) else None


def _manifest(folder: Folder, weights: Weights) -> dict[str, Any]:
    own = (_optional_json(folder.path / "edgegemma.json") or {}).get("prompts", {})
    if not isinstance(own, dict) or not all(isinstance(v, str) for v in own.values()):
        raise CheckpointError(
            f"{folder.path / 'edgegemma.json'}: prompts: want an object of strings"
        )
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "function_version": FUNCTION_VERSION,
        "name": folder.id.rpartition("/")[2],
        "preset": weights.preset.name,
        "source": {"id": folder.id, "revision": folder.revision},
        "config": weights.config.to_json(),
        "prompts": {"transcribe": TRANSCRIBE} | own,
    }


def _seal(partial: Path, manifest: dict[str, Any], progress: Progress) -> None:
    """Bring everything to the disk, then write the manifest with sizes and checksums."""
    files = sorted(partial.iterdir())
    meter = _Throttle(progress, "checksums", sum(path.stat().st_size for path in files))
    manifest["files"] = {
        path.name: {"size": path.stat().st_size, "sha256": _digest(path, meter)} for path in files
    }
    meter.finish()
    path = partial / "manifest.json"
    path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")
    _sync(path)
    _sync(partial)


def _digest(path: Path, meter: _Throttle) -> str:
    """Flush a file to the disk and hash what is there."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        os.fsync(file.fileno())
        while block := file.read(1 << 22):
            digest.update(block)
            meter.advance(len(block))
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _tied(raw: dict[str, Any]) -> bool:
    """Whether the config ties the head to the embedding; transformers' default is that it does."""
    text = raw.get("text_config")
    inner = text.get("tie_word_embeddings", True) if isinstance(text, dict) else True
    return bool(raw.get("tie_word_embeddings", inner))


def _clipped(raw: dict[str, Any]) -> bool:
    """Whether the config clips the audio tower's linears; transformers' default is that it does."""
    audio = raw.get("audio_config")
    return bool(audio.get("use_clipped_linears", True)) if isinstance(audio, dict) else True


def _optional_json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None


class _Throttle:
    """Adds up bytes and passes them on a few times a second."""

    def __init__(self, progress: Progress, stage: str, total: int = 0) -> None:
        self._progress, self._stage = progress, stage
        self.total, self._done, self._last = total, 0, 0.0

    def advance(self, size: int) -> None:
        self._done += size
        if time.monotonic() - self._last >= REPORT_SECONDS:
            self._last = time.monotonic()
            self._progress(self._stage, self._done, self.total)

    def finish(self) -> None:
        self._progress(self._stage, self.total, self.total)
