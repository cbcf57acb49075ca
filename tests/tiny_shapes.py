"""Names and shapes of the tensors of a tiny checkpoint, by its config: the official ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

S, F = "sliding_attention", "full_attention"


def shapes(raw: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of every BF16 tensor of a checkpoint with this config."""
    text, audio = raw["text_config"], raw["audio_config"]
    yield from _text_shapes(text)
    if audio:
        yield from _audio_shapes(audio)
        projection = (text["hidden_size"], audio["output_proj_dims"])
        yield "model.embed_audio.embedding_projection.weight", projection
    if not raw["tie_word_embeddings"]:
        yield "lm_head.weight", (text["vocab_size"], text["hidden_size"])


def _text_shapes(text: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    H, L, P = text["hidden_size"], text["num_hidden_layers"], text["hidden_size_per_layer_input"]
    V = text["vocab_size"]
    heads, tied = text["num_attention_heads"], text["attention_k_eq_v"]
    root = "model.language_model."
    yield root + "embed_tokens.weight", (V, H)
    yield root + "norm.weight", (H,)
    if P:
        yield root + "embed_tokens_per_layer.weight", (V, L * P)
        yield root + "per_layer_model_projection.weight", (L * P, H)
        yield root + "per_layer_projection_norm.weight", (P,)
    for i, kind in enumerate(text["layer_types"]):
        layer = f"{root}layers.{i}."
        shared = i >= L - text["num_kv_shared_layers"]
        D = text["head_dim"] if kind == S else text["global_head_dim"]
        full_kv = text["num_global_key_value_heads" if tied else "num_key_value_heads"]
        kv = text["num_key_value_heads"] if kind == S else full_kv
        inner = text["intermediate_size"] * (2 if shared and text["use_double_wide_mlp"] else 1)
        yield layer + "layer_scalar", (1,)
        for norm in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                     "post_feedforward_layernorm"):  # fmt: skip
            yield f"{layer}{norm}.weight", (H,)
        if P:
            yield layer + "post_per_layer_input_norm.weight", (H,)
            yield layer + "per_layer_input_gate.weight", (P, H)
            yield layer + "per_layer_projection.weight", (H, P)
        if text["enable_moe_block"]:
            yield from _expert_shapes(text, layer)
        yield layer + "self_attn.q_proj.weight", (heads * D, H)
        yield layer + "self_attn.q_norm.weight", (D,)
        yield layer + "self_attn.o_proj.weight", (H, heads * D)
        if not shared:
            yield layer + "self_attn.k_proj.weight", (kv * D, H)
            if kind == S or not tied:
                yield layer + "self_attn.v_proj.weight", (kv * D, H)
            yield layer + "self_attn.k_norm.weight", (D,)
        yield layer + "mlp.gate_proj.weight", (inner, H)
        yield layer + "mlp.up_proj.weight", (inner, H)
        yield layer + "mlp.down_proj.weight", (H, inner)


def _expert_shapes(text: dict[str, Any], layer: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    H, E, inner = (text[k] for k in ("hidden_size", "num_experts", "moe_intermediate_size"))
    for norm in ("post_feedforward_layernorm_1", "pre_feedforward_layernorm_2",
                 "post_feedforward_layernorm_2"):  # fmt: skip
        yield f"{layer}{norm}.weight", (H,)
    yield layer + "router.scale", (H,)
    yield layer + "router.proj.weight", (E, H)
    yield layer + "router.per_expert_scale", (E,)
    yield layer + "experts.gate_up_proj", (E, 2 * inner, H)
    yield layer + "experts.down_proj", (E, H, inner)


def _audio_shapes(audio: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    C, heads = audio["hidden_size"], audio["num_attention_heads"]
    c0, c1 = audio["subsampling_conv_channels"]
    root = "model.audio_tower."
    yield root + "subsample_conv_projection.layer0.conv.weight", (c0, 1, 3, 3)
    yield root + "subsample_conv_projection.layer0.norm.weight", (c0,)
    yield root + "subsample_conv_projection.layer1.conv.weight", (c1, c0, 3, 3)
    yield root + "subsample_conv_projection.layer1.norm.weight", (c1,)
    yield root + "subsample_conv_projection.input_proj_linear.weight", (C, c1 * 32)
    yield root + "output_proj.weight", (audio["output_proj_dims"], C)
    yield root + "output_proj.bias", (audio["output_proj_dims"],)
    linears = {
        "feed_forward1.ffw_layer_1": (4 * C, C), "feed_forward1.ffw_layer_2": (C, 4 * C),
        "self_attn.q_proj": (C, C), "self_attn.k_proj": (C, C), "self_attn.v_proj": (C, C),
        "self_attn.post": (C, C), "lconv1d.linear_start": (2 * C, C),
        "lconv1d.linear_end": (C, C),
        "feed_forward2.ffw_layer_1": (4 * C, C), "feed_forward2.ffw_layer_2": (C, 4 * C),
    }  # fmt: skip
    for i in range(audio["num_hidden_layers"]):
        layer = f"{root}layers.{i}."
        for name, shape in linears.items():
            yield f"{layer}{name}.linear.weight", shape
            if audio["use_clipped_linears"]:
                for bound in ("input_min", "input_max", "output_min", "output_max"):
                    yield f"{layer}{name}.{bound}", ()
        yield layer + "self_attn.relative_k_proj.weight", (C, C)
        yield layer + "self_attn.per_dim_scale", (C // heads,)
        yield layer + "lconv1d.depthwise_conv1d.weight", (C, 1, audio["conv_kernel_size"])
        for norm in ("feed_forward1.pre_layer_norm", "feed_forward1.post_layer_norm",
                     "feed_forward2.pre_layer_norm", "feed_forward2.post_layer_norm",
                     "norm_pre_attn", "norm_post_attn", "norm_out", "lconv1d.pre_layer_norm",
                     "lconv1d.conv_norm"):  # fmt: skip
            yield f"{layer}{norm}.weight", (C,)
