"""The integer dot products of each vector path, as IR.

Every one adds to int32 lane l the products of bytes 4l … 4l+3, exactly for all int8 activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

I8, I16, I32 = ir.IntType(8), ir.IntType(16), ir.IntType(32)
Pairs = Sequence[tuple[Any, Any]]

# sdot and smull want signed codes, so there an 8-bit code is made code - 128 at once; elsewhere it
# stays unsigned and the caller takes 128 times the sum of the activations off.
BYTE_OFFSET = {
    "avx512vnni": 128,
    "avxvnni": 128,
    "avx2": 128,
    "dotprod": 0,
    "neon": 0,
    "generic": 128,
}

RUN = 4  # vectors of codes that `run` takes


def sums(path: str, bits: int) -> int:
    """Count the sums of a weight row: with one for each plane of codes, no code needs to be shifted.

    A byte's upper 2-bit code would be negative where bytes are signed. It is shifted, which clears the others, too.
    """
    if path == "dotprod":
        return 3 if bits == 2 else 1
    return 8 // bits if path == "avx512vnni" else 1


def side_by_side(b: Any, path: str, rows: Any, units: Any, planes: Any, bits: int) -> None:
    """Add the products of a vector of codes of each row and the planes to the sums of the rows, in place.

    Plane c's sum is ``2**(bits * c)`` times too large where its codes stay where they are. Row after row in turn: a
    sum's next product would wait for the last one.
    """
    for c, x in enumerate(planes):
        for row, codes in zip(rows, units, strict=True):
            if bits == 8:
                row[0] = _LARGE[path](b, row[0], codes, x)
            elif c < len(row):
                mask = _constant(codes.type, (1 << bits) - 1 << bits * c)
                row[c] = dot_small(b, path, row[c], [(b.and_(codes, mask), x)])
            else:
                code = b.lshr(codes, _constant(codes.type, bits * c))
                if c < len(planes) - 1:
                    code = b.and_(code, _constant(codes.type, (1 << bits) - 1))
                row[0] = dot_small(b, path, row[0], [(code, x)])


def joined(b: Any, total: Any, parts: Sequence[Any], bits: int) -> Any:
    """Add up the sums of a row and what is the same for all rows."""
    for c, part in enumerate(parts):
        total = b.add(total, b.ashr(part, _constant(part.type, bits * c)) if c else part)
    return total


def narrow(path: str, bits: int) -> bool:
    """Tell whether products are added up in int16 first: then several vectors of a row go together, by `run`."""
    return bits < 8 and path in ("avx2", "neon")


def run(b: Any, path: str, acc: Any, units: Sequence[tuple[Any, Sequence[Any]]], bits: int) -> Any:
    """Do `dot` for `RUN` vectors of codes with their planes on a path that is `narrow`: they surely fit int16."""
    if path == "avx2":
        return _avx2_run(b, acc, units, bits)
    pairs = [pair for codes, planes in units for pair in _pairs(b, codes, planes, bits)]
    return _neon_small(b, acc, pairs)


def part(b: Any, path: str) -> None:
    """Keep apart what two rows read: AVX2 multiplies by what is in memory, and has no room for 16 vectors to keep.

    LLVM would load the activations of four vectors once for four rows, and save and fetch them in between.
    """
    if path == "avx2":
        b.asm(ir.FunctionType(ir.VoidType(), []), "", "~{memory}", [], side_effect=True)


def dot(b: Any, path: str, acc: Any, codes: Any, planes: Sequence[Any], bits: int) -> Any:
    """Unpack codes of 2, 4 or 8 bits and add their products with the planes to acc."""
    if bits == 8:
        return _LARGE[path](b, acc, codes, planes[0])
    return dot_small(b, path, acc, _pairs(b, codes, planes, bits))


def _pairs(b: Any, codes: Any, planes: Sequence[Any], bits: int) -> Pairs:
    mask = _constant(codes.type, (1 << bits) - 1)
    pairs = []
    for c, plane in enumerate(planes):
        shifted = b.lshr(codes, _constant(codes.type, bits * c)) if c else codes
        pairs.append((b.and_(shifted, mask) if c < len(planes) - 1 else shifted, plane))
    return pairs


def dot_small(b: Any, path: str, acc: Any, pairs: Pairs) -> Any:
    """Add the products of (codes in 0 … 15, activations) pairs, at most four of them, to acc."""
    return _SMALL[path](b, acc, pairs)


def _constant(vector: Any, value: int) -> Any:
    return ir.Constant(vector, [value] * vector.count)


def _call(b: Any, name: str, result: Any, *values: Any) -> Any:
    kind = ir.FunctionType(result, [value.type for value in values])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), values)


def _vnni_small(b: Any, acc: Any, pairs: Pairs) -> Any:
    for codes, x in pairs:
        acc = _vnni_large(b, acc, codes, x)
    return acc


def _vnni_large(b: Any, acc: Any, codes: Any, x: Any) -> Any:
    name = f"llvm.x86.avx512.vpdpbusd.{32 * acc.type.count}"
    return _call(b, name, acc.type, acc, b.bitcast(codes, acc.type), b.bitcast(x, acc.type))


def _avx2_small(b: Any, acc: Any, pairs: Pairs) -> Any:
    # Two products of one pair are at most 2 · 15 · 128, so four pairs fit int16 and vpmaddubsw never
    # saturates.
    half = ir.VectorType(I16, 16)
    total = None
    for codes, x in pairs:
        part = _call(b, "llvm.x86.avx2.pmadd.ub.sw", half, codes, x)
        total = part if total is None else b.add(total, part)
    return b.add(acc, _madd(b, total, _constant(half, 1)))


def _avx2_run(b: Any, acc: Any, units: Sequence[tuple[Any, Sequence[Any]]], bits: int) -> Any:
    # A pair of products is at most 2 · 15 · 128, so eight of them fit int16. Of 2-bit codes the odd ones stay where
    # they are, 4 times as large: one shift for four planes, and another for the sum, a multiple of 4.
    half, by_four = ir.VectorType(I16, 16), _constant(ir.VectorType(I16, 16), 4)
    sums: list[Any] = [None, None]
    for codes, planes in units:
        upper = b.bitcast(b.lshr(b.bitcast(codes, half), by_four), codes.type)
        for c, plane in enumerate(planes):
            odd = c % 2 if bits == 2 else 0
            mask = (1 << bits) - 1 << bits * odd
            code = b.and_(upper if bits * c >= 4 else codes, _constant(codes.type, mask))
            part = _call(b, "llvm.x86.avx2.pmadd.ub.sw", half, code, plane)
            sums[odd] = part if sums[odd] is None else b.add(sums[odd], part)
    total = sums[0]
    if sums[1] is not None:
        total = b.add(total, b.ashr(sums[1], _constant(half, 2)))
    return b.add(acc, _madd(b, total, _constant(half, 1)))


def _avx2_large(b: Any, acc: Any, codes: Any, x: Any) -> Any:
    # vpmaddubsw would saturate: split into even and odd bytes, widened in place.
    half = ir.VectorType(I16, 16)
    eight = _constant(half, 8)
    codes, x = b.bitcast(codes, half), b.bitcast(x, half)
    even = _madd(b, b.ashr(b.shl(x, eight), eight), b.and_(codes, _constant(half, 255)))
    odd = _madd(b, b.ashr(x, eight), b.lshr(codes, eight))
    return b.add(acc, b.add(even, odd))


def _madd(b: Any, u: Any, v: Any) -> Any:
    return _call(b, "llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, 8), u, v)


def _sdot_small(b: Any, acc: Any, pairs: Pairs) -> Any:
    for codes, x in pairs:
        acc = _call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", acc.type, acc, codes, x)
    return acc


def _sdot_large(b: Any, acc: Any, codes: Any, x: Any) -> Any:
    return _sdot_small(b, acc, [(b.xor(codes, _constant(codes.type, -128)), x)])


def _neon_small(b: Any, acc: Any, pairs: Pairs) -> Any:
    # smull, smlal …: eight products of at most 15 · 128 fit int16, and so do their pairwise sums.
    low, high = _neon_products(b, *pairs[0])
    for codes, x in pairs[1:]:
        one, other = _neon_products(b, codes, x)
        low, high = b.add(low, one), b.add(high, other)
    pairwise = _call(b, "llvm.aarch64.neon.addp.v8i16", low.type, low, high)
    return b.add(acc, _call(b, "llvm.aarch64.neon.saddlp.v4i32.v8i16", acc.type, pairwise))


def _neon_large(b: Any, acc: Any, codes: Any, x: Any) -> Any:
    # A product may be 2^14: widen before the first addition.
    halves = _neon_products(b, b.xor(codes, _constant(codes.type, -128)), x)
    low, high = (
        _call(b, "llvm.aarch64.neon.saddlp.v4i32.v8i16", acc.type, half) for half in halves
    )
    return b.add(acc, _call(b, "llvm.aarch64.neon.addp.v4i32", acc.type, low, high))


def _neon_products(b: Any, codes: Any, x: Any) -> tuple[Any, Any]:
    wide = ir.VectorType(I16, 8)
    halves = []
    for start in (0, 8):
        index = ir.Constant(ir.VectorType(I32, 8), list(range(start, start + 8)))
        u, v = (b.sext(b.shuffle_vector(w, w, index), wide) for w in (codes, x))
        halves.append(b.mul(u, v))
    return halves[0], halves[1]


def _generic_small(b: Any, acc: Any, pairs: Pairs) -> Any:
    for codes, x in pairs:
        acc = _generic_large(b, acc, codes, x)
    return acc


def _generic_large(b: Any, acc: Any, codes: Any, x: Any) -> Any:
    codes, x = b.bitcast(codes, acc.type), b.bitcast(x, acc.type)
    for k in range(4):
        code = b.and_(b.lshr(codes, _constant(acc.type, 8 * k)), _constant(acc.type, 255))
        up = b.shl(x, _constant(acc.type, 24 - 8 * k))
        acc = b.add(acc, b.mul(code, b.ashr(up, _constant(acc.type, 24))))
    return acc


_Dot = Callable[..., Any]
_SMALL: dict[str, _Dot] = {
    "avx512vnni": _vnni_small,
    "avxvnni": _vnni_small,
    "avx2": _avx2_small,
    "dotprod": _sdot_small,
    "neon": _neon_small,
    "generic": _generic_small,
}
_LARGE: dict[str, _Dot] = {
    "avx512vnni": _vnni_large,
    "avxvnni": _vnni_large,
    "avx2": _avx2_large,
    "dotprod": _sdot_large,
    "neon": _neon_large,
    "generic": _generic_large,
}
