"""Quantize activations that have a static scale: what exact products need of a `Rounded`, and no more."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, typeof, types

from edgegemma.kernels import simd
from edgegemma.kernels.activation import EMPTY, Rounded, _lay_row, _units
from edgegemma.kernels.fork import Shared, fork
from edgegemma.kernels.late import ready
from edgegemma.kernels.simd import Floats, Ints

_WIDTH, _LANES = simd.WIDTH, simd.LANES


@simd._verb(Ints, Ints, Floats)
def note_nan(b: Any, seen: Any, v: Any) -> Any:
    """Set lanes that hold a NaN to -1."""
    return b.or_(seen, b.sext(b.fcmp_unordered("uno", v, v), ir.VectorType(simd.I32, _LANES)))


@njit(cache=True)
def _quantize_static(x, scale, bits):  # type: ignore[no-untyped-def]
    """Quantize rows of float32 [M, K] by one scale; `Rounded` with planes, total and rows only."""
    count = x.shape[0]
    units = _units(x.shape[1], bits)
    planes = np.empty((count, units * _WIDTH * 8 // bits), np.int8)
    total, rows = np.empty((count, _LANES), np.int32), np.empty(count, np.float32)
    no_lanes, no_block = rows.reshape((count, 1))[:0], total.reshape(count * _LANES)[:0]
    r = Rounded(planes, total[:0], total, no_lanes, no_block, rows)
    fork("static_rows", ready("static_rows"), (x, scale, bits, r), count)
    return r


def _static_rows(given, first, stop):  # type: ignore[no-untyped-def]
    x, scale, bits, r = given
    for m in range(first, stop):
        _static_row(x[m], scale, bits, r, m)


@njit(cache=True)
def _static_row(x, scale, bits, r, m):  # type: ignore[no-untyped-def]
    """Quantize one row into row m of a `Rounded`; the last unit overlaps as in `activation`."""
    q = np.zeros(r.planes.shape[1], np.int8)
    unit = _WIDTH * 8 // bits
    start, shift = x.size // unit * unit, q.size - x.size
    step = simd.splat(scale)
    seen = simd.zero_ints()
    for i in range(0, start, _LANES):
        v = simd.load_floats(x, i)
        seen = note_nan(seen, v)
        simd.store_rounded(q, i, simd.divide(v, step))
    for i in range(start, x.size, _LANES):
        v = simd.load_floats(x, i)
        seen = note_nan(seen, v)
        simd.store_rounded(q, i + shift, simd.divide(v, step))
    r.rows[m] = scale if simd.sum_ints(seen) == 0 else np.float32(np.nan)
    _lay_row(q, r, m, bits)


_MATRIX = types.Array(types.float32, 2, "C")
Shared("static_rows", (_MATRIX, types.float32, types.int64, typeof(EMPTY)), _static_rows)
