"""Verbs of float products in tiles: some rows against three others, or as many weighted sums of two vectors.

Each result is one chain of operations in one order, so a row's bits do not depend on the tile it is in.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from edgegemma.kernels import fours, simd
from edgegemma.kernels.simd import Floats

ROWS, COLUMNS = 4, 3  # 12 sums: what hides an addition's latency and leaves 4 of 16 registers
WIDE = (
    8 if simd.TARGET.path in ("avx512vnni", "dotprod", "neon") else 4
)  # rows that 32 registers hold as well
_BY_LANE = simd.LANES == 4  # NEON multiplies by a lane of a register; x86 by a number in memory
_WORD = ir.IntType(64)


def _dots(_context, y, at, quad, u, i, step, v, j0, j1, j2, count, last, rows):  # type: ignore[no-untyped-def]
    """Write the product of row r of u with row c of v, each the sum of a vector of chains, for ``rows`` rows.

    It goes to ``y[at + quad * (r // 4) + 4 * c + r % 4]``. u is float32, its rows at ``i + r * step``; v is float32, int8, or
    uint16 with the bits of bfloat16, its rows at j0, j1, j2. Both have ``count`` vectors; the last one of v begins
    at its column ``last``.
    """
    kind, height = v.dtype, rows.literal_value

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        plain = _plain(context, b, signature, args)
        y, at, quad, u, i, step, v, j0, j1, j2, count, last, _ = plain
        sums = _zeros(b, height * COLUMNS)
        rows = [b.add(i, b.mul(step, _number(r))) for r in range(height)]

        def add(k: Any, column: Any) -> None:
            ws = [widened(b, v, b.add(j, column), kind) for j in (j0, j1, j2)]
            for r, row in enumerate(rows):
                x = simd._load(b, u, b.add(row, k), simd.VF)
                for c, w in enumerate(ws):
                    _add_product(b, w, x, sums[c * height + r])

        lanes = _number(simd.LANES)
        before = b.sub(count, _number(1))
        with cgutils.for_range(b, before) as loop:
            k = b.mul(loop.index, lanes)
            add(k, k)
        add(b.mul(before, lanes), last)
        for k in range(0, height * COLUMNS, 4):
            c, r = divmod(k, height)
            total = fours._sum_lanes(b, b.fadd, [b.load(place) for place in sums[k : k + 4]])
            place = b.add(b.add(at, b.mul(quad, _number(r // 4))), _number(4 * c))
            b.store(total, simd._at(b, y, place, fours._FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(y, at, quad, u, i, step, v, j0, j1, j2, count, last, rows), codegen


def _plain(context: Any, b: Any, signature: Any, args: Any) -> list[Any]:
    """Give arrays as pointers and whole numbers as LLVM's, literal ones too."""
    both = zip(signature.args, args, strict=True)
    values = (simd._plain(context, b, kind, value) for kind, value in both)
    return [_number(value) if isinstance(value, int) else value for value in values]


def _zeros(b: Any, count: int) -> list[Any]:
    return [cgutils.alloca_once_value(b, ir.Constant(simd.VF, None)) for _ in range(count)]


def _add_product(b: Any, u: Any, v: Any, place: Any) -> None:
    name = f"llvm.fmuladd.v{simd.LANES}f32"
    b.store(simd._call(b, name, simd.VF, u, v, b.load(place)), place)


def widened(b: Any, array: Any, i: Any, kind: Any) -> Any:
    """Build the load of a vector of float32, int8 or bfloat16 (uint16) as float32."""
    if kind == types.float32:
        return simd._load(b, array, i, simd.VF)
    if kind == types.int8:
        return b.sitofp(
            simd._load(b, array, i, ir.VectorType(simd.V8.element, simd.LANES)), simd.VF
        )
    wide = b.zext(simd._load(b, array, i, ir.VectorType(simd.I16, simd.LANES)), simd.V32)
    return b.bitcast(b.shl(wide, ir.Constant(simd.V32, [16] * simd.LANES)), simd.VF)


def _weigh(_context, out, o, step, weights, w, values, v, count, factors, f):  # type: ignore[no-untyped-def]
    """Add weighted sums to four rows of out, two vectors of each, the rows at ``o + r * step``.

    A sum takes ``weights[w + 4 * k + r]`` times the vectors at ``values[v + 2 * LANES * k:]`` for k of 0 … count - 1, in
    this order. What is in row r counts ``factors[f + r]`` times, its sum ``factors[f + 4 + r]`` times.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        plain = _plain(context, b, signature, args)
        out, o, step, weights, w, values, v, count, factors, f = plain
        sums = _zeros(b, 2 * ROWS)
        with cgutils.for_range(b, count) as loop:
            first = b.add(v, b.mul(loop.index, _number(2 * simd.LANES)))
            pair = [
                simd._load(b, values, b.add(first, _number(c * simd.LANES)), simd.VF)
                for c in (0, 1)
            ]
            for r in range(ROWS):
                place = b.add(b.add(w, b.mul(loop.index, _number(ROWS))), _number(r))
                weight = _each(b, weights, place)
                for c, value in enumerate(pair):
                    _add_product(b, weight, value, sums[2 * r + c])
        for r in range(ROWS):
            old, new = (_each(b, factors, b.add(f, _number(k + r))) for k in (0, ROWS))
            for c in (0, 1):
                at = b.add(b.add(o, b.mul(step, _number(r))), _number(c * simd.LANES))
                before = b.fmul(simd._load(b, out, at, simd.VF), old)
                total = b.fadd(before, b.fmul(b.load(sums[2 * r + c]), new))
                b.store(total, simd._at(b, out, at, simd.VF), align=4)
        return context.get_dummy_value()

    return types.void(out, o, step, weights, w, values, v, count, factors, f), codegen


def _add_weighted(_context, sums, o, step, weights, w, quad, values, v, stride, count, rows):  # type: ignore[no-untyped-def]
    """Go on with ``rows`` weighted sums, two vectors of each at ``sums[o + r * step:]``.

    Added is ``weights[w + quad * (r // 4) + 4 * k + r % 4]`` times the vectors at ``values[v + k * stride:]``, float32 or int8,
    for k of 0 … count - 1, in this order.
    """
    kind, height = values.dtype, rows.literal_value

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        plain = _plain(context, b, signature, args)
        sums, o, step, weights, w, quad, values, v, stride, count, _ = plain
        places = [
            b.add(b.add(o, b.mul(step, _number(r))), _number(c * simd.LANES))
            for r in range(height)
            for c in (0, 1)
        ]
        chains = [
            cgutils.alloca_once_value(b, simd._load(b, sums, place, simd.VF)) for place in places
        ]
        with cgutils.for_range(b, count) as loop:
            at = b.add(v, b.mul(loop.index, stride))
            pair = _widened_pair(b, values, at, kind)
            four = b.add(w, b.mul(loop.index, _number(4)))
            for r in range(0, height, 4):
                for k, weight in enumerate(_four_weights(b, weights, four)):
                    for c in (0, 1):
                        _add_product(b, weight, pair[c], chains[2 * (r + k) + c])
                four = b.add(four, quad)
        for place, chain in zip(places, chains, strict=True):
            b.store(b.load(chain), simd._at(b, sums, place, simd.VF), align=4)
        return context.get_dummy_value()

    return types.void(sums, o, step, weights, w, quad, values, v, stride, count, rows), codegen


def _widened_pair(b: Any, array: Any, i: Any, kind: Any) -> list[Any]:
    """Build the load of two neighbouring vectors as float32, int8 in one piece."""
    if kind != types.int8:
        return [widened(b, array, b.add(i, _number(c * simd.LANES)), kind) for c in (0, 1)]
    both = simd._load(b, array, i, ir.VectorType(simd.V8.element, 2 * simd.LANES))
    wide = b.sitofp(both, ir.VectorType(simd.F32, 2 * simd.LANES))
    halves = (range(simd.LANES), range(simd.LANES, 2 * simd.LANES))
    return [b.shuffle_vector(wide, wide, ir.Constant(simd.V32, list(half))) for half in halves]


def _four_weights(b: Any, array: Any, i: Any) -> list[Any]:
    """Build the loads of four neighbouring numbers, each in every lane."""
    if not _BY_LANE:
        return [_each(b, array, b.add(i, _number(k))) for k in range(4)]
    four = simd._load(b, array, i, fours._FLOATS)
    return [b.shuffle_vector(four, four, ir.Constant(simd.V32, [k] * 4)) for k in range(4)]


def _number(value: int) -> Any:
    return ir.Constant(_WORD, value)


def _each(b: Any, array: Any, i: Any) -> Any:
    """Build the load of one float32 into every lane."""
    return simd._splat(b, b.load(simd._one(b, array, i, simd.F32)), simd.VF)


@simd._verb(Floats, Floats, Floats)
def add(b: Any, u: Any, v: Any) -> Any:
    """Add lane by lane."""
    return b.fadd(u, v)


@simd._verb(Floats, Floats, Floats)
def subtract(b: Any, u: Any, v: Any) -> Any:
    """Subtract lane by lane."""
    return b.fsub(u, v)


@simd._verb(Floats, Floats, Floats)
def larger(b: Any, u: Any, v: Any) -> Any:
    """Give the larger of each lane; v's where u's is NaN."""
    return _larger(b, u, v)


@simd._verb(Floats, Floats)
def peak_of_fours(b: Any, v: Any) -> Any:
    """Give each lane the largest of the lanes a multiple of four away."""
    return _fold(b, v, _larger)


@simd._verb(Floats, Floats)
def sum_of_fours(b: Any, v: Any) -> Any:
    """Give each lane the sum of the lanes a multiple of four away."""
    return _fold(b, v, lambda b, u, v: b.fadd(u, v))


def _larger(b: Any, u: Any, v: Any) -> Any:
    return b.select(b.fcmp_ordered(">", u, v), u, v)


def _fold(b: Any, v: Any, join: Any) -> Any:
    distance = simd.LANES // 2
    while distance >= 4:
        index = [(lane + distance) % simd.LANES for lane in range(simd.LANES)]
        v = join(b, v, b.shuffle_vector(v, v, ir.Constant(simd.V32, index)))
        distance //= 2
    return v


dots: Any = intrinsic(prefer_literal=True)(_dots)
weigh: Any = intrinsic(_weigh)
add_weighted: Any = intrinsic(prefer_literal=True)(_add_weighted)
