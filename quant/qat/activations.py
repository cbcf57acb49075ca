"""Activations in int8 with a static scale: found by calibration, then learned.

Each quantized linear rounds what goes in and what comes out to one scale per tensor, as the runtime
will: `x ← clamp(round(x / s), −128, 127) · s`. Keys and values get a scale per layer the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from quant.qat.weights import Plan, best_scales, code_range

BITS = 8
WAYS = ("input_activation", "output_activation")
CACHES = ("k_cache", "v_cache")
KEPT_VALUES = 4_096
"""Values kept of each tensor a forward pass shows; the largest is always among them."""


class Rounded(torch.autograd.Function):
    """Rounding to int8 codes; the scale's gradient is that of its rounding errors (LSQ)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
        """Return the values that the codes stand for."""
        low, high = code_range(BITS)
        scale = log_scale.exp()
        exact = x / scale
        codes = exact.round().clamp_(low, high)
        inside = (exact >= low) & (exact <= high)
        ctx.save_for_backward(codes.sub(exact.mul_(inside)), inside, scale)
        return codes * scale

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pass the gradient on where nothing was cut off."""
        error, inside, scale = ctx.saved_tensors
        # a tensor's scale moves all its values: its gradient is damped by their number, as in LSQ
        damped = (gradient * error).sum() * scale / (error.numel() * code_range(BITS)[1]) ** 0.5
        return gradient * inside, damped


class StaticScale(nn.Module):
    """One learned scale of one tensor."""

    def __init__(self, scale: torch.Tensor) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(scale.detach().log())

    @property
    def scale(self) -> torch.Tensor:
        """The scale, a scalar."""
        return self.log_scale.exp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Round the values to the scale."""
        rounded: torch.Tensor = Rounded.apply(x, self.log_scale)
        return rounded


class Seen:
    """Some of the values that went through the linears and into the cache."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        self._model, self._plan = model, plan
        self._values: dict[tuple[str, str], list[torch.Tensor]] = {}

    def _keep(self, name: str, way: str, values: torch.Tensor) -> None:
        flat = values.detach().flatten()
        chosen = flat[:: -(-len(flat) // KEPT_VALUES)]
        largest = flat[flat.abs().argmax()][None]
        self._values.setdefault((name, way), []).append(torch.cat([chosen, largest]))

    def _keep_linear(self, name: str, _: nn.Module, given: Any, made: torch.Tensor) -> None:
        self._keep(name, WAYS[0], given[0])
        self._keep(name, WAYS[1], made)

    def cache(self, layer: str, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Look at the keys and values of an attention module, as the cache holds them."""
        self._keep(layer, CACHES[0], keys)
        self._keep(layer, CACHES[1], values)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at everything the model computes meanwhile."""
        hooks = [
            module.register_forward_hook(partial(self._keep_linear, name))
            for name, module in self._plan.modules(self._model)
            if isinstance(module, nn.Linear) and name != "lm_head"
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def scales(self) -> dict[tuple[str, str], torch.Tensor]:
        """Give the scale of least squared error of each module and way that was seen."""
        return {key: best_scales(torch.cat(values), BITS) for key, values in self._values.items()}


def round_activations(
    model: nn.Module, plan: Plan, scales: dict[tuple[str, str], torch.Tensor] | None = None
) -> None:
    """Make every quantized linear round what goes in and what comes out, with learned scales.

    Parameters
    ----------
    scales : dict or None
        From `Seen.scales`; None: all of one, to load a state into.
    """
    for name, module in list(plan.modules(model)):
        if not isinstance(module, nn.Linear) or name == "lm_head":
            continue
        found = [torch.ones(()) if scales is None else scales.get((name, way)) for way in WAYS]
        device = next(module.parameters()).device
        for way, scale in zip(WAYS, found, strict=True):
            if scale is not None:
                module.add_module(way, StaticScale(scale.to(device)))
        module.register_forward_pre_hook(_round_given)
        module.register_forward_hook(_round_made)


def _round_given(module: nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    scale = module._modules.get(WAYS[0])
    return given if scale is None else (scale(given[0]), *given[1:])


def _round_made(module: nn.Module, _: Any, made: torch.Tensor) -> torch.Tensor:
    scale = module._modules.get(WAYS[1])
    return made if scale is None else scale(made)


def rounds_activations(model: nn.Module) -> bool:
    """Tell whether `round_activations` was applied."""
    return any(isinstance(module, StaticScale) for module in model.modules())


def static_scale(module: nn.Module, way: str) -> torch.Tensor:
    """Give the scale of a module that rounds its activations, 0 for "none"."""
    found = module._modules.get(way)
    return found.scale.detach().clone() if isinstance(found, StaticScale) else torch.tensor(0.0)
