"""Four weight rows at a time: which four, and the verbs that finish them side by side.

What follows a product is a few operations for each weight row; done for four rows in one vector it does not show
next to a row of some hundred bytes.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from edgegemma.kernels import dots, simd
from edgegemma.kernels.simd import ARRAY, F32, I32, LANES, Floats, Ints, _call, _verb

_FLOATS = ir.VectorType(F32, 4)
_PLACES = types.UniTuple(types.intp, 4)
_PATH = simd.TARGET.path
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


def _zero_fours(_context, bits):  # type: ignore[no-untyped-def]
    """Give the integer sums of four rows, all zero: `dots.sums` of each."""
    count = 4 * dots.sums(_PATH, bits.literal_value)

    def codegen(context: Any, b: Any, _signature: Any, _args: Any) -> Any:
        return cgutils.pack_array(b, [ir.Constant(simd.V32, None)] * count)

    return types.UniTuple(Ints, count)(bits), codegen


def _add_fours(_context, sums, codes, places, x, j, count, bits):  # type: ignore[no-untyped-def]
    """Add to the sums of row r the products of ``count`` vectors of codes from ``codes[places[r]]`` on.

    They meet the activations from ``x[j]`` on. ``count`` is 1 or `dots.RUN`.
    """
    width, vectors = bits.literal_value, count.literal_value

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        sums, codes, places, x, j, _, _ = args
        codes = simd._plain(context, b, signature.args[1], codes)
        x = simd._plain(context, b, signature.args[3], x)
        rows = cgutils.unpack_tuple(b, places, 4)
        before = cgutils.unpack_tuple(b, sums, len(signature.args[0]))
        return cgutils.pack_array(b, _add(b, before, (codes, rows), (x, j), vectors, width))

    return sums(sums, codes, places, x, j, count, bits), codegen


def _add(b: Any, sums: Any, weights: Any, activations: Any, vectors: int, bits: int) -> list[Any]:
    """Build `add_fours`."""
    (codes, rows), (x, j) = weights, activations
    each = len(sums) // 4
    fours = [list(sums[r * each : (r + 1) * each]) for r in range(4)]

    def unit(row: Any, v: int) -> Any:
        return simd._load(b, codes, b.add(row, ir.Constant(row.type, v * simd.WIDTH)), simd.V8)

    def planes(v: int) -> list[Any]:
        first = b.add(j, ir.Constant(j.type, v * simd.WIDTH * 8 // bits))
        return simd._planes(b, x, first, bits)

    if dots.narrow(_PATH, bits):
        for own, row in zip(fours, rows, strict=True):
            taken = [(unit(row, v), planes(v)) for v in range(vectors)]
            if vectors > 1:
                own[0] = dots.run(b, _PATH, own[0], taken, bits)
                dots.part(b, _PATH)
            else:
                own[0] = dots.dot(b, _PATH, own[0], *taken[0], bits)
    else:
        for v in range(vectors):  # the planes of one: those of all would not fit into the registers
            dots.side_by_side(b, _PATH, fours, [unit(row, v) for row in rows], planes(v), bits)
    return [total for own in fours for total in own]


def _store_integers(_context, y, places, sums, total, step, scales, out, bits):  # type: ignore[no-untyped-def]
    """Write at ``y[places[r]]`` for r of 0 … 3 the lanes of row r's sums and of ``total`` added up, times step and scale.

    ``out`` is a static scale of the results, 0 for none, as in `activation._fake`.
    """
    width = bits.literal_value

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        y, places, sums, total, step, scales, out, _ = args
        parts = cgutils.unpack_tuple(b, sums, len(signature.args[2]))
        each = len(parts) // 4
        rows = [dots.joined(b, total, parts[r * each : (r + 1) * each], width) for r in range(4)]
        whole = b.sitofp(_sum_lanes(b, b.add, rows), _FLOATS)
        scale = _join(b, cgutils.unpack_tuple(b, scales, 4))
        scaled = b.fmul(b.fmul(whole, _join(b, [step] * 4)), scale)
        _store(b, simd._plain(context, b, signature.args[0], y), places, scaled, out)
        return context.get_dummy_value()

    return types.void(y, places, sums, total, step, scales, out, bits), codegen


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


zero_fours: Any = intrinsic(prefer_literal=True)(_zero_fours)
add_fours: Any = intrinsic(prefer_literal=True)(_add_fours)
store_integers: Any = intrinsic(prefer_literal=True)(_store_integers)
