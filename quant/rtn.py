"""Round to nearest, with the scale that loses least.

What a caller may rely on, and ``tests/test_quant.py`` checks: every code is the level nearest to its
weight; a group of zeros, or of one value and its negative, is exact; the squared error is never more
than with the plain scale ``max|w| / (2**(bits-1) - 1)``; NaN and infinity are refused by name.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgegemma.errors import CheckpointError
from quant.pack import BITS

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

# Shares of the scale that clips nothing. At 2 bits a Gaussian row loses least near 0.3 of it, at 4 bits
# near 0.7; the fit by least squares then moves each group to its own optimum.
SHARES = {2: (1.0, 0.75, 0.55, 0.42, 0.33, 0.26), 4: (1.0, 0.88, 0.76, 0.65), 8: (1.0, 0.95)}
FITS = 2
SLICE = 1 << 18
"""Weights searched at a time: what they need stays in the cache, twice as fast as a whole tensor."""
THREADS = len(os.sched_getaffinity(0))


class Quantized(NamedTuple):
    """``w = (code - zero) * scale``, a scale and a zero for each group of columns."""

    codes: U8
    """uint8 [N, K], one code each"""
    scale: F32
    """float32 [N, G]"""
    zero: U8
    """uint8 [N, G]; 2**(bits-1) everywhere unless asymmetric"""


def quantize(
    w: F32, bits: int, block: int = 0, asymmetric: bool = False, name: str = "weights"
) -> Quantized:
    """Quantize rows of weights.

    Parameters
    ----------
    w : float32 [N, K]
    bits : {2, 4, 8}
    block : int
        Columns that share a scale; 0: the whole row.
    asymmetric : bool
        Search an integer zero point for each group as well.
    name : str
        What to call the weights in an error.

    Raises
    ------
    CheckpointError
        A weight is not finite, or the block does not divide K.
    """
    n, k = w.shape
    block = block or k
    if bits not in BITS or k % block:
        raise CheckpointError(
            f"{name}: {bits} bits in blocks of {block}: want 2, 4 or 8, dividing {k}"
        )
    if not np.isfinite(w).all():
        row, column = np.argwhere(~np.isfinite(w))[0]
        raise CheckpointError(f"{name}: {w[row, column]} at row {row}, column {column}")
    groups = np.ascontiguousarray(w).reshape(n * (k // block), block)
    codes = np.empty(groups.shape, np.uint8)
    scale, zero = np.empty(len(groups), np.float32), np.empty(len(groups), np.uint8)
    step = max(1, SLICE // block)

    def search(start: int) -> None:
        part = slice(start, start + step)
        codes[part], scale[part], zero[part] = _search(groups[part], bits, asymmetric)

    starts = range(0, len(groups), step)
    if len(starts) > 1:  # numpy lets go of the interpreter inside its loops
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(search, starts))
    else:
        for start in starts:
            search(start)
    return Quantized(codes.reshape(n, k), scale.reshape(n, -1), zero.reshape(n, -1))


def dequantize(q: Quantized) -> F32:
    """Give the weights that the codes stand for.

    Returns
    -------
    float32 [N, K]
    """
    n, k = q.codes.shape
    codes = q.codes.reshape(n, q.scale.shape[1], -1).astype(np.float32)
    codes -= q.zero[:, :, None]
    codes *= q.scale[:, :, None]
    return codes.reshape(n, k)


def _search(w: F32, bits: int, asymmetric: bool) -> tuple[U8, F32, U8]:
    """Quantize groups [G, B]: the best of some scales, then fitted to its own codes."""
    low, high = np.minimum(w.min(1), 0.0), np.maximum(w.max(1), 0.0)
    half, top = 1 << (bits - 1), (1 << bits) - 1
    best = _Best(w, top)
    middle = np.full_like(low, half)
    for share in SHARES[bits]:
        widest = np.maximum(high / np.float32(half - 1), low / np.float32(-half))
        best.offer(widest * np.float32(share), middle)
    largest = np.maximum(high, -low)
    best.offer(largest / np.float32(half - 1), middle)
    # ±1 at the largest magnitude: exact for a group of ±v, whose other scales may round.
    best.offer(largest, middle)
    for share in SHARES[bits] if asymmetric else ():
        scale = (high / np.float32(top) - low / np.float32(top)) * np.float32(share)
        zero = np.rint(-low / np.where(scale > 0, scale, np.float32(1)))
        best.offer(scale, np.minimum(zero, np.float32(top)))
    for _ in range(FITS):
        best.offer(best.fitted_scale(), best.zero)
    return best.codes.astype(np.uint8), best.scale, best.zero.astype(np.uint8)


class _Best:
    """The least squared error so far, for each group."""

    def __init__(self, w: F32, top: int) -> None:
        self.w, self.top = w, np.float32(top)
        self.error = np.full(len(w), np.inf)
        self.scale = np.zeros(len(w), np.float32)
        self.zero = np.zeros(len(w), np.float32)
        self.codes = np.zeros_like(w)

    def offer(self, scale: F32, zero: F32) -> None:
        """Keep these scales where they lose less."""
        scale = np.where(scale > 0, scale, np.float32(1))  # zeros, or so small that the scale is
        codes = np.rint(self.w / scale[:, None])
        codes += zero[:, None]
        np.clip(codes, 0, self.top, out=codes)
        off = (codes - zero[:, None]) * scale[:, None] - self.w
        error = np.einsum("gb,gb->g", off, off, dtype=np.float64)
        better = error < self.error
        self.error[better], self.scale[better] = error[better], scale[better]
        self.zero[better], self.codes[better] = zero[better], codes[better]

    def fitted_scale(self) -> F32:
        """Give the scale that fits the weights best in the sense of least squares, codes given."""
        levels = self.codes - self.zero[:, None]
        size = np.einsum("gb,gb->g", levels, levels, dtype=np.float64)
        product = np.einsum("gb,gb->g", levels, self.w, dtype=np.float64)
        fitted = np.divide(product, size, out=np.ones_like(size), where=size > 0)
        scale: F32 = fitted.astype(np.float32)
        return scale
