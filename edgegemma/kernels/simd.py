"""Vectors for Numba: three types and the verbs the kernels are written in.

A vector has the width of the chosen path (`cpu`): ``Bytes`` int8 [WIDTH], ``Ints`` int32 [LANES] and
``Floats`` float32 [LANES]. A lane is four neighbouring bytes. Memory verbs take a C-contiguous array
of any dtype and an index in elements of the vector's own dtype; they check nothing. Float verbs
never reorder: what a kernel writes is what every path computes, lane by lane.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from edgegemma.kernels import cpu, dots

TARGET = cpu.target()
WIDTH = cpu.WIDTH[TARGET.path]
LANES = WIDTH // 4
RUN = dots.RUN
BYTE_OFFSET = dots.BYTE_OFFSET[TARGET.path]  # what `dot` leaves in an 8-bit code

I16, I32, F32 = ir.IntType(16), ir.IntType(32), ir.FloatType()
V8 = ir.VectorType(ir.IntType(8), WIDTH)
V32 = ir.VectorType(I32, LANES)
VF = ir.VectorType(F32, LANES)


def describe() -> dict[str, str | int]:
    """Say which path was chosen and for what, for ``edgegemma doctor``."""
    return {**TARGET._asdict(), "vector_bytes": WIDTH}


class _Vector(types.Type):
    """The Numba type of an LLVM vector."""

    def __init__(self, name: str) -> None:
        super().__init__(name=f"{name}{WIDTH}")
        self.kind = name


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: _Vector) -> None:
        super().__init__(manager, vector, {"Bytes": V8, "Ints": V32, "Floats": VF}[vector.kind])


Bytes, Ints, Floats = _Vector("Bytes"), _Vector("Ints"), _Vector("Floats")
ARRAY, LITERAL = "array", "literal"  # parameters that arrive as an i8* and as a Python int


def _verb(result: Any, *params: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make an intrinsic of a function that builds IR from a builder and the arguments."""

    def wrap(build: Callable[..., Any]) -> Any:
        def define(_context: Any, *args: Any) -> Any:
            fixed = [
                arg if param in (ARRAY, LITERAL) else param
                for param, arg in zip(params, args, strict=True)
            ]

            def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
                ready = [
                    _plain(context, builder, *both)
                    for both in zip(signature.args, values, strict=True)
                ]
                return build(builder, *ready)

            return result(*fixed), codegen

        names = ["context", *(name for name in inspect.signature(build).parameters if name != "b")]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        define.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(name, kind) for name in names]
        )
        define.__name__ = build.__name__
        define.__doc__ = build.__doc__
        return intrinsic(prefer_literal=LITERAL in params)(define)

    return wrap


def _plain(context: Any, builder: Any, numba_type: Any, value: Any) -> Any:
    if isinstance(numba_type, types.Array):
        data = context.make_array(numba_type)(context, builder, value).data
        return builder.bitcast(data, ir.IntType(8).as_pointer())
    if isinstance(numba_type, types.IntegerLiteral):
        return numba_type.literal_value
    return value


def _at(b: Any, pointer: Any, index: Any, vector: Any) -> Any:
    """Point at element ``index`` of an array of the vector's elements."""
    element = vector.element
    first = b.gep(b.bitcast(pointer, element.as_pointer()), [index])
    return b.bitcast(first, vector.as_pointer())


def _load(b: Any, pointer: Any, index: Any, vector: Any) -> Any:
    return b.load(_at(b, pointer, index, vector), align=1)


def _splat(b: Any, value: Any, vector: Any) -> Any:
    empty = ir.Constant(vector, ir.Undefined)
    one = b.insert_element(empty, value, ir.Constant(I32, 0))
    return b.shuffle_vector(one, empty, ir.Constant(ir.VectorType(I32, vector.count), None))


def _call(b: Any, name: str, result: Any, *values: Any) -> Any:
    kind = ir.FunctionType(result, [value.type for value in values])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), values)


def _plain_arrays(_context, given):  # type: ignore[no-untyped-def]
    """Forget that an array, or those of a tuple, are read-only, so that one compiled kernel serves both kinds."""
    several = isinstance(given, types.BaseTuple)
    kinds = [
        kind.copy(readonly=False) if isinstance(kind, types.Array) else kind
        for kind in (given if several else [given])
    ]
    result = types.Tuple(kinds) if several else kinds[0]

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        (value,) = args
        if several:
            parts = cgutils.unpack_tuple(builder, value, len(kinds))
            value = context.make_tuple(builder, result, parts)
        context.nrt.incref(builder, result, value)
        return value

    return result(given), codegen


plain: Any = intrinsic(_plain_arrays)


@_verb(Bytes, ARRAY, types.intp)
def load(b: Any, array: Any, i: Any) -> Any:
    """Bytes ``array[i : i + WIDTH]``."""
    return _load(b, array, i, V8)


@_verb(Ints, Ints, Bytes, ARRAY, types.intp, LITERAL)
def dot(b: Any, acc: Any, codes: Any, x: Any, i: Any, bits: int) -> Any:
    """Add to each lane the products of its codes with the activations at ``x[i:]``.

    The codes are unsigned, low bits first; ``x`` int8 holds one vector for each plane of them (plane
    c: code c of every byte). For 8 bits the code counts as ``code - 128 + BYTE_OFFSET``.
    """
    return dots.dot(b, TARGET.path, acc, codes, _planes(b, x, i, bits), bits)


def _planes(b: Any, x: Any, i: Any, bits: int) -> list[Any]:
    return [_load(b, x, b.add(i, ir.Constant(i.type, c * WIDTH)), V8) for c in range(8 // bits)]


@_verb(types.void, ARRAY, types.intp, ARRAY, types.intp, LITERAL)
def store_planes(b: Any, planes: Any, i: Any, x: Any, j: Any, bits: int) -> None:
    """Write the ``8 / bits`` planes at ``planes[i:]`` of as many vectors of int8 at ``x[j:]``."""
    count = 8 // bits
    wide = ir.VectorType(V8.element, count * WIDTH)
    run = _load(b, x, j, wide)
    for c in range(count):
        index = ir.Constant(ir.VectorType(I32, WIDTH), [c + count * k for k in range(WIDTH)])
        plane = b.shuffle_vector(run, ir.Constant(wide, ir.Undefined), index)
        place = b.add(i, ir.Constant(i.type, c * WIDTH))
        b.store(plane, _at(b, planes, place, V8), align=1)


@_verb(Ints, ARRAY, types.intp, LITERAL)
def sum_planes(b: Any, x: Any, i: Any, bits: int) -> Any:
    """Sum in each lane the activations that `dot` would multiply there."""
    ones = ir.Constant(V8, [1] * WIDTH)
    acc = ir.Constant(V32, None)
    for c in range(8 // bits):
        plane = _load(b, x, b.add(i, ir.Constant(i.type, c * WIDTH)), V8)
        acc = dots.dot_small(b, TARGET.path, acc, [(ones, plane)])
    return acc


@_verb(types.void, ARRAY, types.intp, Floats)
def store_rounded(b: Any, q: Any, i: Any, v: Any) -> None:
    """Round to even, clamp to int8 and write LANES bytes; a NaN gives 127."""
    v = _call(b, f"llvm.rint.v{LANES}f32", VF, v)
    high, low = ir.Constant(VF, [127.0] * LANES), ir.Constant(VF, [-128.0] * LANES)
    v = b.select(b.fcmp_ordered("<", v, high), v, high)
    v = b.select(b.fcmp_ordered(">", v, low), v, low)
    small = ir.VectorType(V8.element, LANES)
    b.store(b.trunc(b.fptosi(v, V32), small), _at(b, q, i, small), align=1)


@_verb(Ints)
def zero_ints(b: Any) -> Any:
    """Zeros."""
    return ir.Constant(V32, None)


@_verb(Ints, ARRAY, types.intp)
def load_ints(b: Any, array: Any, i: Any) -> Any:
    """Int32 ``array[i : i + LANES]``."""
    return _load(b, array, i, V32)


@_verb(types.void, ARRAY, types.intp, Ints)
def store_ints(b: Any, array: Any, i: Any, v: Any) -> None:
    """Write a vector of int32 at ``array[i:]``."""
    b.store(v, _at(b, array, i, V32), align=1)


@_verb(Ints, Ints, Ints)
def add_ints(b: Any, u: Any, v: Any) -> Any:
    """Add lane by lane."""
    return b.add(u, v)


@_verb(Ints, Ints, types.int32)
def scale_ints(b: Any, v: Any, factor: Any) -> Any:
    """Multiply every lane by one integer."""
    return b.mul(v, _splat(b, factor, V32))


@_verb(Ints, types.int32)
def splat_int(b: Any, value: Any) -> Any:
    """One integer in every lane."""
    return _splat(b, value, V32)


@_verb(types.int32, Ints)
def sum_ints(b: Any, v: Any) -> Any:
    """Add up the lanes."""
    return _call(b, f"llvm.vector.reduce.add.v{LANES}i32", I32, v)


@_verb(Floats)
def zero_floats(b: Any) -> Any:
    """Zeros."""
    return ir.Constant(VF, None)


@_verb(Floats, types.float32)
def splat(b: Any, value: Any) -> Any:
    """One number in every lane."""
    return _splat(b, value, VF)


@_verb(Floats, ARRAY, types.intp)
def load_floats(b: Any, array: Any, i: Any) -> Any:
    """Float32 ``array[i : i + LANES]``."""
    return _load(b, array, i, VF)


@_verb(Floats, ARRAY, types.intp)
def load_bfloats(b: Any, array: Any, i: Any) -> Any:
    """Widen bfloat16 bits ``array[i : i + LANES]``."""
    wide = b.zext(_load(b, array, i, ir.VectorType(I16, LANES)), V32)
    return b.bitcast(b.shl(wide, ir.Constant(V32, [16] * LANES)), VF)


@_verb(types.void, ARRAY, types.intp, Floats)
def store_floats(b: Any, array: Any, i: Any, v: Any) -> None:
    """Write a vector of float32 at ``array[i:]``."""
    b.store(v, _at(b, array, i, VF), align=1)


@_verb(Floats, Ints)
def to_floats(b: Any, v: Any) -> Any:
    """Convert each lane, rounding to even."""
    return b.sitofp(v, VF)


@_verb(Floats, Floats, Floats)
def multiply(b: Any, u: Any, v: Any) -> Any:
    """Multiply lane by lane."""
    return b.fmul(u, v)


@_verb(Floats, Floats, Floats)
def divide(b: Any, u: Any, v: Any) -> Any:
    """Divide lane by lane."""
    return b.fdiv(u, v)


@_verb(Floats, Floats, Floats, Floats)
def fma(b: Any, u: Any, v: Any, acc: Any) -> Any:
    """``u * v + acc``, rounded once where the CPU can."""
    return _call(b, f"llvm.fmuladd.v{LANES}f32", VF, u, v, acc)


@_verb(types.float32, Floats)
def sum_floats(b: Any, v: Any) -> Any:
    """Add up the lanes by halves: always the same tree."""
    return halves(b, v)


def halves(b: Any, v: Any) -> Any:
    """Build `sum_floats`."""
    count = LANES
    while count > 1:
        count //= 2
        empty = ir.Constant(v.type, ir.Undefined)
        kind = ir.VectorType(I32, count)
        low = b.shuffle_vector(v, empty, ir.Constant(kind, list(range(count))))
        high = b.shuffle_vector(v, empty, ir.Constant(kind, list(range(count, 2 * count))))
        v = b.fadd(low, high)
    return b.extract_element(v, ir.Constant(I32, 0))


def _one(b: Any, pointer: Any, index: Any, kind: Any) -> Any:
    return b.gep(b.bitcast(pointer, kind.as_pointer()), [index])
