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
        rows = [b.add(i, b.mul(step, ir.Constant(_WORD, r))) for r in range(ROWS)]

        def add(k: Any, column: Any) -> None:
            ws = [widened(b, v, b.add(j, column), kind) for j in (j0, j1, j2)]
            for r, row in enumerate(rows):
                x = simd._load(b, u, b.add(row, k), simd.VF)
                for c, w in enumerate(ws):
                    place = sums[c * ROWS + r]
                    name = f"llvm.fmuladd.v{simd.LANES}f32"
                    b.store(simd._call(b, name, simd.VF, w, x, b.load(place)), place)

        lanes = ir.Constant(_WORD, simd.LANES)
        before = b.sub(count, ir.Constant(_WORD, 1))
        with cgutils.for_range(b, before) as loop:
            k = b.mul(loop.index, lanes)
            add(k, k)
        add(b.mul(before, lanes), last)
        for c in range(COLUMNS):
            chains = [b.load(place) for place in sums[c * ROWS : (c + 1) * ROWS]]
            total = fours._sum_lanes(b, b.fadd, chains)
            place = b.add(at, ir.Constant(_WORD, ROWS * c))
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


dots: Any = intrinsic(_dots)
