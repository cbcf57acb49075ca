"""Safetensors, read by chunks of rows.

A checkpoint is untrusted and may be larger than memory. Every offset, shape and type of the headers is
checked when it is opened; tensors are then read with ``pread`` into chunks, so the process never holds
more than a chunk, and floats are checked for NaN and infinity as they pass.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeGuard

import numpy as np
import numpy.typing as npt

from edgegemma.errors import CheckpointError
from export.huggingface import read_json

Array = npt.NDArray[Any]

# bfloat16 stays a bit pattern: numpy has no such type, and most of it is never widened.
DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    # not weights of ours, but a file may hold them beside
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "BOOL": np.dtype("?"),
}
FLOATS = ("BF16", "F16", "F32")
CHUNK_BYTES = 4 << 20  # larger ones leave the processor's cache while they are rounded
_HEADER_LIMIT = 100_000_000  # what the format allows
_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: ``offset`` counts from the start of its file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the first axis; of everything for a scalar."""
        return math.prod(self.shape[1:]) * DTYPES[self.dtype].itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class Checkpoint:
    """The tensors of a folder: ``model.safetensors``, or shards with their index.

    Use as a context manager; it keeps one file open for each shard.
    """

    def __init__(self, path: Path, tensors: dict[str, TensorInfo]) -> None:
        self.path = path
        self.tensors = tensors
        self._open: dict[Path, int] = {}

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read and check the headers of all shards.

        Raises
        ------
        CheckpointError
            A shard is missing, truncated or malformed; names the file and what is wrong.
        """
        if (path / _INDEX).exists():
            return cls(path, _sharded(path))
        if not (path / _SINGLE).exists():
            others = sorted(p.name for p in path.glob("*.safetensors"))
            found = f"found {others[0]} without {_INDEX}" if others else "found no .safetensors"
            raise CheckpointError(f"{path}: {found}; want {_SINGLE} or {_INDEX} with its shards")
        return cls(path, read_header(path / _SINGLE))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the shards."""
        while self._open:
            os.close(self._open.popitem()[1])

    def info(self, name: str) -> TensorInfo:
        """Give where a tensor lies; raise `CheckpointError` if it is missing."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path}: tensor {name} is missing")
        return self.tensors[name]

    def chunks(self, name: str, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Array]:
        """Read a tensor by consecutive rows.

        Parameters
        ----------
        chunk_bytes : int
            Size of a chunk, at least one row.

        Yields
        ------
        array [n, …]
            In the stored type; bfloat16 as uint16 bit patterns. Finite if it is a float.
        """
        info = self.info(name)
        rows = info.shape[0] if info.shape else 1
        step = max(1, chunk_bytes // max(1, info.row_bytes))
        for start in range(0, rows, step):
            n = min(step, rows - start)
            yield self._read(name, info, start, n).reshape(n, *info.shape[1:])

    def array(self, name: str, finite: bool = True) -> Array:
        """Read a small tensor whole, in its shape; bfloat16 as uint16 bit patterns.

        Parameters
        ----------
        finite : bool
            Refuse infinity as well as NaN.
        """
        info = self.info(name)
        rows = info.shape[0] if info.shape else 1
        return self._read(name, info, 0, rows, finite).reshape(info.shape)

    def _read(
        self, name: str, info: TensorInfo, start: int, rows: int, finite: bool = True
    ) -> Array:
        out = np.empty(rows * info.row_bytes, np.uint8)
        view, offset = memoryview(out.data), info.offset + start * info.row_bytes
        while view:
            got = os.preadv(self._file(info.file), [view[: 1 << 30]], offset)
            if not got:
                raise CheckpointError(f"{info.file}: {name}: the file ends early, at byte {offset}")
            view, offset = view[got:], offset + got
        array = out.view(DTYPES[info.dtype])
        if info.dtype in FLOATS:
            _check_finite(array, info, name, start, finite)
        return array

    def _file(self, path: Path) -> int:
        if path not in self._open:
            try:
                self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be opened: {error.strerror}") from error
        return self._open[path]


def widen(array: Array, dtype: str) -> npt.NDArray[np.float32]:
    """Turn stored floats into float32, exactly."""
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def _check_finite(array: Array, info: TensorInfo, name: str, start: int, strict: bool) -> None:
    """Refuse NaN and, if strict, infinity: in each format, an exponent of all ones."""
    if info.dtype == "F32":
        bad = ~np.isfinite(array)
    else:
        exponent = np.uint16(0x7F80 if info.dtype == "BF16" else 0x7C00)
        bad = (array.view(np.uint16) & exponent) == exponent
    if bad.any() and not strict:
        bad = np.isnan(widen(array, info.dtype))
    if bad.any():
        at = int(bad.argmax())
        row, column = divmod(at, max(1, math.prod(info.shape[1:])))
        value = widen(array[at : at + 1], info.dtype)[0]
        raise CheckpointError(
            f"{info.file}: {name}: {value} at row {start + row}, column {column}; want finite weights"
        )


def _sharded(path: Path) -> dict[str, TensorInfo]:
    index = read_json(path / _INDEX)
    where = f"{path / _INDEX}: weight_map"
    names = index.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(v, str) for v in names.values()):
        raise CheckpointError(f"{where}: want an object of tensor names and files")
    shards: dict[str, dict[str, TensorInfo]] = {}
    for shard in sorted(set(names.values())):
        if "/" in shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{where}: {shard!r}: want the name of a .safetensors file beside it"
            )
        if not (path / shard).is_file():
            count = sum(v == shard for v in names.values())
            raise CheckpointError(f"{path / shard}: missing; the index puts {count} tensors there")
        shards[shard] = read_header(path / shard)
    for name, shard in names.items():
        if name not in shards[shard]:
            raise CheckpointError(
                f"{path / shard}: tensor {name} is missing; the index puts it there"
            )
    return {name: shards[shard][name] for name, shard in names.items()}


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Read and check the header of one safetensors file.

    The tensors must fill the file exactly, without overlap, each with the length its shape asks for.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, _HEADER_LIMIT):
            raise CheckpointError(
                f"{path}: header of {length} bytes in a file of {size}; truncated?"
            )
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: header: got {type(header).__name__}; want an object")
    start = 8 + length
    tensors = {n: _entry(path, n, e, start) for n, e in header.items() if n != "__metadata__"}
    end = start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if info.offset != end:
            raise CheckpointError(f"{path}: {name}: starts at byte {info.offset}; want {end}")
        end += info.nbytes
    if end != size:
        what = "truncated" if end > size else "bytes left over"
        raise CheckpointError(f"{path}: got {size:,} bytes; the header wants {end:,}: {what}")
    return tensors


def _entry(path: Path, name: str, entry: object, start: int) -> TensorInfo:
    where = f"{path}: {name}"
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where}: got {entry!r}; want an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{where}: dtype {dtype!r}; want one of {', '.join(DTYPES)}")
    if not _counts(shape) or len(shape) > 8:
        raise CheckpointError(f"{where}: shape {shape!r}; want a list of sizes")
    if not _counts(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: data_offsets {offsets!r}; want two")
    info = TensorInfo(path, dtype, tuple(shape), start + offsets[0])
    if offsets[1] - offsets[0] != info.nbytes:
        raise CheckpointError(
            f"{where}: {offsets[1] - offsets[0]} bytes; {dtype} {list(shape)} wants {info.nbytes}"
        )
    return info


def _counts(values: object) -> TypeGuard[list[int]]:
    """Whether this is a list of plain non-negative integers."""
    return isinstance(values, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and 0 <= v < 1 << 62 for v in values
    )
