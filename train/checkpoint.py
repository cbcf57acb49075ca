"""The checkpoint, in the layout of Google's QAT-mobile releases (`quant_method: "gemma"`).

Linear: `weight`, codes packed along the inputs from the lowest bits up and offset to be positive
(plain int8 at 8 bits); `weight_scale`, float32 [outputs, 1]; two activation scales, 0 for "none".
Embedding: `embedding_quantized` and `embedding_scale`, [tokens, 1], or one scale per layer for the
per-layer table. The head is a copy of the token table. Everything else is bfloat16.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import nn
from transformers import Gemma4ForConditionalGeneration
from transformers.integrations import gemma_quant

from train import tokens
from train.architecture import TEXT, release_config
from train.fakequant import (
    BITS,
    UNQUANTISED,
    FakeQuantised,
    code_range,
    is_quantised,
    quantise,
    quantised_modules,
)

OFF = torch.tensor(0.0)


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


def _stored_linear(
    name: str, codes: torch.Tensor, scale: torch.Tensor, bits: int
) -> dict[str, torch.Tensor]:
    return {
        f"{name}.weight": packed(codes, bits),
        f"{name}.weight_scale": scale,
        f"{name}.input_activation_scale": OFF.clone(),
        f"{name}.output_activation_scale": OFF.clone(),
    }


@torch.no_grad()
def stored_tensors(model: Gemma4ForConditionalGeneration) -> dict[str, torch.Tensor]:
    """Give the tensors of the file, by their official names.

    A model that is not quantised yet is quantised in place, with the scales of least squared error.
    """
    if not is_quantised(model):
        quantise(model)
    stored: dict[str, torch.Tensor] = {}
    for name, module in quantised_modules(model):
        if name == "lm_head":
            continue
        weight: Any = module.parametrizations.weight
        fake: FakeQuantised = weight[0]
        codes, scale = fake.codes(weight.original), fake.scale.float().contiguous()
        if isinstance(module, nn.Embedding):
            stored[f"{name}.embedding_quantized"] = packed(codes, fake.bits)
            stored[f"{name}.embedding_scale"] = scale
        else:
            stored |= _stored_linear(name, codes, scale, fake.bits)
        if name.endswith(".embed_tokens"):
            stored |= _stored_linear("lm_head", codes, scale.clone(), fake.bits)
    for name, tensor in model.state_dict().items():
        if ".parametrizations." not in name and not name.startswith("lm_head"):
            stored[name] = tensor.to(torch.bfloat16).contiguous()
    return stored


def config() -> dict[str, Any]:
    """Write `config.json` in release style."""
    quantisation = {
        "quant_method": "gemma",
        "num_bits": 4,
        "quantize_embeddings": True,
        "module_quant_configs": BITS,
        "modules_to_not_convert": list(UNQUANTISED),
    }
    return {**release_config(tied=False), "quantization_config": quantisation}


def write(folder: Path, model: Gemma4ForConditionalGeneration, tokenizer: Tokenizer) -> None:
    """Write the whole checkpoint; each file appears complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(), indent=2) + "\n")
    tokens.save(tokenizer, folder)
    part = folder / "model.safetensors.part"
    save_file(stored_tensors(model), part, metadata={"format": "pt"})
    part.chmod(0o644)
    part.replace(folder / "model.safetensors")


@contextmanager
def _scales_per_layer() -> Iterator[None]:
    """Let transformers 5.23 load one scale per layer for the per-layer table.

    Its `QuantizedEmbedding` allocates one scale per token, although its arithmetic, and the
    published checkpoints, have one per token and layer.
    """
    original = gemma_quant.QuantizedEmbedding.__init__
    layers = TEXT["num_hidden_layers"]

    def widened(self: Any, num_embeddings: int, embedding_dim: int, **options: Any) -> None:
        original(self, num_embeddings, embedding_dim, **options)
        if embedding_dim == layers * TEXT["hidden_size_per_layer_input"]:
            self.embedding_scale = nn.Parameter(torch.ones(num_embeddings, layers))

    gemma_quant.QuantizedEmbedding.__init__ = widened
    try:
        yield
    finally:
        gemma_quant.QuantizedEmbedding.__init__ = original


def load(folder: Path) -> Gemma4ForConditionalGeneration:
    """Load a checkpoint with transformers, in float32."""
    with _scales_per_layer():
        return Gemma4ForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
