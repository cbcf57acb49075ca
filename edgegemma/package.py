"""A package on disk: opened, checked, mapped.

The folder is untrusted. Nothing is read before its name is found safe and its size equal to the
manifest's; the manifest itself is small, plain JSON of known types. What the graphs say about the bytes
is checked by `engine.graph`.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import stat
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from edgegemma.config import ModelConfig
from edgegemma.errors import PackageError, UnsupportedError

MANIFEST = "manifest.json"
MANIFEST_LIMIT_BYTES = 4 << 20
FILES_LIMIT = 1024
ROW_CACHE_BYTES = 4 << 20
_VERSIONS = {"format": "edgegemma", "format_version": 1, "function_version": 1}
_NAME = re.compile(r"[\w.+-]+(/[\w.+-]+)*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 1 << 20

U8 = NDArray[np.uint8]
Progress = Callable[[str, int, int], None]  # file, bytes done of the package, bytes in all


@dataclass(frozen=True)
class Member:
    """A file of a package, as the manifest lists it."""

    path: Path
    size: int
    sha256: str


class Package:
    """A checked package folder. Make one with `Package.open`.

    Attributes
    ----------
    path : Path
        The folder, resolved.
    manifest : dict
        Decoded ``manifest.json``.
    config : ModelConfig
    prompts : dict of str
    members : dict of Member
        By name.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self.config = _config(manifest)
        self.prompts = _prompts(manifest)
        self.members = {name: _member(path, name, entry) for name, entry in _listed(manifest)}
        self._maps: dict[str, U8] = {}
        self._mapped: dict[str, mmap.mmap] = {}
        self._rows = _RowCache(ROW_CACHE_BYTES)
        self._descriptors: dict[str, int] = {}
        self._closer = weakref.finalize(self, _close, self._descriptors)

    @classmethod
    def open(cls, path: str | Path, verify: bool = False, progress: Progress | None = None) -> Self:
        """Open a package and check its manifest against the files.

        Parameters
        ----------
        path : str or Path
            The folder.
        verify : bool
            Read every file and compare its sha256 too.
        progress : callable, optional
            Told of the hashing: file name, bytes done, bytes in all.

        Raises
        ------
        PackageError
        """
        try:
            folder = Path(path).resolve()
            package = cls(folder, _read_manifest(folder / MANIFEST))
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            raise PackageError(f"{path}: {error}") from error
        if verify:
            package.verify(progress)
        return package

    def file(self, name: str) -> Path:
        """Give the path of a member; raise `PackageError` if the manifest does not list it."""
        return self._member(name).path

    def read(self, name: str, limit_bytes: int) -> bytes:
        """Read a member whole, if it has at most ``limit_bytes``."""
        size = self._member(name).size
        if size > limit_bytes:
            raise PackageError(f"{name}: got {size} bytes; want at most {limit_bytes}")
        return self._read(name, 0, size)

    def map(self, name: str) -> U8:
        """Map a member into memory, once.

        Returns
        -------
        uint8 [size], read-only
        """
        if name not in self._maps:
            if not self._member(name).size:
                return np.frombuffer(b"", np.uint8)
            try:
                mapped = mmap.mmap(self._descriptor(name), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise PackageError(f"{name}: cannot be mapped: {error}") from error
            self._maps[name], self._mapped[name] = np.frombuffer(mapped, np.uint8), mapped
        return self._maps[name]

    def release(self, name: str | None = None) -> None:
        """Give back the memory of a mapped member, or of all; a page comes from disk again when it is read."""
        if hasattr(mmap, "MADV_DONTNEED"):
            chosen = self._mapped if name is None else {name} & self._mapped.keys()
            for member in chosen:
                self._mapped[member].madvise(mmap.MADV_DONTNEED)

    @property
    def mapped_bytes(self) -> int:
        """Bytes of the members that are mapped; how many are resident is the system's choice."""
        return sum(array.nbytes for array in self._maps.values())

    def read_rows(self, name: str, offset: int, row_bytes: int, indices: NDArray[np.int64]) -> U8:
        """Read rows of a table from disk, not through the map, so that the table never becomes resident.

        Parameters
        ----------
        name : str
            The member.
        offset, row_bytes : int
            Where row 0 starts and the bytes of a row.
        indices : int64 [n]

        Returns
        -------
        uint8 [n, row_bytes]
        """
        size = self._member(name).size
        chosen = indices.tolist()
        if offset < 0 or row_bytes <= 0 or min(chosen, default=0) < 0:
            raise PackageError(f"{name}: got a row at a negative place; want rows from 0 on")
        rows = np.empty((len(chosen), row_bytes), np.uint8)
        for i, index in enumerate(chosen):
            end = offset + (index + 1) * row_bytes
            if end > size:
                raise PackageError(
                    f"{name}: got row {index} ending at byte {end}; want at most {size}"
                )
            key = (name, offset, row_bytes, index)
            row = self._rows.get(key)
            if row is None:
                row = self._read(name, offset + index * row_bytes, row_bytes)
                self._rows.put(key, row)
            rows[i] = np.frombuffer(row, np.uint8)
        return rows

    def verify(self, progress: Progress | None = None) -> None:
        """Compare the sha256 of every member with the manifest's."""
        total = sum(member.size for member in self.members.values())
        done = 0
        for name, member in self.members.items():
            digest = hashlib.sha256()
            for chunk in self._chunks(name):
                digest.update(chunk)
                done += len(chunk)
                if progress:
                    progress(name, done, total)
            if digest.hexdigest() != member.sha256:
                raise PackageError(
                    f"{name}: got sha256 {digest.hexdigest()}; want {member.sha256}; "
                    "copy or export the package again"
                )

    def close(self) -> None:
        """Close the files. Maps live as long as arrays on them do."""
        self._maps.clear()
        self._mapped.clear()
        self._closer()

    def _member(self, name: str) -> Member:
        if name not in self.members:
            raise PackageError(f"{MANIFEST}: {name!r} is not among its files")
        return self.members[name]

    def _descriptor(self, name: str) -> int:
        """Open a member once, as the regular file of the size that the manifest promised."""
        if name not in self._descriptors:
            member = self._member(name)
            try:
                descriptor = os.open(member.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError as error:
                raise PackageError(f"{name}: cannot be opened: {error}") from error
            self._descriptors[name] = descriptor
            _check_stat(name, os.fstat(descriptor), member.size)
        return self._descriptors[name]

    def _read(self, name: str, offset: int, size: int) -> bytes:
        descriptor = self._descriptor(name)
        parts = []
        while size:
            part = os.pread(descriptor, size, offset)
            if not part:
                raise PackageError(
                    f"{name}: got no bytes at {offset}; it became shorter while in use"
                )
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _chunks(self, name: str) -> Iterator[bytes]:
        size = self._member(name).size
        for offset in range(0, size, _CHUNK_BYTES):
            yield self._read(name, offset, min(_CHUNK_BYTES, size - offset))


class _RowCache:
    """The rows used last, up to a number of bytes. A media prompt asks for the pad row again and again."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit, self._size = limit_bytes, 0
        self._rows: OrderedDict[tuple[str, int, int, int], bytes] = OrderedDict()

    def get(self, key: tuple[str, int, int, int]) -> bytes | None:
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
        return row

    def put(self, key: tuple[str, int, int, int], row: bytes) -> None:
        if len(row) > self._limit:
            return
        self._rows[key] = row
        self._size += len(row)
        while self._size > self._limit:
            self._size -= len(self._rows.popitem(last=False)[1])


def _close(descriptors: dict[str, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


def _read_manifest(path: Path) -> dict[str, Any]:
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


def _listed(manifest: dict[str, Any]) -> list[tuple[str, object]]:
    files = manifest.get("files")
    if not isinstance(files, dict) or not 0 < len(files) <= FILES_LIMIT:
        raise PackageError(f"{MANIFEST}: files: want an object of 1 to {FILES_LIMIT} files")
    return list(files.items())


def _member(folder: Path, name: str, entry: object) -> Member:
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
    _check_stat(name, found, size)
    return Member(path, size, sha256)


def _check_stat(name: str, found: os.stat_result, size: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise PackageError(f"{name}: not a regular file")
    if found.st_size != size:
        raise PackageError(
            f"{name}: got {found.st_size} bytes; want {_short(size)}; copy or export the package again"
        )


def _prompts(manifest: dict[str, Any]) -> dict[str, str]:
    prompts = manifest.get("prompts", {})
    if not isinstance(prompts, dict) or not all(isinstance(v, str) for v in prompts.values()):
        raise PackageError(f"{MANIFEST}: prompts: want an object of strings")
    return prompts


def _config(manifest: dict[str, Any]) -> ModelConfig:
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
