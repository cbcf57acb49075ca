"""One block of a cache's keys and values, one K/V head and one query's heads: weights, and the sums of weighted values.

Attention calls it through a pointer, so that its code is there once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, typeof, types

from edgegemma.kernels import simd
from edgegemma.kernels.digits import Digits, _digit_scores, _in_digits
from edgegemma.kernels.floattiles import COLUMNS, ROWS, WIDE, add_weighted, dots
from edgegemma.kernels.fork import Shared, forker
from edgegemma.kernels.kvcache import KV
from edgegemma.kernels.manyqueries import PANEL
from edgegemma.kernels.scores import BLOCK, ROOM, _oldest, _scale_keys, _softmax

_LANES = simd.LANES
_KEYS = 16  # whose values are added before sums go back to memory: 8 KiB of 512 int8 in a row


def of_int8(cache: Any) -> bool:
    """Tell whether Numba's type of a cache has int8 entries."""
    return bool(cache.types[0].dtype == types.int8)


_fork_blocks = forker(lambda args: "block_int8" if of_int8(args.types[4]) else "block_float32")


def _some_blocks(given, job, stop):  # type: ignore[no-untyped-def]
    q, digits, s0, size, cache, seen, peaks, totals, sums = given
    for j in range(job, stop):
        _block(q, digits, s0, size, cache, seen, peaks, totals, sums, j)


@njit(cache=True)
def _block(q, digits, s0, size, cache, seen, peaks, totals, sums, job):  # type: ignore[no-untyped-def]
    """Fill what is of one block, K/V head and query."""
    position, window, first, _ = seen
    kv_heads = cache.keys.shape[1]
    s = s0 + job % size
    g = job // size % kv_heads
    start = (first + job // size // kv_heads) * BLOCK
    stop = min(start + BLOCK, position + s + 1)
    start = max(start, _oldest(position + s, window))
    if start >= stop:
        totals[job, :] = np.float32(0.0)
        return
    group = peaks.shape[1]
    weights = np.empty((group // 4, ROOM), np.float32)
    flat = weights.reshape(weights.size)
    if _in_digits(cache.keys):
        row = s * q.shape[1] + g * group
        for h in range(0, group, 4):
            _digit_scores(digits, row + h, cache.keys, g, start, stop, flat, h // 4 * ROOM)
    else:
        _scores(q[s, g * group : (g + 1) * group], cache, g, start, stop, weights)
    for h in range(0, group, 4):
        at = h // 4 * ROOM
        _scale_keys(flat, at, cache.key_scale, g, start, stop - start)
        _softmax(flat, at, stop - start, peaks[job, h : h + 4], totals[job, h : h + 4])
        _scale_keys(flat, at, cache.value_scale, g, start, stop - start)
    _weighted(weights, cache, g, start, stop, sums[job])


@njit(cache=True)
def _scores(q, cache, g, start, stop, scores):  # type: ignore[no-untyped-def]
    """Write q·k for keys start … stop of K/V head g."""
    heads, width = q.shape
    if width % _LANES:
        _short_scores(q, cache.keys, g, start, stop, scores)
        return
    capacity, kv_heads, _ = cache.keys.shape
    step, count, last = kv_heads * width, width // _LANES, width - _LANES
    flat, whole = scores.reshape(scores.size), heads // WIDE * WIDE
    for p in range(start, stop, COLUMNS):
        j0 = p % capacity * step + g * width
        j1 = min(p + 1, stop - 1) % capacity * step + g * width
        j2 = min(p + 2, stop - 1) % capacity * step + g * width
        at = 4 * (p - start)
        for h in range(0, whole, WIDE):
            i = at + h // 4 * ROOM
            dots(flat, i, ROOM, q, h * width, width, cache.keys, j0, j1, j2, count, last, WIDE)
        for h in range(whole, heads, ROWS):
            i = at + h // 4 * ROOM
            dots(flat, i, ROOM, q, h * width, width, cache.keys, j0, j1, j2, count, last, ROWS)


@njit(cache=True)
def _short_scores(q, keys, g, start, stop, scores):  # type: ignore[no-untyped-def]
    """Do what `_scores` does for heads that are no whole vectors."""
    for p in range(start, stop):
        key = keys[p % keys.shape[0], g]
        for h in range(q.shape[0]):
            total = np.float32(0.0)
            for i in range(q.shape[1]):
                total += q[h, i] * np.float32(key[i])
            scores[h // 4, 4 * (p - start) + h % 4] = total


@njit(cache=True)
def _weighted(weights, cache, g, start, stop, sums):  # type: ignore[no-untyped-def]
    """Sum weight · value over the keys in order, some keys at a time, so that the values are read in a row."""
    heads, width = sums.shape
    sums[:] = np.float32(0.0)
    if width % PANEL:
        _short_weighted(weights, cache.values, g, start, stop, sums)
        return
    capacity, kv_heads, _ = cache.values.shape
    stride = kv_heads * width
    flat, whole = weights.reshape(weights.size), heads // WIDE * WIDE
    p = start
    while p < stop:
        row = p % capacity
        count = min(_KEYS, stop - p, capacity - row)  # a ring's end ends a run
        at, first = 4 * (p - start), row * stride + g * width
        for i in range(0, width, PANEL):
            v = first + i
            for h in range(0, whole, WIDE):
                w, o = at + h // 4 * ROOM, h * width + i
                add_weighted(sums, o, width, flat, w, ROOM, cache.values, v, stride, count, WIDE)
            for h in range(whole, heads, ROWS):
                w, o = at + h // 4 * ROOM, h * width + i
                add_weighted(sums, o, width, flat, w, ROOM, cache.values, v, stride, count, ROWS)
        p += count


@njit(fastmath={"contract", "nsz"}, error_model="numpy", cache=True)
def _short_weighted(weights, values, g, start, stop, sums):  # type: ignore[no-untyped-def]
    """Do what `_weighted` does for heads that are no whole vectors."""
    for p in range(start, stop):
        v = values[p % values.shape[0], g]
        for h in range(sums.shape[0]):
            weight = weights[h // 4, 4 * (p - start) + h % 4]
            for i in range(v.size):
                sums[h, i] = sums[h, i] + weight * np.float32(v[i])


def _cache_of(kind: Any) -> Any:
    """Give Numba's type of a cache with such entries."""
    entries, scales = np.empty((0, 0, 0), kind), np.empty((0, 0), np.float32)
    return typeof(KV(entries, entries, scales, scales))


KINDS = {"int8": _cache_of(np.int8), "float32": _cache_of(np.float32)}
"""Numba's types of the caches there are."""
_INT = types.int64
_SUMS, _ROWS = (types.Array(types.float32, dimensions, "C") for dimensions in (2, 3))
_DIGITS = typeof(
    Digits(np.empty((0, 2, 0), np.int8), np.empty(0, np.int32), np.empty(0, np.float32))
)
for _name, _kind in KINDS.items():
    _takes = _ROWS, _DIGITS, _INT, _INT, _kind, types.UniTuple(_INT, 4), _SUMS, _SUMS, _ROWS
    Shared(f"block_{_name}", _takes, _some_blocks)
