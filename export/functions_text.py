"""Bodies of the decoder's functions: rotary table, per-layer inputs, layers and head."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from export.builder import Body, Ref, float_ref
from export.functions_experts import EXPERT_SIZES, EXPERTS, call_experts
from export.functions_linear import (
    Slot,
    linear,
    ones,
    rms,
    transposed,
    weight_attributes,
    weight_inputs,
)

LAYER = (
    Slot("input_layernorm", "input_layernorm.weight", "vector"),
    Slot("q_proj", "self_attn.q_proj", "linear"),
    Slot("k_proj", "self_attn.k_proj", "linear"),
    Slot("v_proj", "self_attn.v_proj", "linear"),
    Slot("q_norm", "self_attn.q_norm.weight", "vector"),
    Slot("k_norm", "self_attn.k_norm.weight", "vector"),
    Slot("o_proj", "self_attn.o_proj", "linear"),
    Slot("post_attention_layernorm", "post_attention_layernorm.weight", "vector"),
    Slot("pre_feedforward_layernorm", "pre_feedforward_layernorm.weight", "vector"),
    Slot("gate_proj", "mlp.gate_proj", "linear"),
    Slot("up_proj", "mlp.up_proj", "linear"),
    Slot("down_proj", "mlp.down_proj", "linear"),
    Slot("post_feedforward_layernorm", "post_feedforward_layernorm.weight", "vector"),
    Slot("per_layer_input_gate", "per_layer_input_gate", "linear"),
    Slot("per_layer_projection", "per_layer_projection", "linear"),
    Slot("post_per_layer_input_norm", "post_per_layer_input_norm.weight", "vector"),
    Slot("layer_scalar", "layer_scalar", "vector"),
)
LAYER_SHARED = tuple(s for s in LAYER if s.name not in ("k_proj", "v_proj", "k_norm"))
_PER_LAYER = ("per_layer_input_gate", "per_layer_projection", "post_per_layer_input_norm")
PLAIN = tuple(s for s in LAYER if s.name not in _PER_LAYER)
_BRANCHES = (
    Slot("post_feedforward_layernorm_1", "post_feedforward_layernorm_1.weight", "vector"),
    *EXPERTS,
)
_DOWN = [s.name for s in PLAIN].index("down_proj") + 1
PLAIN_EXPERTS = (*PLAIN[:_DOWN], *_BRANCHES, *PLAIN[_DOWN:])
LAYERS: dict[str, tuple[Slot, ...]] = {
    "DecoderLayer": LAYER,
    "DecoderLayerShared": LAYER_SHARED,
    "DecoderLayerPlain": PLAIN,
    "DecoderLayerPlainTied": tuple(s for s in PLAIN if s.name != "v_proj"),
    "DecoderLayerExperts": PLAIN_EXPERTS,
    "DecoderLayerExpertsTied": tuple(s for s in PLAIN_EXPERTS if s.name != "v_proj"),
}
"""The weights of each kind of layer, in order."""
PLAIN_LAYERS = tuple(
    name for name, slots in LAYERS.items() if not any(s.name in _PER_LAYER for s in slots)
)
HEAD = (Slot("lm_head", "lm_head", "linear"),)

_STATE = ["hidden_states", "per_layer_input", "cos", "sin", "position_ids"]
_SIZES = ["heads", "kv_heads", "head_dim", "window", "eps", "k_cache_scale", "v_cache_scale"]


def rotary_table_body() -> onnx.FunctionProto:
    """Write RotaryTable: cosine and sine of position · frequency."""
    b = Body("RotaryTable", ["position_ids", "inv_freq"], ["cos", "sin"], [])
    positions = b.op("Cast", ["position_ids"], to=TensorProto.FLOAT, saturate=1)
    angles = b.op("Mul", [b.op("Unsqueeze", [positions, b.integers(-1)]), "inv_freq"])
    b.op("Cos", [angles], "cos")
    b.op("Sin", [angles], "sin")
    return b.function()


def per_layer_inputs_body() -> onnx.FunctionProto:
    """Write PerLayerInputs: the token's own rows and a projection of the embedding, averaged."""
    b = Body(
        "PerLayerInputs",
        ["inputs_embeds", "per_layer_inputs", "projection_weight", "norm_weight"],
        ["per_layer"],
        ["layers", "width", "hidden_size", "eps"],
    )
    context = b.op("MatMul", ["inputs_embeds", transposed(b, "projection_weight")])
    hidden = b.op("Cast", [b.integer(Ref("hidden_size"))], to=TensorProto.FLOAT, saturate=1)
    context = b.op("Mul", [context, b.op("Reciprocal", [b.op("Sqrt", [hidden])])])
    shape = b.integers(0, 0, Ref("layers"), Ref("width"))
    context = rms(b, b.op("Reshape", [context, shape], allowzero=0), "norm_weight")
    both = b.op("Add", [context, "per_layer_inputs"])
    b.op("Mul", [both, b.number(2.0**-0.5)], "per_layer")
    return b.function()


def decoder_layer_body() -> onnx.FunctionProto:
    """Write DecoderLayer, which extends its own K/V."""
    b = Body(
        "DecoderLayer",
        [*_STATE, "past_key", "past_value", *weight_inputs(LAYER)],
        ["hidden_states_out", "present_key", "present_value"],
        [*_SIZES, *weight_attributes(LAYER)],
    )
    x = rms(b, "hidden_states", "input_layernorm")
    query = _rotated(b, rms(b, _heads(b, linear(b, "q_proj", x)), "q_norm"))
    key = _rotated(b, rms(b, _heads(b, linear(b, "k_proj", x)), "k_norm"))
    value = rms(b, _heads(b, linear(b, "v_proj", x)), ones(b, b.integers(Ref("head_dim"))))
    key = b.op("Concat", ["past_key", key], "present_key", axis=2)
    value = b.op("Concat", ["past_value", value], "present_value", axis=2)
    _rest(b, query, key, value)
    return b.function()


def decoder_layer_shared_body() -> onnx.FunctionProto:
    """Write DecoderLayerShared, which reads another layer's K/V."""
    b = Body(
        "DecoderLayerShared",
        [*_STATE, "key", "value", *weight_inputs(LAYER_SHARED)],
        ["hidden_states_out"],
        [*_SIZES, *weight_attributes(LAYER_SHARED)],
    )
    x = rms(b, "hidden_states", "input_layernorm")
    query = _rotated(b, rms(b, _heads(b, linear(b, "q_proj", x)), "q_norm"))
    _rest(b, query, "key", "value")
    return b.function()


def plain_layer_body(name: str) -> onnx.FunctionProto:
    """Write one of the layers without per-layer inputs: what it does follows from its weights in `LAYERS`."""
    slots = LAYERS[name]
    has = {slot.name for slot in slots}
    sizes = [*_SIZES, *(EXPERT_SIZES if "router" in has else [])]
    b = Body(
        name,
        [
            *(s for s in _STATE if s != "per_layer_input"),
            "past_key",
            "past_value",
            *weight_inputs(slots),
        ],
        ["hidden_states_out", "present_key", "present_value"],
        [*sizes, *weight_attributes(slots)],
    )
    x = rms(b, "hidden_states", "input_layernorm")
    query = _rotated(b, rms(b, _heads(b, linear(b, "q_proj", x)), "q_norm"))
    raw = _heads(b, linear(b, "k_proj", x))
    key = b.op("Concat", ["past_key", _rotated(b, rms(b, raw, "k_norm"))], "present_key", axis=2)
    raw = _heads(b, linear(b, "v_proj", x)) if "v_proj" in has else raw
    value = rms(b, raw, ones(b, b.integers(Ref("head_dim"))))
    value = b.op("Concat", ["past_value", value], "present_value", axis=2)
    x = _attended(b, query, key, value)
    y = _fed(b, x)
    if "router" in has:
        y = b.op("Add", [rms(b, y, "post_feedforward_layernorm_1"), call_experts(b, x)])
    x = b.op("Add", [x, rms(b, y, "post_feedforward_layernorm")])
    b.op("Mul", [x, "layer_scalar"], "hidden_states_out")
    return b.function()


def _heads(b: Body, x: str) -> str:
    """Turn [1, S, heads·D] into [1, heads, S, D]."""
    split = b.op("Reshape", [x, b.integers(0, 0, -1, Ref("head_dim"))], allowzero=0)
    return b.op("Transpose", [split], perm=[0, 2, 1, 3])


def _rotated(b: Body, x: str) -> str:
    inputs = [x, "cos", "sin"]
    return b.op("RotaryEmbedding", inputs, interleaved=0, num_heads=0, rotary_embedding_dim=0)


def _visible(b: Body, key: str) -> str:
    """Say which of T keys each of S queries sees: bool [S, T].

    Written without anything of the layer but its window and its keys, so that onnxruntime computes it
    once for all layers that read the same keys.
    """
    query_at = b.op("Reshape", ["position_ids", b.integers(-1, 1)], allowzero=0)
    count = b.op("Squeeze", [b.op("Shape", [key], start=2, end=3), b.integers(0)])
    distance = b.op("Sub", [query_at, b.op("Range", [b.integer(0), count, b.integer(1)])])
    window = b.integer(Ref("window"))
    bounded = b.op("Less", [distance, window])
    near = b.op("Or", [bounded, b.op("Equal", [window, b.integer(0)])])
    return b.op("And", [b.op("GreaterOrEqual", [distance, b.integer(0)]), near])


def _rest(b: Body, query: str, key: str, value: str) -> None:
    """Attend, and pass the feed-forward and the per-layer block."""
    x = _attended(b, query, key, value)
    x = b.op("Add", [x, rms(b, _fed(b, x), "post_feedforward_layernorm")])
    gate = b.op("Gelu", [linear(b, "per_layer_input_gate", x)], approximate="tanh")
    y = b.op("Mul", [gate, b.op("Squeeze", ["per_layer_input", b.integers(2)])])
    y = linear(b, "per_layer_projection", y)
    x = b.op("Add", [x, rms(b, y, "post_per_layer_input_norm")])
    b.op("Mul", [x, "layer_scalar"], "hidden_states_out")


def _attended(b: Body, query: str, key: str, value: str) -> str:
    """Add to the hidden states what they see of keys and values."""
    seen = b.op(
        "Attention",
        [query, key, value, _visible(b, key)],
        is_causal=0,
        scale=1.0,
        softcap=0.0,
        softmax_precision=TensorProto.FLOAT,
        qk_matmul_output_mode=0,
    )
    seen = b.op("Transpose", [seen], perm=[0, 2, 1, 3])
    seen = linear(b, "o_proj", b.op("Reshape", [seen, b.integers(0, 0, -1)], allowzero=0))
    return b.op("Add", ["hidden_states", rms(b, seen, "post_attention_layernorm")])


def _fed(b: Body, x: str) -> str:
    """Give what the gated feed-forward block makes of x."""
    y = rms(b, x, "pre_feedforward_layernorm")
    gate = b.op("Gelu", [linear(b, "gate_proj", y)], approximate="tanh")
    return linear(b, "down_proj", b.op("Mul", [gate, linear(b, "up_proj", y)]))


def head_body() -> onnx.FunctionProto:
    """Write Head: norm, logits, soft cap."""
    b = Body(
        "Head",
        ["hidden_states", "norm_weight", *weight_inputs(HEAD)],
        ["logits"],
        ["softcap", "eps", *weight_attributes(HEAD)],
    )
    cap = b.number(float_ref("softcap"))
    z = linear(b, "lm_head", rms(b, "hidden_states", "norm_weight"))
    b.op("Mul", [b.op("Tanh", [b.op("Div", [z, cap])]), cap], "logits")
    return b.function()
