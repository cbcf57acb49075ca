"""Tiny random Gemma 4 checkpoints with every feature of the real ones, made with numpy alone.

``write_checkpoint(variant, folder)`` writes what Google publishes: ``config.json`` in release style, BF16
``model.safetensors`` with the official tensor names, a tokenizer and a chat template. The values come from
raw PCG64 words, so they are the same on every machine and numpy version; ``tests/golden`` holds what
transformers computes from exactly these files.

Variants: ``e2b`` (sliding and full layers, shared K/V with double-wide MLP, clipped audio linears), ``e4b`` (two
K/V heads, 5:1 pattern, no double-wide), ``e2b-qat-mobile`` (e2b in the packed ``quant_method: "gemma"`` layout), ``moe``
and ``dense`` (as 26B-A4B and 31B: no per-layer inputs, values made of keys in full layers, no audio; experts in the first).
"""

from __future__ import annotations

import copy
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from tests.tiny_shapes import F as F
from tests.tiny_shapes import S as S
from tests.tiny_shapes import shapes as shapes
from tests.tiny_tokenizer import write_tokenizer

HEARING = ("e2b", "e4b", "e2b-qat-mobile")
VARIANTS = (*HEARING, "moe", "dense")
VOCAB = 512
BF16 = np.uint16  # bit patterns; safetensors writes them under the name BF16

TEXT: dict[str, Any] = {
    "model_type": "gemma4_text", "vocab_size": VOCAB, "vocab_size_per_layer_input": VOCAB,
    "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4,
    "num_key_value_heads": 1, "num_global_key_value_heads": None, "head_dim": 32,
    "global_head_dim": 64, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
    "attention_bias": False, "attention_dropout": 0.0, "attention_k_eq_v": False,
    "enable_moe_block": False, "num_experts": None, "top_k_experts": None,
    "moe_intermediate_size": None, "hidden_size_per_layer_input": 32, "sliding_window": 8,
    "max_position_embeddings": 4096, "final_logit_softcapping": 30.0,
    "rope_parameters": {
        F: {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
        S: {"rope_theta": 1e4, "rope_type": "default"},
    },
    "use_bidirectional_attention": None, "initializer_range": 0.02, "tie_word_embeddings": True,
    "use_cache": True, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2,
}  # fmt: skip
E2B = {
    "num_hidden_layers": 10, "layer_types": ([S] * 4 + [F]) * 2, "num_kv_shared_layers": 5,
    "use_double_wide_mlp": True,
}  # fmt: skip
E4B = {
    "num_hidden_layers": 12, "layer_types": ([S] * 5 + [F]) * 2, "num_kv_shared_layers": 6,
    "use_double_wide_mlp": False, "num_key_value_heads": 2,
}  # fmt: skip
DENSE = {
    "num_hidden_layers": 6, "layer_types": [S] * 5 + [F], "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False, "hidden_size_per_layer_input": 0, "num_key_value_heads": 2,
    "num_global_key_value_heads": 1, "attention_k_eq_v": True,
    "use_bidirectional_attention": "vision",
}  # fmt: skip
MOE = DENSE | {
    "enable_moe_block": True, "num_experts": 16, "top_k_experts": 4, "moe_intermediate_size": 64,
    "intermediate_size": 192,
}  # fmt: skip
TEXTS = {"e2b": E2B, "e4b": E4B, "e2b-qat-mobile": E2B, "moe": MOE, "dense": DENSE}
AUDIO: dict[str, Any] = {
    "model_type": "gemma4_audio", "hidden_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 4, "hidden_act": "silu", "subsampling_conv_channels": [128, 8],
    "conv_kernel_size": 5, "residual_weight": 0.5, "attention_chunk_size": 12,
    "attention_context_left": 13, "attention_context_right": 0, "attention_logit_cap": 50.0,
    "attention_invalid_logits_value": -1e9, "use_clipped_linears": True, "rms_norm_eps": 1e-6,
    "gradient_clipping": 1e10, "output_proj_dims": 96, "initializer_range": 0.02,
}  # fmt: skip
TOP: dict[str, Any] = {
    "architectures": ["Gemma4ForConditionalGeneration"], "model_type": "gemma4",
    "dtype": "bfloat16", "vision_config": None, "eos_token_id": [1, 106, 50],
    "initializer_range": 0.02, "tie_word_embeddings": True, "boi_token_id": 500,
    "image_token_id": 501, "eoi_token_id": 502, "boa_token_id": 503, "audio_token_id": 504,
    "eoa_token_id": 505, "eoa_token_index": 505, "video_token_id": 506,
}  # fmt: skip

QAT_BITS = {  # Google's map for E2B; here layers 0-4 own K/V
    r"^lm_head$": 2,
    r"audio_tower(?!.*lconv1d\.linear_start)": 2,
    r"audio_tower\.layers\.\d+\.lconv1d\.linear_start\.": 4,
    r"language_model\.embed_tokens$": 2,
    r"language_model\.embed_tokens_per_layer$": 4,
    r"language_model\.layers\.([0-4])\.mlp\.": 4,
    r"language_model\.layers\.\d+\.mlp\.": 2,
    r"language_model\.layers\.\d+\.per_layer_input_gate$": 8,
    r"language_model\.layers\.\d+\.per_layer_projection$": 8,
    r"language_model\.layers\.\d+\.self_attn\.": 4,
}
QAT_KEPT = (
    "model.audio_tower.subsample_conv_projection", "model.audio_tower.output_proj",
    "relative_k_proj", "model.embed_audio", "model.embed_vision", "per_layer_model_projection",
)  # fmt: skip


def config(variant: str) -> dict[str, Any]:
    """Return the ``config.json`` of a variant, in the style of the published releases."""
    text = copy.deepcopy(TEXT) | copy.deepcopy(TEXTS[variant])
    audio = copy.deepcopy(AUDIO) if variant in HEARING else None
    raw = copy.deepcopy(TOP) | {"text_config": text, "audio_config": audio}
    if variant == "e2b-qat-mobile":
        raw["tie_word_embeddings"] = text["tie_word_embeddings"] = False
        raw["audio_config"]["use_clipped_linears"] = False
        raw["quantization_config"] = {
            "quant_method": "gemma", "num_bits": 4, "quantize_embeddings": True,
            "module_quant_configs": {k: {"num_bits": v} for k, v in QAT_BITS.items()},
            "modules_to_not_convert": list(QAT_KEPT),
        }  # fmt: skip
    return raw


# pattern, low, high; what none of them names is in _range
_RANGES: tuple[tuple[str, float, float], ...] = (
    (r"layer_scalar$", 0.4, 1.1),
    (r"per_dim_scale$", -0.8, 0.8),
    (r"input_min$", -3.0, -1.5),
    (r"input_max$", 1.5, 3.0),
    (r"output_min$", -3.5, -1.5),
    (r"output_max$", 1.5, 3.5),
    (r"(lm_head|embed_tokens)\.weight$", -1.0, 1.0),
    (r"embed_tokens_per_layer\.weight$", -0.5, 0.5),
    (r"depthwise_conv1d\.weight$", -0.8, 0.8),
    (r"bias$", -0.5, 0.5),
    (r"router\.proj\.weight$", -2.5, 2.5),
)


def values(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Random values of one tensor, already rounded to bfloat16; they depend on the name alone."""
    size = int(np.prod(shape, dtype=np.int64))
    words = np.random.PCG64(zlib.crc32(name.encode())).random_raw(size)
    unit = (words >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)  # [0, 1), exact
    low, high = _range(name, shape)
    return from_bf16(to_bf16((low + (high - low) * unit).reshape(shape)))


def _range(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    for pattern, low, high in _RANGES:
        if re.search(pattern, name):
            return low, high
    if re.search(r"[qk]_norm\.weight$", name):  # keeps the scores near one, as in real models
        unit = shape[0] ** -0.25 * 1.3
        return 0.5 * unit, 1.5 * unit
    if len(shape) == 1:
        return 0.5, 1.5
    width = float((3.0 / np.prod(shape[2 if "experts" in name else 1 :])) ** 0.5)
    return -width, width


def to_bf16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round float32 to the bit patterns of bfloat16, ties to even."""
    bits = np.array(x, np.float32, order="C").view(np.uint32)
    return np.asarray((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Widen bit patterns of bfloat16 to float32, exactly."""
    return np.asarray(bits.astype(np.uint32) << 16, np.uint32).view(np.float32)


def pack(codes: NDArray[np.int64], bits: int) -> NDArray[np.uint8] | NDArray[np.int8]:
    """Pack signed codes as Google's checkpoints do: offset binary, low bits first; int8 as it is."""
    if bits == 8:
        return codes.astype(np.int8)
    per = 8 // bits
    unsigned = (codes + (1 << (bits - 1))).astype(np.uint8).reshape(codes.shape[0], -1, per)
    shifts = (np.arange(per) * bits).astype(np.uint8)
    return np.asarray(np.bitwise_or.reduce(unsigned << shifts, axis=-1), np.uint8)


def qat_bits(module: str) -> int | None:
    """Bits Google's map gives a module, or None where it stays BF16."""
    if any(kept in module for kept in QAT_KEPT) or module.endswith(("norm", "conv1d")):
        return None
    return next((b for pattern, b in QAT_BITS.items() if re.search(pattern, module)), None)


def _calm(name: str, w: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shrink the branches of the residual stream.

    A random network with int8 activations is chaotic: one flipped code changes everything after it, in any
    implementation. With small branches a flip stays small, so that a comparison means something.
    """
    if name.endswith("layer_scalar"):
        return np.float32(1) - (np.float32(1) - w) / np.float32(8)
    return w / np.float32(8) if re.search(r"language_model.*post_.*norm", name) else w


def _quantized(name: str, w: NDArray[np.float32], bits: int, groups: int) -> dict[str, Any]:
    """Return one weight in the packed layout, with its scales and static activation scales."""
    module = name.removesuffix(".weight")
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    grouped = w.reshape(w.shape[0], groups, -1)
    factor = {2: 1.1, 4: 0.45, 8: 4.0 / 127}[bits]
    scale = np.maximum(np.abs(grouped).mean(-1) * np.float32(factor), np.float32(1e-8))
    codes = np.clip(np.rint(grouped / scale[..., None]), low, high).astype(np.int64)
    packed = pack(codes.reshape(w.shape), bits)
    if "embed_tokens" in module:
        return {module + ".embedding_quantized": packed, module + ".embedding_scale": scale}
    draw = np.random.PCG64(zlib.crc32(b"activation" + module.encode())).random_raw(2)
    unit = (draw >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
    steps = np.where(unit < 0.1, 0.0, 0.02 + 0.02 * unit).astype(np.float32)  # 0: not calibrated
    if module == "lm_head":
        steps[:] = 0.0
    return {
        module + ".weight": packed, module + ".weight_scale": scale,
        module + ".input_activation_scale": steps[0].reshape(()),
        module + ".output_activation_scale": steps[1].reshape(()),
    }  # fmt: skip


def tensors(variant: str) -> dict[str, Any]:
    """All tensors of a variant; bfloat16 ones as uint16 bit patterns."""
    raw = config(variant)
    found: dict[str, Any] = {}
    for name, shape in shapes(raw):
        source = "model.language_model.embed_tokens.weight" if "lm_head" in name else name
        w = values(source, shape)
        bits = None
        if "quantization_config" in raw and len(shape) == 2:
            bits = qat_bits(name.removesuffix(".weight"))
        if "quantization_config" in raw:
            w = _calm(name, w)
        if bits is None:
            found[name] = to_bf16(w)
        else:
            groups = raw["text_config"]["num_hidden_layers"] if "per_layer.w" in name else 1
            found |= _quantized(name, w, bits, groups)
    return found


def write_checkpoint(variant: str, folder: Path) -> Path:
    """Write one variant as a checkpoint folder and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    save_bf16(tensors(variant), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config(variant), indent=1))
    write_tokenizer(folder, VOCAB)
    return folder


def save_bf16(found: dict[str, Any], path: Path) -> None:
    """Write a safetensors file in which uint16 arrays are declared BF16."""
    save_file({k: np.array(v, order="C") for k, v in found.items()}, path)
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    for entry in header.values():
        if entry.get("dtype") == "U16":
            entry["dtype"] = "BF16"
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])
