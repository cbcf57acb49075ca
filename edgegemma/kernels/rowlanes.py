"""Verbs of a matrix product whose lanes are weight rows: no sum is ever added up across lanes.

A vector holds four bytes of each of `simd.LANES` rows, of weights or of activations. A vector of weights meets four bytes
of one activation row in every lane, which a CPU with 64-byte vectors multiplies straight from memory.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from edgegemma.kernels import dots, simd
from edgegemma.kernels.simd import ARRAY, LITERAL

USED = simd.TARGET.path == "avx512vnni"


@simd._verb(
    types.void, ARRAY, types.intp, types.intp, types.intp, types.intp, ARRAY, types.intp, LITERAL
)
def turn(
    b: Any, rows: Any, first: Any, last: Any, size: Any, i: Any, out: Any, j: Any, bits: int
) -> None:
    """Write the codes of a vector from byte i on of rows ``first``, ``first + 1`` …, row ``last`` again beyond it.

    A row has ``size`` bytes. Code c of every byte is in `simd.LANES` vectors, four bytes of each row side by side, from
    ``out[j + c * simd.LANES * simd.WIDTH]`` on.
    """
    vectors = []
    for r in range(simd.LANES):
        row = b.add(first, ir.Constant(first.type, r))
        row = b.select(b.icmp_signed("<", row, last), row, last)
        place = simd._at(b, rows, b.add(b.mul(row, size), i), simd.V8)
        vectors.append(b.load(b.bitcast(place, simd.V32.as_pointer()), align=1))
    mask = ir.Constant(simd.V32, [0x01010101 * ((1 << bits) - 1)] * simd.LANES)
    for k, vector in enumerate(_transposed(b, vectors)):
        for c in range(8 // bits):
            code = vector
            if c:
                code = b.lshr(code, ir.Constant(simd.V32, [bits * c] * simd.LANES))
            if bits < 8:
                code = b.and_(code, mask)
            at = b.add(j, ir.Constant(j.type, (c * simd.LANES + k) * simd.WIDTH))
            b.store(b.bitcast(code, simd.V8), simd._at(b, out, at, simd.V8), align=1)


def _transposed(b: Any, vectors: list[Any]) -> list[Any]:
    """Swap lanes and vectors, a power of two at a time."""
    count = len(vectors)
    distance = 1
    while distance < count:
        low = [k if not k & distance else k - distance + count for k in range(count)]
        high = [k + distance if not k & distance else k + count for k in range(count)]
        for i in range(count):
            if not i & distance:
                pair = vectors[i], vectors[i + distance]
                vectors[i], vectors[i + distance] = (
                    b.shuffle_vector(*pair, ir.Constant(simd.V32, index)) for index in (low, high)
                )
        distance *= 2
    return vectors


@simd._verb(
    types.void, ARRAY, types.intp, types.boolean, ARRAY, ARRAY, types.intp, types.intp, LITERAL
)
def multiply_lanes(
    b: Any, sums: Any, s: Any, more: Any, digits: Any, panel: Any, p: Any, count: Any, columns: int
) -> None:
    """Write the products of ``count`` vectors of codes with as many of each of ``columns`` activation rows.

    The sums of activation row c are the vector ``sums[s + c * simd.LANES:]``, added to what is there if ``more``; its
    bytes are four of each vector from ``panel[p]`` on, from byte 4 c on.
    """
    places = [b.add(s, ir.Constant(s.type, c * simd.LANES)) for c in range(columns)]
    totals = []
    for place in places:
        before = b.select(more, simd._load(b, sums, place, simd.V32), ir.Constant(simd.V32, None))
        totals.append(cgutils.alloca_once_value(b, before))
    with cgutils.for_range(b, count) as loop:
        at = b.mul(loop.index, ir.Constant(loop.index.type, simd.WIDTH))
        codes = simd._load(b, digits, at, simd.V8)
        for c, total in enumerate(totals):
            place = b.gep(panel, [b.add(b.add(p, at), ir.Constant(at.type, 4 * c))])
            four = b.load(b.bitcast(place, simd.I32.as_pointer()), align=1)
            x = b.bitcast(simd._splat(b, four, simd.V32), simd.V8)
            b.store(dots._vnni_large(b, b.load(total), codes, x), total)
    for place, total in zip(places, totals, strict=True):
        b.store(b.load(total), simd._at(b, sums, place, simd.V32), align=1)


@simd._verb(types.void, ARRAY, types.intp)
def ask(b: Any, array: Any, i: Any) -> None:
    """Ask for the cache line of byte ``array[i]``, to be near when its turn comes."""
    place = simd._one(b, array, i, simd.V8.element)
    hint = [ir.Constant(simd.I32, value) for value in (0, 2, 1)]  # to read, second level, data
    simd._call(b, "llvm.prefetch.p0", ir.VoidType(), place, *hint)
