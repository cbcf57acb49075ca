"""Quantize activations to int8, laid out so that packed weights stream past them.

A *unit* is one vector of packed codes: WIDTH bytes, ``WIDTH * 8 / bits`` weights, LANES lanes of
``32 / bits`` neighbouring weights. The activations of a unit are stored as ``8 / bits`` planes, plane
c holding those that belong to code c of every byte. A row that is not a whole number of units ends
with a unit that overlaps the one before it (it starts WIDTH bytes before the row's end); there the
activations already counted are zero. So every unit is read whole, and nothing beyond the row.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, typeof, types
from numba.extending import overload
from numpy.typing import NDArray

from edgegemma.kernels import reference, simd
from edgegemma.kernels.fork import Shared, fork
from edgegemma.kernels.late import ready


class Rounded(NamedTuple):
    """Quantized activations of M rows, in U units.

    Attributes
    ----------
    planes : int8 [M, U*WIDTH*8/bits]
    offset : int32 [M, U*LANES], minus the code's offset times the lane's activations
    total : int32 [M, LANES], the offsets added up over the units
    lanes : float32 [M, U*LANES], each lane's activation scale
    block : int32 [U*LANES], the scale block each lane belongs to
    rows : float32 [M], the static scale; NaN for a row that holds a NaN (or without a static scale)
    """

    planes: NDArray[np.int8]
    offset: NDArray[np.int32]
    total: NDArray[np.int32]
    lanes: NDArray[np.float32]
    block: NDArray[np.int32]
    rows: NDArray[np.float32]


EMPTY = Rounded(
    np.empty((0, 0), np.int8),
    np.empty((0, 0), np.int32),
    np.empty((0, 0), np.int32),
    np.empty((0, 0), np.float32),
    np.empty(0, np.int32),
    np.empty(0, np.float32),
)
_WIDTH, _LANES = simd.WIDTH, simd.LANES
_BYTE_OFFSET = simd.BYTE_OFFSET
_SMALLEST = reference.SMALLEST


@njit(cache=True)
def _fake(v, scale):  # type: ignore[no-untyped-def]
    """Round one number to the static int8 grid; NaN stays NaN, a scale of 0 leaves v."""
    if scale == np.float32(0.0):
        return v
    v = np.rint(v / scale)
    if v > np.float32(127.0):
        v = np.float32(127.0)
    if v < np.float32(-128.0):
        v = np.float32(-128.0)
    return v * scale


@njit(cache=True)
def _padded(rows, size):  # type: ignore[no-untyped-def]
    """Copy rows shorter than ``size`` to the ends of rows of zeros."""
    out = np.zeros((rows.shape[0], size), rows.dtype)
    for n in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            out[n, size - rows.shape[1] + i] = rows[n, i]
    return out


@njit(cache=True)
def _units(columns, bits):  # type: ignore[no-untyped-def]
    """Count the units of a row."""
    return (columns * bits // 8 + _WIDTH - 1) // _WIDTH


@njit(cache=True)
def _absolute(x, first, stop):  # type: ignore[no-untyped-def]
    """Give the bits of ``max|x[first:stop]|``; they order as the numbers do, NaN last."""
    raw = x.view(np.int32)
    top = np.int32(0)
    for i in range(first, stop):
        top = max(top, raw[i] & np.int32(0x7FFFFFFF))
    return top


@njit(cache=True)
def _scales(x, static, block, scale, inverse):  # type: ignore[no-untyped-def]
    """Find the scale of every block: NaN if it holds a NaN, or without a static scale an infinity.

    ``inverse`` is what dynamic rounding multiplies by: not 1 / scale but 127 / max, as onnxruntime on x86 does,
    so that both executors round the same activations to the same codes.
    """
    raw = scale.view(np.int32)
    for b in range(scale.size):
        raw[b] = _absolute(x, b * block, (b + 1) * block)
        top = scale[b]
        if static > np.float32(0.0):
            scale[b] = static if top == top else np.float32(np.nan)
        elif top < _SMALLEST:
            scale[b] = np.float32(0.0)
        elif top < np.float32(np.inf):
            scale[b] = top / np.float32(127.0)
            inverse[b] = np.float32(127.0) / top
        else:
            scale[b] = np.float32(np.nan)


@njit(cache=True)
def _round(x, static, scale, inverse, block, start, q):  # type: ignore[no-untyped-def]
    """Write ``round(x / scale)`` into q, elements from ``start`` on shifted to its end."""
    shift = q.size - x.size
    for b in range(scale.size):
        for i in range(b * block, (b + 1) * block, _LANES):
            v = simd.zero_floats()
            if static > np.float32(0.0):
                v = simd.divide(simd.load_floats(x, i), simd.splat(static))
            elif scale[b] > np.float32(0.0):
                v = simd.multiply(simd.load_floats(x, i), simd.splat(inverse[b]))
            simd.store_rounded(q, i if i < start else i + shift, v)


def _lay(q, r, m, bits):  # type: ignore[no-untyped-def]
    """Write the planes of row m from its int8 values q in the order of the units, their total, and offsets if kept."""
    raise NotImplementedError


@overload(_lay, prefer_literal=True)
def _overload_lay(q, r, m, bits):  # type: ignore[no-untyped-def]
    width = bits.literal_value
    unit = _WIDTH * 8 // width
    offset = _BYTE_OFFSET if width == 8 else 1 << (width - 1)

    def lay(q, r, m, bits):  # type: ignore[no-untyped-def]
        total, kept = simd.zero_ints(), r.offset.size > 0
        for u in range(q.size // unit):
            plane = m * r.planes.shape[1] + u * unit
            simd.store_planes(r.planes, plane, q, u * unit, width)
            added = simd.sum_planes(r.planes, plane, width)
            total = simd.add_ints(total, added)
            if kept:
                added = simd.scale_ints(added, np.int32(-offset))
                simd.store_ints(r.offset, m * r.offset.shape[1] + u * _LANES, added)
        simd.store_ints(r.total, m * _LANES, simd.scale_ints(total, np.int32(-offset)))

    return lay


@njit(cache=True)
def _lay_row(q, r, m, bits):  # type: ignore[no-untyped-def]
    """Do `_lay` for a width that is known when it runs."""
    if bits == 2:
        _lay(q, r, m, 2)
    elif bits == 4:
        _lay(q, r, m, 4)
    else:
        _lay(q, r, m, 8)


@njit(cache=True)
def _quantize_row(x, static, bits, block, r, m):  # type: ignore[no-untyped-def]
    """Quantize one row into row m of a `Rounded`."""
    scale = np.empty(x.size // block, np.float32)
    inverse = np.empty_like(scale)
    _scales(x, static, block, scale, inverse)
    unit = _WIDTH * 8 // bits
    q = np.zeros(r.planes.shape[1], np.int8)
    _round(x, static, scale, inverse, block, x.size // unit * unit, q)
    _lay_row(q, r, m, bits)
    r.rows[m] = static
    for b in range(scale.size):
        if scale[b] != scale[b]:
            r.rows[m] = scale[b]
    for lane in range(r.block.size):
        r.lanes[m, lane] = scale[r.block[lane]]


@njit(cache=True)
def _blocks(columns, bits, block, index):  # type: ignore[no-untyped-def]
    """Write the scale block of each lane; lanes of the overlap belong to the block they repeat."""
    unit = _WIDTH * 8 // bits
    lane_columns = 32 // bits
    for lane in range(index.size):
        first = lane * lane_columns
        if first >= columns // unit * unit:
            first = max(0, columns - (index.size - lane) * lane_columns)
        index[lane] = first // block


def _quantize_rows(given, first, stop):  # type: ignore[no-untyped-def]
    x, static, bits, block, r = given
    for m in range(first, stop):
        _quantize_row(x[m], static, bits, block, r, m)


@njit(cache=True)
def _quantize(x, static, bits, block):  # type: ignore[no-untyped-def]
    """Quantize rows of float32 [M, K] for a matrix of a code width; give a `Rounded`."""
    count = x.shape[0]
    units = _units(x.shape[1], bits)
    r = Rounded(
        np.empty((count, units * _WIDTH * 8 // bits), np.int8),
        np.empty((count, units * _LANES), np.int32),
        np.empty((count, _LANES), np.int32),
        np.empty((count, units * _LANES), np.float32),
        np.empty(units * _LANES, np.int32),
        np.empty(count, np.float32),
    )
    _blocks(x.shape[1], bits, block, r.block)
    fork("quantize_rows", ready("quantize_rows"), (x, static, bits, block, r), count)
    return r


_INT, _FLOAT, _MATRIX = types.int64, types.float32, types.Array(types.float32, 2, "C")
Shared("quantize_rows", (_MATRIX, _FLOAT, _INT, _INT, typeof(EMPTY)), _quantize_rows)
