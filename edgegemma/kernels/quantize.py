"""Round float weights to codes, a scale for each row or block, by the least squared error.

The search tries shares of the scale that clips nothing, the plain scale ``max|w| / (2**(bits-1) - 1)``,
the largest magnitude itself (exact for a group of ±v), with ``asymmetric`` also ranges with an integer zero
point, then fits the best to its own codes twice. Meaning: ``reference.quantize_rows``.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from edgegemma.errors import InputError

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

# Shares of the scale that clips nothing. At 2 bits a Gaussian row loses least near 0.3 of it, at 4 bits
# near 0.7; the fit then moves each group to its own optimum.
_SHARES2 = (1.0, 0.75, 0.55, 0.42, 0.33, 0.26)
_SHARES4 = (1.0, 0.88, 0.76, 0.65)
_SHARES8 = (1.0, 0.95)
_FITS = 2
_RUN = 256  # weights whose float32 sums are added before they go into a float64
_SUM = {"contract", "reassoc", "nsz"}  # a sum may be taken in vectors; NaN must survive


def quantize_rows(
    w: F32, bits: int, block: int = 0, asymmetric: bool = False
) -> tuple[U8, F32, U8 | None]:
    """Quantize rows: ``w ≈ (code - zero) * scale``.

    Parameters
    ----------
    w : float32 [N, K], C-contiguous
    bits : 2, 4 or 8
    block : columns that share a scale; 0: the whole row
    asymmetric : search an integer zero point for each group as well

    Returns
    -------
    codes : uint8 [N, K]
    scale : float32 [N, 1] or [N, K/block], positive; NaN for a group with a NaN or an infinity
    zero : uint8, shaped as scale; None unless asymmetric: then it is ``2**(bits-1)`` everywhere
    """
    block = block or max(1, w.shape[1])
    if w.ndim != 2 or w.dtype != np.float32 or not w.flags.c_contiguous:
        raise InputError(f"quantize_rows: got {w.dtype} {w.shape}; want contiguous float32 (N, K)")
    if bits not in (2, 4, 8) or block < 0 or w.shape[1] % block:
        raise InputError(f"quantize_rows: got {bits} bits, block {block} for {w.shape}")
    n, k = w.shape
    codes = np.empty((n, k), np.uint8)
    scale = np.empty((n, k // block), np.float32)
    zero = np.empty((n, k // block), np.uint8)
    _groups(
        w.reshape(-1),
        bits,
        block,
        asymmetric,
        codes.reshape(-1),
        scale.reshape(-1),
        zero.reshape(-1),
    )
    return codes, scale, zero if asymmetric else None


def pack_codes(codes: U8, bits: int) -> U8:
    """Pack codes, low bits first: uint8 [N, K] → uint8 [N, K*bits/8]."""
    per_byte = 8 // bits
    if codes.ndim != 2 or codes.dtype != np.uint8 or codes.shape[1] % per_byte:
        raise InputError(
            f"pack_codes: got {codes.dtype} {codes.shape}; want uint8 (N, {per_byte}n)"
        )
    packed = np.empty((codes.shape[0], codes.shape[1] // per_byte), np.uint8)
    _pack(np.ascontiguousarray(codes).reshape(-1), bits, packed.reshape(-1))
    return packed


def unpack_codes(packed: U8, bits: int) -> U8:
    """Undo `pack_codes`: uint8 [N, K*bits/8] → uint8 [N, K]."""
    if packed.ndim != 2 or packed.dtype != np.uint8:
        raise InputError(f"unpack_codes: got {packed.dtype} {packed.shape}; want uint8 (N, K)")
    codes = np.empty((packed.shape[0], packed.shape[1] * 8 // bits), np.uint8)
    _unpack(np.ascontiguousarray(packed).reshape(-1), bits, codes.reshape(-1))
    return codes


@njit(cache=True, parallel=True)
def _groups(w, bits, block, asymmetric, codes, scale, zero):  # type: ignore[no-untyped-def]
    """Quantize each run of ``block`` weights."""
    for g in prange(scale.size):
        part = w[g * block : (g + 1) * block]
        scale[g], zero[g] = _search(part, bits, asymmetric)
        _round(part, scale[g], zero[g], (1 << bits) - 1, codes[g * block : (g + 1) * block])


@njit(cache=True)
def _search(w, bits, asymmetric):  # type: ignore[no-untyped-def]
    """Find scale and zero point of one group."""
    half, top = 1 << (bits - 1), (1 << bits) - 1
    low, high, finite = _range(w)
    if not finite:
        return np.float32(np.nan), np.uint8(half)
    widest = max(high / np.float32(half - 1), low / np.float32(-half))
    span = high / np.float32(top) - low / np.float32(top)
    best = (np.inf, np.float32(1.0), half)
    if bits == 2:
        best = _try_shares(best, w, top, widest, span, low, half, asymmetric, _SHARES2)
    elif bits == 4:
        best = _try_shares(best, w, top, widest, span, low, half, asymmetric, _SHARES4)
    else:
        best = _try_shares(best, w, top, widest, span, low, half, asymmetric, _SHARES8)
    largest = max(high, -low)
    best = _offer(best, w, largest / np.float32(half - 1), half, top)
    best = _offer(best, w, largest, half, top)
    for _ in range(_FITS):
        best = _offer(best, w, _fitted(w, best[1], best[2], top), best[2], top)
    return best[1], np.uint8(best[2])


@njit(cache=True)
def _range(w):  # type: ignore[no-untyped-def]
    """Give the least and the largest weight, 0 among them, and whether all are finite."""
    low = high = np.float32(0.0)
    finite = True
    for v in w:
        low, high = min(low, v), max(high, v)
        finite &= abs(v) <= np.float32(3.4028235e38)
    return low, high, finite


@njit(cache=True)
def _try_shares(best, w, top, widest, span, low, half, asymmetric, shares):  # type: ignore[no-untyped-def]
    for share in shares:
        best = _offer(best, w, widest * np.float32(share), half, top)
    if asymmetric:
        for share in shares:
            step = span * np.float32(share)
            zero = np.rint(-low / (step if step > np.float32(0.0) else np.float32(1.0)))
            best = _offer(best, w, step, int(min(zero, np.float32(top))), top)
    return best


@njit(cache=True)
def _offer(best, w, scale, zero, top):  # type: ignore[no-untyped-def]
    """Keep (error, scale, zero) if it loses less than the best so far."""
    if not scale > np.float32(0.0):  # zeros, or so small that the scale is
        scale = np.float32(1.0)
    error = _error(w, scale, zero, top)
    return (error, scale, zero) if error < best[0] else best


@njit(cache=True, fastmath=_SUM)
def _error(w, scale, zero, top):  # type: ignore[no-untyped-def]
    """Sum the squared errors of a group; in steps of the scale, so that nothing under- or overflows."""
    low, high = np.float32(-zero), np.float32(top - zero)
    total = 0.0
    for start in range(0, w.size, _RUN):
        part = np.float32(0.0)
        for i in range(start, min(start + _RUN, w.size)):
            steps = w[i] / scale
            off = min(max(np.rint(steps), low), high) - steps
            part += off * off
        total += np.float64(part)
    return total * np.float64(scale) * np.float64(scale)


@njit(cache=True, fastmath=_SUM)
def _fitted(w, scale, zero, top):  # type: ignore[no-untyped-def]
    """Give the scale that fits the weights best in the sense of least squares, codes given."""
    low, high = np.float32(-zero), np.float32(top - zero)
    product = size = 0.0
    for start in range(0, w.size, _RUN):
        some, few = np.float32(0.0), np.float32(0.0)
        for i in range(start, min(start + _RUN, w.size)):
            steps = w[i] / scale
            level = min(max(np.rint(steps), low), high)
            some += level * steps
            few += level * level
        product, size = product + np.float64(some), size + np.float64(few)
    return np.float32(product / size * np.float64(scale)) if size > 0.0 else np.float32(1.0)


@njit(cache=True)
def _round(w, scale, zero, top, codes):  # type: ignore[no-untyped-def]
    """Write the code of the level nearest to each weight."""
    if scale != scale:
        for i in range(w.size):
            codes[i] = zero
        return
    low, high = np.float32(-np.int32(zero)), np.float32(top - np.int32(zero))
    for i in range(w.size):
        codes[i] = np.uint8(np.int32(min(max(np.rint(w[i] / scale), low), high)) + np.int32(zero))


@njit(cache=True, parallel=True)
def _pack(codes, bits, packed):  # type: ignore[no-untyped-def]
    if bits == 2:
        for i in prange(packed.size):
            low = codes[4 * i] | codes[4 * i + 1] << 2
            packed[i] = np.uint8(low | codes[4 * i + 2] << 4 | codes[4 * i + 3] << 6)
    elif bits == 4:
        for i in prange(packed.size):
            packed[i] = np.uint8(codes[2 * i] | codes[2 * i + 1] << 4)
    else:
        for i in prange(packed.size):
            packed[i] = codes[i]


@njit(cache=True, parallel=True)
def _unpack(packed, bits, codes):  # type: ignore[no-untyped-def]
    if bits == 2:
        for i in prange(packed.size):
            for c in range(4):
                codes[4 * i + c] = np.uint8(packed[i] >> (2 * c) & 3)
    elif bits == 4:
        for i in prange(packed.size):
            codes[2 * i] = np.uint8(packed[i] & 15)
            codes[2 * i + 1] = np.uint8(packed[i] >> 4)
    else:
        for i in prange(packed.size):
            codes[i] = packed[i]
