"""Multiply a few rows by packed codes: four weight rows against one activation row at a time.

The codes are read once, as fast as the memory gives them. Four rows of some hundred bytes at once are streams
that no CPU foresees, but side by side they are one piece of memory: it is asked for ahead, from front to back.
Many rows go through `matmul`. A result is the same chain of operations there, so a row's bits do not
depend on how many rows are in the call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange, typeof, types
from numba.extending import overload

from edgegemma.kernels import simd
from edgegemma.kernels.activation import EMPTY, _fake, _padded, _quantize
from edgegemma.kernels.late import Kernel, call, ready
from edgegemma.kernels.simd import (
    dot,
    fma,
    lane_scales,
    load,
    load_floats,
    load_ints,
    multiply,
    prefetch,
    sum_floats,
    sum_ints,
    to_floats,
    zero_floats,
)

_WIDTH, _LANES = simd.WIDTH, simd.LANES
_CHUNK = 32  # weight rows a thread takes at once: together they fit its first-level cache
_LINE = 64  # bytes that memory gives at once
_AHEAD = 8192  # bytes from the codes in use to those asked of memory; beyond the last row that is harmless


def _codes(x, codes, scale, activation, bits, block, y):  # type: ignore[no-untyped-def]
    """Write x · wᵀ into y: x [M, K], codes [N, K*bits/8], y [M, N]."""
    in_unit = _scales_in_unit(block, bits)
    if codes.shape[1] < _WIDTH:  # less than a vector: put the row at the end of one
        codes = _padded(codes, _WIDTH)
        in_unit = 0
    r = _quantize(x, activation[0], bits, block)
    index, count = r.block, in_unit
    if scale.shape[1] == 1:
        index, count = np.zeros_like(r.block), 1
    exact = scale.shape[1] == 1 and activation[0] > np.float32(0.0)
    if bits == 2:
        address = ready("integers2") if exact else ready("blocks2")
    elif bits == 4:
        address = ready("integers4") if exact else ready("blocks4")
    else:
        address = ready("integers8") if exact else ready("blocks8")
    _chunks(address, codes, scale, activation[1], r, index, count, y)


@njit(cache=True)
def _scales_in_unit(block, bits):  # type: ignore[no-untyped-def]
    """Count the scales of a unit for `simd.lane_scales`; 0 when they do not share its lanes evenly."""
    lanes = block * bits // 32
    if lanes % _LANES == 0:
        return 1
    return _LANES // lanes if _LANES % lanes == 0 else 0


@njit(cache=True, parallel=True)
def _chunks(address, codes, scale, out, r, index, count, y):  # type: ignore[no-untyped-def]
    """Share the weight rows among the threads."""
    rows = codes.shape[0]
    for c in prange((rows + _CHUNK - 1) // _CHUNK):
        first, stop = c * _CHUNK, min(rows, c * _CHUNK + _CHUNK)
        call("integers2", address, (codes, scale, out, r, index, count, y, first, stop))


@njit(cache=True)
def _ask(codes, at):  # type: ignore[no-untyped-def]
    """Ask memory for the codes that four rows will need, in the order in which they lie there."""
    for line in range(0, 4 * _WIDTH, _LINE):
        prefetch(codes, at + _AHEAD + line)


def _integers(codes, n, r, m, scale, index, count, bits):  # type: ignore[no-untyped-def]
    """Four results by an exact integer each: weight rows n[k] against activation row m."""
    raise NotImplementedError


@overload(_integers, prefer_literal=True, jit_options={"forceinline": True})
def _overload_integers(codes, n, r, m, scale, index, count, bits):  # type: ignore[no-untyped-def]
    width = bits.literal_value

    def four(codes, n, r, m, scale, index, count, bits):  # type: ignore[no-untyped-def]
        size, x_size = codes.shape[1], r.planes.shape[1]
        last = size - _WIDTH
        n0, n1, n2, n3 = n[0] * size, n[1] * size, n[2] * size, n[3] * size
        a0 = a1 = a2 = a3 = load_ints(r.total, m * _LANES)
        for j in range(0, x_size, _WIDTH * 8 // width):
            i = min(j * width // 8, last)
            _ask(codes, n0 + 4 * i)
            a0 = dot(a0, load(codes, n0 + i), r.planes, m * x_size + j, width)
            a1 = dot(a1, load(codes, n1 + i), r.planes, m * x_size + j, width)
            a2 = dot(a2, load(codes, n2 + i), r.planes, m * x_size + j, width)
            a3 = dot(a3, load(codes, n3 + i), r.planes, m * x_size + j, width)
        return (
            np.float32(sum_ints(a0)) * r.rows[m] * scale[n[0], 0],
            np.float32(sum_ints(a1)) * r.rows[m] * scale[n[1], 0],
            np.float32(sum_ints(a2)) * r.rows[m] * scale[n[2], 0],
            np.float32(sum_ints(a3)) * r.rows[m] * scale[n[3], 0],
        )

    return four


def _blocks(codes, n, r, m, scale, index, count, bits):  # type: ignore[no-untyped-def]
    """Four results by an exact integer for each lane of each unit, scaled and added in float32."""
    raise NotImplementedError


@overload(_blocks, prefer_literal=True, jit_options={"forceinline": True})
def _overload_blocks(codes, n, r, m, scale, index, count, bits):  # type: ignore[no-untyped-def]
    width = bits.literal_value

    def four(codes, n, r, m, scale, index, count, bits):  # type: ignore[no-untyped-def]
        size, groups = codes.shape[1], scale.shape[1]
        t0 = t1 = t2 = t3 = zero_floats()
        for u in range(r.lanes.shape[1] // _LANES):
            i, even = u * _WIDTH, count
            if i > size - _WIDTH:  # the overlapping unit's lanes do not start with a block
                i, even = size - _WIDTH, count if groups == 1 else 0
            _ask(codes, n[0] * size + 4 * i)
            c0, c1 = load(codes, n[0] * size + i), load(codes, n[1] * size + i)
            c2, c3 = load(codes, n[2] * size + i), load(codes, n[3] * size + i)
            t0 = _add_unit(t0, c0, r, m, u, scale, n[0] * groups, index, even, width)
            t1 = _add_unit(t1, c1, r, m, u, scale, n[1] * groups, index, even, width)
            t2 = _add_unit(t2, c2, r, m, u, scale, n[2] * groups, index, even, width)
            t3 = _add_unit(t3, c3, r, m, u, scale, n[3] * groups, index, even, width)
        return sum_floats(t0), sum_floats(t1), sum_floats(t2), sum_floats(t3)

    return four


def _add_unit(total, unit, r, m, u, scale, s, index, even, bits):  # type: ignore[no-untyped-def]
    """Add unit u of a weight row, whose scales begin at s, times that of activation row m."""
    raise NotImplementedError


@overload(_add_unit, prefer_literal=True, jit_options={"forceinline": True})
def _overload_add_unit(total, unit, r, m, u, scale, s, index, even, bits):  # type: ignore[no-untyped-def]
    width = bits.literal_value

    def add(total, unit, r, m, u, scale, s, index, even, bits):  # type: ignore[no-untyped-def]
        lane = u * _LANES
        start = m * r.lanes.shape[1] + lane
        plane = m * r.planes.shape[1] + u * (_WIDTH * 8 // width)
        exact = dot(load_ints(r.offset, start), unit, r.planes, plane, width)
        weight = lane_scales(scale, s, index, lane, even)
        return fma(to_floats(exact), multiply(load_floats(r.lanes, start), weight), total)

    return add


def _make_chunk(four: Any, bits: int) -> Any:
    """Make the kernel of a code width: weight rows first … stop against all activation rows."""

    def chunk(codes, scale, out, r, index, count, y, first, stop):  # type: ignore[no-untyped-def]
        for m in range(r.planes.shape[0]):
            for n in range(first, stop, 4):
                ns = (n, min(n + 1, stop - 1), min(n + 2, stop - 1), min(n + 3, stop - 1))
                results = four(codes, ns, r, m, scale, index, count, bits)
                for k in range(min(4, stop - n)):
                    y[m, n + k] = _fake(results[k], out)

    return chunk


_VECTOR, _MATRIX = types.Array(types.float32, 1, "C"), types.Array(types.float32, 2, "C")
_PACKED, _INDEX = types.Array(types.uint8, 2, "C"), types.Array(types.int32, 1, "C")
_INT, _FLOAT = types.int64, types.float32
_CHUNK_OF = types.void(_PACKED, _MATRIX, _FLOAT, typeof(EMPTY), _INDEX, _INT, _MATRIX, _INT, _INT)
for _bits in (2, 4, 8):
    Kernel(f"integers{_bits}", _CHUNK_OF, _make_chunk(_integers, _bits))
    Kernel(f"blocks{_bits}", _CHUNK_OF, _make_chunk(_blocks, _bits))
Kernel("codes", types.void(_MATRIX, _PACKED, _MATRIX, _VECTOR, _INT, _INT, _MATRIX), _codes)
