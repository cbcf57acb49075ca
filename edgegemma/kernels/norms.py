"""Norms, activations and gates: the element-wise work between two linears.

A number's bits depend on its own row alone. Meaning: `reference_layers`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from edgegemma.errors import InputError
from edgegemma.kernels.fork import Shared, fork
from edgegemma.kernels.late import ready
from edgegemma.kernels.simd import plain

F32 = NDArray[np.float32]

FASTMATH = {"contract", "nsz"}  # NaN survives, and the trick that rounds in `_exp` is left alone
REDUCE = {"contract", "reassoc", "nsz"}  # for sums whose length does not depend on the call
_PART = 1024  # numbers that a thread takes at least


def rms_norm(x: F32, weight: F32 | None, eps: float) -> F32:
    """Normalize rows by the root of their mean square; see ``reference_layers.rms_norm``.

    Parameters
    ----------
    x : float32 [S, H]
    weight : float32 [H], or None for a norm without weight
    eps : added to the mean square

    Returns
    -------
    float32 [S, H], within 1e-6 of the reference relative to the largest of a row
    """
    _want("rms_norm", x, (-1, -1))
    y = np.empty_like(x)
    if weight is None:
        _rms_plain(x, eps, y)
    else:
        _want("rms_norm", weight, (x.shape[1],))
        _rms(x, weight, eps, y)
    return y


def add_rms_norm(x: F32, y: F32, weight: F32, eps: float, factor: float = 1.0) -> F32:
    """Add a normalized branch to the residual stream: ``x + factor * rms_norm(y, weight, eps)``.

    Parameters
    ----------
    x, y : float32 [S, H]
    weight : float32 [H]

    Returns
    -------
    float32 [S, H]
    """
    _want("add_rms_norm", x, (-1, -1))
    _want("add_rms_norm", y, x.shape)
    _want("add_rms_norm", weight, (x.shape[1],))
    total = x.copy()
    _add_rms(total, y, weight, eps, factor)
    return total


def gelu_gate(a: F32, b: F32) -> F32:
    """Compute ``gelu(a) * b`` with the tanh form of gelu.

    Parameters
    ----------
    a, b : float32 [S, N]

    Returns
    -------
    float32 [S, N], within 5e-7 relative to |a * b|
    """
    _want("gelu_gate", a, (-1, -1))
    _want("gelu_gate", b, a.shape)
    y = a.copy()
    _gelu_gate(y, b)
    return y


def silu(x: F32) -> F32:
    """Compute ``x * sigmoid(x)``, float32 [S, N] to the same."""
    _want("silu", x, (-1, -1))
    y = x.copy()
    _silu(y)
    return y


def glu(x: F32) -> F32:
    """Gate the first half of each row by the second: ``a * sigmoid(b)``.

    Parameters
    ----------
    x : float32 [S, 2N]

    Returns
    -------
    float32 [S, N]
    """
    _want("glu", x, (-1, -1))
    y = np.empty((x.shape[0], x.shape[1] // 2), np.float32)
    _glu(x, y)
    return y


def softcap(x: F32, cap: float) -> F32:
    """Bound values smoothly: ``cap * tanh(x / cap)``, float32 [S, N] to the same, within 2e-7 of cap."""
    _want("softcap", x, (-1, -1))
    y = x.copy()
    _softcap(y, cap)
    return y


def _want(where: str, x: Any, shape: tuple[int, ...]) -> None:
    """Refuse anything but contiguous float32 of this shape; -1 stands for any length."""
    fits = len(shape) == x.ndim and all(w in (-1, n) for w, n in zip(shape, x.shape, strict=True))
    if not fits or x.dtype != np.float32 or not x.flags.c_contiguous:
        raise InputError(f"{where}: got {x.dtype} {x.shape}; want contiguous float32 {shape}")


@njit(fastmath=FASTMATH, error_model="numpy", cache=True)
def _exp(x):  # type: ignore[no-untyped-def]
    """Exponential of one float32, within 1e-7; 6e-39 below -87, 1.7e38 above 88. Vectorizes in loops.

    Cephes' expf: x = n ln 2 + r, a polynomial in r, and n into the exponent's bits.
    """
    x = np.float32(-87.0) if x < np.float32(-87.0) else x
    x = np.float32(88.0) if x > np.float32(88.0) else x
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375)
    r = r + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = (p * r) * r + r + np.float32(1.0)
    power = (np.int32(n) + np.int32(127)) << np.int32(23)
    return p * np.int32(power).view(np.float32)


@njit(fastmath=FASTMATH, error_model="numpy", cache=True)
def _sigmoid(x):  # type: ignore[no-untyped-def]
    return np.float32(1.0) / (np.float32(1.0) + _exp(-x))


@njit(fastmath=FASTMATH, error_model="numpy", cache=True)
def _tanh(x):  # type: ignore[no-untyped-def]
    t = np.float32(1.0) - np.float32(2.0) / (np.float32(1.0) + _exp(np.float32(2.0) * abs(x)))
    return t if x >= np.float32(0.0) else -t


@njit(fastmath=REDUCE, error_model="numpy", cache=True)
def _inverse_rms(x, eps):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for i in range(x.size):
        total += x[i] * x[i]
    return np.float32(1.0) / np.sqrt(total / np.float32(x.size) + np.float32(eps))


@njit(fastmath=FASTMATH, error_model="numpy", cache=True)
def _rms(x, weight, eps, y):  # type: ignore[no-untyped-def]
    for s in range(x.shape[0]):
        inverse = _inverse_rms(x[s], eps)
        for i in range(x.shape[1]):
            y[s, i] = x[s, i] * inverse * weight[i]


@njit(fastmath=FASTMATH, error_model="numpy", cache=True)
def _rms_plain(x, eps, y):  # type: ignore[no-untyped-def]
    for s in range(x.shape[0]):
        inverse = _inverse_rms(x[s], eps)
        for i in range(x.shape[1]):
            y[s, i] = x[s, i] * inverse


@njit(fastmath=FASTMATH, error_model="numpy", cache=True)
def _add_rms(x, y, weight, eps, factor):  # type: ignore[no-untyped-def]
    """Add factor · rms(y; weight) to x in place."""
    f = np.float32(factor)
    for s in range(x.shape[0]):
        inverse = _inverse_rms(y[s], eps) * f
        for i in range(x.shape[1]):
            x[s, i] += y[s, i] * inverse * weight[i]


@njit(cache=True)
def _copy(x, y):  # type: ignore[no-untyped-def]
    """Copy rows. An assignment of slices would compile its error messages too: a second for each type."""
    for s in range(x.shape[0]):
        for i in range(x.shape[1]):
            y[s, i] = x[s, i]


@njit(cache=True)
def _add(x, y):  # type: ignore[no-untyped-def]
    """Add y to x in place."""
    for s in range(x.shape[0]):
        for i in range(x.shape[1]):
            x[s, i] += y[s, i]


@njit(cache=True)
def _scale(x, factor):  # type: ignore[no-untyped-def]
    """Multiply x by a number in place."""
    f = np.float32(factor)
    for s in range(x.shape[0]):
        for i in range(x.shape[1]):
            x[s, i] *= f


@njit(cache=True)
def _gelu_gate(a, b):  # type: ignore[no-untyped-def]
    """Write gelu(a) · b into a, shared among the threads."""
    jobs = (a.size + _PART - 1) // _PART
    flat = plain(a.reshape(a.size)), plain(b.reshape(b.size))
    fork("gelu_parts", ready("gelu_parts"), flat, jobs)


def _gelu_parts(given, first, stop):  # type: ignore[no-untyped-def]
    a, b = given
    _gelu_row(a[first * _PART : stop * _PART], b[first * _PART : stop * _PART])


@njit(fastmath=FASTMATH, error_model="numpy", cache=True)
def _gelu_row(a, b):  # type: ignore[no-untyped-def]
    """Gate a row. tanh(u) = 2 σ(2u) - 1, so gelu(a) = a σ(2u): no cancellation."""
    for i in range(a.size):
        v = a[i]
        u = np.float32(-1.5957691216) * (v + np.float32(0.044715) * v * v * v)
        a[i] = v / (np.float32(1.0) + _exp(u)) * b[i]


@njit(fastmath=FASTMATH, error_model="numpy", cache=True)
def _silu(x):  # type: ignore[no-untyped-def]
    for s in range(x.shape[0]):
        for i in range(x.shape[1]):
            x[s, i] = x[s, i] * _sigmoid(x[s, i])


@njit(fastmath=FASTMATH, error_model="numpy", cache=True)
def _glu(x, y):  # type: ignore[no-untyped-def]
    half = y.shape[1]
    for s in range(y.shape[0]):
        for i in range(half):
            y[s, i] = x[s, i] * _sigmoid(x[s, half + i])


@njit(cache=True)
def _softcap(x, cap):  # type: ignore[no-untyped-def]
    """Cap logits in place, shared among the threads: a vocabulary is 262,144 wide."""
    args = x.reshape(x.size), np.float32(cap)
    fork("softcap_parts", ready("softcap_parts"), args, (x.size + _PART - 1) // _PART)


def _softcap_parts(given, first, stop):  # type: ignore[no-untyped-def]
    x, cap = given
    _cap(x[first * _PART : stop * _PART], cap, np.float32(1.0) / cap)


@njit(fastmath=FASTMATH, error_model="numpy", cache=True)
def _cap(x, cap, inverse):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        x[i] = cap * _tanh(x[i] * inverse)


_VECTOR = types.Array(types.float32, 1, "C")
Shared("gelu_parts", (_VECTOR, _VECTOR), _gelu_parts)
Shared("softcap_parts", (_VECTOR, types.float32), _softcap_parts)
