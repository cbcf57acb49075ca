"""Grouped-query attention of a chunk of queries over a layer's cache.

Keys are taken in blocks that begin at multiples of `BLOCK` positions. A query's sum over a block is one job,
so decoding one token shares its blocks among the threads and prefill shares queries and blocks alike; the
blocks' sums are then joined from the oldest to the newest. What a query gives depends on its position
alone, bit for bit, not on the chunk it came in nor on the number of threads.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from edgegemma.errors import InputError
from edgegemma.kernels.kvcache import KV, check_cache
from edgegemma.kernels.norms import _exp

F32 = NDArray[np.float32]

BLOCK = 64
_BUDGET = 1 << 20  # floats of block sums kept at a time: 4 MiB
_REDUCE = {"contract", "reassoc", "nsz"}

# Registers the pool's entry points with LLVM. Numba does so when it loads a parallel function, but forgets it for
# a function compiled on top of a parallel one that came from the cache: such a one, loaded, would call address 0.
numba.get_num_threads()


def attend(q: F32, cache: KV, position: int, window: int) -> F32:
    """Attend causally over the cache, scale 1; see ``reference_layers.attend``.

    Parameters
    ----------
    q : float32 [S, heads, D], rotated; query s is at ``position + s`` and its key is in the cache already
    cache : head h reads head ``h // (heads / kv_heads)``
    window : keys a query sees, its own included; 0 means all before it

    Returns
    -------
    float32 [S, heads, D], within 2e-6 of the reference relative to the largest value
    """
    if q.ndim != 3 or q.dtype != np.float32 or not q.flags.c_contiguous:
        raise InputError(
            f"attend: got q {q.dtype} {q.shape}; want contiguous float32 [S, heads, D]"
        )
    check_cache("attend", cache, position, q.shape[0], window)
    kv_heads, width = cache.keys.shape[1:]
    if q.shape[2] != width or q.shape[1] % kv_heads:
        raise InputError(f"attend: got q {q.shape}; want a multiple of {kv_heads} heads of {width}")
    out = np.empty_like(q)
    _attend(q, cache, position, window, out)
    return out


@njit(cache=True)
def _attend(q, cache, position, window, out):  # type: ignore[no-untyped-def]
    queries, heads, width = q.shape
    kv_heads = cache.keys.shape[1]
    group = heads // kv_heads
    padded = (group + 3) // 4 * 4
    jobs = max(_BUDGET // (padded * width), kv_heads)
    first = _oldest(position, window) // BLOCK
    blocks = (position + queries - 1) // BLOCK + 1 - first
    span = min(blocks, jobs // kv_heads)  # blocks a wave takes
    tile = min(queries, max(jobs // (kv_heads * span), 1))  # queries a wave takes
    jobs = tile * kv_heads * span
    sums = np.empty((jobs, padded, width), np.float32)
    peaks = np.empty((jobs, padded), np.float32)
    totals = np.empty((jobs, padded), np.float32)
    out[:] = np.float32(0.0)
    peak = np.full((queries, heads), np.float32(-np.inf))
    total = np.zeros((queries, heads), np.float32)
    for s0 in range(0, queries, tile):
        for b0 in range(first, first + blocks, span):
            count = min(span, first + blocks - b0)
            _blocks(q[s0 : s0 + tile], cache, position + s0, window, b0, count, peaks, totals, sums)
            for s in range(s0, min(s0 + tile, queries)):
                base = s - s0
                size = min(tile, queries - s0)
                for h in range(heads):
                    for b in range(count):
                        job = (b * kv_heads + h // group) * size + base
                        at = h % group
                        _join(
                            out[s, h],
                            peak[s],
                            total[s],
                            h,
                            peaks[job, at],
                            totals[job, at],
                            sums[job, at],
                        )
    for s in range(queries):
        for h in range(heads):
            inverse = np.float32(1.0) / total[s, h]
            for i in range(width):
                out[s, h, i] *= inverse


@njit(cache=True)
def _oldest(position, window):  # type: ignore[no-untyped-def]
    """Give the oldest position a query sees."""
    return max(position - window + 1, 0) if window > 0 else 0


@njit(error_model="numpy", cache=True)
def _join(out, peak, total, h, block_peak, block_total, block_sum):  # type: ignore[no-untyped-def]
    """Add a block's sum to a running one; both are relative to their own peak."""
    if block_total == np.float32(0.0):  # the query sees nothing of this block
        return
    top = max(peak[h], block_peak)
    old, new = _exp(peak[h] - top), _exp(block_peak - top)
    if total[h] == np.float32(0.0):
        old = np.float32(0.0)
    for i in range(out.size):
        out[i] = out[i] * old + block_sum[i] * new
    total[h] = total[h] * old + block_total * new
    peak[h] = top


@njit(parallel=True, cache=True)
def _blocks(q, cache, position, window, first, count, peaks, totals, sums):  # type: ignore[no-untyped-def]
    """Fill peaks, totals, sums for every block, K/V head and query; queries of a block are neighbours."""
    queries = q.shape[0]
    kv_heads = cache.keys.shape[1]
    for job in prange(count * kv_heads * queries):
        s = job % queries
        g = job // queries % kv_heads
        start = (first + job // queries // kv_heads) * BLOCK
        stop = min(start + BLOCK, position + s + 1)
        start = max(start, _oldest(position + s, window))
        if start >= stop:
            totals[job, :] = np.float32(0.0)
            continue
        group = q.shape[1] // kv_heads
        heads = q[s, g * group : (g + 1) * group]
        weights = np.empty((peaks.shape[1], BLOCK), np.float32)
        _scores(heads, cache, g, start, stop, weights)
        _softmax(weights, stop - start, peaks[job], totals[job])
        _weighted(weights, cache, g, start, stop, sums[job])


@njit(fastmath=_REDUCE, error_model="numpy", cache=True)
def _scores(q, cache, g, start, stop, scores):  # type: ignore[no-untyped-def]
    """Write q·k for keys start … stop of K/V head g, four heads at a time; rows beyond q's repeat its last."""
    last = q.shape[0] - 1
    capacity = cache.keys.shape[0]
    for p in range(start, stop):
        row = p % capacity
        k = cache.keys[row, g]
        scale = cache.key_scale[row, g] if cache.key_scale.size else np.float32(1.0)
        for h in range(0, scores.shape[0], 4):
            q0, q1 = q[min(h, last)], q[min(h + 1, last)]
            q2, q3 = q[min(h + 2, last)], q[min(h + 3, last)]
            t0 = t1 = t2 = t3 = np.float32(0.0)
            for i in range(k.size):
                v = np.float32(k[i])
                t0 += q0[i] * v
                t1 += q1[i] * v
                t2 += q2[i] * v
                t3 += q3[i] * v
            scores[h, p - start] = t0 * scale
            scores[h + 1, p - start] = t1 * scale
            scores[h + 2, p - start] = t2 * scale
            scores[h + 3, p - start] = t3 * scale


@njit(fastmath=_REDUCE, error_model="numpy", cache=True)
def _softmax(scores, count, peaks, totals):  # type: ignore[no-untyped-def]
    """Turn scores into exp(score - peak), with zeros up to a multiple of four."""
    for h in range(scores.shape[0]):
        row = scores[h]
        peak = row[0]
        for j in range(1, count):
            peak = max(peak, row[j])
        for j in range(count):  # apart from the sum: only so is the exponential a vector
            row[j] = _exp(row[j] - peak)
        total = np.float32(0.0)
        for j in range(count):
            total += row[j]
        for j in range(count, (count + 3) // 4 * 4):
            row[j] = np.float32(0.0)
        peaks[h] = peak
        totals[h] = total


@njit(fastmath={"contract", "nsz"}, error_model="numpy", cache=True)
def _weighted(weights, cache, g, start, stop, sums):  # type: ignore[no-untyped-def]
    """Sum weight · value over the keys in order, four keys and two heads at a time."""
    capacity = cache.values.shape[0]
    sums[:] = np.float32(0.0)
    for p in range(start, stop, 4):
        r0, r1 = p % capacity, min(p + 1, stop - 1) % capacity
        r2, r3 = min(p + 2, stop - 1) % capacity, min(p + 3, stop - 1) % capacity
        v0, v1 = cache.values[r0, g], cache.values[r1, g]
        v2, v3 = cache.values[r2, g], cache.values[r3, g]
        s0 = s1 = s2 = s3 = np.float32(1.0)
        if cache.value_scale.size:
            s0, s1 = cache.value_scale[r0, g], cache.value_scale[r1, g]
            s2, s3 = cache.value_scale[r2, g], cache.value_scale[r3, g]
        for h in range(0, sums.shape[0], 2):
            a, b = sums[h], sums[h + 1]
            wa, wb = weights[h, p - start :], weights[h + 1, p - start :]
            a0, a1, a2, a3 = wa[0] * s0, wa[1] * s1, wa[2] * s2, wa[3] * s3
            b0, b1, b2, b3 = wb[0] * s0, wb[1] * s1, wb[2] * s2, wb[3] * s3
            for i in range(a.size):
                x0, x1 = np.float32(v0[i]), np.float32(v1[i])
                x2, x3 = np.float32(v2[i]), np.float32(v3[i])
                a[i] = a[i] + a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
                b[i] = b[i] + b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3
