"""Weights that behave in training as the stored format will hold them.

Every quantized weight is replaced in the forward pass by codes times a learned scale per row (LSQ: the
gradient passes over the rounding, and the scale gets its own).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize


@dataclass(frozen=True)
class Plan:
    """Which module gets how many bits, in the words of `quantization_config`."""

    bits: Mapping[str, int]
    """Bits by pattern, searched in the module's name; the leftmost match, then the first pattern, decides."""
    kept: tuple[str, ...]
    """Parts of the names of modules that stay in floating point."""
    groups: Mapping[str, int] = field(default_factory=dict)
    """Scales per row by the end of the name, where there is more than one: per-layer tables."""

    def bits_of(self, name: str) -> int:
        """Look up the bits of a module."""
        found = [
            (match.start(), order, bits)
            for order, (pattern, bits) in enumerate(self.bits.items())
            if (match := re.search(pattern, name))
        ]
        if not found:
            raise KeyError(f"no bits are given for {name}")
        return min(found)[2]

    def groups_of(self, name: str) -> int:
        """Look up the number of scales per row of a module."""
        return next((n for end, n in self.groups.items() if name.endswith(end)), 1)

    def modules(self, model: nn.Module) -> Iterator[tuple[str, Any]]:
        """List the linears and embeddings that are quantized, with their names in the model."""
        for name, module in model.named_modules():
            kept = any(part in name for part in self.kept)
            if isinstance(module, nn.Linear | nn.Embedding) and not kept:
                yield name, module


def code_range(bits: int) -> tuple[int, int]:
    """Return the smallest and the largest code."""
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def best_scales(values: torch.Tensor, bits: int, steps: int = 64) -> torch.Tensor:
    """Search for each group the scale with the least squared error.

    Parameters
    ----------
    values : Tensor, shape (..., width)
    bits : {2, 4, 8}
    steps : int
        How many scales are tried, evenly between 4 % and 100 % of the largest useful one.

    Returns
    -------
    Tensor, shape (...)
    """
    low, high = code_range(bits)
    largest = values.abs().amax(-1).clamp_min(1e-8) / max(high, 1)
    best, least = largest, torch.full_like(largest, torch.inf)
    for fraction in torch.linspace(0.04, 1.0, steps):
        scale = (largest * fraction)[..., None]
        error = ((values / scale).round().clamp(low, high) * scale - values).square().sum(-1)
        best = torch.where(error < least, scale[..., 0], best)
        least = torch.minimum(error, least)
    return best


class FakeQuantized(nn.Module):
    """A weight as its codes times a learned scale per row and group."""

    def __init__(self, weight: torch.Tensor, bits: int, groups: int = 1) -> None:
        super().__init__()
        self.bits, self.groups = bits, groups
        self.log_scale = nn.Parameter(best_scales(self._grouped(weight.detach()), bits).log())

    def _grouped(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.reshape(weight.shape[0], self.groups, -1)

    @property
    def scale(self) -> torch.Tensor:
        """Scales, shape (rows, groups), as float32 holds them."""
        return self.log_scale.exp()

    def codes(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the integer codes of a weight, in its shape."""
        low, high = code_range(self.bits)
        exact = self._grouped(weight) / self.scale[..., None]
        return exact.clamp(low, high).round().reshape(weight.shape)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Quantize and give back a weight; the gradient passes where nothing was cut off."""
        low, high = code_range(self.bits)
        scale = self.scale[..., None]
        exact = (self._grouped(weight) / scale).clamp(low, high)
        codes = exact + (exact.round() - exact).detach()
        return (codes * scale).reshape(weight.shape)


def quantize(model: nn.Module, plan: Plan, part: str = "") -> None:
    """Make every weight of the plan whose name has `part` in it a `FakeQuantized` one.

    The head is left alone: it is tied to the token table and computed from it. So is what is quantized.
    """
    for name, module in list(plan.modules(model)):
        if name != "lm_head" and part in name and not is_quantized(module):
            fake = FakeQuantized(module.weight, plan.bits_of(name), plan.groups_of(name))
            parametrize.register_parametrization(module, "weight", fake)


def is_quantized(model: nn.Module) -> bool:
    """Tell whether `quantize` was applied."""
    return any(isinstance(module, FakeQuantized) for module in model.modules())
