"""The tensors of a checkpoint in the layout of Google's QAT-mobile releases (`quant_method: "gemma"`).

Linear: `weight`, codes packed along the inputs from the lowest bits up and offset to be positive
(plain int8 at 8 bits); `weight_scale`, float32 [outputs, 1]; two activation scales, 0 for "none".
Embedding: `embedding_quantized` and `embedding_scale`, [tokens, 1], or one scale per layer for the
per-layer table. The head is a copy of the token table. Keys and values of the cache have a scale each,
beside the attention's linears. Everything else is bfloat16.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from quant.qat.activations import CACHES, WAYS, static_scale
from quant.qat.weights import Plan, code_range, quantize


def packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack integer codes along the last axis.

    Parameters
    ----------
    codes : Tensor, shape (rows, width)
        Integers of the range of `bits`.
    bits : {2, 4, 8}

    Returns
    -------
    Tensor, shape (rows, width * bits / 8)
        Bytes, the first code in the lowest bits; signed bytes at 8 bits.
    """
    if bits == 8:
        return codes.to(torch.int8)
    per_byte = 8 // bits
    low, _ = code_range(bits)
    fields = (codes - low).to(torch.uint8).reshape(len(codes), -1, per_byte)
    shifts = torch.arange(per_byte, dtype=torch.uint8) * bits
    return (fields << shifts).sum(-1, dtype=torch.uint8)


def _linear(
    name: str, codes: torch.Tensor, scale: torch.Tensor, bits: int, module: nn.Module
) -> dict[str, torch.Tensor]:
    return {
        f"{name}.weight": packed(codes, bits),
        f"{name}.weight_scale": scale,
        **{f"{name}.{way}_scale": static_scale(module, way) for way in WAYS},
    }


def tensors(
    model: nn.Module,
    plan: Plan,
    cache_scales: dict[tuple[str, str], torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Give the tensors of the file, by their official names.

    What is not quantized yet is quantized in place, with the scales of least squared error.

    Parameters
    ----------
    cache_scales : dict or None
        Scales of keys and values by attention module and `CACHES`.
    """
    quantize(model, plan)
    stored: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name, module in plan.modules(model):
            if name == "lm_head":
                continue
            weight: Any = module.parametrizations.weight
            codes, bits = weight[0].codes(weight.original), weight[0].bits
            scale = weight[0].scale.float().contiguous()
            if isinstance(module, nn.Embedding):
                stored[f"{name}.embedding_quantized"] = packed(codes, bits)
                stored[f"{name}.embedding_scale"] = scale
            else:
                stored |= _linear(name, codes, scale, bits, module)
            if name.rpartition(".")[2] == "embed_tokens":
                stored |= _linear("lm_head", codes, scale.clone(), bits, nn.Identity())
        for name, tensor in model.state_dict().items():
            added = ".parametrizations." in name or any(f".{way}." in name for way in WAYS)
            if not added and not name.startswith("lm_head"):
                stored[name] = tensor.to(torch.bfloat16).contiguous()
    for (layer, cache), scale in (cache_scales or {}).items():
        assert cache in CACHES
        stored[f"{layer}.{cache}_scale"] = scale.float()
    return stored


def quantization_config(plan: Plan) -> dict[str, Any]:
    """Write the `quantization_config` of `config.json`."""
    return {
        "quant_method": "gemma",
        "num_bits": 4,
        "quantize_embeddings": True,
        "module_quant_configs": {pattern: {"num_bits": n} for pattern, n in plan.bits.items()},
        "modules_to_not_convert": list(plan.kept),
    }
