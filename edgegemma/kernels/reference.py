"""The definition of each linear kernel, in numpy: no cleverness, float64 where floats are added.

Each function has the name, the arguments and the shapes of the kernel it defines. Where the ABI
says int8 or float32, the numbers are rounded there and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgegemma.kernels.linear import CodeMatrix, Matrix

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
SMALLEST = np.float32(2.0**-120)
"""A block of dynamic activations below this is zero: 127 / max would leave float32."""


def linear(x: F32, w: Matrix) -> F32:
    """Multiply rows by a weight matrix.

    Parameters
    ----------
    x : float32 [M, K]
    w : CodeMatrix or FloatMatrix of [N, K]

    Returns
    -------
    float32 [M, N], rounded to the static output scale if there is one. A row of x with a NaN, or with
    an infinity under a dynamic scale, gives a row of NaN.
    """
    if hasattr(w, "codes"):
        product = _quantized(x, cast("CodeMatrix", w))
    else:
        product = widen(w.rows) @ fake_quantize(x, w.activation[0]).astype(np.float64).T
        product = product.T
    return fake_quantize(product.astype(np.float32), w.activation[1])


def linear_pair(x: F32, w: Matrix, v: Matrix) -> tuple[F32, F32]:
    """Multiply rows by each of two weight matrices."""
    return linear(x, w), linear(x, v)


def clipped_linear(x: F32, w: Matrix, clip: F32) -> F32:
    """Clamp x to clip[0] … clip[1], multiply, clamp to clip[2] … clip[3]; NaN stays NaN."""
    inside = np.clip(x, clip[0], clip[1])
    return np.clip(linear(inside, w), clip[2], clip[3])


def fake_quantize(x: F32, scale: np.float32) -> F32:
    """Round to the static int8 grid ``scale * {-128 … 127}``; a scale of 0 leaves x."""
    if scale == 0:
        return x
    with np.errstate(invalid="ignore", over="ignore"):
        rounded: F32 = np.clip(np.rint(x / scale), -128, 127) * scale
    return rounded


def quantize_activations(x: F32, static: np.float32, block: int) -> tuple[F64, F32]:
    """Quantize rows to int8 values with a scale for each block.

    Returns
    -------
    q : float64 [M, K], integers in -128 … 127 (a NaN where x is one)
    scale : float32 [M, K/block], ``static`` if that is not 0, else ``max|x| / 127``; NaN for a block
        whose maximum is infinite, 0 for one whose maximum is below `SMALLEST`

    A dynamic block is ``round(x * (127 / max|x|))``, a static one ``round(x / scale)``: each is the arithmetic
    of onnxruntime's x86 kernels for the same body.
    """
    blocks = x.reshape(len(x), x.shape[1] // block, block)
    with np.errstate(invalid="ignore", over="ignore"):
        if static > 0:
            scale, q = np.full(blocks.shape[:2], static, np.float32), blocks / static
        else:
            top = np.abs(blocks).max(axis=2)
            small = top < SMALLEST
            scale = np.where(small, np.float32(0), top / np.float32(127))
            scale[np.isinf(scale)] = np.nan
            inverse = np.where(small, np.float32(0), np.float32(127) / np.maximum(top, SMALLEST))
            q = blocks * inverse[:, :, None]
        q = np.clip(np.rint(q), -128, 127)
    return q.reshape(x.shape).astype(np.float64), scale


def unpack_codes(packed: U8, bits: int) -> U8:
    """Give one code a byte: uint8 [N, K*bits/8] → uint8 [N, K], low bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (packed[:, :, None] >> shifts) & np.uint8((1 << bits) - 1)
    return codes.reshape(len(packed), packed.shape[1] * 8 // bits)


def pack_codes(codes: U8, bits: int) -> U8:
    """Undo `unpack_codes`: uint8 [N, K] → uint8 [N, K*bits/8]."""
    wide = codes.reshape(len(codes), codes.shape[1] * bits // 8, 8 // bits).astype(np.uint16)
    shifts = np.arange(0, 8, bits, dtype=np.uint16)
    packed: U8 = np.bitwise_or.reduce(wide << shifts, axis=2).astype(np.uint8)
    return packed


def dequantize(w: CodeMatrix) -> F64:
    """Recover the weights float64 [N, K]: ``(code - 2**(bits - 1)) * scale``."""
    codes = unpack_codes(w.codes, w.bits).astype(np.float64) - (1 << (w.bits - 1))
    scale = np.repeat(w.scale.astype(np.float64), codes.shape[1] // w.scale.shape[1], axis=1)
    return codes * scale


def _quantized(x: F32, w: CodeMatrix) -> F64:
    q, scale = quantize_activations(x, w.activation[0], w.block)
    weights = dequantize(w)
    wide = np.repeat(scale.astype(np.float64), w.block, axis=1)
    with np.errstate(invalid="ignore"):
        return (q * wide) @ weights.T


def widen(rows: F32 | NDArray[np.uint16]) -> F64:
    """Give float32 rows, or the uint16 bits of bfloat16 ones, as float64."""
    if rows.dtype == np.uint16:
        rows = (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float64)


# Shares of the scale that clips nothing that the search tries.
SHARES = {2: (1.0, 0.75, 0.55, 0.42, 0.33, 0.26), 4: (1.0, 0.88, 0.76, 0.65), 8: (1.0, 0.95)}
FITS = 2


def quantize_rows(
    w: F32, bits: int, block: int = 0, asymmetric: bool = False
) -> tuple[U8, F32, U8 | None]:
    """Quantize rows by the least squared error among the scales tried; see ``quantize``.

    Returns
    -------
    codes : uint8 [N, K]
    scale : float32 [N, 1] or [N, K/block]; NaN for a group with a NaN or an infinity
    zero : uint8, shaped as scale, or None
    """
    block = block or w.shape[1]
    groups = w.reshape(w.size // block, block)
    found = [_search(group, bits, asymmetric) for group in groups]
    shape = (len(w), w.shape[1] // block)
    codes = np.array([nearest(g, *f, bits) for g, f in zip(groups, found, strict=True)], np.uint8)
    scale = np.array([s for s, _ in found], np.float32).reshape(shape)
    zero = np.array([z for _, z in found], np.uint8).reshape(shape)
    return codes.reshape(w.shape), scale, zero if asymmetric else None


def nearest(group: F32, scale: np.float32, zero: int, bits: int) -> U8:
    """Give the code whose level ``(code - zero) * scale`` is nearest to each weight."""
    if np.isnan(scale):
        return np.full(group.shape, zero, np.uint8)
    codes: U8 = np.clip(np.rint(group / scale) + zero, 0, (1 << bits) - 1).astype(np.uint8)
    return codes


def lost(group: F32, scale: np.float32, zero: int, bits: int) -> float:
    """Add up the squared errors of a group."""
    levels = nearest(group, scale, zero, bits).astype(np.float64) - zero
    return float(np.sum((levels * np.float64(scale) - group) ** 2))


def _search(group: F32, bits: int, asymmetric: bool) -> tuple[np.float32, int]:
    half, top = 1 << (bits - 1), (1 << bits) - 1
    if not np.isfinite(group).all():
        return np.float32(np.nan), half
    low, high = np.minimum(group.min(), np.float32(0)), np.maximum(group.max(), np.float32(0))
    widest = max(high / np.float32(half - 1), low / np.float32(-half))
    tries = [(widest * np.float32(share), half) for share in SHARES[bits]]
    for share in SHARES[bits] if asymmetric else ():
        step = (high / np.float32(top) - low / np.float32(top)) * np.float32(share)
        tries.append((step, int(min(np.rint(-low / (step or 1)), top))))
    largest = max(high, -low)
    tries += [(largest / np.float32(half - 1), half), (largest, half)]
    offers = [(s if s > 0 else np.float32(1), z) for s, z in tries]
    best = min(offers, key=lambda offer: lost(group, offer[0], offer[1], bits))
    for _ in range(FITS):
        scale, zero = best
        levels = nearest(group, scale, zero, bits).astype(np.float64) - zero
        size = np.sum(levels**2)
        fitted = np.float32(np.sum(levels * group) / size) if size > 0 else np.float32(1)
        if fitted > 0 and lost(group, fitted, zero, bits) < lost(group, scale, zero, bits):
            best = (fitted, zero)
    return best
