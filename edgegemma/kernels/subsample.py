"""The audio tower's first and last steps: subsampling convolutions, and the head."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from edgegemma.errors import InputError
from edgegemma.kernels.decoder import DYNAMIC
from edgegemma.kernels.linear import FloatMatrix, _linear
from edgegemma.kernels.norms import _copy, _rms_plain, _scale

F32 = NDArray[np.float32]
U16 = NDArray[np.uint16]

_REDUCE = {"contract", "reassoc", "nsz"}
_TOKENS = 8  # tokens convolved at a time: bounds the scratch for a long clip


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
    """Turn four mel frames into one vector; see ``reference_audio.audio_subsample``.

    Parameters
    ----------
    features : float32 [4n, M] (M mel bands, a multiple of 4)
    mask : float32 [4n], 1 for a valid frame and 0 for another
    past_features : float32 [1, M], the masked frame before; zeros at first
    past_conv : float32 [C0, 1, M/2], the masked row of the first convolution before; zeros at first
    conv0, conv1 : float32 [C0, 1, 3, 3], [C1, C0, 3, 3]
    norm0, norm1 : float32 [C0], [C1]
    projection : float32, or uint16 with the bits of bfloat16 [C, M/4 * C1]

    Returns
    -------
    hidden : float32 [n, C]
    present_features, present_conv : as the past ones, for the next call
    """
    frames, mels = features.shape
    c0, c1 = norm0.size, norm1.size
    wanted = {
        "mask": (mask.shape, (frames,)),
        "past_features": (past_features.shape, (1, mels)),
        "past_conv": (past_conv.shape, (c0, 1, mels // 2)),
        "conv0": (conv0.shape, (c0, 1, 3, 3)),
        "conv1": (conv1.shape, (c1, c0, 3, 3)),
        "projection": (projection.shape[1:], (mels // 4 * c1,)),
    }
    for name, (got, want) in wanted.items():
        if got != want:
            raise InputError(f"audio_subsample: got {name} {got}; want {want}")
    if frames % 4 or mels % 4:
        raise InputError(f"audio_subsample: got features {features.shape}; want multiples of four")
    out = np.empty((frames // 4, projection.shape[0]), np.float32)
    row = np.ascontiguousarray(past_features).copy()
    conv = np.ascontiguousarray(past_conv[:, 0].T)
    matrix = FloatMatrix(projection, DYNAMIC)
    x, mask = np.ascontiguousarray(features), np.ascontiguousarray(mask)
    _audio_subsample(x, mask, row, conv, conv0, norm0, conv1, norm1, matrix, eps, out)
    return out, row, np.ascontiguousarray(conv.T)[:, None]


def audio_head(x: F32, output: F32 | U16, bias: F32, embedding: F32 | U16, eps: float) -> F32:
    """Project to the decoder's width: ``rms(x·Oᵀ + b)·Eᵀ``.

    Parameters
    ----------
    x : float32 [n, C]
    output, embedding : float32, or uint16 with the bits of bfloat16 [B, C], [H, B]
    bias : float32 [B]

    Returns
    -------
    float32 [n, H]
    """
    if output.shape != (bias.size, x.shape[1]) or embedding.shape[1] != bias.size:
        raise InputError(
            f"audio_head: got x {x.shape}, output {output.shape}, embedding {embedding.shape}"
        )
    y = np.empty((x.shape[0], embedding.shape[0]), np.float32)
    out, embed = FloatMatrix(output, DYNAMIC), FloatMatrix(embedding, DYNAMIC)
    _audio_head(np.ascontiguousarray(x), out, bias, embed, eps, y)
    return y


@njit(cache=True)
def _audio_subsample(x, mask, row, conv, conv0, norm0, conv1, norm1, w, eps, out):  # type: ignore[no-untyped-def]
    """Convolve a few tokens at a time; row and conv hold the rows before and are advanced."""
    mels = x.shape[1]
    taps0, taps1 = _taps_first(conv0), _channels_last(conv1)
    for t in range(0, out.shape[0], _TOKENS):
        n = min(_TOKENS, out.shape[0] - t)
        first = np.empty((4 * n + 1, mels), np.float32)
        _copy(row, first)
        for i in range(4 * n):
            for m in range(mels):
                first[i + 1, m] = x[4 * t + i, m] * mask[4 * t + i]
        second = np.empty((2 * n + 1, mels // 2, norm0.size), np.float32)
        _copy(conv, second[0])
        _convolve_first(first, taps0, second[1:])
        _normalize(second[1:], norm0, eps)
        for i in range(2 * n):
            _scale(second[i + 1], mask[4 * t + 2 * i])
        third = np.empty((n, mels // 4, norm1.size), np.float32)
        _convolve_second(second, taps1, third)
        _normalize(third, norm1, eps)
        _copy(first[4 * n :], row)
        _copy(second[2 * n], conv)
        _linear(third.reshape((n, mels // 4 * norm1.size)), w, out[t : t + n])


@njit(cache=True)
def _taps_first(w):  # type: ignore[no-untyped-def]
    """Give [C0, 1, 3, 3] as [9, C0]."""
    taps = np.empty((9, w.shape[0]), np.float32)
    for c in range(w.shape[0]):
        for k in range(9):
            taps[k, c] = w[c, 0, k // 3, k % 3]
    return taps


@njit(cache=True)
def _channels_last(w):  # type: ignore[no-untyped-def]
    """Give [C1, C0, 3, 3] as [C1, 9, C0]."""
    taps = np.empty((w.shape[0], 9, w.shape[1]), np.float32)
    for c in range(w.shape[0]):
        for d in range(w.shape[1]):
            for k in range(9):
                taps[c, k, d] = w[c, d, k // 3, k % 3]
    return taps


@njit(fastmath={"contract", "nsz"}, cache=True)
def _convolve_first(x, taps, y):  # type: ignore[no-untyped-def]
    """Convolve one channel, [2n + 1, M] to [n, M/2, C0], stride 2; x begins a row early."""
    y[:] = np.float32(0.0)
    for t in range(y.shape[0]):
        for f in range(y.shape[1]):
            for k in range(9):
                at = 2 * f - 1 + k % 3
                if at < 0 or at >= x.shape[1]:
                    continue
                v = x[2 * t + k // 3, at]
                for c in range(y.shape[2]):
                    y[t, f, c] += v * taps[k, c]


@njit(fastmath=_REDUCE, cache=True)
def _convolve_second(x, taps, y):  # type: ignore[no-untyped-def]
    """Convolve [2n + 1, F, C0] to [n, F/2, C1], stride 2; x begins a row early."""
    for t in range(y.shape[0]):
        for f in range(y.shape[1]):
            for c in range(y.shape[2]):
                total = np.float32(0.0)
                for k in range(9):
                    at = 2 * f - 1 + k % 3
                    if at < 0 or at >= x.shape[1]:
                        continue
                    total += _dot(x[2 * t + k // 3, at], taps[c, k])
                y[t, f, c] = total


@njit(fastmath=_REDUCE, cache=True)
def _dot(a, b):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for i in range(a.size):
        total += a[i] * b[i]
    return total


@njit(fastmath=_REDUCE, error_model="numpy", cache=True)
def _normalize(x, weight, eps):  # type: ignore[no-untyped-def]
    """Normalize the last axis (mean and variance), scale and rectify, in place."""
    size = np.float32(x.shape[2])
    for t in range(x.shape[0]):
        for f in range(x.shape[1]):
            v = x[t, f]
            total = np.float32(0.0)
            for c in range(v.size):
                total += v[c]
            mean = total / size
            square = np.float32(0.0)
            for c in range(v.size):
                square += (v[c] - mean) * (v[c] - mean)
            inverse = np.float32(1.0) / np.sqrt(square / size + np.float32(eps))
            for c in range(v.size):
                y = (v[c] - mean) * inverse * weight[c]
                v[c] = np.float32(0.0) if y < np.float32(0.0) else y


@njit(cache=True)
def _audio_head(x, output, bias, embedding, eps, y):  # type: ignore[no-untyped-def]
    raw = np.empty((x.shape[0], bias.size), np.float32)
    n = np.empty_like(raw)
    _linear(x, output, raw)
    for t in range(raw.shape[0]):
        for i in range(bias.size):
            raw[t, i] += bias[i]
    _rms_plain(raw, eps, n)
    _linear(n, embedding, y)
