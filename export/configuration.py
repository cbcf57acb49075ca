"""``config.json`` of a Gemma 4 checkpoint, as the `ModelConfig` of a package.

Both release-style configs (``global_head_dim``) and ones saved again by transformers
(``per_layer_config``) are read. What this version cannot run is refused by name, before a weight is
read.
"""

from __future__ import annotations

from typing import Any

from edgegemma.config import FULL, SLIDING, AudioConfig, ModelConfig, TextConfig, TokenConfig
from edgegemma.errors import CheckpointError, InputError

# Architectures of the family that are known but not yet run, so that the refusal can say why.
_LATER = {
    "Gemma4UnifiedForConditionalGeneration": "the encoder-free 12B model",
    "Gemma4AssistantForCausalLM": "a drafter",
    "Gemma4UnifiedAssistantForCausalLM": "a drafter",
}
_WHOLE, _TEXT = "Gemma4ForConditionalGeneration", "Gemma4ForCausalLM"
_BY_TYPE = {
    "gemma4": _WHOLE,
    "gemma4_text": _TEXT,
    "gemma4_unified": "Gemma4UnifiedForConditionalGeneration",
    "gemma4_assistant": "Gemma4AssistantForCausalLM",
}


class _Fields:
    """Typed access to one JSON object, with errors that say file and field."""

    def __init__(self, data: object, where: str) -> None:
        if not isinstance(data, dict):
            raise CheckpointError(f"{where}: got {type(data).__name__}; want an object")
        self.data: dict[str, Any] = data
        self.where = where

    def integer(self, name: str, low: int = 1, default: int | None = None) -> int:
        value = self.data.get(name)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value < 1 << 31:
            raise CheckpointError(f"{self.where}: {name}: got {value!r}; want an integer >= {low}")
        return value

    def number(self, name: str, most: float = 1e12) -> float:
        value = self.data.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
            raise CheckpointError(
                f"{self.where}: {name}: got {value!r}; want a positive number, at most {most:g}"
            )
        return float(value)

    def must_be(self, name: str, *allowed: object) -> None:
        if self.data.get(name, allowed[0]) not in allowed:
            raise CheckpointError(
                f"{self.where}: {name}: got {self.data[name]!r}; only {allowed[0]!r} is supported"
            )

    def section(self, name: str) -> _Fields:
        return _Fields(self.data.get(name), f"{self.where}: {name}")


def parse(
    raw: dict[str, Any], generation: dict[str, Any] | None = None, audio_window: int | None = None
) -> ModelConfig:
    """Turn ``config.json`` (and ``generation_config.json``) into the model's dimensions.

    Parameters
    ----------
    audio_window : int, optional
        Keys an audio query sees, itself included. By default one less than ``attention_context_left``,
        as transformers masks it (12); the JAX reference sees one more (13).
    """
    top = _Fields(raw, "config.json")
    if _architecture(raw) == _TEXT:
        text, audio = top, None
    else:
        text = top.section("text_config")
        audio = top.section("audio_config") if raw.get("audio_config") is not None else None
    return ModelConfig(
        text=_text(text),
        tokens=_tokens(raw | text.data | raw, generation or {}, audio is not None),
        audio=_audio(audio, audio_window) if audio else None,
    )


def _architecture(raw: dict[str, Any]) -> str:
    names = raw.get("architectures")
    if isinstance(names, list) and names:
        name = str(names[0])
    else:
        name = _BY_TYPE.get(str(raw.get("model_type")), str(raw.get("model_type")))
    if name in _LATER:
        raise CheckpointError(f"config.json: {name} ({_LATER[name]}): not supported yet")
    if name not in (_WHOLE, _TEXT):
        raise CheckpointError(f"config.json: architecture {name}: want {_WHOLE} or {_TEXT}")
    return name


def _text(f: _Fields) -> TextConfig:
    _refuse_unsupported(f)
    layers, shared = f.integer("num_hidden_layers"), f.integer("num_kv_shared_layers", 0, 0)
    types = f.data.get("layer_types")
    kinds = (SLIDING, FULL)
    if not isinstance(types, list) or len(types) != layers or any(t not in kinds for t in types):
        raise CheckpointError(
            f"{f.where}: layer_types: want {layers} entries of {SLIDING!r} or {FULL!r}"
        )
    if shared and (shared >= layers or set(types[-shared:]) - set(types[:-shared])):
        raise CheckpointError(
            f"{f.where}: num_kv_shared_layers: got {shared} of {layers}; no layer of the same type owns K/V"
        )
    rope = f.section("rope_parameters")
    sliding, full = rope.section(SLIDING), rope.section(FULL)
    sliding.must_be("rope_type", "default")
    full.must_be("rope_type", "proportional")
    full.must_be("factor", 1)
    kv_heads, head_dim = f.integer("num_key_value_heads"), f.integer("head_dim")
    full_kv, full_dim = _full_heads(f, types, kv_heads, head_dim)
    heads = f.integer("num_attention_heads")
    if heads % kv_heads or heads % full_kv:
        raise CheckpointError(
            f"{f.where}: {heads} query heads do not divide into {kv_heads} K/V heads"
        )
    return TextConfig(
        vocab_size=f.integer("vocab_size"),
        hidden_size=f.integer("hidden_size"),
        num_hidden_layers=layers,
        layer_types=tuple(types),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        num_global_key_value_heads=full_kv,
        head_dim=head_dim,
        global_head_dim=full_dim,
        intermediate_size=f.integer("intermediate_size"),
        use_double_wide_mlp=bool(f.data.get("use_double_wide_mlp", False)),
        num_kv_shared_layers=shared,
        hidden_size_per_layer_input=f.integer("hidden_size_per_layer_input", 0),
        sliding_window=f.integer("sliding_window"),
        max_position_embeddings=f.integer("max_position_embeddings"),
        rms_norm_eps=f.number("rms_norm_eps"),
        final_logit_softcapping=f.number("final_logit_softcapping"),
        sliding_rope_theta=sliding.number("rope_theta"),
        full_rope_theta=full.number("rope_theta"),
        full_partial_rotary_factor=full.number("partial_rotary_factor", 1),
        attention_k_eq_v=bool(f.data.get("attention_k_eq_v")),
        **_experts(f),
    )


def _experts(f: _Fields) -> dict[str, int]:
    """Give the sizes of the experts, zeros where there are none."""
    names = ("num_experts", "top_k_experts", "moe_intermediate_size")
    if not f.data.get("enable_moe_block"):
        return dict.fromkeys(names, 0)
    sizes = {name: f.integer(name) for name in names}
    if sizes["top_k_experts"] > sizes["num_experts"]:
        raise CheckpointError(
            f"{f.where}: top_k_experts: got {sizes['top_k_experts']} of {sizes['num_experts']}"
        )
    return sizes


def _refuse_unsupported(f: _Fields) -> None:
    """Refuse what no published model has, and what none of our functions does."""
    plain = f.data.get("hidden_size_per_layer_input") == 0
    others = {
        "enable_moe_block": "experts",
        "attention_k_eq_v": "values made of keys",
    }
    for name, what in others.items():
        if f.data.get(name) and not plain:
            raise CheckpointError(
                f"{f.where}: {name}: {what} beside per-layer inputs are not supported"
            )
    if plain and f.data.get("num_kv_shared_layers"):
        raise CheckpointError(
            f"{f.where}: num_kv_shared_layers: shared K/V without per-layer inputs are not supported"
        )
    # "vision": positions of one image see each other. No image goes in, so it changes nothing.
    f.must_be("use_bidirectional_attention", None, "vision")
    f.must_be("hidden_activation", "gelu_pytorch_tanh")
    f.must_be("attention_bias", False)
    vocabulary = f.data.get("vocab_size")
    f.must_be("vocab_size_per_layer_input", vocabulary)


def _full_heads(f: _Fields, types: list[str], kv_heads: int, head_dim: int) -> tuple[int, int]:
    """Give ``(kv_heads, head_dim)`` of the full layers, from either style of config."""
    if f.data.get("per_layer_config") is None:
        # num_global_key_value_heads counts only with attention_k_eq_v, and may be null even then.
        tied = f.data.get("attention_k_eq_v")
        full = f.integer("num_global_key_value_heads", 1, kv_heads) if tied else kv_heads
        return full, f.integer("global_head_dim")
    own = f.section("per_layer_config").data
    own = {str(int(k)) if k.isdecimal() else k: v for k, v in own.items()}  # "05" is layer 5
    found: dict[str, set[tuple[int, int]]] = {SLIDING: {(kv_heads, head_dim)}, FULL: set()}
    for i, kind in enumerate(types):
        layer = _Fields(own.get(str(i), own.get(kind, {})), f"{f.where}: per_layer_config: {i}")
        heads = layer.integer("num_key_value_heads", 1, kv_heads)
        found[kind].add((heads, layer.integer("head_dim", 1, head_dim)))
    if len(found[SLIDING]) > 1 or len(found[FULL]) > 1:
        raise CheckpointError(
            f"{f.where}: per_layer_config: layers of one type differ; not supported"
        )
    return found[FULL].pop() if found[FULL] else (kv_heads, head_dim)


def _audio(f: _Fields, window: int | None) -> AudioConfig:
    f.must_be("hidden_act", "silu")
    f.must_be("attention_context_right", 0)
    f.must_be("use_clipped_linears", True, False)
    hidden, heads = f.integer("hidden_size"), f.integer("num_attention_heads")
    if hidden % heads:
        raise CheckpointError(f"{f.where}: hidden_size {hidden} does not divide into {heads} heads")
    left = f.integer("attention_context_left", 2)
    if window is not None and window not in (left - 1, left):
        raise InputError(
            f"audio window: got {window}; want {left - 1} (transformers) or {left} (JAX)"
        )
    return AudioConfig(
        hidden_size=hidden,
        num_hidden_layers=f.integer("num_hidden_layers"),
        num_attention_heads=heads,
        subsampling_conv_channels=_channels(f),
        conv_kernel_size=f.integer("conv_kernel_size"),
        residual_weight=f.number("residual_weight"),
        window=left - 1 if window is None else window,
        attention_logit_cap=f.number("attention_logit_cap"),
        rms_norm_eps=f.number("rms_norm_eps"),
        output_proj_dims=f.integer("output_proj_dims"),
    )


def _channels(f: _Fields) -> tuple[int, int]:
    found = f.data.get("subsampling_conv_channels")
    if not isinstance(found, list) or [type(c) for c in found] != [int, int] or min(found) < 1:
        raise CheckpointError(
            f"{f.where}: subsampling_conv_channels: got {found!r}; want two positive integers"
        )
    return found[0], found[1]


def _tokens(raw: dict[str, Any], generation: dict[str, Any], audio: bool) -> TokenConfig:
    """Collect the ids; ``generation_config.json`` decides which ones stop."""
    stop = generation.get("eos_token_id", raw.get("eos_token_id"))
    f = _Fields(raw | {"eos_token_id": stop}, "config.json")
    eos = stop if isinstance(stop, list) else [f.integer("eos_token_id", 0)]
    if not eos or not all(isinstance(t, int) and not isinstance(t, bool) and t >= 0 for t in eos):
        raise CheckpointError(
            f"config.json: eos_token_id: got {stop!r}; want one id or a list of them"
        )

    def optional(*names: str) -> int | None:
        present = [n for n in names if raw.get(n) is not None]
        return f.integer(present[0], 0) if present else None

    tokens = TokenConfig(
        bos=f.integer("bos_token_id", 0, 2),
        pad=f.integer("pad_token_id", 0, 0),
        eos=tuple(eos),
        audio=optional("audio_token_id", "audio_token_index"),
        boa=optional("boa_token_id", "boa_token_index"),
        eoa=optional("eoa_token_id", "eoa_token_index"),
        image=optional("image_token_id", "image_token_index"),
        boi=optional("boi_token_id", "boi_token_index"),
        eoi=optional("eoi_token_id", "eoi_token_index"),
        video=optional("video_token_id", "video_token_index"),
    )
    if audio and None in (tokens.audio, tokens.boa, tokens.eoa):
        raise CheckpointError(
            "config.json: audio_token_id, boa_token_id or eoa_token_id is missing"
        )
    return tokens


def source_quantized(raw: dict[str, Any]) -> bool:
    """Whether the checkpoint holds Google's 2/4/8-bit codes; refuses every other quantization by name."""
    quantization = raw.get("quantization_config")
    if quantization is None:
        return False
    method = _Fields(quantization, "config.json: quantization_config").data.get("quant_method")
    if method != "gemma":
        raise CheckpointError(
            f"config.json: quant_method {method!r}: not supported; take the BF16 checkpoint, or "
            "Google's -qat-mobile-transformers one"
        )
    return True
