"""Verbs of the blocked matrix product: a tile of results is `ROWS` weight rows by `COLUMNS` activation rows.

A tile's sums are a tuple of vectors; weight row r with activation row c is number ``r * COLUMNS + c``. Codes are
digits here, one to a byte: an 8-bit code has two of 4 bits, the high one first. Where the CPU multiplies bytes to
int16 (AVX2, plain NEON) products are added up there, as many as surely fit, and then widened. Each int32 lane holds
the products of the same bytes as `simd.dot`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from edgegemma.kernels import dots, simd
from edgegemma.kernels.simd import ARRAY, LITERAL, Floats, Ints

_PATH = simd.TARGET.path
_INT16 = _PATH in ("avx2", "neon")
# 32 registers hold 4 x 4 sums. With 16, x86 fares best when each product reads its activations from memory in
# the same instruction: one row of codes in a register, eight sums.
ROWS, COLUMNS = (4, 4) if _PATH in ("avx512vnni", "dotprod", "neon") else (1, 8)
TILE = ROWS * COLUMNS
# Vectors of products added up at a time. An int16 lane of AVX2 takes two products of at most 128 * (2^bits - 1)
# from each, one of NEON two single ones: 8 * 3840 and 16 * 768 fit.
STEPS2, STEPS4 = 16, 8
# Subtracted from the high digit of an 8-bit code where `simd.dot` counts such a code from -128.
_HIGH_OFFSET = 8 if simd.BYTE_OFFSET == 0 else 0

_FOUR_INTS = ir.VectorType(simd.I32, 4)
_SUMS = types.UniTuple(Ints, TILE)
_TOTALS = types.UniTuple(Floats, TILE)


def _zero_sums(_context):  # type: ignore[no-untyped-def]
    """Give a tile of int32 sums, all zero."""

    def codegen(context: Any, b: Any, _signature: Any, _args: Any) -> Any:
        return cgutils.pack_array(b, [ir.Constant(simd.V32, None)] * TILE)

    return _SUMS(), codegen


def _zero_totals(_context):  # type: ignore[no-untyped-def]
    """Give a tile of float32 sums, all zero."""

    def codegen(context: Any, b: Any, _signature: Any, _args: Any) -> Any:
        return cgutils.pack_array(b, [ir.Constant(simd.VF, None)] * TILE)

    return _TOTALS(), codegen


def _shift_sums(_context, sums, bits):  # type: ignore[no-untyped-def]
    """Multiply a tile by ``2**bits``: the digits so far were higher ones."""
    by = ir.Constant(simd.V32, [bits.literal_value] * simd.LANES)

    def codegen(context: Any, b: Any, _signature: Any, args: Any) -> Any:
        return cgutils.pack_array(b, [b.shl(v, by) for v in cgutils.unpack_tuple(b, args[0], TILE)])

    return _SUMS(_SUMS, bits), codegen


def _add_products(_context, sums, digits, i, depth, x, j, m, steps):  # type: ignore[no-untyped-def]
    """Add ``steps`` vectors of products to a tile of int32 sums.

    Weight row r is at ``digits[i + r * depth]``; activation row c is row ``min(m + c, M - 1)`` of x [M, size], from j on.
    """
    count = steps.literal_value

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        sums, digits, i, depth, x, j, m, _ = args
        columns = _columns(context, b, signature.args[4], x, m, j)
        rows = _rows(b, simd._plain(context, b, signature.args[1], digits), i, depth)
        before = cgutils.unpack_tuple(b, sums, TILE)
        start = [None] * TILE if _INT16 else before
        products = _step(b, start, rows, columns, ir.Constant(i.type, 0))
        if count > 1:
            products = _loop(b, count, products, lambda at, v: _step(b, v, rows, columns, at))
        if _INT16:
            products = [b.add(s, _widen(b, v)) for s, v in zip(before, products, strict=True)]
        return cgutils.pack_array(b, products)

    return _SUMS(_SUMS, digits, i, depth, x, j, m, steps), codegen


def _columns(context: Any, b: Any, kind: Any, x: Any, m: Any, j: Any) -> list[Any]:
    """Point at element j of rows m, m + 1, … of a 2-D array, none beyond its last."""
    shape = context.make_array(kind)(context, b, x).shape
    last = b.sub(b.extract_value(shape, 0), ir.Constant(m.type, 1))
    data = context.make_array(kind)(context, b, x).data
    places = []
    for c in range(COLUMNS):
        row = b.add(m, ir.Constant(m.type, c))
        row = b.select(b.icmp_signed("<", row, last), row, last)
        places.append(b.gep(data, [b.add(j, b.mul(row, b.extract_value(shape, 1)))]))
    return places


def _rows(b: Any, pointer: Any, i: Any, depth: Any) -> list[Any]:
    return [b.gep(pointer, [b.add(i, b.mul(depth, ir.Constant(i.type, r)))]) for r in range(ROWS)]


def _loop(
    b: Any, count: int, first: Sequence[Any], body: Callable[[Any, Sequence[Any]], Any]
) -> list[Any]:
    """Run the body for each vector of columns from the second on.

    A loop and not straight code: LLVM would add up more products before it adds them to the sums, and run out
    of registers. It unrolls the loop later.
    """
    before, loop, done = b.block, b.append_basic_block("tile"), b.append_basic_block("tile.done")
    word = ir.IntType(64)
    b.branch(loop)
    b.position_at_end(loop)
    at = b.phi(word)
    sums = [b.phi(v.type) for v in first]
    results = body(at, sums)
    after = b.add(at, ir.Constant(word, simd.WIDTH))
    b.cbranch(b.icmp_signed("<", after, ir.Constant(word, count * simd.WIDTH)), loop, done)
    starts, ends = [ir.Constant(word, simd.WIDTH), *first], [after, *results]
    for phi, start, end in zip([at, *sums], starts, ends, strict=True):
        phi.add_incoming(start, before)
        phi.add_incoming(end, loop)
    b.position_at_end(done)
    return list(results)


def _step(b: Any, sums: Sequence[Any], rows: Any, columns: Any, at: Any) -> list[Any]:
    """Add the products of one vector of columns to a tile; None is zero."""
    sums = list(sums)
    xs = [simd._load(b, column, at, simd.V8) for column in columns]
    for r, row in enumerate(rows):
        digits = simd._load(b, row, at, simd.V8)
        for c, x in enumerate(xs):
            k = r * COLUMNS + c
            sums[k] = _add_product(b, sums[k], digits, x)
    return sums


def _add_product(b: Any, acc: Any, digits: Any, x: Any) -> Any:
    if _PATH == "avx2":
        half = ir.VectorType(dots.I16, simd.WIDTH // 2)
        parts = [simd._call(b, "llvm.x86.avx2.pmadd.ub.sw", half, digits, x)]
    elif _PATH == "neon":
        parts = list(dots._neon_products(b, digits, x))
    else:
        return dots.dot_small(b, _PATH, acc, [(digits, x)])
    for part in parts:
        acc = part if acc is None else b.add(acc, part)
    return acc


def _widen(b: Any, v: Any) -> Any:
    if _PATH == "avx2":
        return dots._madd(b, v, ir.Constant(v.type, [1] * v.type.count))
    return simd._call(b, "llvm.aarch64.neon.saddlp.v4i32.v8i16", simd.V32, v)


def _store_sums(_context, sums, y, i, width, more):  # type: ignore[no-untyped-def]
    """Add up each vector; put the results of row r at int32 ``y[i + r * width:]``, added to what is there if ``more``."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        sums, y, i, width, more = args
        y = simd._plain(context, b, signature.args[1], y)
        sums = cgutils.unpack_tuple(b, sums, TILE)
        for k in range(0, TILE, 4):
            r, c = divmod(k, COLUMNS)
            at = b.add(i, b.mul(width, ir.Constant(width.type, r)))
            place = simd._at(b, y, b.add(at, ir.Constant(i.type, c)), _FOUR_INTS)
            before = b.select(more, b.load(place, align=4), ir.Constant(_FOUR_INTS, None))
            b.store(b.add(_sum_four(b, sums[k : k + 4]), before), place, align=4)
        return context.get_dummy_value()

    return types.void(_SUMS, y, i, width, types.boolean), codegen


def _sum_four(b: Any, v: Sequence[Any]) -> Any:
    """Sum the lanes of each of four vectors; give the four sums."""
    u = _pairwise(b, _pairwise(b, v[0], v[1]), _pairwise(b, v[2], v[3]))
    total, *parts = (_group(b, u, g) for g in range(0, simd.LANES, 4))
    for part in parts:
        total = b.add(total, part)
    return total


def _group(b: Any, v: Any, g: int) -> Any:
    """Give four neighbouring lanes."""
    return b.shuffle_vector(v, v, ir.Constant(_FOUR_INTS, [g, g + 1, g + 2, g + 3]))


def _mixed(b: Any, u: Any, v: Any, picks: Sequence[int]) -> Any:
    """Shuffle within each four lanes: 0 … 3 are u's, 4 … 7 are v's."""
    index = [
        g + pick % 4 + simd.LANES * (pick // 4) for g in range(0, simd.LANES, 4) for pick in picks
    ]
    return b.shuffle_vector(u, v, ir.Constant(simd.V32, index))


def _pairwise(b: Any, u: Any, v: Any) -> Any:
    """Add neighbours within each four lanes: u's, then v's."""
    return b.add(_mixed(b, u, v, (0, 2, 4, 6)), _mixed(b, u, v, (1, 3, 5, 7)))


def _store_columns(_context, y, i, width, v0, v1, v2, v3):  # type: ignore[no-untyped-def]
    """Store four vectors as the columns they are: lane k of them at ``y[i + k * width:]``."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        y, i, width, v0, v1, v2, v3 = args
        y = simd._plain(context, b, signature.args[0], y)
        four = ir.VectorType(simd.F32, 4)
        for high in (0, 2):
            u = _mixed(b, v0, v1, (high, high + 4, high + 1, high + 5))
            v = _mixed(b, v2, v3, (high, high + 4, high + 1, high + 5))
            for k in (0, 1):
                rows = _mixed(b, u, v, (2 * k, 2 * k + 1, 2 * k + 4, 2 * k + 5))
                for g in range(0, simd.LANES, 4):
                    step = b.mul(width, ir.Constant(width.type, g + high + k))
                    b.store(_group(b, rows, g), simd._at(b, y, b.add(i, step), four), align=4)
        return context.get_dummy_value()

    return types.void(y, i, width, Floats, Floats, Floats, Floats), codegen


def _add_unit(_context, totals, digits, i, depth, x, weights, s, width, lanes, offset, u, m, bits):  # type: ignore[no-untyped-def]
    """Add unit u to a tile of float32 sums with the arithmetic of `codes`: an exact integer for each lane, scaled.

    Weight row r has its digits at ``digits[i + r * depth]`` and its lanes' scales at ``weights[s + r * width]``; x,
    lanes and offset are the fields of a `Rounded`, ``planes`` being x.
    """
    size = bits.literal_value

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        totals, digits, i, depth, x, weights, s, width, lanes, offset, u, m, _ = args
        kinds = signature.args
        planes = _columns(context, b, kinds[4], x, m, _times(b, u, simd.WIDTH * 8 // size))
        lane = _times(b, u, simd.LANES)
        steps = _columns(context, b, kinds[8], lanes, m, lane)
        offsets = _columns(context, b, kinds[9], offset, m, lane)
        rows = _rows(b, simd._plain(context, b, kinds[1], digits), i, depth)
        weights = simd._plain(context, b, kinds[5], weights)
        zero = ir.Constant(u.type, 0)
        sums = cgutils.unpack_tuple(b, totals, TILE)
        for k in range(TILE):
            r, c = divmod(k, COLUMNS)
            exact = _unit(b, simd._load(b, offsets[c], zero, simd.V32), rows[r], planes[c], size)
            weight = simd._load(b, weights, b.add(s, _times(b, width, r)), simd.VF)
            scale = b.fmul(simd._load(b, steps[c], zero, simd.VF), weight)
            name = f"llvm.fmuladd.v{simd.LANES}f32"
            sums[k] = simd._call(b, name, simd.VF, b.sitofp(exact, simd.VF), scale, sums[k])
        return cgutils.pack_array(b, sums)

    given = digits, i, depth, x, weights, s, width, lanes, offset, u, m, bits
    return _TOTALS(_TOTALS, *given), codegen


def _times(b: Any, v: Any, factor: int) -> Any:
    return b.mul(v, ir.Constant(v.type, factor))


def _unit(b: Any, acc: Any, row: Any, x: Any, bits: int) -> Any:
    """Add the products of a unit's digits with its planes of activations."""
    if bits == 8:
        high, low = (_products(b, row, x, (digit,), (0,)) for digit in (0, 1))
        return b.add(acc, b.add(b.shl(high, ir.Constant(simd.V32, [4] * simd.LANES)), low))
    planes = range(8 // bits)
    return b.add(acc, _products(b, row, x, planes, planes))


def _products(b: Any, row: Any, x: Any, digits: Sequence[int], planes: Sequence[int]) -> Any:
    acc = None if _INT16 else ir.Constant(simd.V32, None)
    for digit, plane in zip(digits, planes, strict=True):
        u, v = (
            simd._load(b, p, ir.Constant(ir.IntType(64), k * simd.WIDTH), simd.V8)
            for p, k in ((row, digit), (x, plane))
        )
        acc = _add_product(b, acc, u, v)
    return _widen(b, acc) if _INT16 else acc


def _sum_totals(_context, totals, y, i, width):  # type: ignore[no-untyped-def]
    """Add up each vector by halves, as `simd.sum_floats`; row r's results go to float32 ``y[i + r * width:]``."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        totals, y, i, width = args
        y = simd._plain(context, b, signature.args[1], y)
        for k, v in enumerate(cgutils.unpack_tuple(b, totals, TILE)):
            r, c = divmod(k, COLUMNS)
            at = b.add(b.add(i, _times(b, width, r)), ir.Constant(i.type, c))
            b.store(simd.halves(b, v), b.gep(b.bitcast(y, simd.F32.as_pointer()), [at]))
        return context.get_dummy_value()

    return types.void(_TOTALS, y, i, width), codegen


@simd._verb(types.void, ARRAY, types.intp, ARRAY, types.intp, types.intp, LITERAL)
def unpack(b: Any, codes: Any, i: Any, digits: Any, j: Any, step: Any, bits: int) -> None:
    """Write the digits of one vector of packed codes: digit c of every byte is a vector at ``digits[j + c * step:]``."""
    unit = simd._load(b, codes, i, simd.V8)
    each = min(bits, 4)
    count = 8 // each
    for c in range(count):
        digit = unit
        if c:
            digit = b.lshr(digit, ir.Constant(simd.V8, [each * c] * simd.WIDTH))
        if c < count - 1:
            digit = b.and_(digit, ir.Constant(simd.V8, [(1 << each) - 1] * simd.WIDTH))
        place = c
        if bits == 8:
            place = 1 - c
            if c:
                digit = b.sub(digit, ir.Constant(simd.V8, [_HIGH_OFFSET] * simd.WIDTH))
        at = b.add(j, b.mul(step, ir.Constant(step.type, place)))
        b.store(digit, simd._at(b, digits, at, simd.V8), align=1)


@simd._verb(Floats, Floats, types.float32)
def fake(b: Any, v: Any, scale: Any) -> Any:
    """Round each lane to the static int8 grid, as `activation._fake` does; NaN stays NaN."""
    step = simd._splat(b, scale, simd.VF)
    v = simd._call(b, f"llvm.rint.v{simd.LANES}f32", simd.VF, b.fdiv(v, step))
    for sign, bound in ((">", 127.0), ("<", -128.0)):
        edge = ir.Constant(simd.VF, [bound] * simd.LANES)
        v = b.select(b.fcmp_ordered(sign, v, edge), edge, v)
    return b.fmul(v, step)


zero_sums: Any = intrinsic(_zero_sums)
zero_totals: Any = intrinsic(_zero_totals)
shift_sums: Any = intrinsic(prefer_literal=True)(_shift_sums)
add_products: Any = intrinsic(prefer_literal=True)(_add_products)
add_unit: Any = intrinsic(prefer_literal=True)(_add_unit)
store_sums: Any = intrinsic(_store_sums)
store_columns: Any = intrinsic(_store_columns)
sum_totals: Any = intrinsic(_sum_totals)
