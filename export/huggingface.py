"""Where a checkpoint comes from: a folder, or a repository of the hub, downloaded and pinned."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from edgegemma.errors import CheckpointError, InputError

PATTERNS = (
    "*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "edgegemma.json",
)  # fmt: skip

_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Folder:
    """A checkpoint on disk and where it came from."""

    path: Path
    id: str
    revision: str


def fetch(source: str | os.PathLike[str], revision: str | None = None) -> Folder:
    """Give the folder of a checkpoint, downloading it if ``source`` names a repository of the hub.

    A download goes to the hub's cache, resumes where it stopped, and is pinned: ``revision`` of the
    result is the commit. ``HF_HUB_OFFLINE=1`` takes what the cache has.

    Raises
    ------
    InputError
        ``source`` is neither a folder nor a repository, or the hub cannot give it.
    """
    path = Path(source)
    if path.is_dir():
        return _local(path, revision)
    name = os.fspath(source)
    if not is_repository(name):
        raise InputError(f"{name}: not a folder with a checkpoint, nor owner/name of a repository")
    found = Path(_download(name, revision))
    if not _COMMIT.fullmatch(found.name):
        raise InputError(f"{name}: the hub's cache gave {found}; want a folder named by a commit")
    return Folder(found, name, found.name)


def is_repository(source: str) -> bool:
    """Whether this would be looked up on the hub."""
    return bool(_REPOSITORY.fullmatch(source)) and not Path(source).exists()


def _local(path: Path, revision: str | None) -> Folder:
    if revision is not None:
        raise InputError(f"{path}: a revision needs a repository of the hub; this is a folder")
    real = path.resolve()
    owner = re.fullmatch(r"models--(.+?)--(.+)", real.parent.parent.name)
    if real.parent.name == "snapshots" and owner:  # a folder of the hub's own cache
        return Folder(path, f"{owner[1]}/{owner[2]}", real.name)
    return Folder(path, real.name, "local")


def _download(name: str, revision: str | None) -> str:
    options: dict[str, Any] = {"revision": revision, "allow_patterns": list(PATTERNS)}
    try:
        _check_room(name, options)
        return str(huggingface_hub.snapshot_download(name, **options))
    except InputError:  # no room
        raise
    except hub_errors.GatedRepoError as error:
        raise InputError(
            f"{name}: access is gated; accept the licence on its page, then `hf auth login`"
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise InputError(f"{name}: no revision {revision!r}") from error
    except hub_errors.RepositoryNotFoundError as error:
        raise InputError(f"{name}: no such repository on the hub, or it is private") from error
    except (hub_errors.LocalEntryNotFoundError, hub_errors.OfflineModeIsEnabled) as error:
        reason = f" ({_first_line(error.__cause__)})" if error.__cause__ else ""
        raise InputError(
            f"{name}: not in the cache, and the hub cannot be reached{reason}; "
            "check the network and HF_HUB_OFFLINE"
        ) from error
    except Exception as error:  # also httpx's and hf_xet's own, when a connection breaks
        raise InputError(
            f"{name}: the download failed ({_first_line(error)}); run it again to resume"
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _check_room(name: str, options: dict[str, Any]) -> None:
    """Refuse a download that cannot fit, before its first byte."""
    if constants.HF_HUB_OFFLINE:
        return
    silent = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        plan = huggingface_hub.snapshot_download(name, dry_run=True, **options)
    except Exception:
        return  # without a network the cache may still have it; the download itself tells
    finally:
        if not silent:
            enable_progress_bars()
    need = sum(f.file_size for f in plan if not isinstance(f, str) and f.will_download)
    cache = Path(constants.HF_HUB_CACHE)
    while not cache.exists():
        cache = cache.parent
    free = shutil.disk_usage(cache).free
    if need > free:
        raise InputError(f"{cache}: {free:,} bytes free; {name} needs {need:,} more; set HF_HOME")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint; raise `CheckpointError` naming the file."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: got {type(data).__name__}; want an object")
    return data
