"""Verbs of float products in tiles: four rows against three others, or four weighted sums of two vectors.

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
_WORD = ir.IntType(64)


def _dots(_context, y, at, u, i, step, v, j0, j1, j2, count, last):  # type: ignore[no-untyped-def]
    """Write at ``y[at + 4 * c + r]`` the product of row r of u with row c of v, each the sum of a vector of chains.

    u is float32, its rows at ``i + r * step``; v is float32, int8, or uint16 with the bits of bfloat16, its rows at j0,
    j1, j2. Both have ``count`` vectors; the last one of v begins at its column ``last``.
    """
    kind = v.dtype

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        plain = [simd._plain(context, b, *both) for both in zip(signature.args, args, strict=True)]
        y, at, u, i, step, v, j0, j1, j2, count, last = plain
        sums = [cgutils.alloca_once_value(b, ir.Constant(simd.VF, None)) for _ in range(12)]
        rows = [b.add(i, b.mul(step, _number(r))) for r in range(ROWS)]

        def add(k: Any, column: Any) -> None:
            ws = [widened(b, v, b.add(j, column), kind) for j in (j0, j1, j2)]
            for r, row in enumerate(rows):
                x = simd._load(b, u, b.add(row, k), simd.VF)
                for c, w in enumerate(ws):
                    place = sums[c * ROWS + r]
                    name = f"llvm.fmuladd.v{simd.LANES}f32"
                    b.store(simd._call(b, name, simd.VF, w, x, b.load(place)), place)

        lanes = _number(simd.LANES)
        before = b.sub(count, _number(1))
        with cgutils.for_range(b, before) as loop:
            k = b.mul(loop.index, lanes)
            add(k, k)
        add(b.mul(before, lanes), last)
        for c in range(COLUMNS):
            chains = [b.load(place) for place in sums[c * ROWS : (c + 1) * ROWS]]
            total = fours._sum_lanes(b, b.fadd, chains)
            place = b.add(at, _number(ROWS * c))
            b.store(total, simd._at(b, y, place, fours._FLOATS), align=4)
        return context.get_dummy_value()

    return types.void(y, at, u, i, step, v, j0, j1, j2, count, last), codegen


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
        plain = [simd._plain(context, b, *both) for both in zip(signature.args, args, strict=True)]
        out, o, step, weights, w, values, v, count, factors, f = plain
        sums = [cgutils.alloca_once_value(b, ir.Constant(simd.VF, None)) for _ in range(2 * ROWS)]
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
                    k = 2 * r + c
                    name = f"llvm.fmuladd.v{simd.LANES}f32"
                    b.store(simd._call(b, name, simd.VF, weight, value, b.load(sums[k])), sums[k])
        for r in range(ROWS):
            old, new = (_each(b, factors, b.add(f, _number(k + r))) for k in (0, ROWS))
            for c in (0, 1):
                at = b.add(b.add(o, b.mul(step, _number(r))), _number(c * simd.LANES))
                before = b.fmul(simd._load(b, out, at, simd.VF), old)
                total = b.fadd(before, b.fmul(b.load(sums[2 * r + c]), new))
                b.store(total, simd._at(b, out, at, simd.VF), align=4)
        return context.get_dummy_value()

    return types.void(out, o, step, weights, w, values, v, count, factors, f), codegen


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


dots: Any = intrinsic(_dots)
weigh: Any = intrinsic(_weigh)
