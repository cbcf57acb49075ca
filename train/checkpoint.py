"""The checkpoint's folder: configuration, tokenizer and the tensors `quant.qat` makes."""

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

from quant.qat.checkpoint import quantization_config, tensors
from train import tokens
from train.architecture import TEXT, release_config
from train.bits import PLAN


def config() -> dict[str, Any]:
    """Write `config.json` in release style."""
    return {**release_config(tied=False), "quantization_config": quantization_config(PLAN)}


def write(
    folder: Path,
    model: Gemma4ForConditionalGeneration,
    tokenizer: Tokenizer,
    cache_scales: dict[tuple[str, str], torch.Tensor],
) -> None:
    """Write the whole checkpoint; the weights appear complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config(), indent=2) + "\n")
    tokens.save(tokenizer, folder)
    part = folder / "model.safetensors.part"
    save_file(tensors(model, PLAN, cache_scales), part, metadata={"format": "pt"})
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
