"""A leaner way through the audio tower, for training on a few CPU cores.

The arithmetic is that of transformers' modules, whose parameters are used. What goes is their
overhead: channels moved back and forth around the layer norms of the stem, clamps that do nothing
in float32, attention cut into blocks with copies, norms of many small operations. It halves the
time of a step.

The result is the same but for the last soft token of a clip that shares a batch with a longer one:
its convolutions see one frame of the padding that they would find to be zero.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch.nn import functional


class _RMSNorm(torch.autograd.Function):
    """RMS norm with weight whose backward pass keeps the input and one number per row."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        factor = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        factor = factor.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, factor)
        return (x * factor).mul_(weight)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        x, weight, factor = ctx.saved_tensors
        normed = x * factor
        product = gradient * normed
        to_weight = product.reshape(-1, x.shape[-1]).sum(0)
        shared = product.mul_(weight).mean(-1, keepdim=True)
        to_x = (gradient * weight).sub_(normed.mul_(shared)).mul_(factor)
        return to_x, to_weight, None


def rms_norm(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Norm the rows of x and multiply by the module's weight."""
    if not self.with_scale:
        return functional.rms_norm(x, (x.shape[-1],), eps=self.eps)
    normed: torch.Tensor = _RMSNorm.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
    return normed


def feed_forward(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Half a feed-forward block and the residual."""
    inner = functional.silu(self.ffw_layer_1(self.pre_layer_norm(x)))
    return torch.add(x, self.post_layer_norm(self.ffw_layer_2(inner)), alpha=self.post_layer_scale)


def light_convolution(self: Any, x: torch.Tensor) -> torch.Tensor:
    """Gated causal depthwise convolution and the residual."""
    gated = functional.glu(self.linear_start(self.pre_layer_norm(x)), dim=-1)
    mixed = self.depthwise_conv1d(gated.transpose(1, 2)).transpose(1, 2)
    return x + self.linear_end(functional.silu(self.conv_norm(mixed)))


def attention(
    self: Any, x: torch.Tensor, positions: torch.Tensor, distance: torch.Tensor
) -> torch.Tensor:
    """Attend to the tokens at a distance from 0 to `max_past_horizon` - 1, all in one block.

    Parameters
    ----------
    x : Tensor, shape (clips, tokens, width)
    positions : Tensor, shape (distances, width)
        Encodings of the distances, the largest first.
    distance : Tensor of int, shape (tokens, tokens)
        How far back the second token lies from the first.
    """
    clips, tokens, _ = x.shape
    heads = (clips, tokens, self.num_heads, self.head_dim)
    scale = self.q_scale * functional.softplus(self.per_dim_scale)
    q = (self.q_proj(x).view(heads) * scale).transpose(1, 2)
    k = self.k_proj(x).view(heads).transpose(1, 2) * self.k_scale
    v = self.v_proj(x).view(heads).transpose(1, 2)
    relative = self.relative_k_proj(positions).view(-1, self.num_heads, self.head_dim)
    by_distance = q @ relative.flip(0).permute(1, 2, 0)
    farthest = by_distance.shape[-1] - 1
    where = distance.clamp(0, farthest).expand(clips, self.num_heads, tokens, tokens)
    logits = q @ k.transpose(2, 3) + by_distance.gather(-1, where)
    logits = torch.tanh(logits / self.attention_logits_soft_cap) * self.attention_logits_soft_cap
    hidden = (distance < 0) | (distance >= self.max_past_horizon)
    weights = logits.masked_fill(hidden, -1e9).softmax(-1)
    return self.post((weights @ v).transpose(1, 2).reshape(clips, tokens, -1))


def layer(
    self: Any, hidden_states: torch.Tensor, position_embeddings: torch.Tensor, **_: Any
) -> torch.Tensor:
    """One Conformer layer."""
    x = feed_forward(self.feed_forward1, hidden_states)
    time = torch.arange(x.shape[1], device=x.device)
    positions = position_embeddings.reshape(-1, position_embeddings.shape[-1])
    attended = attention(self.self_attn, self.norm_pre_attn(x), positions, time[:, None] - time)
    x = x + self.norm_post_attn(attended)
    x = light_convolution(self.lconv1d, x)
    return self.norm_out(feed_forward(self.feed_forward2, x))


def subsample(self: Any, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Convolve, norm and rectify, channels last; the norm's weight in the precision of what comes in, which is faster."""
    out = self.conv(x).permute(0, 2, 3, 1)
    norm = self.norm
    out = functional.layer_norm(out, norm.normalized_shape, norm.weight.to(out.dtype), eps=norm.eps)
    return functional.relu(out, inplace=True).permute(0, 3, 1, 2), mask[:, ::2]


def speed_up(model: Any) -> None:
    """Give the modules of a model the leaner forward passes."""
    tower = model.model.audio_tower
    stem = tower.subsample_conv_projection
    stem.to(memory_format=torch.channels_last)
    for module in (stem.layer0, stem.layer1):
        module.forward = MethodType(subsample, module)
    for module in tower.layers:
        module.forward = MethodType(layer, module)
    for module in model.modules():
        if type(module).__name__ == "Gemma4RMSNorm":
            module.forward = MethodType(rms_norm, module)
