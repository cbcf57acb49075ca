"""What the kernels of experts and of layers without per-layer inputs mean: see `reference_layers`.

Experts go a position and an expert at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegemma.kernels.experts import MoEFeedForwardWeights, expert
from edgegemma.kernels.kvcache import KV
from edgegemma.kernels.plainlayers import PlainWeights
from edgegemma.kernels.reference import linear
from edgegemma.kernels.reference_layers import (
    add_rms_norm,
    append,
    attention,
    feed_forward,
    gelu_gate,
    rms_norm,
    rotate,
)

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]


def decoder_layer_plain(
    x: F32, cos: F32, sin: F32, position: int, cache: KV, layer: PlainWeights
) -> tuple[F32, int]:
    """One layer without per-layer inputs; and how many experts any of its positions chose."""
    w: Any = layer
    n = rms_norm(x, w.input_layernorm, w.eps)
    shape = len(x), w.kv_heads, w.head_dim
    raw = linear(n, w.k_proj).reshape(shape)
    key = rotate(rms_norm(raw, w.k_norm, w.eps), cos, sin)
    if hasattr(w, "v_proj"):
        raw = linear(n, w.v_proj).reshape(shape)
    append(key, rms_norm(raw, None, w.eps), position, cache, w.k_cache_scale, w.v_cache_scale)
    x = attention(x, n, cos, sin, position, cache, w)
    y, used = feed_forward(x, w), 0
    if hasattr(w, "router"):
        y = rms_norm(y, w.post_feedforward_layernorm_1, w.eps) + moe_feed_forward(x, w)
        used = int(route(x, w).any(axis=0).sum())
    return add_rms_norm(x, y, w.post_feedforward_layernorm, w.eps) * w.layer_scalar, used


def moe_feed_forward(x: F32, w: MoEFeedForwardWeights) -> F32:
    """Route each position, add up its experts by their shares, normalize."""
    n = rms_norm(x, w.pre_feedforward_layernorm_2, w.eps)
    total = np.zeros(x.shape)
    for s, shares in enumerate(route(x, w)):
        for number in np.flatnonzero(shares):
            total[s] += shares[number] * one_expert(n[s : s + 1], w, int(number))[0]
    return rms_norm(total, w.post_feedforward_layernorm_2, w.eps)


def route(x: F32, w: MoEFeedForwardWeights) -> F64:
    """Give each expert's share at each position [S, E], 0 for those that are not chosen.

    A softmax over the best, each times the expert's own factor: over all and then divided by the sum of the best is
    the same.
    """
    seen = rms_norm(x, w.router_scale, w.eps) / np.sqrt(x.shape[1])
    scores = linear(seen.astype(np.float32), w.router).astype(np.float64)
    best = np.argsort(-scores, axis=1, kind="stable")[:, : w.top_k]
    shares = np.zeros(scores.shape)
    for s, chosen in enumerate(best):
        p = np.exp(scores[s, chosen] - scores[s, chosen[0]])
        shares[s, chosen] = p / p.sum() * w.per_expert_scale[chosen]
    return shares


def one_expert(n: F32, w: MoEFeedForwardWeights, number: int) -> F32:
    """Pass rows through one expert."""
    gate, up = np.split(linear(n, expert(w.expert_gate_up, number)), 2, axis=1)
    return linear(gelu_gate(gate, up), expert(w.expert_down, number))
