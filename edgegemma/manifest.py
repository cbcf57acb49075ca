"""``manifest.json``: what a package says it is, decoded and checked.

The folder is untrusted: the manifest is small, plain JSON of known types, and a file is looked at only once its name is
found safe.
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from edgegemma.config import ModelConfig
from edgegemma.errors import PackageError, UnsupportedError

MANIFEST = "manifest.json"
MANIFEST_LIMIT_BYTES = 4 << 20
FILES_LIMIT = 1024
_VERSIONS = {"format": "edgegemma", "format_version": 1, "function_version": 1}
_NAME = re.compile(r"[\w.+-]+(/[\w.+-]+)*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Member:
    """A file of a package, as the manifest lists it."""

    path: Path
    size: int
    sha256: str


def read(path: Path) -> dict[str, Any]:
    """Decode ``manifest.json`` and check what kind and version of package it announces."""
    if not path.is_file():
        raise PackageError(f"{path.parent}: no {MANIFEST} in it; want the folder of a package")
    if (size := path.stat().st_size) > MANIFEST_LIMIT_BYTES:
        raise PackageError(f"{MANIFEST}: got {size} bytes; want at most {MANIFEST_LIMIT_BYTES}")
    try:
        with path.open("rb") as file:
            data = json.loads(file.read(MANIFEST_LIMIT_BYTES + 1), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{MANIFEST}: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise PackageError(f"{MANIFEST}: got {type(data).__name__}; want an object")
    for key, want in _VERSIONS.items():
        got = data.get(key)
        if got != want or isinstance(got, bool):
            raise UnsupportedError(f"{MANIFEST}: {key}: got {_short(got)}; want {want!r}")
    return data


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def listed(manifest: dict[str, Any]) -> list[tuple[str, object]]:
    """List the names of the files, and what the manifest says of each, not checked yet."""
    files = manifest.get("files")
    if not isinstance(files, dict) or not 0 < len(files) <= FILES_LIMIT:
        raise PackageError(f"{MANIFEST}: files: want an object of 1 to {FILES_LIMIT} files")
    return list(files.items())


def member(folder: Path, name: str, entry: object) -> Member:
    """Check one entry of ``files`` and the file it stands for."""
    where = f"{MANIFEST}: files: {_short(name)}"
    if not _NAME.fullmatch(name) or {".", ".."} & set(name.split("/")) or len(name) > 255:
        raise PackageError(f"{where}: not a safe relative path")
    if not isinstance(entry, dict):
        raise PackageError(f"{where}: got {_short(entry)}; want size and sha256")
    size, sha256 = entry.get("size"), entry.get("sha256")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise PackageError(f"{where}: size: got {_short(size)}; want bytes")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise PackageError(f"{where}: sha256: got {_short(sha256)}; want 64 hex digits")
    try:
        path = (folder / name).resolve(strict=True)
        found = path.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise PackageError(f"{name}: cannot be opened: {error}; copy the package again") from error
    if not path.is_relative_to(folder):
        raise PackageError(f"{name}: a link out of the package; want a file inside it")
    check_stat(name, found, size)
    return Member(path, size, sha256)


def check_stat(name: str, found: os.stat_result, size: int) -> None:
    """Refuse what is no regular file of the size that the manifest promises."""
    if not stat.S_ISREG(found.st_mode):
        raise PackageError(f"{name}: not a regular file")
    if found.st_size != size:
        raise PackageError(
            f"{name}: got {found.st_size} bytes; want {_short(size)}; copy or export the package again"
        )


def prompts(manifest: dict[str, Any]) -> dict[str, str]:
    """Give the texts that the package asks a model with, by task."""
    found = manifest.get("prompts", {})
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise PackageError(f"{MANIFEST}: prompts: want an object of strings")
    return found


def config(manifest: dict[str, Any]) -> ModelConfig:
    """Read the dimensions of the model."""
    try:
        return ModelConfig.from_json(manifest.get("config"), f"{MANIFEST}: config")
    except OverflowError as error:  # an integer beyond every float
        raise PackageError(f"{MANIFEST}: config: {error}") from error


def _short(value: object) -> str:
    """Show a value of an untrusted file in a line."""
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python will print
        return "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."
