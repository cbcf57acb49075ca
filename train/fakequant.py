"""Quantisation-aware training: weights that behave as the stored format will hold them.

Every quantised weight is replaced by codes times a learned scale in the forward pass (LSQ: the
rounding is passed over by the gradient, the scale gets its own). The bit widths are those of
Google's mobile checkpoints of E2B, except that the small token table keeps 8 bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from train.architecture import TEXT

FIRST_SHARED = TEXT["num_hidden_layers"] - TEXT["num_kv_shared_layers"]
OWN_KV = f"[0-{FIRST_SHARED - 1}]"
BITS: dict[str, dict[str, int]] = {
    r"^lm_head$": {"num_bits": 8},
    r"audio_tower(?!.*lconv1d\.linear_start)": {"num_bits": 2},
    r"audio_tower\.layers\.\d+\.lconv1d\.linear_start\.": {"num_bits": 4},
    r"language_model\.embed_tokens$": {"num_bits": 8},
    r"language_model\.embed_tokens_per_layer$": {"num_bits": 4},
    rf"language_model\.layers\.({OWN_KV})\.mlp\.": {"num_bits": 4},
    r"language_model\.layers\.\d+\.mlp\.": {"num_bits": 2},
    r"language_model\.layers\.\d+\.per_layer_input_gate$": {"num_bits": 8},
    r"language_model\.layers\.\d+\.per_layer_projection$": {"num_bits": 8},
    r"language_model\.layers\.\d+\.self_attn\.": {"num_bits": 4},
}
UNQUANTISED = (
    "model.audio_tower.subsample_conv_projection",
    "model.audio_tower.output_proj",
    "relative_k_proj",
    "model.embed_audio",
    "per_layer_model_projection",
)


def bits_of(name: str) -> int:
    """Look up the bit width of a module: the leftmost, then first pattern that matches."""
    found = [
        (m.start(), order, bits["num_bits"])
        for order, (pattern, bits) in enumerate(BITS.items())
        if (m := re.search(pattern, name))
    ]
    if not found:
        raise KeyError(f"no bit width is given for {name}")
    return min(found)[2]


def quantised_modules(model: nn.Module) -> Iterator[tuple[str, nn.Linear | nn.Embedding]]:
    """List the linears and embeddings the format quantises, with their names in the model."""
    for name, module in model.named_modules():
        kept = any(part in name for part in UNQUANTISED)
        if isinstance(module, nn.Linear | nn.Embedding) and not kept:
            yield name, module


def code_range(bits: int) -> tuple[int, int]:
    """Return the smallest and the largest code of a width."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def best_scales(weight: torch.Tensor, bits: int, steps: int = 64) -> torch.Tensor:
    """Search for each row the scale with the least squared error.

    Parameters
    ----------
    weight : Tensor, shape (rows, groups, width)
    bits : int
    steps : int
        How many scales are tried, evenly between 4 % and 100 % of the largest useful one.

    Returns
    -------
    Tensor, shape (rows, groups)
    """
    low, high = code_range(bits)
    largest = weight.abs().amax(-1).clamp_min(1e-8) / max(high, 1)
    best, least = largest, torch.full_like(largest, torch.inf)
    for fraction in torch.linspace(0.04, 1.0, steps):
        scale = (largest * fraction)[..., None]
        error = ((weight / scale).round().clamp(low, high) * scale - weight).square().sum(-1)
        best = torch.where(error < least, scale[..., 0], best)
        least = torch.minimum(error, least)
    return best


class FakeQuantised(nn.Module):
    """A weight as its codes times a learned scale per row and group."""

    def __init__(self, weight: torch.Tensor, bits: int, groups: int = 1) -> None:
        super().__init__()
        self.bits, self.groups = bits, groups
        scales = best_scales(self._grouped(weight.detach()), bits)
        self.log_scale = nn.Parameter(scales.log())

    def _grouped(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.reshape(weight.shape[0], self.groups, -1)

    @property
    def scale(self) -> torch.Tensor:
        """Scales, shape (rows, groups), as float32 holds them."""
        return self.log_scale.exp()

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the integer codes of a weight, in its shape."""
        low, high = code_range(self.bits)
        return (
            (self._grouped(weight) / self.scale[..., None])
            .clamp(low, high)
            .round()
            .reshape(weight.shape)
        )

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Quantise and give back a weight; the gradient passes where nothing was cut off."""
        low, high = code_range(self.bits)
        scale = self.scale[..., None]
        exact = (self._grouped(weight) / scale).clamp(low, high)
        codes = exact + (exact.round() - exact).detach()
        return (codes * scale).reshape(weight.shape)


def quantise(model: nn.Module) -> None:
    """Make every weight the format quantises a `FakeQuantised` one.

    The head is left alone: it is tied to the token table and computed from it.
    """
    for name, module in list(quantised_modules(model)):
        if name != "lm_head":
            groups = TEXT["num_hidden_layers"] if name.endswith("embed_tokens_per_layer") else 1
            weight: Any = module.weight
            parametrize.register_parametrization(
                module, "weight", FakeQuantised(weight, bits_of(name), groups)
            )


def is_quantised(model: nn.Module) -> bool:
    """Tell whether `quantise` was applied."""
    return any(isinstance(module, FakeQuantised) for module in model.modules())


@torch.no_grad()
def round_kept_weights(model: nn.Module) -> None:
    """Round what the format keeps in bfloat16, so that evaluation sees what is stored."""
    masters = {
        id(module.parametrizations.weight.original)
        for module in model.modules()
        if parametrize.is_parametrized(module, "weight")
    }
    scales = {
        id(module.log_scale) for module in model.modules() if isinstance(module, FakeQuantised)
    }
    for parameter in model.parameters():
        if id(parameter) not in masters | scales:
            parameter.copy_(parameter.bfloat16().float())
