"""A package on disk: opened, checked, mapped.

The folder is untrusted. Nothing is read before its name is found safe and its size equal to the
manifest's (`manifest`). What the graphs say about the bytes is checked by `engine.graph`.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edgegemma import manifest
from edgegemma.errors import PackageError
from edgegemma.manifest import MANIFEST, Member, check_stat

ROW_CACHE_BYTES = 4 << 20
_CHUNK_BYTES = 1 << 20

U8 = NDArray[np.uint8]
Progress = Callable[[str, int, int], None]  # file, bytes done of the package, bytes in all


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

    def __init__(self, path: Path, found: dict[str, Any]) -> None:
        self.path = path
        self.manifest = found
        self.config = manifest.config(found)
        self.prompts = manifest.prompts(found)
        self.members = {
            name: manifest.member(path, name, entry) for name, entry in manifest.listed(found)
        }
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
            package = cls(folder, manifest.read(folder / MANIFEST))
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

    @property
    def size(self) -> int:
        """Bytes of all members."""
        return sum(member.size for member in self.members.values())

    def read_rows(self, name: str, offset: int, row_bytes: int, indices: Sequence[int]) -> U8:
        """Read rows of a table from disk, not through the map, so that the table never becomes resident.

        Parameters
        ----------
        name : str
            The member.
        offset, row_bytes : int
            Where row 0 starts and the bytes of a row.
        indices : sequence of n int

        Returns
        -------
        uint8 [n, row_bytes]
        """
        size = self._member(name).size
        if offset < 0 or row_bytes <= 0 or min(indices, default=0) < 0:
            raise PackageError(f"{name}: got a row at a negative place; want rows from 0 on")
        rows = np.empty((len(indices), row_bytes), np.uint8)
        for i, index in enumerate(indices):
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
        total = self.size
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
            try:
                check_stat(name, os.fstat(descriptor), member.size)
            except PackageError:
                os.close(descriptor)
                raise
            self._descriptors[name] = descriptor
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
