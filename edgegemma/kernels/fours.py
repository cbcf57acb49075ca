"""Four weight rows at a time: which four, and the verbs that finish them side by side.

What follows a product is a few operations for each weight row; done for four rows in one vector it does not show
next to a row of some hundred bytes.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types

from edgegemma.kernels.simd import ARRAY, F32, I32, LANES, Floats, Ints, _call, _verb

_FLOATS = ir.VectorType(F32, 4)
_SCALES = (types.float32,) * 4
_PLACES = types.UniTuple(types.intp, 4)
_STREAM = 48 << 10  # bytes, at most, of each stream of a job


@njit(cache=True)
def share(rows, size, threads):  # type: ignore[no-untyped-def]
    """Count the weight rows of a job: a multiple of four, such that every thread has as many jobs."""
    turns = (rows * size + 4 * _STREAM * threads - 1) // (4 * _STREAM * threads)
    return (rows + 4 * turns * threads - 1) // (4 * turns * threads) * 4


@njit(forceinline=True)
def apart(n, quarter, last):  # type: ignore[no-untyped-def]
    """Give the rows that go with row n: one of each other quarter; beyond the last it is the last once more."""
    return min(n + quarter, last), min(n + 2 * quarter, last), min(n + 3 * quarter, last)


@_verb(
    types.void,
    ARRAY,
    _PLACES,
    Ints,
    Ints,
    Ints,
    Ints,
    types.float32,
    *_SCALES,
    types.float32,
)
def store_integers(
    b: Any, y: Any, places: Any, a0: Any, a1: Any, a2: Any, a3: Any, step: Any,
    s0: Any, s1: Any, s2: Any, s3: Any, out: Any,
) -> None:  # fmt: skip
    """Write at ``y[places[k]]`` for k of 0 … 3: the lanes of vector k summed, times step, times its scale.

    ``out`` is a static scale of the results, 0 for none, as in `activation._fake`.
    """
    sums = b.sitofp(_sum_lanes(b, b.add, [a0, a1, a2, a3]), _FLOATS)
    scaled = b.fmul(b.fmul(sums, _join(b, [step] * 4)), _join(b, [s0, s1, s2, s3]))
    _store(b, y, places, scaled, out)


@_verb(types.void, ARRAY, _PLACES, Floats, Floats, Floats, Floats, types.float32)
def store_totals(b: Any, y: Any, places: Any, t0: Any, t1: Any, t2: Any, t3: Any, out: Any) -> None:
    """Write at ``y[places[k]]`` the sum of vector k's lanes, by halves as `simd.sum_floats`."""
    _store(b, y, places, _sum_lanes(b, b.fadd, [t0, t1, t2, t3]), out)


def _sum_lanes(b: Any, add: Any, vectors: list[Any]) -> Any:
    """Add up the lanes of four vectors by halves; result k is that of vector k."""
    count = LANES
    while count > 4:
        count //= 2
        vectors = [
            add(_pick(b, v, v, range(count)), _pick(b, v, v, range(count, 2 * count)))
            for v in vectors
        ]
    low, high = (
        add(_pick(b, u, v, (0, 1, 4, 5)), _pick(b, u, v, (2, 3, 6, 7)))
        for u, v in (vectors[:2], vectors[2:])
    )
    return add(_pick(b, low, high, (0, 2, 4, 6)), _pick(b, low, high, (1, 3, 5, 7)))


def _pick(b: Any, u: Any, v: Any, index: Any) -> Any:
    places = list(index)
    return b.shuffle_vector(u, v, ir.Constant(ir.VectorType(I32, len(places)), places))


def _join(b: Any, values: list[Any]) -> Any:
    vector = ir.Constant(_FLOATS, ir.Undefined)
    for k, value in enumerate(values):
        vector = b.insert_element(vector, value, ir.Constant(I32, k))
    return vector


def _store(b: Any, y: Any, places: Any, v: Any, out: Any) -> None:
    zero = ir.Constant(F32, 0.0)
    with b.if_else(b.fcmp_ordered("==", out, zero)) as (plain, static):
        with plain:
            unrounded = b.block
        with static:
            rounded, rounding = _fake(b, v, _join(b, [out] * 4)), b.block
    result = b.phi(_FLOATS)
    result.add_incoming(v, unrounded)
    result.add_incoming(rounded, rounding)
    first = b.bitcast(y, F32.as_pointer())
    for k in range(4):
        value = b.extract_element(result, ir.Constant(I32, k))
        b.store(value, b.gep(first, [b.extract_value(places, k)]))


def _fake(b: Any, v: Any, step: Any) -> Any:
    v = _call(b, "llvm.rint.v4f32", _FLOATS, b.fdiv(v, step))
    for sign, bound in ((">", 127.0), ("<", -128.0)):
        edge = ir.Constant(_FLOATS, [bound] * 4)
        v = b.select(b.fcmp_ordered(sign, v, edge), edge, v)
    return b.fmul(v, step)
