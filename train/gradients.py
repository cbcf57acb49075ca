"""Gradients of several processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import distributed, nn


def averaged(parameters: Sequence[nn.Parameter], values: list[float]) -> list[float]:
    """Average gradients over the processes, and some values on the way."""
    if not distributed.is_initialized():
        return values
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    told = torch.tensor(values, device=gradients[0].device)
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), told])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    *parts, means = flat.split([*(gradient.numel() for gradient in gradients), len(values)])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
    return [float(mean) for mean in means]
