"""Kernels against their numpy twins on this machine, in seconds once they are compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgegemma.kernels.kvcache import KV
    from edgegemma.kernels.linear import Matrix

ROWS, COLUMNS = 37, 384  # an odd number of rows: the last ones take the narrow path
ROOM = 1e-5  # of the largest value; the kernels add float32 in their own order

F32 = NDArray[np.float32]


class Check(NamedTuple):
    """One comparison; ``error`` is the largest, in units of what rounding may do."""

    name: str
    error: float

    @property
    def fine(self) -> bool:
        """Whether kernel and twin agree."""
        return self.error <= 1.0


def checks() -> Iterator[Check]:
    """Compare the linear kernels for every kind of weight, then norm, gate and attention."""
    rng = np.random.default_rng(0)
    yield from _linear(rng)
    yield from _layer(rng)


def _linear(rng: np.random.Generator) -> Iterator[Check]:
    from edgegemma.kernels import linear, reference

    for matrix, name in _matrices(rng):
        for positions in (1, 5):
            x = rng.standard_normal((positions, COLUMNS), np.float32)
            got, want = linear.linear(x, matrix), reference.linear(x, matrix)
            yield _check(f"linear, {name}, {positions} positions", got, want)


def _layer(rng: np.random.Generator) -> Iterator[Check]:
    from edgegemma.kernels import attention, norms
    from edgegemma.kernels import reference_layers as twin

    a, b = rng.standard_normal((2, ROWS, COLUMNS), np.float32)
    yield _check("norm", norms.rms_norm(a, b[0], 1e-6), twin.rms_norm(a, b[0], 1e-6))
    yield _check("gate", norms.gelu_gate(a, b), twin.gelu_gate(a, b))
    for kind in ("float32", "int8"):
        cache = _cache(rng, kind)
        for window in (0, 16):
            q = rng.standard_normal((3, 8, 64), np.float32)
            got, want = (f(q, cache, ROWS - 3, window) for f in (attention.attend, twin.attend))
            yield _check(f"attention, {kind}, window {window}", got, want)


def _check(name: str, got: F32, want: F32) -> Check:
    off = float(np.abs(got.astype(np.float64) - want).max())
    room = ROOM * (1 + float(np.abs(want).max()))
    return Check(name, off / room if np.isfinite(off) else float("inf"))


def _matrices(rng: np.random.Generator) -> Iterator[tuple[Matrix, str]]:
    from edgegemma.kernels.linear import CodeMatrix, FloatMatrix

    dynamic, static = np.zeros(2, np.float32), np.array([0.03, 0.05], np.float32)
    for bits in (2, 4, 8):
        codes = rng.integers(0, 256, (ROWS, COLUMNS * bits // 8), np.uint8)
        row, blocks = _scales(rng, 1), _scales(rng, COLUMNS // 32)
        yield CodeMatrix(codes, row, dynamic, bits, 128), f"{bits} bits a row"
        yield CodeMatrix(codes, row, static, bits, 128), f"{bits} bits a row, static int8"
        yield CodeMatrix(codes, blocks, dynamic, bits, 32), f"{bits} bits in blocks of 32"
    rows = rng.standard_normal((ROWS, COLUMNS), np.float32)
    yield FloatMatrix(rows, dynamic), "float32"
    yield FloatMatrix((rows.view(np.uint32) >> 16).astype(np.uint16), dynamic), "bfloat16"


def _scales(rng: np.random.Generator, groups: int) -> F32:
    return rng.uniform(0.5 / 64, 1.5 / 64, (ROWS, groups)).astype(np.float32)


def _cache(rng: np.random.Generator, kind: str) -> KV:
    from edgegemma.kernels.kvcache import KV

    keys, values = rng.standard_normal((2, ROWS, 2, 64), np.float32)
    if kind == "float32":
        return KV(keys, values, *np.zeros((2, 0, 0), np.float32))
    codes = np.rint(np.clip(np.stack([keys, values]) * 32, -127, 127)).astype(np.int8)
    return KV(*codes, *np.full((2, ROWS, 2), 1 / 32, np.float32))
