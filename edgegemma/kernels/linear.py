"""Linear layers over packed codes or float rows: y = x · Wᵀ, a row of x at a time.

A row's result has the same bits whatever other rows are in the call and however many threads run:
every output is one chain of operations in one order. Meaning of each function: `reference`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import overload
from numpy.typing import NDArray

from edgegemma.errors import InputError
from edgegemma.kernels import codes, floats, matmul, reference  # noqa: F401 - kernels called by name
from edgegemma.kernels.late import call, ready
from edgegemma.kernels.simd import plain

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]

EXACT = 1 << 17  # columns whose products, 2^14 each at most, surely add up to an int32
_MANY = 4  # rows from which on a tile of unpacked codes pays


class CodeMatrix(NamedTuple):
    """A quantized weight matrix: ``weight = (code - 2**(bits - 1)) * scale``.

    Attributes
    ----------
    codes : uint8 [N, K*bits/8], low bits first along K
    scale : float32 [N, 1] or [N, K/block]
    activation : float32 [2], static int8 scales of input and output; 0: dynamic input, output as is
    bits : 2, 4 or 8
    block : the block of the scales; for per-row scales the block of dynamic activations
    """

    codes: U8
    scale: F32
    activation: F32
    bits: int
    block: int


class FloatMatrix(NamedTuple):
    """A weight matrix as it is in the checkpoint.

    Attributes
    ----------
    rows : float32 [N, K], or uint16 [N, K] with the bits of bfloat16
    activation : float32 [2], static int8 scales of input and output (fake quantization); 0: off
    """

    rows: F32 | U16
    activation: F32


Matrix = CodeMatrix | FloatMatrix


def linear(x: F32, w: Matrix) -> F32:
    """Multiply rows by a weight matrix; see ``reference.linear``.

    Parameters
    ----------
    x : float32 [M, K], C-contiguous
    w : CodeMatrix or FloatMatrix of [N, K]

    Returns
    -------
    float32 [M, N]
    """
    y = np.empty((x.shape[0], _check(x, w)), np.float32)
    _linear_jit(x, w, y)
    return y


def linear_pair(x: F32, w: Matrix, v: Matrix) -> tuple[F32, F32]:
    """Multiply rows by two weight matrices; see ``reference.linear_pair``.

    Parameters
    ----------
    x : float32 [M, K], C-contiguous
    w, v : CodeMatrix or FloatMatrix of [N, K] and of [P, K]

    Returns
    -------
    float32 [M, N] and [M, P], of the same bits as `linear` gives
    """
    y = np.empty((x.shape[0], _check(x, w)), np.float32)
    z = np.empty((x.shape[0], _check(x, v)), np.float32)
    _linear_pair_jit(x, w, v, y, z)
    return y, z


def clipped_linear(x: F32, w: Matrix, clip: F32) -> F32:
    """Clamp, multiply, clamp; see ``reference.clipped_linear``.

    Parameters
    ----------
    x : float32 [M, K], C-contiguous
    w : CodeMatrix or FloatMatrix of [N, K]
    clip : float32 [4], input min, input max, output min, output max

    Returns
    -------
    float32 [M, N]
    """
    y = np.empty((x.shape[0], _check(x, w)), np.float32)
    if clip.shape != (4,) or clip.dtype != np.float32:
        raise InputError(f"clipped_linear: got clip {clip.dtype} {clip.shape}; want float32 (4,)")
    _clipped_linear_jit(x, w, clip, y)
    return y


def _check(x: F32, w: Matrix) -> int:
    """Refuse what the compiled code would read beyond; return N."""
    if isinstance(w, CodeMatrix):
        n, k = w.codes.shape[0], w.codes.shape[1] * 8 // w.bits
        groups = w.scale.shape[1] if w.scale.ndim == 2 else 0
        sound = (
            w.bits in (2, 4, 8)
            and w.block > 0
            and w.block % 16 == 0
            and k % w.block == 0
            and w.codes.dtype == np.uint8
            and w.scale.dtype == np.float32
            and w.scale.shape[0] == n
            and groups in (1, k // w.block)
            and k < EXACT
            and w.codes.flags.c_contiguous
            and w.scale.flags.c_contiguous
        )
        if not sound:
            raise InputError(
                f"linear: got codes {w.codes.dtype} {w.codes.shape}, scale {w.scale.dtype} {w.scale.shape}, "
                f"{w.bits} bits, block {w.block}; want one scale a row or a block of 16·n columns"
            )
    else:
        n, k = w.rows.shape
    if x.ndim != 2 or x.shape[1] != k or x.dtype != np.float32 or not x.flags.c_contiguous:
        raise InputError(f"linear: got x {x.dtype} {x.shape}; want contiguous float32 (M, {k})")
    if w.activation.shape != (2,) or w.activation.dtype != np.float32:
        raise InputError(f"linear: got activation {w.activation.shape}; want float32 (2,)")
    return int(n)


# What compiled code calls; the bodies are the definition, the overloads what is compiled.
def _linear(x: Any, w: Any, y: Any) -> None:
    """Write ``x · wᵀ`` into y; call it from compiled code. x [M, K], y [M, N] float32, C-contiguous."""
    y[...] = reference.linear(x, w)


def _linear_pair(x: Any, w: Any, v: Any, y: Any, z: Any) -> None:
    """Write ``x · wᵀ`` into y and ``x · vᵀ`` into z; call it from compiled code."""
    y[...], z[...] = reference.linear_pair(x, w, v)


def _clipped_linear(x: Any, w: Any, clip: Any, y: Any) -> None:
    """Write the clipped linear into y; call it from compiled code. clip float32 [4]."""
    y[...] = reference.clipped_linear(x, w, clip)


@overload(_linear)
def _overload_linear(x, w, y):  # type: ignore[no-untyped-def]
    kind = getattr(w, "instance_class", None)
    if kind is CodeMatrix:
        return _call_codes
    if kind is FloatMatrix:
        half = w.types[0].dtype != types.float32
        return _call_bfloat16 if half else _call_float32
    return None


def _call_codes(x, w, y):  # type: ignore[no-untyped-def]
    packed, scale, activation = plain(w.codes), plain(w.scale), plain(w.activation)
    args = plain(x), packed, scale, activation, w.bits, w.block, plain(y)
    if x.shape[0] < _MANY:
        call("codes", ready("codes"), args)
    else:
        call("matmul", ready("matmul"), args)


def _call_float32(x, w, y):  # type: ignore[no-untyped-def]
    address = ready("rows_float32")
    call("rows_float32", address, (plain(x), plain(w.rows), plain(w.activation), plain(y)))


def _call_bfloat16(x, w, y):  # type: ignore[no-untyped-def]
    address = ready("rows_bfloat16")
    call("rows_bfloat16", address, (plain(x), plain(w.rows), plain(w.activation), plain(y)))


@overload(_linear_pair)
def _overload_linear_pair(x, w, v, y, z):  # type: ignore[no-untyped-def]
    kinds = [getattr(matrix, "instance_class", None) for matrix in (w, v)]
    return _call_pair if kinds == [CodeMatrix, CodeMatrix] else _call_both


def _call_pair(x, w, v, y, z):  # type: ignore[no-untyped-def]
    if x.shape[0] >= _MANY:
        _linear(x, w, y)
        _linear(x, v, z)
        return
    first = plain(w.codes), plain(w.scale), plain(w.activation), w.bits, w.block, plain(y)
    second = plain(v.codes), plain(v.scale), plain(v.activation), v.bits, v.block, plain(z)
    call("pair", ready("pair"), (plain(x), *first, *second))


def _call_both(x, w, v, y, z):  # type: ignore[no-untyped-def]
    _linear(x, w, y)
    _linear(x, v, z)


@overload(_clipped_linear)
def _overload_clipped_linear(x, w, clip, y):  # type: ignore[no-untyped-def]
    def clipped(x, w, clip, y):  # type: ignore[no-untyped-def]
        inside = np.empty_like(x)
        for m in range(x.shape[0]):
            _clamp(x[m], clip[0], clip[1], inside[m])
        _linear(inside, w, y)
        for m in range(x.shape[0]):
            _clamp(y[m], clip[2], clip[3], y[m])

    return clipped


@njit(cache=True)
def _linear_jit(x, w, y):  # type: ignore[no-untyped-def]
    _linear(x, w, y)


@njit(cache=True)
def _linear_pair_jit(x, w, v, y, z):  # type: ignore[no-untyped-def]
    _linear_pair(x, w, v, y, z)


@njit(cache=True)
def _clipped_linear_jit(x, w, clip, y):  # type: ignore[no-untyped-def]
    _clipped_linear(x, w, clip, y)


@njit(cache=True)
def _clamp(x, low, high, y):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        v = x[i]
        if v < low:
            v = low
        if v > high:
            v = high
        y[i] = v
