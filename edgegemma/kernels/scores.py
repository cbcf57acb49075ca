"""What a query's attention to a block of keys is, in the order every path computes it in.

The scores of four heads lie side by side, key after key: head r of key k at ``4 * k + r``.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from edgegemma.kernels import simd
from edgegemma.kernels.floattiles import add, larger, peak_of_fours, subtract, sum_of_fours
from edgegemma.kernels.norms import _exp
from edgegemma.kernels.simd import load_floats, store_floats

BLOCK = 128  # keys; a block begins at a multiple of it
ROOM = (
    4 * (BLOCK + 2) + simd.LANES
)  # floats of a block's scores: whole threes of keys, whole vectors
_LANES = simd.LANES


@njit(cache=True)
def _oldest(position, window):  # type: ignore[no-untyped-def]
    """Give the oldest position a query sees."""
    return max(position - window + 1, 0) if window > 0 else 0


@njit(cache=True)
def _scale_keys(scores, at, scale, g, first, count):  # type: ignore[no-untyped-def]
    """Multiply the scores of keys by the scales of the keys from position ``first`` on, if there are any."""
    if scale.size == 0:
        return
    row = first % scale.shape[0]
    for i in range(at, at + 4 * count, 4):
        step = scale[row, g]
        for r in range(4):
            scores[i + r] *= step
        row = row + 1 if row + 1 < scale.shape[0] else 0  # a division a key would show


@njit(fastmath={"contract", "nsz"}, error_model="numpy", cache=True)
def _softmax(scores, at, count, peaks, totals):  # type: ignore[no-untyped-def]
    """Turn the scores of ``count`` keys into exp(score - peak); write the peaks and the sums of four heads."""
    used = 4 * count
    size = (used + _LANES - 1) // _LANES * _LANES
    for i in range(at + used, at + size):
        scores[i] = np.float32(-np.inf)
    top = load_floats(scores, at)
    for i in range(at + _LANES, at + size, _LANES):
        top = larger(load_floats(scores, i), top)
    top = peak_of_fours(top)
    for i in range(at, at + size, _LANES):
        store_floats(scores, i, subtract(load_floats(scores, i), top))
    row = scores[at : at + used]
    for i in range(row.size):
        row[i] = _exp(row[i])
    for i in range(at + used, at + size):
        scores[i] = np.float32(0.0)
    total = simd.zero_floats()
    for i in range(at, at + size, _LANES):
        total = add(total, load_floats(scores, i))
    sums = np.empty((2, _LANES), np.float32)
    store_floats(sums, 0, top)
    store_floats(sums, _LANES, sum_of_fours(total))
    for r in range(4):
        peaks[r], totals[r] = sums[0, r], sums[1, r]


@njit(error_model="numpy", cache=True)
def _merge(peak, total, block_peak, block_total):  # type: ignore[no-untyped-def]
    """Say how often the sum so far and a block's count, both relative to their peaks; give them with peak and total."""
    top = max(peak, block_peak)
    old, new = _exp(peak - top), _exp(block_peak - top)
    if total == np.float32(0.0):
        old = np.float32(0.0)
    return old, new, top, total * old + block_total * new
