"""Multiply by float32 or bfloat16 rows: a tile of results at a time, of a single row four; the plan is that of `codes`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numba.core import types
from numba.extending import overload

from edgegemma.kernels import simd, threads
from edgegemma.kernels.activation import _fake, _padded
from edgegemma.kernels.floattiles import COLUMNS, ROWS, dots
from edgegemma.kernels.fork import Shared, forker
from edgegemma.kernels.fours import apart, share
from edgegemma.kernels.late import Kernel

_LANES = simd.LANES
_CHUNK = 48  # weight rows a thread takes at once for four activation rows and more


def _load(rows: Any, i: Any) -> Any:
    """Load a vector of float32 from float32 or bfloat16 rows."""


@overload(_load)
def _overload_load(rows, i):  # type: ignore[no-untyped-def]
    if rows.dtype == types.float32:
        return lambda rows, i: simd.load_floats(rows, i)
    return lambda rows, i: simd.load_bfloats(rows, i)


def _rows(x, rows, activation, y):  # type: ignore[no-untyped-def]
    """Write x · rowsᵀ into y: x [M, K], rows [N, K], y [M, N]."""
    if rows.shape[1] < _LANES:  # less than a vector: put the row at the end of one
        rows = _padded(rows, _LANES)
    count, each = rows.shape[0], _CHUNK
    if x.shape[0] < ROWS:  # four long streams, as in `codes`
        each = share(count, rows.shape[1] * rows.itemsize, threads.count())
    args = _aligned(x, activation[0]), rows, activation[1], y, each
    _fork_floats(args, (count + each - 1) // each)


_fork_floats = forker(
    lambda args: "float32_chunks" if args.types[1].dtype == types.float32 else "bfloat16_chunks"
)


def _some_chunks(given, first, stop):  # type: ignore[no-untyped-def]
    x, rows, out, y, each = given
    for c in range(first, stop):
        _floats(x, rows, out, y, c * each, min(rows.shape[0], c * each + each))


@njit(cache=True)
def _aligned(x, scale):  # type: ignore[no-untyped-def]
    """Copy x with its columns in whole vectors; the last overlaps, zero where already counted."""
    columns = x.shape[1]
    size = (columns + _LANES - 1) // _LANES * _LANES
    whole = columns // _LANES * _LANES
    out = np.zeros((x.shape[0], size), np.float32)
    for m in range(x.shape[0]):
        for k in range(columns):
            out[m, k if k < whole else k + size - columns] = _fake(x[m, k], scale)
    return out


@njit(forceinline=True)
def _four(x, m, rows, n):  # type: ignore[no-untyped-def]
    columns, size = x.shape[1], rows.shape[1]
    last = size - _LANES
    t0 = t1 = t2 = t3 = simd.zero_floats()
    for k in range(0, columns, _LANES):
        i = min(k, last)
        t0 = simd.fma(_load(rows, n[0] * size + i), simd.load_floats(x, m[0] * columns + k), t0)
        t1 = simd.fma(_load(rows, n[1] * size + i), simd.load_floats(x, m[1] * columns + k), t1)
        t2 = simd.fma(_load(rows, n[2] * size + i), simd.load_floats(x, m[2] * columns + k), t2)
        t3 = simd.fma(_load(rows, n[3] * size + i), simd.load_floats(x, m[3] * columns + k), t3)
    return simd.sum_floats(t0), simd.sum_floats(t1), simd.sum_floats(t2), simd.sum_floats(t3)


@njit(cache=True)
def _floats(x, rows, out, y, first, stop):  # type: ignore[no-untyped-def]
    count, columns = x.shape
    whole, size = count // ROWS * ROWS, rows.shape[1]
    vectors, last = columns // _LANES, size - _LANES
    part = np.empty(ROWS * COLUMNS, np.float32)
    for m in range(
        0, whole, ROWS
    ):  # four rows stay in the first-level cache while the weight rows pass
        for n in range(first, stop, COLUMNS):
            n1, n2 = min(n + 1, stop - 1) * size, min(n + 2, stop - 1) * size
            i = m * columns
            j = n * size
            dots(part, 0, 0, x, i, columns, rows, j, n1, n2, vectors, last, ROWS)
            for c in range(min(COLUMNS, stop - n)):
                for r in range(ROWS):
                    y[m + r, n + c] = _fake(part[ROWS * c + r], out)
    quarter = (stop - first + 3) // 4
    for m in range(whole, count):
        for n in range(first, first + quarter):
            n1, n2, n3 = apart(n, quarter, stop - 1)
            sums = _four(x, (m, m, m, m), rows, (n, n1, n2, n3))
            y[m, n], y[m, n1] = _fake(sums[0], out), _fake(sums[1], out)
            y[m, n2], y[m, n3] = _fake(sums[2], out), _fake(sums[3], out)


_F32 = types.Array(types.float32, 2, "C")
for _name, _kind in (("float32", types.float32), ("bfloat16", types.uint16)):
    _weights = types.Array(_kind, 2, "C")
    _takes = _F32, _weights, types.float32, _F32, types.int64
    Shared(f"{_name}_chunks", _takes, _some_chunks)
    Kernel(
        f"rows_{_name}", types.void(_F32, _weights, types.Array(types.float32, 1, "C"), _F32), _rows
    )
