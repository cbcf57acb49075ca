"""Bodies of MoEFeedForward, a router and the experts that it chooses for each position, and of ExpertLinear."""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from edgegemma.kernels.reference import SMALLEST
from export.builder import Attribute, Body, Nodes, Ref, float_ref
from export.functions_linear import (
    FIELDS,
    INT8_MAX,
    Slot,
    references,
    rms,
    transposed,
    weight_attributes,
    weight_inputs,
)

EXPERTS = (
    Slot("router_scale", "router.scale", "vector"),
    Slot("router", "router.proj", "rows"),
    Slot("per_expert_scale", "router.per_expert_scale", "vector"),
    Slot("pre_feedforward_layernorm_2", "pre_feedforward_layernorm_2.weight", "vector"),
    Slot("expert_gate_up", "experts.gate_up_proj", "experts"),
    Slot("expert_down", "experts.down_proj", "experts"),
    Slot("post_feedforward_layernorm_2", "post_feedforward_layernorm_2.weight", "vector"),
)
EXPERT_SIZES = ["experts", "top_k"]


def moe_feed_forward_body() -> onnx.FunctionProto:
    """Write MoEFeedForward: what each position's experts give, weighted, added up and normalized."""
    b = Body(
        "MoEFeedForward",
        ["hidden_states", *weight_inputs(EXPERTS)],
        ["y"],
        [*EXPERT_SIZES, "eps", *weight_attributes(EXPERTS)],
    )
    x = b.op("Squeeze", ["hidden_states", b.integers(0)])
    share, chosen = _route(b, x)
    rows = b.op("Unsqueeze", [rms(b, x, "pre_feedforward_layernorm_2"), b.integers(1)])
    each = b.op("Concat", [b.op("Shape", [chosen]), b.op("Shape", ["router_scale"])], axis=0)
    rows = b.op("Reshape", [b.op("Expand", [rows, each]), _all_but_last(b, each)], allowzero=0)
    numbers = b.op("Reshape", [chosen, b.integers(-1)], allowzero=0)
    scan: dict[str, Attribute] = {"body": _one_expert(), "num_scan_inputs": 2}
    (given,) = b.add("Scan", [rows, numbers], ["given"], scan)
    given = b.op("Mul", [b.op("Reshape", [given, each], allowzero=0), share])
    total = b.op("ReduceSum", [given, b.integers(1)], keepdims=0, noop_with_empty_axes=0)
    total = rms(b, total, "post_feedforward_layernorm_2")
    b.op("Unsqueeze", [total, b.integers(0)], "y")
    return b.function()


def call_experts(b: Body, x: str) -> str:
    """Call MoEFeedForward on the weights of the function being written."""
    attributes: dict[str, Attribute] = {
        name: Ref(name) for name in (*EXPERT_SIZES, *weight_attributes(EXPERTS))
    }
    inputs = [x, *weight_inputs(EXPERTS)]
    return b.call("MoEFeedForward", inputs, attributes | {"eps": float_ref("eps")})[0]


def _route(b: Body, x: str) -> tuple[str, str]:
    """Choose experts for rows [S, H]; give the factors [S, top_k, 1] and the numbers [S, top_k]."""
    width = b.op("Cast", [b.op("Shape", ["router_scale"])], to=TensorProto.FLOAT, saturate=1)
    seen = b.op("Mul", [rms(b, x, "router_scale"), b.op("Reciprocal", [b.op("Sqrt", [width])])])
    scores = b.op("MatMul", [seen, transposed(b, "router_weight")])
    best, chosen = b.add(
        "TopK",
        [b.op("Softmax", [scores], axis=-1), b.integers(Ref("top_k"))],
        ["best", "chosen"],
        {"axis": -1, "largest": 1, "sorted": 1},
    )
    total = b.op("ReduceSum", [best, b.integers(-1)], keepdims=1, noop_with_empty_axes=0)
    own = b.op("Gather", ["per_expert_scale", chosen], axis=0)
    share = b.op("Mul", [b.op("Div", [best, total]), own])
    return b.op("Unsqueeze", [share, b.integers(-1)]), chosen


def _all_but_last(b: Body, shape: str) -> str:
    """Give the shape [-1, last] of a shape."""
    last = b.op("Slice", [shape, b.integers(-1), b.integers(3)])
    return b.op("Concat", [b.integers(-1), last], axis=0)


def _one_expert() -> onnx.GraphProto:
    """Write the body of the loop: one row through one expert, whose codes alone are taken from the stack."""
    b = Nodes("expert_")
    x = b.op("Unsqueeze", ["expert_x", b.integers(0)])
    both = _expert_linear(b, "expert_gate_up", x)
    gate, up = b.add("Split", [both], ["expert_gate", "expert_up"], {"axis": -1, "num_outputs": 2})
    gate = b.op("Gelu", [gate], approximate="tanh")
    y = _expert_linear(b, "expert_down", b.op("Mul", [gate, up]))
    b.op("Squeeze", [y, b.integers(0)], "expert_y")
    return helper.make_graph(
        b.nodes,
        "expert",
        [
            helper.make_tensor_value_info("expert_x", TensorProto.FLOAT, [None]),
            helper.make_tensor_value_info("expert_number", TensorProto.INT64, []),
        ],
        [helper.make_tensor_value_info("expert_y", TensorProto.FLOAT, [None])],
    )


def _expert_linear(b: Nodes, name: str, x: str) -> str:
    weights = [f"{name}_{part}" for part in ("weight", "scale", "activation")]
    return b.call("ExpertLinear", [x, *weights, "expert_number"], references(name))[0]


def expert_linear_body(quantized: bool) -> onnx.FunctionProto:
    """Write ExpertLinear: Linear on the share that one expert has of stacked weights.

    MatMulNBits keeps activations in float where its weights are no constants, so what has no static scale is rounded
    here.
    """
    b = Body("ExpertLinear", ["x", "weight", "scale", "activation", "expert"], ["y"], FIELDS)
    x = _rounded_by_block(b) if quantized else "x"
    share = [b.op("Gather", [part, "expert"], axis=0) for part in ("weight", "scale")]
    fields: dict[str, Attribute] = {field: Ref(field) for field in FIELDS}
    b.call("Linear", [x, *share, "activation"], fields, ["y"])
    return b.function()


def _rounded_by_block(b: Body) -> str:
    """Round x to int8 steps of its blocks, unless there is a static scale."""
    blocks = b.op("Reshape", ["x", b.integers(-1, Ref("block"))], allowzero=0)
    top = b.op("Abs", [blocks])
    top = b.op("ReduceMax", [top, b.integers(-1)], keepdims=1, noop_with_empty_axes=0)
    top = b.op("Max", [top, b.number(float(SMALLEST))])
    codes = b.op("Round", [b.op("Mul", [blocks, b.op("Div", [b.number(INT8_MAX), top])])])
    rounded = b.op("Mul", [codes, b.op("Div", [top, b.number(INT8_MAX)])])
    rounded = b.op("Reshape", [rounded, b.op("Shape", ["x"])], allowzero=0)
    static = b.op("Gather", ["activation", b.integer(0)], axis=0)
    return b.op("Where", [b.op("Greater", [static, b.number(0.0)]), "x", rounded])
