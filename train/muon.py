"""Muon: steps for matrices whose every direction counts alike.

The momentum of a matrix is replaced by the nearest orthogonal one, found with five steps of a Newton-Schulz iteration
(K. Jordan, 2024). The tower learns in a third of the steps it needs with AdamW. The iteration costs as much as a
sixth of a step; the processes share the matrices out among themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import distributed, nn

ITERATION = (3.4445, -4.7750, 2.0315)
STEPS = 5
MOMENTUM = 0.95
ADAM_RMS = 0.2  # the size of AdamW's steps, so that both can have one learning rate


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """Give the nearest orthogonal matrices, roughly; shape (matrices, rows, columns)."""
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = ITERATION
    for _ in range(STEPS):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    return (x.transpose(1, 2) if tall else x).float()


class Muon(torch.optim.Optimizer):
    """The optimiser of matrices.

    Parameters
    ----------
    parameters : iterable of Parameter
        Matrices only.
    weight_decay : float
    """

    def __init__(self, parameters: Iterable[nn.Parameter], weight_decay: float) -> None:
        super().__init__(list(parameters), {"lr": 0.0, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Take a step; the gradients are the same in all processes."""
        for group in self.param_groups:
            shapes: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes.setdefault(parameter.shape, []).append(parameter)
            for alike in shapes.values():
                directions = self._directions([self._momentum(parameter) for parameter in alike])
                rate = group["lr"] * ADAM_RMS * max(alike[0].shape) ** 0.5
                for parameter, direction in zip(alike, directions, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(direction, alpha=rate)

    def _momentum(self, parameter: nn.Parameter) -> torch.Tensor:
        """Take the gradient into the momentum, and give what Nesterov goes along."""
        assert parameter.grad is not None
        state = self.state[parameter]
        kept = state.setdefault("momentum", torch.zeros_like(parameter))
        kept.lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(kept, MOMENTUM)

    @staticmethod
    def _directions(momenta: list[torch.Tensor]) -> torch.Tensor:
        together = torch.stack(momenta)
        if not distributed.is_initialized():
            return orthogonal(together)
        made = torch.zeros_like(together)
        own = slice(distributed.get_rank(), None, distributed.get_world_size())
        if len(together[own]):
            made[own] = orthogonal(together[own])
        distributed.all_reduce(made)
        return made
