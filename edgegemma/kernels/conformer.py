"""A layer of the audio tower as a step with state: any cut of the stream gives the same bits."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from edgegemma.errors import InputError
from edgegemma.kernels.held import Held, opener
from edgegemma.kernels.leader import leader
from edgegemma.kernels.linear import Matrix, _clipped_linear
from edgegemma.kernels.norms import _add, _add_rms, _copy, _exp, _glu, _rms, _scale, _silu, _tanh
from edgegemma.kernels.subsample import audio_head, audio_subsample

__all__ = [
    "AudioLayerWeights",
    "audio_head",
    "audio_layer",
    "audio_subsample",
]

F32 = NDArray[np.float32]

_REDUCE = {"contract", "reassoc", "nsz"}


class AudioLayerWeights(NamedTuple):
    """Weights and attributes of AudioLayer, named and ordered as in docs/functions.md.

    A clipped linear is a Matrix and a float32 [4] ``…_clip``. Other arrays are float32 [C] but for ``query_scale`` [D],
    ``relative_key`` [W, C] (distance 0 first) and ``depthwise_weight`` [C, kernel]. All should be read-only.
    """

    ffw1_pre_norm: F32
    ffw1_layer_1: Matrix
    ffw1_layer_1_clip: F32
    ffw1_layer_2: Matrix
    ffw1_layer_2_clip: F32
    ffw1_post_norm: F32
    norm_pre_attn: F32
    q_proj: Matrix
    q_proj_clip: F32
    k_proj: Matrix
    k_proj_clip: F32
    v_proj: Matrix
    v_proj_clip: F32
    query_scale: F32
    relative_key: F32
    post: Matrix
    post_clip: F32
    norm_post_attn: F32
    lconv_pre_norm: F32
    linear_start: Matrix
    linear_start_clip: F32
    depthwise_weight: F32
    conv_norm: F32
    linear_end: Matrix
    linear_end_clip: F32
    ffw2_pre_norm: F32
    ffw2_layer_1: Matrix
    ffw2_layer_1_clip: F32
    ffw2_layer_2: Matrix
    ffw2_layer_2_clip: F32
    ffw2_post_norm: F32
    norm_out: F32
    heads: int
    head_dim: int
    window: int
    kernel: int
    key_scale: float
    logit_cap: float
    residual_weight: float
    eps: float


def audio_layer(
    x: F32,
    position: int,
    past_key: F32,
    past_value: F32,
    past_conv: F32,
    layer: AudioLayerWeights | Held,
) -> tuple[F32, F32, F32, F32]:
    """Run one layer over the next n tokens; see ``reference_audio.audio_layer``.

    Parameters
    ----------
    x : float32 [n, C]
    position : tokens before ``x[0]`` since the start of the stream
    past_key, past_value : float32 [W - 1, C], keys after ``key_scale``; what lies before position 0 is not seen
    past_conv : float32 [kernel - 1, C], rows after the gate; zeros at first
    layer : held, for several calls, or not; trusted, whoever binds it has checked its shapes

    Returns
    -------
    hidden : float32 [n, C]
    present_key, present_value, present_conv : new arrays like the past ones, for the next call
    """
    held = layer if isinstance(layer, Held) else Held(layer)
    weights: Any = held.values
    width = weights.heads * weights.head_dim
    wanted = ((x, -1), (past_key, weights.window - 1), (past_value, weights.window - 1))
    for array, rows in (*wanted, (past_conv, weights.kernel - 1)):
        shape = (x.shape[0] if rows < 0 else rows, width)
        if array.shape != shape or array.dtype != np.float32:
            raise InputError(f"audio_layer: got {array.dtype} {array.shape}; want float32 {shape}")
    if position < 0:
        raise InputError(f"audio_layer: got position {position}; want none below 0")
    count = x.shape[0]
    key = np.concatenate([past_key, np.empty_like(x)])
    value = np.concatenate([past_value, np.empty_like(x)])
    conv = np.concatenate([past_conv, np.empty_like(x)])
    out = np.array(x, order="C")
    _audio_layer_of(held.kind)(out, position, key, value, conv, held.address)
    return out, key[count:].copy(), value[count:].copy(), conv[count:].copy()


@functools.cache
def _audio_layer_of(kind: Any) -> Any:
    """Compile a layer whose weights are of a kind."""
    weights_at = opener(kind)

    def audio_layer(given, _first, _stop):  # type: ignore[no-untyped-def]
        x, position, key, value, conv, address = given
        _audio_layer(x, position, key, value, conv, weights_at(address))

    rows = types.Array(types.float32, 2, "C")
    kinds = rows, types.int64, rows, rows, rows, types.int64
    return leader(str(kind), kinds, audio_layer)


@njit(inline="always")
def _audio_layer(x, position, key, value, conv, w):  # type: ignore[no-untyped-def]
    """Advance x in place; the last n rows of key, value and conv are filled."""
    n, y = np.empty_like(x), np.empty_like(x)
    factor = w.residual_weight
    _rms(x, w.ffw1_pre_norm, w.eps, n)
    _feed_forward(n, w.ffw1_layer_1, w.ffw1_layer_1_clip, w.ffw1_layer_2, w.ffw1_layer_2_clip, y)
    _add_rms(x, y, w.ffw1_post_norm, w.eps, factor)
    _rms(x, w.norm_pre_attn, w.eps, n)
    _attention(n, position, key, value, w, y)
    _add_rms(x, y, w.norm_post_attn, w.eps, 1.0)
    _rms(x, w.lconv_pre_norm, w.eps, n)
    _convolution(n, conv, w, y)
    _add(x, y)
    _rms(x, w.ffw2_pre_norm, w.eps, n)
    _feed_forward(n, w.ffw2_layer_1, w.ffw2_layer_1_clip, w.ffw2_layer_2, w.ffw2_layer_2_clip, y)
    _add_rms(x, y, w.ffw2_post_norm, w.eps, factor)
    _rms(x, w.norm_out, w.eps, n)
    _copy(n, x)


@njit(inline="always")
def _feed_forward(n, first, first_clip, second, second_clip, y):  # type: ignore[no-untyped-def]
    inner = np.empty((n.shape[0], first[0].shape[0]), np.float32)
    _clipped_linear(n, first, first_clip, inner)
    _silu(inner)
    _clipped_linear(inner, second, second_clip, y)


@njit(inline="always")
def _attention(n, position, key, value, w, y):  # type: ignore[no-untyped-def]
    """Append keys and values and attend to the window that ends at each token."""
    past = w.window - 1
    seen, query = np.empty_like(n), np.empty_like(n)
    _clipped_linear(n, w.q_proj, w.q_proj_clip, query)
    _clipped_linear(n, w.k_proj, w.k_proj_clip, key[past:])
    _clipped_linear(n, w.v_proj, w.v_proj_clip, value[past:])
    _scale(key[past:], w.key_scale)
    for t in range(n.shape[0]):
        for i in range(n.shape[1]):
            query[t, i] *= w.query_scale[i % w.head_dim]
    oldest = max(past - position, 0)  # of the rows of key; what lies before is no token
    for t in range(n.shape[0]):
        rows = max(t, oldest), t + w.window
        for h in range(w.heads):
            columns = h * w.head_dim, (h + 1) * w.head_dim
            _attend_window(
                query[t], key, value, w.relative_key, rows, columns, w.logit_cap, seen[t]
            )
    _clipped_linear(seen, w.post, w.post_clip, y)


@njit(fastmath=_REDUCE, error_model="numpy", cache=True)
def _attend_window(query, key, value, relative, rows, columns, logit_cap, seen):  # type: ignore[no-untyped-def]
    """Attend from the head in these columns to these rows, oldest first; the last is at distance 0."""
    cap = np.float32(logit_cap)
    first, last = columns
    q, out = query[first:last], seen[first:last]
    count = rows[1] - rows[0]
    logits = np.empty(count, np.float32)
    peak = -cap
    for j in range(count):
        k, r = key[rows[0] + j, first:last], relative[count - 1 - j, first:last]
        dot = np.float32(0.0)
        for i in range(q.size):
            dot += q[i] * (k[i] + r[i])
        logits[j] = cap * _tanh(dot / cap)
        peak = max(peak, logits[j])
    total = np.float32(0.0)
    out[:] = np.float32(0.0)
    for j in range(count):
        v = value[rows[0] + j, first:last]
        weight = _exp(logits[j] - peak)
        total += weight
        for i in range(q.size):
            out[i] += weight * v[i]
    for i in range(q.size):
        out[i] /= total


@njit(inline="always")
def _convolution(n, conv, w, y):  # type: ignore[no-untyped-def]
    """Gate, convolve each channel over the last rows, normalize, project."""
    double = np.empty((n.shape[0], 2 * n.shape[1]), np.float32)
    _clipped_linear(n, w.linear_start, w.linear_start_clip, double)
    _glu(double, conv[w.kernel - 1 :])
    _depthwise(conv, w.depthwise_weight, y)
    _rms(y, w.conv_norm, w.eps, n)
    _silu(n)
    _clipped_linear(n, w.linear_end, w.linear_end_clip, y)


@njit(fastmath={"contract", "nsz"}, cache=True)
def _depthwise(x, weight, y):  # type: ignore[no-untyped-def]
    """Write y[t] = Σ weight[:, i] · x[t + i]."""
    taps = weight.T.copy()
    y[:] = np.float32(0.0)
    for t in range(y.shape[0]):
        for i in range(taps.shape[0]):
            for c in range(y.shape[1]):
                y[t, c] += taps[i, c] * x[t + i, c]
