"""What the layer kernels mean: plain numpy, a query or a token at a time, float64 inside.

The functions bear the kernels' names and take the same arguments. Two things are as in the kernels on purpose:
results and cached K/V are rounded to float32, and linears are `reference.linear`, whose rounding of activations to
int8 is part of the meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegemma.kernels.decoder import DecoderLayerSharedWeights, DecoderLayerWeights
from edgegemma.kernels.kvcache import KV
from edgegemma.kernels.linear import FloatMatrix, Matrix
from edgegemma.kernels.reference import linear
from edgegemma.kernels.stack import Stack

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


def rms_norm(x: Any, weight: F32 | None, eps: float) -> F32:
    """Normalize the last axis: ``x / sqrt(mean(x²) + eps) · weight``."""
    wide = np.asarray(x, np.float64)
    y = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + eps)
    return np.asarray(y if weight is None else y * weight, np.float32)


def add_rms_norm(x: F32, y: F32, weight: F32, eps: float, factor: float = 1.0) -> F32:
    """Add a normalized branch: ``x + factor · rms_norm(y)``."""
    return (x + factor * rms_norm(y, weight, eps).astype(np.float64)).astype(np.float32)


def gelu_gate(a: F32, b: F32) -> F32:
    """``gelu(a) · b``, gelu(a) = a/2 · (1 + tanh(√(2/π) (a + 0.044715 a³)))."""
    wide = a.astype(np.float64)
    inner = 0.7978845608028654 * (wide + 0.044715 * wide**3)
    return np.asarray(0.5 * wide * (1 + np.tanh(inner)) * b, np.float32)


def sigmoid(x: Any) -> F64:
    """``1 / (1 + exp(-x))`` in float64."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(x, np.float64))))


def silu(x: F32) -> F32:
    """``x · sigmoid(x)``."""
    return (x * sigmoid(x)).astype(np.float32)


def glu(x: F32) -> F32:
    """Gate the first half of the last axis by the second: ``a · sigmoid(b)``."""
    a, b = np.split(x, 2, axis=-1)
    return (a * sigmoid(b)).astype(np.float32)


def softcap(x: Any, cap: float) -> F32:
    """``cap · tanh(x / cap)``."""
    return (cap * np.tanh(np.asarray(x, np.float64) / cap)).astype(np.float32)


def rotary_table(positions: I64, inv_freq: F32) -> tuple[F32, F32]:
    """Cosine and sine of the float32 angles position · frequency."""
    angle = (positions.astype(np.float32)[:, None] * inv_freq).astype(np.float64)
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotate(x: F32, cos: F32, sin: F32) -> F32:
    """Rotate the pairs (i, i + D/2): ``[a cos - b sin, b cos + a sin]``, the same for every head."""
    a, b = np.split(x.astype(np.float64), 2, axis=-1)
    c, s = cos[:, None, :], sin[:, None, :]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=-1).astype(np.float32)


def append(
    keys: F32,
    values: F32,
    position: int,
    cache: KV,
    key_scale: float = 0.0,
    value_scale: float = 0.0,
) -> None:
    """Write row s of keys and values into row ``(position + s) % capacity`` of the cache."""
    for s in range(len(keys)):
        row = (position + s) % len(cache.keys)
        if cache.keys.dtype == np.float32:
            cache.keys[row], cache.values[row] = keys[s], values[s]
        else:
            cache.keys[row], cache.key_scale[row] = _int8(keys[s], key_scale)
            cache.values[row], cache.value_scale[row] = _int8(values[s], value_scale)


def _int8(x: F32, static: float) -> tuple[NDArray[np.int8], F32]:
    """Round heads [kv_heads, D] to int8, each with its scale."""
    scale = np.abs(x).max(axis=-1) / np.float32(127)
    if static > 0:
        scale = np.full_like(scale, static)
    step = np.where(scale > 0, scale, np.float32(1))
    return np.clip(np.rint(x / step[:, None]), -128, 127).astype(np.int8), scale


def two_digits(x: F32) -> F32:
    """Round rows to 16 bits: whole numbers of -127 · 256 … 127 · 256, times a step for each row."""
    largest = np.abs(x).max(axis=-1, keepdims=True)
    step = largest / np.float32(127 * 256)
    inverse = np.float32(1) / np.where(step > 0, step, np.float32(1))
    return np.asarray(np.rint(x * inverse) * step, np.float32)


def attend(q: F32, cache: KV, position: int, window: int) -> F32:
    """Softmax attention of query s over positions ``max(0, p - window + 1) … p``, p = position + s.

    Over int8 keys the queries are rounded too, to `two_digits`.
    """
    if cache.keys.dtype == np.int8:
        q = two_digits(q)
    out = np.empty(q.shape, np.float64)
    group = q.shape[1] // cache.keys.shape[1]
    for s in range(len(q)):
        p = position + s
        seen = np.arange(max(p - window + 1, 0) if window else 0, p + 1) % len(cache.keys)
        keys, values = (x[seen].astype(np.float64) for x in (cache.keys, cache.values))
        if cache.key_scale.size:
            keys, values = (
                keys * cache.key_scale[seen, :, None],
                values * cache.value_scale[seen, :, None],
            )
        for h in range(q.shape[1]):
            logit = keys[:, h // group] @ q[s, h]
            weight = np.exp(logit - logit.max())
            out[s, h] = weight / weight.sum() @ values[:, h // group]
    return out.astype(np.float32)


def decoder_layer(
    x: F32,
    ple: F32,
    cos: F32,
    sin: F32,
    position: int,
    cache: KV,
    layer: DecoderLayerWeights | DecoderLayerSharedWeights,
) -> F32:
    """One decoder layer: writes the chunk's K/V if it owns some, then attends; then its other two blocks."""
    n = rms_norm(x, layer.input_layernorm, layer.eps)
    if isinstance(layer, DecoderLayerWeights):
        shape = len(x), layer.kv_heads, layer.head_dim
        key = rms_norm(linear(n, layer.k_proj).reshape(shape), layer.k_norm, layer.eps)
        value = rms_norm(linear(n, layer.v_proj).reshape(shape), None, layer.eps)
        scales = layer.k_cache_scale, layer.v_cache_scale
        append(rotate(key, cos, sin), value, position, cache, *scales)
    x = attention(x, n, cos, sin, position, cache, layer)
    x = add_rms_norm(x, feed_forward(x, layer), layer.post_feedforward_layernorm, layer.eps)
    gated = gelu_gate(linear(x, layer.per_layer_input_gate), ple)
    y = linear(gated, layer.per_layer_projection)
    return add_rms_norm(x, y, layer.post_per_layer_input_norm, layer.eps) * layer.layer_scalar


def decoder_layers(
    x: F32, ple: F32, cos: Sequence[F32], sin: Sequence[F32], position: int, stack: Stack
) -> F32:
    """Layers one after the other."""
    for i, (layer, cache) in enumerate(zip(stack.layers, stack.caches, strict=True)):
        weights: Any = layer.values
        kv: Any = cache.values
        which = stack.tables[i]
        x = decoder_layer(x, ple[:, i], cos[which], sin[which], position, kv, weights)
    return x


def attention(x: F32, n: F32, cos: F32, sin: F32, position: int, cache: KV, w: Any) -> F32:
    """Add to x what its normalized rows n see in the cache."""
    shape = len(x), w.heads, w.head_dim
    query = rotate(rms_norm(linear(n, w.q_proj).reshape(shape), w.q_norm, w.eps), cos, sin)
    seen = attend(query, cache, position, w.window).reshape(len(x), -1)
    return add_rms_norm(x, linear(seen, w.o_proj), w.post_attention_layernorm, w.eps)


def feed_forward(x: F32, w: Any) -> F32:
    """Give what the gated feed-forward block makes of x."""
    n = rms_norm(x, w.pre_feedforward_layernorm, w.eps)
    return linear(gelu_gate(linear(n, w.gate_proj), linear(n, w.up_proj)), w.down_proj)


def head(x: F32, norm: F32, w: Matrix, cap: float, eps: float) -> F32:
    """Logits: norm, product, soft cap."""
    return softcap(linear(rms_norm(x, norm, eps), w), cap)


def per_layer_inputs(
    x: F32, tokens: F32, projection: F32 | NDArray[np.uint16], norm: F32, eps: float
) -> F32:
    """Average a token's own rows with a projection of its embedding: [S, L, P], zeros beyond the layers projected."""
    context = linear(x, FloatMatrix(projection, np.zeros(2, np.float32))) / np.sqrt(x.shape[1])
    context = rms_norm(context.reshape(len(x), -1, norm.size), norm, eps)
    layers = context.shape[1]
    y = np.zeros(tokens.shape, np.float32)
    y[:, :layers] = (context + tokens[:, :layers].astype(np.float64)) * 2**-0.5
    return y


def gather_rows(rows: NDArray[np.uint8], scale: F32, bits: int, multiplier: float) -> F32:
    """Decode rows: ``(code - 2^(bits-1)) · scale · multiplier``, or widen bfloat16 and float32."""
    if bits == 32:
        return rows.view(np.float32) * np.float32(multiplier)
    if bits == 16:
        wide = rows.view(np.uint16).astype(np.uint32) << 16
        return wide.view(np.float32) * np.float32(multiplier)
    shifts = np.arange(0, 8, bits)
    codes = (rows[..., None].astype(np.int64) >> shifts) % 2**bits - 2 ** (bits - 1)
    grouped = codes.reshape(len(rows), scale.shape[1], -1).astype(np.float32)
    values = (grouped * scale[..., None]).reshape(len(rows), -1)
    return np.asarray(values * np.float32(multiplier), np.float32)
