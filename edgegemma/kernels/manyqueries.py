"""Attention of many queries: a tile of them meets each block of keys and values once it is unpacked to floats.

Tiles are shared among the threads. A query's chain of operations is that of `attention`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from edgegemma.kernels import simd
from edgegemma.kernels.digits import _digit_scores, _in_digits, _two_digits
from edgegemma.kernels.floattiles import COLUMNS, ROWS, dots, weigh
from edgegemma.kernels.scores import BLOCK, ROOM, _merge, _oldest, _scale_keys, _softmax

_LANES = simd.LANES
PANEL = 2 * _LANES  # columns of the values that are read together
TILE = 8  # queries
_NEAR = 3072  # floats of keys that meet every query of a tile while the first-level cache has them


def _some_tiles(given, job, end):  # type: ignore[no-untyped-def]
    """Attend for q [S, heads, D], D a multiple of `PANEL`, four heads to a K/V head or a multiple of it: some of its jobs."""
    q, cache, position, window, out = given
    queries, kv_heads = q.shape[0], cache.keys.shape[1]
    tiles = (queries + TILE - 1) // TILE
    for j in range(job, end):
        t = j // kv_heads
        t = (
            tiles - 1 - t // 2 if t % 2 else t // 2
        )  # later queries see more: late and early ones in turn
        s = t * TILE
        _tile(q, cache, position, window, j % kv_heads, s, min(s + TILE, queries), out)


@njit(cache=True)
def _tile(q, cache, position, window, g, first, stop, out):  # type: ignore[no-untyped-def]
    """Attend for queries first … stop and the heads of K/V head g."""
    heads, width = q.shape[1:]
    quads = heads // cache.keys.shape[1] // 4
    rows = (stop - first) * quads
    keys = np.empty((BLOCK + COLUMNS - 1) * width, np.float32)  # the last three keys may be fewer
    values = np.empty(BLOCK * width, np.float32)
    scores = np.empty((rows, ROOM), np.float32)
    peak, total = np.full((rows, 4), -np.inf, np.float32), np.zeros((rows, 4), np.float32)
    factors = np.empty((rows, 8), np.float32)
    counts = _in_digits(cache.keys)
    wide = _heads_of(q, g, quads, first, stop if counts else first)
    digits = _two_digits(wide, len(wide))
    out[first:stop, 4 * quads * g : 4 * quads * (g + 1)] = np.float32(0.0)
    oldest, end = _oldest(position + first, window), position + stop
    for start in range(oldest // BLOCK * BLOCK, end, BLOCK):
        low, high = max(start, oldest), min(start + BLOCK, end)
        seen = (position, window, low, high)
        _unpack(cache, g, low, high, counts, keys, values)
        if counts:
            _count_scores(digits, cache, g, quads, first, stop, seen, scores)
        else:
            _score(q, g, quads, first, stop, seen, keys, scores)
        for row in range(rows):
            k, count = _seen(first + row // quads, seen)
            if count > 0:
                _weights(scores[row], k, count, cache, g, low, peak[row], total[row], factors[row])
        _add_values(scores, g, quads, first, stop, seen, values, factors, out)
    for row in range(rows):
        for r in range(4):
            inverse = np.float32(1.0) / total[row, r]
            head = out[first + row // quads, 4 * (quads * g + row % quads) + r]
            for i in range(width):
                head[i] *= inverse


@njit(cache=True)
def _seen(s, seen):  # type: ignore[no-untyped-def]
    """Give the first key that query s sees of those unpacked, and how many."""
    position, window, low, high = seen
    start = max(low, _oldest(position + s, window))
    return start - low, min(high, position + s + 1) - start


@njit(cache=True)
def _heads_of(q, g, quads, first, stop):  # type: ignore[no-untyped-def]
    """Give the rows [rows * 4, D] of queries first … stop and the heads of K/V head g, in the order of the scores."""
    heads, width = 4 * quads, q.shape[2]
    return (
        q[first:stop, heads * g : heads * (g + 1)].copy().reshape(((stop - first) * heads, width))
    )


@njit(cache=True)
def _unpack(cache, g, low, high, counts, keys, values):  # type: ignore[no-untyped-def]
    """Write keys [key, D] and values [panel, key, `PANEL`] of positions low … high as floats, without their scales.

    Keys that meet digits are read as they are.
    """
    capacity, _, width = cache.keys.shape
    for p in range(low, high):
        k, v = cache.keys[p % capacity, g], cache.values[p % capacity, g]
        at = p - low
        if not counts:
            for i in range(width):
                keys[at * width + i] = k[i]
        for panel in range(0, width, PANEL):
            for i in range(PANEL):
                values[panel * BLOCK + at * PANEL + i] = v[panel + i]


@njit(cache=True)
def _score(q, g, quads, first, stop, seen, keys, scores):  # type: ignore[no-untyped-def]
    """Write the products of every query with the keys it sees."""
    heads, width = q.shape[1:]
    near = max(_NEAR // width // COLUMNS, 1) * COLUMNS
    for near_keys in range(0, seen[3] - seen[2], near):
        for s in range(first, stop):
            start, count = _seen(s, seen)
            begin = max(near_keys, start // COLUMNS * COLUMNS)
            for quad in range(quads):
                i = (s * heads + 4 * (quads * g + quad)) * width
                at = ((s - first) * quads + quad) * ROOM
                for k in range(begin, min(near_keys + near, start + count), COLUMNS):
                    j = k * width
                    dots(
                        scores, at + 4 * k, 0, q, i, width, keys, j, j + width, j + 2 * width, width // _LANES, width - _LANES, ROWS
                    )  # fmt: skip


@njit(cache=True)
def _count_scores(digits, cache, g, quads, first, stop, seen, scores):  # type: ignore[no-untyped-def]
    """Do what `_score` does, in digits."""
    low, near = seen[2], 4 * _NEAR // cache.keys.shape[2]
    for near_keys in range(low, seen[3], near):
        for s in range(first, stop):
            k, count = _seen(s, seen)
            begin, end = max(near_keys, low + k), min(near_keys + near, low + k + count)
            for row in range((s - first) * quads, (s - first + 1) * quads):
                at = row * ROOM + 4 * (begin - low)
                _digit_scores(digits, 4 * row, cache.keys, g, begin, end, scores, at)


@njit(cache=True)
def _weights(scores, k, count, cache, g, low, peak, total, factors):  # type: ignore[no-untyped-def]
    """Turn the scores of four heads into weights of the values, and find how the block joins those before."""
    block_peak, block_total = np.empty(4, np.float32), np.empty(4, np.float32)
    _scale_keys(scores, 4 * k, cache.key_scale, g, low + k, count)
    _softmax(scores, 4 * k, count, block_peak, block_total)
    _scale_keys(scores, 4 * k, cache.value_scale, g, low + k, count)
    for r in range(4):
        factors[r], factors[4 + r], peak[r], total[r] = _merge(
            peak[r], total[r], block_peak[r], block_total[r]
        )


@njit(cache=True)
def _add_values(scores, g, quads, first, stop, seen, values, factors, out):  # type: ignore[no-untyped-def]
    """Add the weighted values of a block to out, a panel at a time."""
    heads, width = out.shape[1:]
    for panel in range(0, width, PANEL):
        for s in range(first, stop):
            k, count = _seen(s, seen)
            if count <= 0:
                continue
            for quad in range(quads):
                row = (s - first) * quads + quad
                o = (s * heads + 4 * (quads * g + quad)) * width + panel
                v = panel * BLOCK + k * PANEL
                weigh(out, o, width, scores, row * ROOM + 4 * k, values, v, count, factors, 8 * row)
