"""Linear as docs/functions.md defines it, in ops that every onnxruntime computes alike.

The body in packages leaves rounding to MatMulNBits, where it depends on the machine: x86 and ARM round
by other arithmetic, some kernels compute in float, and what a static scale rounded is rounded once more. This one
rounds in the open and asks MatMulNBits for products of what it can only round to itself. It takes three
times the work; `export.witness` compares the engine with it.
"""

from __future__ import annotations

import onnx

from edgegemma.kernels.reference import SMALLEST
from export.builder import CONTRIB, Attribute, Body, Ref
from export.functions_linear import (
    ACCURACY_INT8,
    FIELDS,
    INT8_MAX,
    INT8_MIN,
    expanded_scale,
    round_static,
)


def exact_linear_body() -> onnx.FunctionProto:
    """Write Linear with its rounding spelled out: same inputs, attributes and meaning."""
    b = Body("Linear", ["x", "weight", "scale", "activation"], ["y"], FIELDS)
    rows = b.integers(-1, Ref("block"))
    codes, step = _codes(b, b.op("Reshape", ["x", rows], allowzero=0))
    parts = [b.op("Mul", [part, step]) for part in _parts(b, codes)]
    shape = b.op("Shape", ["x"])
    stacked = b.op(
        "Concat", [b.op("Reshape", [part, shape], allowzero=0) for part in parts], axis=0
    )
    sizes: dict[str, Attribute] = {"K": Ref("in"), "N": Ref("out"), "bits": Ref("bits")}
    sizes |= {"block_size": Ref("block"), "accuracy_level": ACCURACY_INT8}
    inputs = [stacked, "weight", expanded_scale(b)]
    (products,) = b.add("MatMulNBits", inputs, ["products"], sizes, CONTRIB)
    y = b.op("ReduceSum", [products, b.integers(0)], keepdims=1, noop_with_empty_axes=0)
    round_static(b, y, b.op("Gather", ["activation", b.integer(1)], axis=0), "y")
    return b.function()


def _codes(b: Body, x: str) -> tuple[str, str]:
    """Round blocks [R, block] to int8; give the codes as floats, and their scale."""
    static = b.op("Gather", ["activation", b.integer(0)], axis=0)
    on = b.op("Greater", [static, b.number(0.0)])
    fixed = b.op("Where", [on, static, b.number(1.0)])
    fixed_codes = b.op("Round", [b.op("Div", [x, fixed])])
    fixed_codes = b.op("Clip", [fixed_codes, b.number(INT8_MIN), b.number(INT8_MAX)])
    top = b.op("ReduceMax", [b.op("Abs", [x]), b.integers(-1)], keepdims=1, noop_with_empty_axes=0)
    top = b.op("Max", [top, b.number(float(SMALLEST))])
    inverse = b.op("Div", [b.number(INT8_MAX), top])
    codes = b.op("Where", [on, fixed_codes, b.op("Round", [b.op("Mul", [x, inverse])])])
    return codes, b.op("Where", [on, fixed, b.op("Div", [top, b.number(INT8_MAX)])])


def _parts(b: Body, codes: str) -> list[str]:
    """Split integer blocks so that MatMulNBits, which makes the largest of a block 127, leaves each as it is.

    The largest is made 127 in the first part, what it lacks stands alone in the second, and -128 leaves
    its last unit to the third. With a dynamic scale the last two are zero.
    """
    inside = b.op("Max", [codes, b.number(-INT8_MAX)])
    size = b.op("Abs", [inside])
    largest = b.op("ArgMax", [size], axis=-1, keepdims=1, select_last_index=0)
    columns = b.op("Range", [b.integer(0), b.integer(Ref("block")), b.integer(1)])
    at = b.op("Equal", [largest, columns])
    negative = b.op("Less", [inside, b.number(0.0)])
    full = b.op("Where", [negative, b.number(-INT8_MAX), b.number(INT8_MAX)])
    first = b.op("Where", [at, full, inside])
    return [first, b.op("Sub", [inside, first]), b.op("Sub", [codes, inside])]
