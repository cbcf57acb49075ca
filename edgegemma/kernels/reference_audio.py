"""What the audio kernels mean, in plain numpy; see `reference_layers` for how exact."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgegemma.kernels.conformer import AudioLayerWeights
from edgegemma.kernels.linear import FloatMatrix, Matrix
from edgegemma.kernels.reference import clipped_linear, linear
from edgegemma.kernels.reference_layers import add_rms_norm, glu, rms_norm, silu, softcap

F32 = NDArray[np.float32]
U16 = NDArray[np.uint16]


def audio_subsample(
    features: F32,
    mask: F32,
    past_features: F32,
    past_conv: F32,
    conv0: F32,
    norm0: F32,
    conv1: F32,
    norm1: F32,
    projection: F32 | U16,
    eps: float,
) -> tuple[F32, F32, F32]:
    """Two 3×3 convolutions of stride 2 over masked rows (one row of the past), each normalized and rectified."""
    first = np.concatenate([past_features, features * mask[:, None]])
    y = convolve(first[None], conv0, norm0, eps) * mask[::2, None]
    second = np.concatenate([past_conv, y], axis=1)
    y = convolve(second, conv1, norm1, eps)
    flat = y.transpose(1, 2, 0).reshape(y.shape[1], y.shape[0] * y.shape[2])  # mel-major
    hidden = linear(flat, FloatMatrix(projection, np.zeros(2, np.float32)))
    return hidden, first[-1:], second[:, -1:]


def convolve(x: F32, weight: F32, norm: F32, eps: float) -> F32:
    """Convolve [C, 2n + 1, F] to [N, n, F/2]; pad the mel axis only; layer norm over channels, ReLU."""
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1)))
    rows, columns = (x.shape[1] - 1) // 2, x.shape[2] // 2
    y = np.zeros((len(weight), rows, columns))
    for i in range(3):
        for j in range(3):
            part = padded[:, i : i + 2 * rows : 2, j : j + 2 * columns : 2]
            y += np.einsum("nc,ctf->ntf", weight[:, :, i, j].astype(np.float64), part)
    y -= y.mean(axis=0)
    y *= norm[:, None, None] / np.sqrt((y**2).mean(axis=0) + eps)
    return np.maximum(y, 0).astype(np.float32)


def audio_layer(
    x: F32, position: int, past_key: F32, past_value: F32, past_conv: F32, layer: AudioLayerWeights
) -> tuple[F32, F32, F32, F32]:
    """Feed-forward, windowed attention, causal convolution, feed-forward, norm."""
    w = layer
    y = _feed_forward(
        rms_norm(x, w.ffw1_pre_norm, w.eps),
        (w.ffw1_layer_1, w.ffw1_layer_1_clip),
        (w.ffw1_layer_2, w.ffw1_layer_2_clip),
    )
    x = add_rms_norm(x, y, w.ffw1_post_norm, w.eps, w.residual_weight)

    n = rms_norm(x, w.norm_pre_attn, w.eps)
    key = clipped_linear(n, w.k_proj, w.k_proj_clip) * np.float32(w.key_scale)
    key = np.concatenate([past_key, key])
    value = np.concatenate([past_value, clipped_linear(n, w.v_proj, w.v_proj_clip)])
    query = clipped_linear(n, w.q_proj, w.q_proj_clip) * np.tile(w.query_scale, w.heads)
    seen = attend_window(query, key, value, position, w)
    y = clipped_linear(seen, w.post, w.post_clip)
    x = add_rms_norm(x, y, w.norm_post_attn, w.eps)

    n = rms_norm(x, w.lconv_pre_norm, w.eps)
    conv = glu(clipped_linear(n, w.linear_start, w.linear_start_clip))
    conv = np.concatenate([past_conv, conv])
    taps = w.depthwise_weight.T.astype(np.float64)
    y = sum(taps[i] * conv[i : i + len(x)] for i in range(w.kernel))
    y = silu(rms_norm(y, w.conv_norm, w.eps))
    x = x + clipped_linear(y, w.linear_end, w.linear_end_clip)

    y = _feed_forward(
        rms_norm(x, w.ffw2_pre_norm, w.eps),
        (w.ffw2_layer_1, w.ffw2_layer_1_clip),
        (w.ffw2_layer_2, w.ffw2_layer_2_clip),
    )
    x = add_rms_norm(x, y, w.ffw2_post_norm, w.eps, w.residual_weight)
    count = len(x)
    return rms_norm(x, w.norm_out, w.eps), key[count:], value[count:], conv[count:]


def _feed_forward(n: F32, first: tuple[Matrix, F32], second: tuple[Matrix, F32]) -> F32:
    return clipped_linear(silu(clipped_linear(n, *first)), *second)


def attend_window(query: F32, key: F32, value: F32, position: int, w: AudioLayerWeights) -> F32:
    """Attend from token t to rows t … t + W - 1 of key; row t + W - 1 - d is at distance d."""
    shape = -1, w.heads, w.head_dim
    q, k, v = (x.astype(np.float64).reshape(shape) for x in (query, key, value))
    relative = w.relative_key.astype(np.float64).reshape(shape)[::-1]  # farthest first
    out = np.empty_like(q)
    for t in range(len(q)):
        window = slice(t, t + w.window)
        logits = softcap(np.einsum("hd,whd->hw", q[t], k[window] + relative), w.logit_cap)
        at = position + np.arange(t, t + w.window) - (w.window - 1)
        weight = np.where(at >= 0, np.exp(logits - w.logit_cap), 0)
        weight /= weight.sum(axis=1, keepdims=True)
        out[t] = np.einsum("hw,whd->hd", weight, v[window])
    return out.reshape(query.shape).astype(np.float32)


def audio_head(x: F32, output: F32 | U16, bias: F32, embedding: F32 | U16, eps: float) -> F32:
    """``rms(x·Oᵀ + b)·Eᵀ``."""
    off = np.zeros(2, np.float32)
    y = linear(x, FloatMatrix(output, off)) + bias
    return linear(rms_norm(y, None, eps), FloatMatrix(embedding, off))
