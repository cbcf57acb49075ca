"""Rotary position embedding: angles, and the rotation of half-split heads."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from edgegemma.errors import InputError
from edgegemma.kernels.prepared import Prepared

F32 = NDArray[np.float32]


def rotary_table(positions: NDArray[np.int64], inv_freq: F32) -> tuple[F32, F32]:
    """Cosine and sine of position · frequency; see ``reference_layers.rotary_table``.

    Parameters
    ----------
    positions : int64 [S]
    inv_freq : float32 [D/2], zeros where nothing rotates

    Returns
    -------
    cos, sin : float32 [S, D/2]. The angle is rounded to float32, its cosine is exact to the last bit.
    """
    cos, sin = prepare_rotary_table(positions, inv_freq).now()
    return cos, sin


def prepare_rotary_table(positions: NDArray[np.int64], inv_freq: F32) -> Prepared:
    """Check what `rotary_table` takes, not what is in it. The output is float32 [2, S, D/2]: cosines, then sines."""
    if positions.ndim != 1 or positions.dtype != np.int64:
        raise InputError(f"rotary_table: got {positions.dtype} {positions.shape}; want int64 (S,)")
    if inv_freq.ndim != 1 or inv_freq.dtype != np.float32:
        raise InputError(
            f"rotary_table: got {inv_freq.dtype} {inv_freq.shape}; want float32 (D/2,)"
        )
    y = np.empty((2, positions.size, inv_freq.size), np.float32)
    return Prepared(y, lambda: _rotary_table(np.ascontiguousarray(positions), inv_freq, y[0], y[1]))


def rotate(x: F32, cos: F32, sin: F32) -> F32:
    """Rotate pairs (i, i + D/2) of every head; see ``reference_layers.rotate``.

    Parameters
    ----------
    x : float32 [S, heads, D]
    cos, sin : float32 [S, D/2]

    Returns
    -------
    float32 [S, heads, D]
    """
    if x.ndim != 3 or cos.shape != sin.shape or cos.shape != (x.shape[0], x.shape[2] // 2):
        raise InputError(f"rotate: got x {x.shape}, cos {cos.shape}; want [S, heads, D], [S, D/2]")
    y = np.ascontiguousarray(x, np.float32).copy()
    _rotate(y, cos, sin)
    return y


@njit(cache=True)
def _rotary_table(positions, inv_freq, cos, sin):  # type: ignore[no-untyped-def]
    for s in range(positions.size):
        for i in range(inv_freq.size):
            angle = float(np.float32(positions[s]) * inv_freq[i])
            cos[s, i] = math.cos(angle)
            sin[s, i] = math.sin(angle)


@njit(fastmath={"contract", "nsz"}, cache=True)
def _rotate(x, cos, sin):  # type: ignore[no-untyped-def]
    """Rotate in place."""
    half = x.shape[2] // 2
    for s in range(x.shape[0]):
        for h in range(x.shape[1]):
            for i in range(half):
                a, b = x[s, h, i], x[s, h, half + i]
                x[s, h, i] = a * cos[s, i] - b * sin[s, i]
                x[s, h, half + i] = b * cos[s, i] + a * sin[s, i]
