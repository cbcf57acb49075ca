"""Bodies of Linear, ClippedLinear and GatherRows, and how a function lists the weights it takes.

A `Slot` is one weight of a function. The order of a function's inputs, the names inside its body and
the module each weight comes from are read off one tuple of slots, by the body and by the graph alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import onnx
from onnx import TensorProto

from export.builder import CONTRIB, Attribute, Body, Ref, float_ref

INT8_MIN, INT8_MAX = -128.0, 127.0
ACCURACY_INT8 = 4  # MatMulNBits: activations in int8, by block; other levels are 150 times slower
FIELDS = ("in", "out", "bits", "block")


class Slot(NamedTuple):
    """One weight of a function: its name there, its path under the layer, and what it is.

    "rows" is a matrix that is float in every package, "experts" a linear for each expert, stacked.
    """

    name: str
    path: str
    kind: Literal["vector", "rows", "linear", "clipped", "experts"]


def weight_inputs(slots: Sequence[Slot]) -> list[str]:
    """Give the input names of a function's weights, in order."""
    names = []
    for slot in slots:
        if slot.kind == "vector":
            names.append(slot.name)
        elif slot.kind == "rows":
            names.append(f"{slot.name}_weight")
        else:
            names += [f"{slot.name}_weight", f"{slot.name}_scale", f"{slot.name}_activation"]
        if slot.kind == "clipped":
            names.append(f"{slot.name}_clip")
    return names


def weight_attributes(slots: Sequence[Slot]) -> list[str]:
    """Give the attribute names of a function's linears, in order."""
    linears = [slot for slot in slots if slot.kind not in ("vector", "rows")]
    return [f"{slot.name}_{field}" for slot in linears for field in FIELDS]


def linear(b: Body, name: str, x: str) -> str:
    """Call Linear on the weights ``NAME_…`` of the function being written."""
    inputs = [x, f"{name}_weight", f"{name}_scale", f"{name}_activation"]
    return b.call("Linear", inputs, references(name))[0]


def clipped_linear(b: Body, name: str, x: str) -> str:
    """Call ClippedLinear on the weights ``NAME_…`` of the function being written."""
    inputs = [x, f"{name}_weight", f"{name}_scale", f"{name}_activation", f"{name}_clip"]
    return b.call("ClippedLinear", inputs, references(name))[0]


def references(name: str) -> dict[str, Attribute]:
    """Hand on the four attributes of linear ``NAME`` of the function being written."""
    return {field: Ref(f"{name}_{field}") for field in FIELDS}


def rms(b: Body, x: str, scale: str, result: str = "") -> str:
    """Normalize by the root of the mean square over the last axis, with the attribute ``eps``."""
    return b.op(
        "RMSNormalization", [x, scale], result, axis=-1, epsilon=float_ref("eps"), stash_type=1
    )


def ones(b: Body, width: str) -> str:
    """Give the scale of a norm without weight; ``width`` is an int64 [1] value."""
    return b.op("Expand", [b.number(1.0), width])


def transposed(b: Body, weight: str) -> str:
    """Give a bfloat16 or float32 weight [N, K] as float32 [K, N]."""
    cast = b.op("Cast", [weight], to=TensorProto.FLOAT, saturate=1)
    return b.op("Transpose", [cast], perm=[1, 0])


def linear_body(quantized: bool) -> onnx.FunctionProto:
    """Write Linear: static int8 rounding of the input, the product, that of the output."""
    b = Body("Linear", ["x", "weight", "scale", "activation"], ["y"], FIELDS)
    x = round_static(b, "x", b.op("Gather", ["activation", b.integer(0)], axis=0))
    if quantized:
        scale = expanded_scale(b)
        sizes: dict[str, Attribute] = {"K": Ref("in"), "N": Ref("out"), "bits": Ref("bits")}
        sizes |= {"block_size": Ref("block"), "accuracy_level": ACCURACY_INT8}
        (y,) = b.add("MatMulNBits", [x, "weight", scale], ["product"], sizes, CONTRIB)
    else:
        y = b.op("MatMul", [x, transposed(b, "weight")])
    round_static(b, y, b.op("Gather", ["activation", b.integer(1)], axis=0), "y")
    return b.function()


def expanded_scale(b: Body) -> str:
    """Give a scale a row as MatMulNBits wants it, one a block; onnxruntime folds it before it packs."""
    blocks = b.op("Div", [b.integers(Ref("in")), b.integers(Ref("block"))])
    shape = b.op("Concat", [b.integers(Ref("out")), blocks], axis=0)
    return b.op("Expand", ["scale", shape])


def round_static(b: Body, x: str, scale: str, result: str = "") -> str:
    """Round to int8 steps of a static scale; give x itself where the scale is 0."""
    on = b.op("Greater", [scale, b.number(0.0)])
    step = b.op("Where", [on, scale, b.number(1.0)])
    code = b.op("Round", [b.op("Div", [x, step])])
    code = b.op("Clip", [code, b.number(INT8_MIN), b.number(INT8_MAX)])
    return b.op("Where", [on, b.op("Mul", [code, step]), x], result)


def clipped_linear_body() -> onnx.FunctionProto:
    """Write ClippedLinear: clamp, Linear, clamp."""
    b = Body("ClippedLinear", ["x", "weight", "scale", "activation", "clip"], ["y"], FIELDS)
    limits = [b.op("Gather", ["clip", b.integer(i)], axis=0) for i in range(4)]
    x = b.op("Clip", ["x", limits[0], limits[1]])
    fields: dict[str, Attribute] = {field: Ref(field) for field in FIELDS}
    (y,) = b.call("Linear", [x, "weight", "scale", "activation"], fields)
    b.op("Clip", [y, limits[2], limits[3]], "y")
    return b.function()


def gather_rows_body(quantized: bool) -> onnx.FunctionProto:
    """Write GatherRows: rows of a table by id, decoded and multiplied."""
    b = Body(
        "GatherRows", ["input_ids", "table", "scale"], ["rows"], ["width", "bits", "multiplier"]
    )
    rows = b.op("Gather", ["table", "input_ids"], axis=0)
    if quantized:
        codes = _unpacked(b, rows)
        scale = b.op("Gather", ["scale", "input_ids"], axis=0)
        groups = b.op("Shape", ["scale"], start=1, end=2)
        shape = b.op("Concat", [b.integers(0, 0), groups, b.integers(-1)], axis=0)
        grouped = b.op("Reshape", [codes, shape], allowzero=0)
        wide = b.op("Mul", [grouped, b.op("Unsqueeze", [scale, b.integers(-1)])])
        values = b.op("Reshape", [wide, b.integers(0, 0, Ref("width"))], allowzero=0)
    else:
        values = b.op("Cast", [rows], to=TensorProto.FLOAT, saturate=1)
    b.op("Mul", [values, b.number(float_ref("multiplier"))], "rows")
    return b.function()


def _unpacked(b: Body, packed: str) -> str:
    """Unpack uint8 [1, S, bytes] to code − 2^(bits−1), float32 [1, S, bytes, 8/bits]."""
    levels = b.op("Pow", [b.integer(2), b.integer(Ref("bits"))])
    mask = b.op("Cast", [b.op("Sub", [levels, b.integer(1)])], to=TensorProto.UINT8, saturate=1)
    shifts = b.op("Range", [b.integer(0), b.integer(8), b.integer(Ref("bits"))])
    shifts = b.op("Cast", [shifts], to=TensorProto.UINT8, saturate=1)
    shifted = b.op(
        "BitShift", [b.op("Unsqueeze", [packed, b.integers(-1)]), shifts], direction="RIGHT"
    )
    codes = b.op("Cast", [b.op("BitwiseAnd", [shifted, mask])], to=TensorProto.FLOAT, saturate=1)
    half = b.op("Cast", [b.op("Div", [levels, b.integer(2)])], to=TensorProto.FLOAT, saturate=1)
    return b.op("Sub", [codes, half])
