"""Kernels against their numpy twins on this machine, in a few seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgegemma.kernels.linear import Matrix

ROWS, COLUMNS = 37, 384  # an odd number of rows: the last ones take the narrow path


class Check(NamedTuple):
    """One comparison; ``error`` is the largest, in units of what rounding may do."""

    name: str
    error: float

    @property
    def fine(self) -> bool:
        """Whether kernel and twin agree."""
        return self.error <= 1.0


def checks() -> Iterator[Check]:
    """Compare the linear kernels for every kind of weight and activation, one and several positions."""
    from edgegemma.kernels import linear, reference

    rng = np.random.default_rng(0)
    for matrix, name in _matrices(rng):
        for positions in (1, 5):
            x = rng.standard_normal((positions, COLUMNS), np.float32)
            got, want = linear.linear(x, matrix), reference.linear(x, matrix)
            room = 1e-5 * (1 + np.abs(want).max())
            yield Check(f"linear, {name}, {positions} positions", _worst(got, want) / room)


def _worst(got: NDArray[np.float32], want: NDArray[np.float32]) -> float:
    off = float(np.abs(got.astype(np.float64) - want).max())
    return off if np.isfinite(off) else float("inf")


def _matrices(rng: np.random.Generator) -> Iterator[tuple[Matrix, str]]:
    from edgegemma.kernels.linear import CodeMatrix, FloatMatrix

    dynamic, static = np.zeros(2, np.float32), np.array([0.03, 0.05], np.float32)
    for bits in (2, 4, 8):
        codes = rng.integers(0, 256, (ROWS, COLUMNS * bits // 8), np.uint8)
        row = _scales(rng, 1)
        blocks = _scales(rng, COLUMNS // 32)
        yield CodeMatrix(codes, row, dynamic, bits, 128), f"{bits} bits a row"
        yield CodeMatrix(codes, row, static, bits, 128), f"{bits} bits a row, static int8"
        yield CodeMatrix(codes, blocks, dynamic, bits, 32), f"{bits} bits in blocks of 32"
    rows = rng.standard_normal((ROWS, COLUMNS), np.float32)
    yield FloatMatrix(rows, dynamic), "float32"
    yield FloatMatrix((rows.view(np.uint32) >> 16).astype(np.uint16), dynamic), "bfloat16"


def _scales(rng: np.random.Generator, groups: int) -> NDArray[np.float32]:
    return rng.uniform(0.5 / 64, 1.5 / 64, (ROWS, groups)).astype(np.float32)
