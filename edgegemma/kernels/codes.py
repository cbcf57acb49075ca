"""Multiply a few rows by packed codes: four weight rows against one activation row at a time.

The four are not neighbours: each is of its own quarter of the job, so that a job reads four long streams, which a CPU
foresees by itself. Four neighbours of some hundred bytes are no such streams, and asking for their lines ahead
took a quarter longer.

Many rows go through `matmul`. A result is the same chain of operations there, so a row's bits do not
depend on how many rows are in the call.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, typeof, types

from edgegemma.kernels import simd, threads
from edgegemma.kernels.activation import EMPTY, _padded, _quantize
from edgegemma.kernels.fork import Shared, fork, fork_both
from edgegemma.kernels.fours import (
    add_fours,
    apart,
    share,
    store_integers,
    store_totals,
    zero_fours,
)
from edgegemma.kernels.lanes import lane_scales
from edgegemma.kernels.late import Kernel, ready
from edgegemma.kernels.simd import (
    RUN,
    dot,
    fma,
    load,
    load_floats,
    load_ints,
    multiply,
    splat,
    to_floats,
    zero_floats,
)
from edgegemma.kernels.static import _quantize_static

_WIDTH, _LANES = simd.WIDTH, simd.LANES


def _codes(x, codes, scale, activation, bits, block, y):  # type: ignore[no-untyped-def]
    """Write x · wᵀ into y: x [M, K], codes [N, K*bits/8], y [M, N]."""
    r = _rounded(x, scale, activation, bits, block)
    args = _prepared(codes, scale, activation, bits, block, r, y)
    fork("integers2", _kernel(scale, activation, bits), args, _jobs_of(args))


def _pair(x, codes, scale, static, bits, block, y, v, v_scale, v_static, v_bits, v_block, z):  # type: ignore[no-untyped-def]
    """Do `_codes` for two matrices, to y and z: x rounded once where both ask for the same, the work shared once."""
    r = _rounded(x, scale, static, bits, block)
    v_r = r
    if not _round_alike(scale, static, bits, block, v_scale, v_static, v_bits, v_block):
        v_r = _rounded(x, v_scale, v_static, v_bits, v_block)
    first = _prepared(codes, scale, static, bits, block, r, y)
    second = _prepared(v, v_scale, v_static, v_bits, v_block, v_r, z)
    kernel, other = _kernel(scale, static, bits), _kernel(v_scale, v_static, v_bits)
    jobs, v_jobs = _jobs_of(first), _jobs_of(second)
    fork_both(ready("both"), "integers2", kernel, first, jobs, other, second, v_jobs)


@njit(cache=True)
def _exact(scale, activation):  # type: ignore[no-untyped-def]
    """Tell whether a matrix has a scale a row and static activations, so that its products add up as integers."""
    return scale.shape[1] == 1 and activation[0] > np.float32(0.0)


@njit(cache=True)
def _rounded(x, scale, activation, bits, block):  # type: ignore[no-untyped-def]
    """Round x as the kernel of a matrix wants it."""
    if _exact(scale, activation):
        return _quantize_static(x, activation[0], bits)
    return _quantize(x, activation[0], bits, block)


@njit(cache=True)
def _round_alike(scale, activation, bits, block, v_scale, v_activation, v_bits, v_block):  # type: ignore[no-untyped-def]
    """Tell whether two matrices want the same of x."""
    exact = _exact(scale, activation)
    if exact != _exact(v_scale, v_activation) or activation[0] != v_activation[0]:
        return False
    return bits == v_bits and (exact or block == v_block)


@njit(cache=True)
def _prepared(codes, scale, activation, bits, block, r, y):  # type: ignore[no-untyped-def]
    """Give what a matrix's kernel takes, the rows of a job among it."""
    in_unit = _scales_in_unit(block, bits)
    if codes.shape[1] < _WIDTH:  # less than a vector: put the row at the end of one
        codes = _padded(codes, _WIDTH)
        in_unit = 0
    each = share(codes.shape[0], codes.shape[1], threads.count())
    return codes, scale, activation[1], r, in_unit, y, each


@njit(cache=True)
def _jobs_of(args):  # type: ignore[no-untyped-def]
    """Count the jobs of a matrix that is `_prepared`."""
    rows, each = args[0].shape[0], args[6]
    return (rows + each - 1) // each


@njit(cache=True)
def _kernel(scale, activation, bits):  # type: ignore[no-untyped-def]
    """Give the address of the kernel for a matrix."""
    rows, exact = scale.shape[1] == 1, _exact(scale, activation)
    if bits == 2:
        return ready("integers2") if exact else ready("lanes2") if rows else ready("blocks2")
    if bits == 4:
        return ready("integers4") if exact else ready("lanes4") if rows else ready("blocks4")
    return ready("integers8") if exact else ready("lanes8") if rows else ready("blocks8")


@njit(cache=True)
def _scales_in_unit(block, bits):  # type: ignore[no-untyped-def]
    """Count the scales of a unit for `lane_scales`; 0 when they do not share its lanes evenly."""
    lanes = block * bits // 32
    if lanes % _LANES == 0:
        return 1
    return _LANES // lanes if _LANES % lanes == 0 else 0


def _in_jobs(some_rows: Any) -> Any:
    """Make the kernel of jobs of ``each`` weight rows from that of weight rows first ... stop."""
    work = njit(inline="always")(some_rows)

    def jobs(given, first, stop):  # type: ignore[no-untyped-def]
        codes, scale, out, r, even, y, each = given
        for row in range(first * each, min(codes.shape[0], stop * each), each):
            work(codes, scale, out, r, even, y, row, min(codes.shape[0], row + each))

    return jobs


def _make_integers(bits: int) -> Any:
    """Make the kernel of exact products, weight rows first ... stop: a scale a row, static activations."""
    unit = _WIDTH * 8 // bits
    run = RUN * _WIDTH

    def integers(codes, scale, out, r, even, y, first, stop):  # type: ignore[no-untyped-def]
        size, x_size = codes.shape[1], r.planes.shape[1]
        whole, quarter = size // run * run, (stop - first + 3) // 4
        for m in range(r.planes.shape[0]):
            x, at = m * x_size, m * y.shape[1]
            for n in range(first, first + quarter):
                n1, n2, n3 = apart(n, quarter, stop - 1)
                c = n * size, n1 * size, n2 * size, n3 * size
                sums = zero_fours(bits)
                for k in range(0, whole, run):
                    j = x + k * 8 // bits
                    places = c[0] + k, c[1] + k, c[2] + k, c[3] + k
                    sums = add_fours(sums, codes, places, r.planes, j, RUN, bits)
                for j in range(whole * 8 // bits, x_size, unit):
                    k = min(j * bits // 8, size - _WIDTH)
                    places = c[0] + k, c[1] + k, c[2] + k, c[3] + k
                    sums = add_fours(sums, codes, places, r.planes, x + j, 1, bits)
                scales = scale[n, 0], scale[n1, 0], scale[n2, 0], scale[n3, 0]
                places = at + n, at + n1, at + n2, at + n3
                total = load_ints(r.total, m * _LANES)
                store_integers(y, places, sums, total, r.rows[m], scales, out, bits)

    return integers


def _make_lanes(bits: int) -> Any:
    """Make the kernel for a scale a row and any activations: an exact integer for each lane, added in float32."""
    unit = _WIDTH * 8 // bits

    @njit(forceinline=True)
    def add(total, codes, c, r, m, u, scale):  # type: ignore[no-untyped-def]
        start = m * r.lanes.shape[1] + u * _LANES
        plane = m * r.planes.shape[1] + u * unit
        exact = dot(load_ints(r.offset, start), load(codes, c), r.planes, plane, bits)
        return fma(to_floats(exact), multiply(load_floats(r.lanes, start), scale), total)

    def lanes(codes, scale, out, r, even, y, first, stop):  # type: ignore[no-untyped-def]
        size = codes.shape[1]
        quarter = (stop - first + 3) // 4
        for m in range(r.planes.shape[0]):
            at = m * y.shape[1]
            for n in range(first, first + quarter):
                n1, n2, n3 = apart(n, quarter, stop - 1)
                s0, s1 = splat(scale[n, 0]), splat(scale[n1, 0])
                s2, s3 = splat(scale[n2, 0]), splat(scale[n3, 0])
                t0 = t1 = t2 = t3 = zero_floats()
                for u in range(r.planes.shape[1] // unit):
                    k = min(u * _WIDTH, size - _WIDTH)
                    t0 = add(t0, codes, n * size + k, r, m, u, s0)
                    t1 = add(t1, codes, n1 * size + k, r, m, u, s1)
                    t2 = add(t2, codes, n2 * size + k, r, m, u, s2)
                    t3 = add(t3, codes, n3 * size + k, r, m, u, s3)
                places = at + n, at + n1, at + n2, at + n3
                store_totals(y, places, t0, t1, t2, t3, out)

    return lanes


def _make_blocks(bits: int) -> Any:
    """Make the kernel for a scale a block: as that of lanes, with scales that change along a row."""
    unit = _WIDTH * 8 // bits

    @njit(forceinline=True)
    def add(total, codes, c, r, m, u, scale, s, even):  # type: ignore[no-untyped-def]
        lane = u * _LANES
        start = m * r.lanes.shape[1] + lane
        plane = m * r.planes.shape[1] + u * unit
        exact = dot(load_ints(r.offset, start), load(codes, c), r.planes, plane, bits)
        weight = lane_scales(scale, s, r.block, lane, even)
        return fma(to_floats(exact), multiply(load_floats(r.lanes, start), weight), total)

    def blocks(codes, scale, out, r, even, y, first, stop):  # type: ignore[no-untyped-def]
        size, groups = codes.shape[1], scale.shape[1]
        quarter = (stop - first + 3) // 4
        for m in range(r.planes.shape[0]):
            at = m * y.shape[1]
            for n in range(first, first + quarter):
                n1, n2, n3 = apart(n, quarter, stop - 1)
                t0 = t1 = t2 = t3 = zero_floats()
                for u in range(r.planes.shape[1] // unit):
                    k, known = u * _WIDTH, even
                    if k > size - _WIDTH:  # the overlapping unit's lanes do not start with a block
                        k, known = size - _WIDTH, 0
                    t0 = add(t0, codes, n * size + k, r, m, u, scale, n * groups, known)
                    t1 = add(t1, codes, n1 * size + k, r, m, u, scale, n1 * groups, known)
                    t2 = add(t2, codes, n2 * size + k, r, m, u, scale, n2 * groups, known)
                    t3 = add(t3, codes, n3 * size + k, r, m, u, scale, n3 * groups, known)
                places = at + n, at + n1, at + n2, at + n3
                store_totals(y, places, t0, t1, t2, t3, out)

    return blocks


_VECTOR, _MATRIX = types.Array(types.float32, 1, "C"), types.Array(types.float32, 2, "C")
_PACKED = types.Array(types.uint8, 2, "C")
_INT, _FLOAT = types.int64, types.float32
_TAKES = _PACKED, _MATRIX, _FLOAT, typeof(EMPTY), _INT, _MATRIX, _INT
for _bits in (2, 4, 8):
    Shared(f"integers{_bits}", _TAKES, _in_jobs(_make_integers(_bits)))
    Shared(f"lanes{_bits}", _TAKES, _in_jobs(_make_lanes(_bits)))
    Shared(f"blocks{_bits}", _TAKES, _in_jobs(_make_blocks(_bits)))
_WEIGHTS = _PACKED, _MATRIX, _VECTOR, _INT, _INT, _MATRIX
Kernel("codes", types.void(_MATRIX, *_WEIGHTS), _codes)
Kernel("pair", types.void(_MATRIX, *_WEIGHTS, *_WEIGHTS), _pair)
