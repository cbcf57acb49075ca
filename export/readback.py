"""The bytes of a package against those of its source: codes and scales, bit for bit."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from edgegemma.errors import PackageError
from export import names
from export.source import Matrix
from export.weights import Weights

COMPUTED = ".relative_k_proj"
"""What the audio builder turns into another tensor."""


@dataclass(frozen=True)
class Place:
    """Where a tensor's bytes are: in a file from an offset on, or here (then path is the package)."""

    path: Path
    offset: int
    size: int
    inline: bytes | None = None

    def read(self, start: int, size: int) -> bytes:
        """Read a part of the tensor."""
        if start + size > self.size:
            raise PackageError(f"{self.path}: a tensor of {self.size} bytes; want {start + size}")
        if self.inline is not None:
            return self.inline[start : start + size]
        with self.path.open("rb") as file:
            return os.pread(file.fileno(), size, self.offset + start)


def places(package: Path) -> dict[str, Place]:
    """Find every initializer of a package's graphs by name."""
    found: dict[str, Place] = {}
    for graph in sorted(package.glob("*.onnx")):
        for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
            found[tensor.name] = _place(package, tensor)
    return found


def _place(package: Path, tensor: TensorProto) -> Place:
    if tensor.data_location != TensorProto.EXTERNAL:
        return Place(package, 0, len(tensor.raw_data), tensor.raw_data)
    entry = {e.key: e.value for e in tensor.external_data}
    return Place(package / entry["location"], int(entry["offset"]), int(entry["length"]))


def compare(package: Path, weights: Weights) -> int:
    """Read a package's matrices back and compare them with what the source gives.

    Parameters
    ----------
    weights : Weights
        Made with the preset of the package, which must keep the source's codes or floats.

    Returns
    -------
    int
        Tensors compared.

    Raises
    ------
    PackageError
        The first tensor that differs, with the byte.
    """
    found, count = places(package), 0
    matrices = weights.matrices()
    for module, matrix in matrices.items():
        if not module.endswith(COMPUTED):
            count += _compare(module, found, matrix)
    if weights.tied_head:  # the embedding's bytes, which were compared, under another name
        table = f"{names.LANGUAGE}.embed_tokens"
        for part in ("weight", "weight_scale"):
            if found.get(f"{names.HEAD}.{part}") != found.get(f"{table}.{part}"):
                raise PackageError(f"{names.HEAD}.{part}: not the embedding's bytes")
    return count


def _compare(module: str, found: dict[str, Place], matrix: Matrix) -> int:
    """Compare one matrix, its scales and what belongs to it; give the number of tensors."""
    tensors = [f"{module}.weight", f"{module}.weight_scale"][: 2 if matrix.block else 1]
    at = [0] * len(tensors)
    for chunk in matrix.chunks:
        for i, tensor in enumerate(tensors):
            _same(tensor, _find(found, tensor), at[i], chunk[i])
            at[i] += chunk[i].nbytes
    for i, tensor in enumerate(tensors):
        if _find(found, tensor).size != at[i]:
            raise PackageError(f"{tensor}: got {found[tensor].size} bytes; want {at[i]}")
    for part, values in (("activation_scales", matrix.activation), ("clip", matrix.clip)):
        tensor = f"{module}.{part}"
        if values is not None and tensor in found:  # tables have no activations
            _same(tensor, found[tensor], 0, values)
            tensors.append(tensor)
    return len(tensors)


def _find(found: dict[str, Place], tensor: str) -> Place:
    if tensor not in found:
        raise PackageError(f"tensor {tensor} is missing from the package")
    return found[tensor]


def _same(tensor: str, place: Place, start: int, want: npt.NDArray[Any]) -> None:
    got = np.frombuffer(place.read(start, want.nbytes), np.uint8)
    flat = np.ascontiguousarray(want).reshape(-1).view(np.uint8)
    if len(got) != len(flat) or not np.array_equal(got, flat):
        differs = np.flatnonzero(got != flat[: len(got)])
        at = start + (int(differs[0]) if len(differs) else len(got))
        raise PackageError(f"{place.path.name}: {tensor}: byte {at} is not the source's")
