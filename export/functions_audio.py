"""Bodies of the audio tower's functions: subsampling, conformer layer and head, each a step with state."""

from __future__ import annotations

import onnx

from export.builder import LAST, Body, Ref, float_ref
from export.functions_linear import (
    Slot,
    clipped_linear,
    ones,
    rms,
    transposed,
    weight_attributes,
    weight_inputs,
)

MASKED = -1e9  # logit of a key that does not exist
LAYER = (
    Slot("ffw1_pre_norm", "feed_forward1.pre_layer_norm.weight", "vector"),
    Slot("ffw1_layer_1", "feed_forward1.ffw_layer_1", "clipped"),
    Slot("ffw1_layer_2", "feed_forward1.ffw_layer_2", "clipped"),
    Slot("ffw1_post_norm", "feed_forward1.post_layer_norm.weight", "vector"),
    Slot("norm_pre_attn", "norm_pre_attn.weight", "vector"),
    Slot("q_proj", "self_attn.q_proj", "clipped"),
    Slot("k_proj", "self_attn.k_proj", "clipped"),
    Slot("v_proj", "self_attn.v_proj", "clipped"),
    Slot("query_scale", "self_attn.query_scale", "vector"),
    Slot("relative_key", "self_attn.relative_key", "vector"),
    Slot("post", "self_attn.post", "clipped"),
    Slot("norm_post_attn", "norm_post_attn.weight", "vector"),
    Slot("lconv_pre_norm", "lconv1d.pre_layer_norm.weight", "vector"),
    Slot("linear_start", "lconv1d.linear_start", "clipped"),
    Slot("depthwise_weight", "lconv1d.depthwise_conv1d.weight", "vector"),
    Slot("conv_norm", "lconv1d.conv_norm.weight", "vector"),
    Slot("linear_end", "lconv1d.linear_end", "clipped"),
    Slot("ffw2_pre_norm", "feed_forward2.pre_layer_norm.weight", "vector"),
    Slot("ffw2_layer_1", "feed_forward2.ffw_layer_1", "clipped"),
    Slot("ffw2_layer_2", "feed_forward2.ffw_layer_2", "clipped"),
    Slot("ffw2_post_norm", "feed_forward2.post_layer_norm.weight", "vector"),
    Slot("norm_out", "norm_out.weight", "vector"),
)
_SIZES = [
    "heads",
    "head_dim",
    "window",
    "kernel",
    "key_scale",
    "logit_cap",
    "residual_weight",
    "eps",
]


def audio_subsample_body() -> onnx.FunctionProto:
    """Write AudioSubsample: two strided convolutions over time × mel and a projection.

    A convolution sees one row of the past. Before the first step that row is zero, which is the
    left padding of one pass; no row of the future is needed as the number of frames is even.
    """
    weights = ["conv0_weight", "norm0_weight", "conv1_weight", "norm1_weight", "projection_weight"]
    b = Body(
        "AudioSubsample",
        ["input_features", "mask", "past_features", "past_conv", *weights],
        ["hidden_states", "present_features", "present_conv"],
        ["eps"],
    )
    x = b.op("Mul", ["input_features", b.op("Unsqueeze", ["mask", b.integers(-1)])])
    _last(b, x, 1, 1, "present_features")
    x = b.op("Concat", ["past_features", x], axis=1)
    x = _convolved(b, b.op("Unsqueeze", [x, b.integers(1)]), "conv0_weight", "norm0_weight")

    ends = [b.integers(0), b.integers(LAST), b.integers(1), b.integers(2)]
    mask = b.op(
        "Slice", ["mask", *ends]
    )  # a row of the first convolution is valid where its middle is
    x = b.op("Mul", [x, b.op("Unsqueeze", [mask, b.integers(1, 3)])])
    _last(b, x, 1, 2, "present_conv")
    x = b.op("Concat", ["past_conv", x], axis=2)
    x = _convolved(b, x, "conv1_weight", "norm1_weight")

    x = b.op("Transpose", [x], perm=[0, 2, 3, 1])  # mel-major, channel-minor
    x = b.op("Reshape", [x, b.integers(0, 0, -1)], allowzero=0)
    b.op("MatMul", [x, transposed(b, "projection_weight")], "hidden_states")
    return b.function()


def _convolved(b: Body, x: str, weight: str, norm: str) -> str:
    """Convolve 3×3 with stride 2 (past rows are in x), normalize over channels, rectify."""
    x = b.op(
        "Conv",
        [x, weight],
        auto_pad="NOTSET",
        dilations=[1, 1],
        group=1,
        kernel_shape=[3, 3],
        pads=[0, 1, 0, 1],
        strides=[2, 2],
    )
    x = b.op("Transpose", [x], perm=[0, 2, 3, 1])
    x = b.op("LayerNormalization", [x, norm], axis=-1, epsilon=float_ref("eps"), stash_type=1)
    return b.op("Relu", [b.op("Transpose", [x], perm=[0, 3, 1, 2])])


def _last(b: Body, x: str, count: int | Ref, axis: int, result: str) -> str:
    """Give the last ``count`` entries along an axis."""
    start = b.op("Neg", [b.integers(count)])
    return b.op("Slice", [x, start, b.integers(LAST), b.integers(axis)], result)


def audio_layer_body() -> onnx.FunctionProto:
    """Write AudioLayer: feed-forward, windowed attention, causal convolution, feed-forward."""
    b = Body(
        "AudioLayer",
        ["hidden_states", "position", "past_key", "past_value", "past_conv", *weight_inputs(LAYER)],
        ["hidden_states_out", "present_key", "present_value", "present_conv"],
        [*_SIZES, *weight_attributes(LAYER)],
    )
    x = _feed_forward(b, "hidden_states", "ffw1")
    seen = clipped_linear(b, "post", _attention(b, rms(b, x, "norm_pre_attn")))
    x = b.op("Add", [x, rms(b, seen, "norm_post_attn")])
    x = b.op("Add", [x, _convolution(b, rms(b, x, "lconv_pre_norm"))])
    x = _feed_forward(b, x, "ffw2")
    rms(b, x, "norm_out", "hidden_states_out")
    return b.function()


def _feed_forward(b: Body, x: str, name: str) -> str:
    y = clipped_linear(b, f"{name}_layer_1", rms(b, x, f"{name}_pre_norm"))
    y = clipped_linear(b, f"{name}_layer_2", _silu(b, y))
    y = b.op("Mul", [rms(b, y, f"{name}_post_norm"), b.number(float_ref("residual_weight"))])
    return b.op("Add", [x, y])


def _silu(b: Body, x: str) -> str:
    return b.op("Mul", [x, b.op("Sigmoid", [x])])


def _attention(b: Body, x: str) -> str:
    """Attend to the window of W keys that ends at each query, with a learned key for each distance.

    The windows are gathered, so that the work grows with n·W, and q·k + q·r is q·(k + r).
    """
    split = b.integers(0, -1, Ref("heads"), Ref("head_dim"))
    query = b.op("Reshape", [clipped_linear(b, "q_proj", x), split], allowzero=0)
    query = b.op("Mul", [query, "query_scale"])  # [1, n, heads, D]
    query = b.op("Unsqueeze", [b.op("Squeeze", [query, b.integers(0)]), b.integers(2)])
    key = b.op("Mul", [clipped_linear(b, "k_proj", x), b.number(float_ref("key_scale"))])
    key = b.op("Concat", ["past_key", key], axis=1)
    value = b.op("Concat", ["past_value", clipped_linear(b, "v_proj", x)], axis=1)
    past = b.op("Sub", [b.integer(Ref("window")), b.integer(1)])
    for full, name in ((key, "present_key"), (value, "present_value")):
        start = b.op("Reshape", [b.op("Neg", [past]), b.integers(1)], allowzero=0)
        b.op("Slice", [full, start, b.integers(LAST), b.integers(1)], name)

    count = b.op("Squeeze", [b.op("Shape", [x], start=1, end=2), b.integers(0)])
    step = b.op("Range", [b.integer(0), count, b.integer(1)])
    slot = b.op("Range", [b.integer(0), b.integer(Ref("window")), b.integer(1)])
    index = b.op("Add", [b.op("Unsqueeze", [step, b.integers(1)]), slot])  # [n, W]
    relative = b.op("Gather", ["relative_key", b.op("Sub", [past, slot])], axis=0)  # farthest first
    keys = b.op("Add", [_windows(b, key, index), relative])  # [n, W, heads·D]
    logits = b.op("MatMul", [query, _by_head(b, keys, [0, 2, 3, 1])])  # [n, heads, 1, W]
    cap = b.number(float_ref("logit_cap"))
    logits = b.op("Mul", [b.op("Tanh", [b.op("Div", [logits, cap])]), cap])

    at = b.op("Sub", [b.op("Add", ["position", index]), past])
    exists = b.op("GreaterOrEqual", [at, b.integer(0)])
    exists = b.op("Unsqueeze", [exists, b.integers(1, 2)])
    logits = b.op("Where", [exists, logits, b.number(MASKED)])
    weights = b.op("Softmax", [logits], axis=-1)
    seen = b.op("MatMul", [weights, _by_head(b, _windows(b, value, index), [0, 2, 1, 3])])
    shape = b.op("Shape", [x], start=0, end=3)
    return b.op("Reshape", [seen, shape], allowzero=0)


def _windows(b: Body, rows: str, index: str) -> str:
    """Gather [1, T, C] by [n, W] into [n, W, C]."""
    return b.op("Gather", [b.op("Squeeze", [rows, b.integers(0)]), index], axis=0)


def _by_head(b: Body, rows: str, perm: list[int]) -> str:
    """Split [n, W, C] into [n, W, heads, D] and reorder."""
    shape = b.integers(0, 0, Ref("heads"), Ref("head_dim"))
    return b.op("Transpose", [b.op("Reshape", [rows, shape], allowzero=0)], perm=perm)


def _convolution(b: Body, x: str) -> str:
    """Gate, convolve each channel over the last ``kernel`` steps, normalize, project."""
    halves = ["gated", "gate"]
    b.add("Split", [clipped_linear(b, "linear_start", x)], halves, {"axis": -1, "num_outputs": 2})
    gated = b.op("Mul", ["gated", b.op("Sigmoid", ["gate"])])
    gated = b.op("Concat", ["past_conv", gated], axis=1)
    past = b.op("Sub", [b.integers(1), b.integers(Ref("kernel"))])
    b.op("Slice", [gated, past, b.integers(LAST), b.integers(1)], "present_conv")
    taps = b.op("Unsqueeze", ["depthwise_weight", b.integers(1)])
    y = b.op(  # its kernel_shape is the weight's: a list cannot be referred to by an integer attribute
        "Conv",
        [b.op("Transpose", [gated], perm=[0, 2, 1]), taps],
        auto_pad="NOTSET",
        dilations=[1],
        group=Ref("linear_start_in"),
        pads=[0, 0],
        strides=[1],
    )
    y = rms(b, b.op("Transpose", [y], perm=[0, 2, 1]), "conv_norm")
    return clipped_linear(b, "linear_end", _silu(b, y))


def audio_head_body() -> onnx.FunctionProto:
    """Write AudioHead: projection, norm without weight, projection to the decoder's width."""
    b = Body(
        "AudioHead",
        ["hidden_states", "output_weight", "output_bias", "embedding_weight"],
        ["audio_features"],
        ["eps"],
    )
    x = b.op("MatMul", ["hidden_states", transposed(b, "output_weight")])
    x = b.op("Add", [x, "output_bias"])
    x = rms(b, x, ones(b, b.op("Shape", ["output_bias"], start=0, end=1)))
    b.op("MatMul", [x, transposed(b, "embedding_weight")], "audio_features")
    return b.function()
