"""Multiply many rows by packed codes, in blocks.

A thread takes `_CHUNK` weight rows and unpacks `_DEPTH` of their columns into bytes; what it unpacked stays in its
first-level cache and meets the activation rows a tile at a time (`tiles`). With 64-byte vectors exact products lie
otherwise: a weight row in each lane (`rowlanes`), so that no sum has to be added up across lanes. Each result is the
same exact integer, or the same chain of float operations, as in `codes`, so a row's bits do not depend on how many
rows are in the call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, typeof, types

from edgegemma.kernels import rowlanes, simd, tiles
from edgegemma.kernels.activation import EMPTY, Rounded, _fake, _padded, _quantize
from edgegemma.kernels.codes import _exact, _scales_in_unit
from edgegemma.kernels.fork import Shared, fork
from edgegemma.kernels.lanes import lane_scales
from edgegemma.kernels.late import Kernel, ready
from edgegemma.kernels.rowlanes import ask, multiply_lanes, turn
from edgegemma.kernels.simd import (
    add_ints,
    load_floats,
    load_ints,
    multiply,
    splat,
    splat_int,
    store_floats,
    sum_ints,
    to_floats,
)
from edgegemma.kernels.static import _quantize_static
from edgegemma.kernels.tiles import (
    add_products,
    add_unit,
    fake,
    shift_sums,
    store_columns,
    store_sums,
    sum_totals,
    unpack,
    zero_sums,
    zero_totals,
)

_WIDTH, _LANES, _ROWS, _COLUMNS = simd.WIDTH, simd.LANES, tiles.ROWS, tiles.COLUMNS
_CHUNK = 16  # weight rows a thread takes at once
_DEPTH = 1536  # activations of a row that its tile holds at once: a multiple of every path's unit


def _matmul(x, codes, scale, activation, bits, block, y):  # type: ignore[no-untyped-def]
    """Write x · wᵀ into y: x [M, K], codes [N, K*bits/8], y [M, N]."""
    in_unit = _scales_in_unit(block, bits)
    if codes.shape[1] < _WIDTH:  # less than a vector: put the row at the end of one
        codes = _padded(codes, _WIDTH)
        in_unit = 0
    exact = _exact(scale, activation)
    if exact:
        r = _laid(_quantize_static(x, activation[0], bits))
        index, count = r.block, 1
    else:
        r = _quantize(x, activation[0], bits, block)
        index, count = r.block, in_unit
        if scale.shape[1] == 1:
            index, count = np.zeros_like(r.block), 1
    args = codes, scale, activation[1], r, index, count, y
    jobs = (codes.shape[0] + _CHUNK - 1) // _CHUNK
    fork("many_integers2", _kernel(exact, bits), args, jobs)


@njit(cache=True)
def _kernel(exact, bits):  # type: ignore[no-untyped-def]
    """Give the address of the kernel for a matrix."""
    if bits == 2:
        return ready("many_integers2") if exact else ready("many_blocks2")
    if bits == 4:
        return ready("many_integers4") if exact else ready("many_blocks4")
    return ready("many_integers8") if exact else ready("many_blocks8")


def _in_chunks(some_rows: Any) -> Any:
    """Make the kernel of chunks of weight rows from that of weight rows first … stop."""
    work = njit(inline="always")(some_rows)

    def chunks(given, first, stop):  # type: ignore[no-untyped-def]
        codes, scale, out, r, index, count, y = given
        for row in range(first * _CHUNK, min(codes.shape[0], stop * _CHUNK), _CHUNK):
            last = min(codes.shape[0], row + _CHUNK)
            work(codes, scale, out, r, index, count, y, row, last)

    return chunks


@njit(cache=True)
def _laid(r):  # type: ignore[no-untyped-def]
    """Give the activations with their planes as the kernels of exact products want them."""
    if rowlanes.USED:
        return Rounded(_panels(r.planes), r.offset, r.total, r.lanes, r.block, r.rows)
    return r


def _make_unpack(bits: int, depth: int, step: int) -> Any:
    """Make the loop that writes columns k … end of weight rows as digits, digit c of a byte ``c * step`` further."""
    unit = _WIDTH * 8 // bits

    @njit(forceinline=True)
    def unpack_rows(codes, first, stop, k, end, digits):  # type: ignore[no-untyped-def]
        last = codes.shape[1] - _WIDTH
        for n in range(first, stop):
            for v in range(k, end, unit):
                i = n * codes.shape[1] + min(v * bits // 8, last)
                unpack(codes, i, digits, (n - first) * depth + v - k, step, bits)

    return unpack_rows


def _make_integers(bits: int) -> Any:
    """Make the kernel of exact products, weight rows first … stop, for a scale a row and static activations."""
    steps = tiles.STEPS2 if bits == 2 else tiles.STEPS4
    group = steps * _WIDTH
    numbers = 2 if bits == 8 else 1  # digits that meet the same activation
    depth = numbers * _DEPTH

    unpack_rows = _make_unpack(bits, depth, _DEPTH if bits == 8 else _WIDTH)

    def integers(codes, scale, out, r, index, count, y, first, stop):  # type: ignore[no-untyped-def]
        rows, size = r.planes.shape
        width = (rows + 15) // 16 * 16
        digits = np.empty(_CHUNK * depth, np.int8)
        sums = np.empty((_CHUNK, width), np.int32)
        for k in range(0, size, _DEPTH):
            end = min(size, k + _DEPTH)
            whole = k + (end - k) // group * group
            unpack_rows(codes, first, stop, k, end, digits)
            for m in range(0, rows, _COLUMNS):
                for n in range(0, stop - first, _ROWS):
                    s = zero_sums()
                    for number in range(numbers):
                        at = n * depth + number * _DEPTH - k
                        s = shift_sums(s, 4)
                        for v in range(k, whole, group):
                            s = add_products(s, digits, at + v, depth, r.planes, v, m, steps)
                        for v in range(whole, end, _WIDTH):
                            s = add_products(s, digits, at + v, depth, r.planes, v, m, 1)
                    store_sums(s, sums, n * width + m, width, k > 0)
        _scale_sums(sums, scale, out, r, y, first, stop)

    return integers


def _make_lane_integers(bits: int) -> Any:
    """Do what `_make_integers` does, a weight row in each lane; the planes of ``r`` are panels."""
    unit = _WIDTH * 8 // bits

    def integers(codes, scale, out, r, index, count, y, first, stop):  # type: ignore[no-untyped-def]
        rows, size = y.shape[0], r.planes.shape[1]
        last = codes.shape[1] - _WIDTH
        room = np.empty(_LANES * _DEPTH + _WIDTH, np.int8)
        digits = room[-room.ctypes.data % _WIDTH :]  # no vector lies in two lines of the cache
        sums = np.empty((rows + _LANES, _LANES), np.int32)
        for k in range(0, size, _DEPTH):
            end = min(size, k + _DEPTH)
            for v in range(k, end, unit):
                i = min(v * bits // 8, last)
                turn(codes, first, stop - 1, codes.shape[1], i, digits, (v - k) * _LANES, bits)
            for n in range(stop, min(stop + _CHUNK, codes.shape[0])):
                for i in range(k * bits // 8, end * bits // 8, _WIDTH):
                    ask(codes, n * codes.shape[1] + min(i, last))
            m = 0
            while m < rows:
                p = (m // _LANES * size + k) * _LANES + m % _LANES * 4
                if rows - m > 8:
                    multiply_lanes(sums, m * _LANES, k > 0, digits, r.planes, p, (end - k) // 4, 16)
                    m += 16
                else:
                    multiply_lanes(sums, m * _LANES, k > 0, digits, r.planes, p, (end - k) // 4, 4)
                    m += 4
        _scale_lanes(sums, scale, out, r, y, first, stop)

    return integers


@njit(cache=True)
def _panels(planes):  # type: ignore[no-untyped-def]
    """Lay rows of int8 [M, K] side by side, four bytes of each: [M / lanes rounded up * lanes, K]."""
    blocks = (planes.shape[0] + _LANES - 1) // _LANES
    out = np.empty((blocks * _LANES, planes.shape[1]), np.int8)
    fork("panels", ready("panels"), (planes, out), blocks)
    return out


def _some_panels(given, first, stop):  # type: ignore[no-untyped-def]
    planes, out = given
    rows, size = planes.shape
    for block in range(first, stop):
        for i in range(0, size, _WIDTH):
            at = (block * size + i) * _LANES
            turn(planes, block * _LANES, rows - 1, size, i, out, at, 8)


@njit(cache=True)
def _scale_lanes(sums, scale, out, r, y, first, stop):  # type: ignore[no-untyped-def]
    """Turn the sums [M, chunk] into results: columns first … stop of y."""
    scales, part = np.zeros(_LANES, np.float32), np.empty(_LANES, np.float32)
    for n in range(stop - first):
        scales[n] = scale[first + n, 0]
    by = load_floats(scales, 0)
    for m in range(y.shape[0]):
        offset = splat_int(sum_ints(load_ints(r.total, m * _LANES)))
        v = to_floats(add_ints(load_ints(sums, m * _LANES), offset))
        v = multiply(multiply(v, splat(r.rows[m])), by)
        v = fake(v, out) if out != np.float32(0.0) else v
        if stop - first == _LANES:
            store_floats(y, m * y.shape[1] + first, v)
        else:
            store_floats(part, 0, v)
            for n in range(stop - first):
                y[m, first + n] = part[n]


@njit(cache=True)
def _scale_sums(sums, scale, out, r, y, first, stop):  # type: ignore[no-untyped-def]
    """Turn the sums [chunk, M] into results: columns first … stop of y."""
    rows, width = r.planes.shape[0], sums.shape[1]
    offset, steps = np.zeros(width, np.int32), np.zeros(width, np.float32)
    for m in range(rows):
        offset[m], steps[m] = sum_ints(load_ints(r.total, m * _LANES)), r.rows[m]
    part = np.empty((_LANES, _CHUNK), np.float32)
    scales = np.zeros(_CHUNK, np.float32)
    for n in range(stop - first):
        scales[n] = scale[first + n, 0]
    for m in range(0, rows, _LANES):
        # Rows of y are often 4 KiB multiples apart, so their lines share a set of the cache: whole lines at a time.
        whole = m + _LANES <= rows and stop - first == _CHUNK
        before, step = load_ints(offset, m), load_floats(steps, m)
        for n in range(0, _CHUNK, 4):
            v0 = _scaled(sums, n * width + m, before, step, scales[n], out)
            v1 = _scaled(sums, (n + 1) * width + m, before, step, scales[n + 1], out)
            v2 = _scaled(sums, (n + 2) * width + m, before, step, scales[n + 2], out)
            v3 = _scaled(sums, (n + 3) * width + m, before, step, scales[n + 3], out)
            if whole:
                store_columns(y, m * y.shape[1] + first + n, y.shape[1], v0, v1, v2, v3)
            else:
                store_columns(part, n, _CHUNK, v0, v1, v2, v3)
        if not whole:
            for i in range(min(_LANES, rows - m)):
                for n in range(stop - first):
                    y[m + i, first + n] = part[i, n]


@njit(forceinline=True)
def _scaled(sums, i, offset, steps, scale, out):  # type: ignore[no-untyped-def]
    v = multiply(multiply(to_floats(add_ints(load_ints(sums, i), offset)), steps), splat(scale))
    return fake(v, out) if out != np.float32(0.0) else v


def _make_blocks(bits: int) -> Any:
    """Make the kernel of scaled units, weight rows first … stop: any scales, any activations."""
    span = _WIDTH * (2 if bits == 8 else 8 // bits)  # bytes of a unit's digits

    def blocks(codes, scale, out, r, index, count, y, first, stop):  # type: ignore[no-untyped-def]
        rows, lanes = r.lanes.shape
        units, size = lanes // _LANES, codes.shape[1]
        digits = np.empty(_CHUNK * units * span, np.int8)
        weights = np.zeros((_CHUNK, lanes), np.float32)
        for n in range(first, stop):
            for u in range(units):
                i, even = u * _WIDTH, count
                if i > size - _WIDTH:  # the overlapping unit's lanes do not start with a block
                    i, even = size - _WIDTH, count if scale.shape[1] == 1 else 0
                unpack(codes, n * size + i, digits, ((n - first) * units + u) * span, _WIDTH, bits)
                v = lane_scales(scale, n * scale.shape[1], index, u * _LANES, even)
                store_floats(weights, (n - first) * lanes + u * _LANES, v)
        part = np.empty((_ROWS, _COLUMNS), np.float32)
        for m in range(0, rows, _COLUMNS):
            for n in range(0, stop - first, _ROWS):
                t = zero_totals()
                for u in range(units):
                    i, s = (n * units + u) * span, n * lanes + u * _LANES
                    t = add_unit(
                        t, digits, i, units * span, r.planes, weights, s, lanes, r.lanes, r.offset, u, m, bits
                    )  # fmt: skip
                sum_totals(t, part, 0, _COLUMNS)
                for k in range(min(_ROWS, stop - first - n)):
                    for c in range(min(_COLUMNS, rows - m)):
                        y[m + c, first + n + k] = _fake(part[k, c], out)

    return blocks


_VECTOR, _MATRIX = types.Array(types.float32, 1, "C"), types.Array(types.float32, 2, "C")
_PACKED, _INDEX = types.Array(types.uint8, 2, "C"), types.Array(types.int32, 1, "C")
_INT, _FLOAT = types.int64, types.float32
_TAKES = _PACKED, _MATRIX, _FLOAT, typeof(EMPTY), _INDEX, _INT, _MATRIX
_PLANES = types.Array(types.int8, 2, "C")
Shared("panels", (_PLANES, _PLANES), _some_panels)
for _bits in (2, 4, 8):
    _make = _make_lane_integers if rowlanes.USED else _make_integers
    Shared(f"many_integers{_bits}", _TAKES, _in_chunks(_make(_bits)))
    Shared(f"many_blocks{_bits}", _TAKES, _in_chunks(_make_blocks(_bits)))
Kernel("matmul", types.void(_MATRIX, _PACKED, _MATRIX, _VECTOR, _INT, _INT, _MATRIX), _matmul)
