"""Names and shapes of every tensor of a Gemma 4 checkpoint, derived from its ``config.json``.

The published configs are here too, written out, so that a full-size random checkpoint can be made
without the network (`bench.synth`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

SLIDING, FULL = "sliding_attention", "full_attention"
MODELS = ("E2B", "E4B", "26B-A4B", "31B")

Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]
Config = dict[str, Any]

_TEXT: Config = {
    "model_type": "gemma4_text", "dtype": "bfloat16", "vocab_size": 262144,
    "vocab_size_per_layer_input": 262144, "head_dim": 256, "global_head_dim": 512,
    "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6, "attention_bias": False,
    "attention_dropout": 0.0, "attention_k_eq_v": False, "enable_moe_block": False,
    "num_global_key_value_heads": None, "num_experts": None, "top_k_experts": None,
    "moe_intermediate_size": None, "final_logit_softcapping": 30.0,
    "rope_parameters": {
        FULL: {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
        SLIDING: {"rope_theta": 1e4, "rope_type": "default"},
    },
    "initializer_range": 0.02, "tie_word_embeddings": True, "use_cache": True, "pad_token_id": 0,
    "eos_token_id": 1, "bos_token_id": 2, "num_attention_heads": 8,
    "hidden_size_per_layer_input": 256, "sliding_window": 512, "max_position_embeddings": 131072,
    "use_bidirectional_attention": None,
}  # fmt: skip
_LARGE: Config = {  # 26B-A4B and 31B
    "num_kv_shared_layers": 0, "use_double_wide_mlp": False, "attention_k_eq_v": True,
    "hidden_size_per_layer_input": 0, "sliding_window": 1024, "max_position_embeddings": 262144,
    "use_bidirectional_attention": "vision",
}  # fmt: skip
_SIZES: dict[str, Config] = {
    "E2B": {
        "hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": 35,
        "num_key_value_heads": 1, "use_double_wide_mlp": True, "num_kv_shared_layers": 20,
        "layer_types": ([SLIDING] * 4 + [FULL]) * 7,
    },
    "E4B": {
        "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 42,
        "num_key_value_heads": 2, "use_double_wide_mlp": False, "num_kv_shared_layers": 18,
        "layer_types": ([SLIDING] * 5 + [FULL]) * 7,
    },
    "26B-A4B": _LARGE | {
        "hidden_size": 2816, "intermediate_size": 2112, "num_hidden_layers": 30,
        "num_attention_heads": 16, "num_key_value_heads": 8, "num_global_key_value_heads": 2,
        "layer_types": ([SLIDING] * 5 + [FULL]) * 5, "enable_moe_block": True,
        "num_experts": 128, "top_k_experts": 8, "moe_intermediate_size": 704,
    },
    "31B": _LARGE | {
        "hidden_size": 5376, "intermediate_size": 21504, "num_hidden_layers": 60,
        "num_attention_heads": 32, "num_key_value_heads": 16, "num_global_key_value_heads": 4,
        "layer_types": ([SLIDING] * 5 + [FULL]) * 10,
    },
}  # fmt: skip
_VISION: Config = {
    "model_type": "gemma4_vision", "dtype": "bfloat16", "hidden_size": 768,
    "intermediate_size": 3072, "num_hidden_layers": 16, "num_attention_heads": 12,
    "num_key_value_heads": 12, "head_dim": 64, "global_head_dim": 64,
    "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131072, "attention_bias": False, "attention_dropout": 0.0,
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}, "patch_size": 16,
    "pooling_kernel_size": 3, "position_embedding_size": 10240, "default_output_length": 280,
    "use_clipped_linears": True, "standardize": False, "initializer_range": 0.02,
}  # fmt: skip
_LARGE_VISION: Config = _VISION | {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
    "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 72, "global_head_dim": 72,
    "use_clipped_linears": False, "standardize": True,
}  # fmt: skip
_AUDIO: Config = {
    "model_type": "gemma4_audio", "dtype": "bfloat16", "hidden_size": 1024,
    "num_hidden_layers": 12, "num_attention_heads": 8, "hidden_act": "silu",
    "subsampling_conv_channels": [128, 32], "conv_kernel_size": 5, "residual_weight": 0.5,
    "attention_chunk_size": 12, "attention_context_left": 13, "attention_context_right": 0,
    "attention_logit_cap": 50.0, "attention_invalid_logits_value": -1e9,
    "use_clipped_linears": True, "rms_norm_eps": 1e-6, "gradient_clipping": 1e10,
    "output_proj_dims": 1536, "initializer_range": 0.02,
}  # fmt: skip
_TOP: Config = {
    "architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4",
    "dtype": "bfloat16", "boi_token_id": 255999, "eoi_token_id": 258882,
    "image_token_id": 258880, "video_token_id": 258884, "boa_token_id": 256000,
    "eoa_token_id": 258883, "eoa_token_index": 258883, "audio_token_id": 258881,
    "eos_token_id": [1, 106, 50], "vision_soft_tokens_per_image": 280,
    "initializer_range": 0.02, "tie_word_embeddings": True,
}  # fmt: skip


def published(model: str, vision: bool = False) -> Config:
    """Return the ``config.json`` of one of `MODELS` as published; without its vision tower unless asked."""
    large = _SIZES[model].get("hidden_size_per_layer_input") == 0
    return _TOP | {
        "text_config": _TEXT | _SIZES[model],
        "audio_config": None if large else dict(_AUDIO),
        "vision_config": dict(_LARGE_VISION if large else _VISION) if vision else None,
    }


def tensors(config: Config, unused: bool = False) -> Named:
    """Yield name and shape of every tensor.

    Parameters
    ----------
    config : dict
        A checkpoint's ``config.json`` in release style.
    unused : bool
        Also the K/V projections of layers that borrow another's, which early uploads carried.
    """
    text, audio, vision = (config.get(f"{part}_config") for part in ("text", "audio", "vision"))
    assert text is not None, "a config has a text_config"
    H = text["hidden_size"]
    yield from _text(text, unused)
    if audio is not None:
        yield from _audio(audio)
        yield "model.embed_audio.embedding_projection.weight", (H, audio["output_proj_dims"])
    if vision is not None:
        yield from _vision(vision)
        yield "model.embed_vision.embedding_projection.weight", (H, vision["hidden_size"])
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (text["vocab_size"], H)


def _text(text: Config, unused: bool) -> Named:
    H, V, P = text["hidden_size"], text["vocab_size"], text["hidden_size_per_layer_input"]
    width = text["num_hidden_layers"] * P
    root = "model.language_model."
    yield root + "embed_tokens.weight", (V, H)
    if P:
        yield root + "embed_tokens_per_layer.weight", (text["vocab_size_per_layer_input"], width)
        yield root + "per_layer_model_projection.weight", (width, H)
        yield root + "per_layer_projection_norm.weight", (P,)
    yield root + "norm.weight", (H,)
    for layer in range(text["num_hidden_layers"]):
        for name, shape in _text_layer(text, layer, unused):
            yield f"{root}layers.{layer}.{name}", shape


def _text_layer(text: Config, layer: int, unused: bool) -> Named:
    H, P = text["hidden_size"], text["hidden_size_per_layer_input"]
    sliding = text["layer_types"][layer] == SLIDING
    shared = layer >= text["num_hidden_layers"] - text["num_kv_shared_layers"]
    D = text["head_dim"] if sliding else text["global_head_dim"]
    kv = text["num_key_value_heads"]
    if not sliding:
        kv = text["num_global_key_value_heads"] or kv
    inner = text["intermediate_size"] * (2 if shared and text["use_double_wide_mlp"] else 1)
    yield "layer_scalar", (1,)
    for norm in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                 "post_feedforward_layernorm"):  # fmt: skip
        yield norm + ".weight", (H,)
    if P:
        yield "post_per_layer_input_norm.weight", (H,)
        yield "per_layer_input_gate.weight", (P, H)
        yield "per_layer_projection.weight", (H, P)
    if text["enable_moe_block"]:
        yield from _experts(text)
    yield "self_attn.q_proj.weight", (text["num_attention_heads"] * D, H)
    yield "self_attn.q_norm.weight", (D,)
    yield "self_attn.o_proj.weight", (H, text["num_attention_heads"] * D)
    if unused or not shared:
        yield "self_attn.k_proj.weight", (kv * D, H)
        if sliding or not text["attention_k_eq_v"]:
            yield "self_attn.v_proj.weight", (kv * D, H)
        yield "self_attn.k_norm.weight", (D,)
    yield "mlp.gate_proj.weight", (inner, H)
    yield "mlp.up_proj.weight", (inner, H)
    yield "mlp.down_proj.weight", (H, inner)


def _experts(text: Config) -> Named:
    H, E, inner = text["hidden_size"], text["num_experts"], text["moe_intermediate_size"]
    for norm in ("post_feedforward_layernorm_1", "pre_feedforward_layernorm_2",
                 "post_feedforward_layernorm_2"):  # fmt: skip
        yield norm + ".weight", (H,)
    yield "router.scale", (H,)
    yield "router.proj.weight", (E, H)
    yield "router.per_expert_scale", (E,)
    yield "experts.gate_up_proj", (E, 2 * inner, H)
    yield "experts.down_proj", (E, H, inner)


def _clipped(name: str, shape: Shape, clipped: bool) -> Named:
    yield name + ".linear.weight", shape
    if clipped:
        for bound in ("input_min", "input_max", "output_min", "output_max"):
            yield f"{name}.{bound}", ()


def _audio(audio: Config) -> Named:
    C = audio["hidden_size"]
    c0, c1 = audio["subsampling_conv_channels"]
    root = "model.audio_tower."
    subsample = root + "subsample_conv_projection."
    yield subsample + "layer0.conv.weight", (c0, 1, 3, 3)
    yield subsample + "layer0.norm.weight", (c0,)
    yield subsample + "layer1.conv.weight", (c1, c0, 3, 3)
    yield subsample + "layer1.norm.weight", (c1,)
    yield subsample + "input_proj_linear.weight", (C, c1 * 32)
    yield root + "output_proj.weight", (audio["output_proj_dims"], C)
    yield root + "output_proj.bias", (audio["output_proj_dims"],)
    for layer in range(audio["num_hidden_layers"]):
        for name, shape in _audio_layer(audio):
            yield f"{root}layers.{layer}.{name}", shape


def _audio_layer(audio: Config) -> Named:
    C = audio["hidden_size"]
    linears: dict[str, Shape] = {
        "feed_forward1.ffw_layer_1": (4 * C, C), "feed_forward1.ffw_layer_2": (C, 4 * C),
        "feed_forward2.ffw_layer_1": (4 * C, C), "feed_forward2.ffw_layer_2": (C, 4 * C),
        "self_attn.q_proj": (C, C), "self_attn.k_proj": (C, C), "self_attn.v_proj": (C, C),
        "self_attn.post": (C, C), "lconv1d.linear_start": (2 * C, C), "lconv1d.linear_end": (C, C),
    }  # fmt: skip
    for name, shape in linears.items():
        yield from _clipped(name, shape, audio["use_clipped_linears"])
    yield "self_attn.relative_k_proj.weight", (C, C)
    yield "self_attn.per_dim_scale", (C // audio["num_attention_heads"],)
    yield "lconv1d.depthwise_conv1d.weight", (C, 1, audio["conv_kernel_size"])
    for norm in ("feed_forward1.pre_layer_norm", "feed_forward1.post_layer_norm",
                 "feed_forward2.pre_layer_norm", "feed_forward2.post_layer_norm", "norm_pre_attn",
                 "norm_post_attn", "norm_out", "lconv1d.pre_layer_norm", "lconv1d.conv_norm"):  # fmt: skip
        yield norm + ".weight", (C,)


def _vision(vision: Config) -> Named:
    H, inner = vision["hidden_size"], vision["intermediate_size"]
    width = vision["num_attention_heads"] * vision["head_dim"]
    patch = vision["patch_size"] ** 2 * 3
    if vision["standardize"]:
        yield "model.vision_tower.std_bias", (H,)
        yield "model.vision_tower.std_scale", (H,)
    embedder = "model.vision_tower.patch_embedder."
    yield embedder + "position_embedding_table", (2, vision["position_embedding_size"], H)
    yield embedder + "input_proj.weight", (H, patch)
    linears = {f"self_attn.{p}_proj": (width, H) for p in "qkv"} | {
        "self_attn.o_proj": (H, width), "mlp.gate_proj": (inner, H), "mlp.up_proj": (inner, H),
        "mlp.down_proj": (H, inner),
    }  # fmt: skip
    for i in range(vision["num_hidden_layers"]):
        layer = f"model.vision_tower.encoder.layers.{i}."
        for name, shape in linears.items():
            yield from _clipped(layer + name, shape, vision["use_clipped_linears"])
        for norm in ("self_attn.q_norm", "self_attn.k_norm"):
            yield f"{layer}{norm}.weight", (vision["head_dim"],)
        for norm in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
                     "post_feedforward_layernorm"):  # fmt: skip
            yield f"{layer}{norm}.weight", (H,)
