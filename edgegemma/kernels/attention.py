"""Grouped-query attention of a chunk of queries over a layer's cache.

Keys are taken in blocks that begin at multiples of `BLOCK` positions. Of few queries, a query's sum over a block is
one job, so decoding one token shares its blocks among the threads; the blocks' sums are then joined from the oldest to
the newest. Many queries go through `manyqueries`, by the same operations. What a query gives depends on its
position alone, bit for bit, not on the chunk it came in nor on the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload
from numpy.typing import NDArray

from edgegemma.errors import InputError
from edgegemma.kernels.blocks import KINDS, _fork_blocks, of_int8
from edgegemma.kernels.digits import _in_digits, _rounded, _two_digits
from edgegemma.kernels.fork import Shared, alone, fork, forker
from edgegemma.kernels.kvcache import KV, check_cache
from edgegemma.kernels.late import Kernel, call, ready
from edgegemma.kernels.manyqueries import PANEL, TILE, _some_tiles
from edgegemma.kernels.scores import BLOCK, _merge, _oldest

F32 = NDArray[np.float32]

_MANY = 32  # queries from which on their tiles keep every thread busy
_BUDGET = 1 << 20  # floats of block sums kept at a time: 4 MiB
_LONG = 64  # blocks of queries from which on joining them is shared among the threads


def attend(q: F32, cache: KV, position: int, window: int) -> F32:
    """Attend causally over the cache, scale 1; see ``reference_layers.attend``.

    Parameters
    ----------
    q : float32 [S, heads, D], rotated; query s is at ``position + s`` and its key is in the cache already
    cache : head h reads head ``h // (heads / kv_heads)``
    window : keys a query sees, its own included; 0 means all before it

    Returns
    -------
    float32 [S, heads, D], within 2e-6 of the reference relative to the largest value; over int8 keys, queries are rounded
    to 16 bits of their largest element first
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
    _attend_jit(q, cache, position, window, out)
    return out


def _attend(q: Any, cache: Any, position: Any, window: Any, out: Any) -> None:
    """Write to out what queries see; call it from compiled code."""
    raise NotImplementedError


@overload(_attend)
def _overload_attend(q, cache, position, window, out):  # type: ignore[no-untyped-def]
    def int8(q, cache, position, window, out):  # type: ignore[no-untyped-def]
        call("attend_int8", ready("attend_int8"), (q, cache, position, window, out))

    def float32(q, cache, position, window, out):  # type: ignore[no-untyped-def]
        call("attend_float32", ready("attend_float32"), (q, cache, position, window, out))

    return int8 if of_int8(cache) else float32


@njit(cache=True)
def _attend_jit(q, cache, position, window, out):  # type: ignore[no-untyped-def]
    _attend(q, cache, position, window, out)


def _attend_grouped(q, cache, position, window, out):  # type: ignore[no-untyped-def]
    """Attend with any number of heads to a K/V head."""
    kv_heads = cache.keys.shape[1]
    group = q.shape[1] // kv_heads
    if group % 4 == 0:
        _attend_fours(q, cache, position, window, out)
        return
    padded = (group + 3) // 4 * 4  # heads of zeros fill up the last four
    shape = q.shape[0], kv_heads, padded, q.shape[2]
    wide, result = np.zeros(shape, np.float32), np.empty(shape, np.float32)
    for s in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                wide[s, h // group, h % group, i] = q[s, h, i]
    rows = q.shape[0], kv_heads * padded, q.shape[2]
    _attend_fours(wide.reshape(rows), cache, position, window, result.reshape(rows))
    for s in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                out[s, h, i] = result[s, h // group, h % group, i]


@njit(cache=True)
def _attend_fours(q, cache, position, window, out):  # type: ignore[no-untyped-def]
    """Attend with four heads to a K/V head, or a multiple of it."""
    q = _rounded(q, cache.keys)
    if q.shape[0] >= _MANY and q.shape[2] % PANEL == 0:
        jobs = cache.keys.shape[1] * ((q.shape[0] + TILE - 1) // TILE)
        _fork_tiles((q, cache, position, window, out), jobs)
    else:
        _attend_blocks(q, cache, position, window, out)


_fork_tiles = forker(lambda args: "tiles_int8" if of_int8(args.types[1]) else "tiles_float32")


@njit(cache=True)
def _attend_blocks(q, cache, position, window, out):  # type: ignore[no-untyped-def]
    """Attend block by block, and join the blocks of each query."""
    queries, heads, width = q.shape
    kv_heads = cache.keys.shape[1]
    group = heads // kv_heads
    jobs = max(_BUDGET // (group * width), kv_heads)
    first = _oldest(position, window) // BLOCK
    blocks = (position + queries - 1) // BLOCK + 1 - first
    span = min(blocks, jobs // kv_heads)  # blocks a wave takes
    tile = min(queries, max(jobs // (kv_heads * span), 1))  # queries a wave takes
    jobs = tile * kv_heads * span
    count = queries * heads if _in_digits(cache.keys) else 0
    digits = _two_digits(q.reshape((queries * heads, width)), count)
    sums = np.empty((jobs, group, width), np.float32)
    peaks = np.empty((jobs, group), np.float32)
    totals = np.empty((jobs, group), np.float32)
    out[:] = np.float32(0.0)
    peak = np.full((queries, heads), np.float32(-np.inf))
    total = np.zeros((queries, heads), np.float32)
    for s0 in range(0, queries, tile):
        for b0 in range(first, first + blocks, span):
            count = min(span, first + blocks - b0)
            size = min(tile, queries - s0)
            seen = position, window, b0, count
            _blocks(q, digits, s0, size, cache, seen, peaks, totals, sums)
            wave = out, peak, total, s0, size, count, kv_heads, peaks, totals, sums
            address = ready("join_blocks")
            if size * count >= _LONG:
                fork("join_blocks", address, wave, size * heads)
            else:
                alone("join_blocks", address, wave, size * heads)
    for s in range(queries):
        for h in range(heads):
            inverse = np.float32(1.0) / total[s, h]
            for i in range(width):
                out[s, h, i] *= inverse


def _join_blocks(given, job, stop):  # type: ignore[no-untyped-def]
    """Add the sums of a wave's blocks to those of its queries' heads job … stop, from the oldest block to the newest."""
    out, peak, total, first, size, count, kv_heads, peaks, totals, sums = given
    heads = out.shape[1]
    for j in range(job, stop):
        s, h = j // heads, j % heads
        _join_head(out, peak, total, first, size, count, kv_heads, peaks, totals, sums, s, h)


@njit(cache=True)
def _join_head(out, peak, total, first, size, count, kv_heads, peaks, totals, sums, s, h):  # type: ignore[no-untyped-def]
    group = peaks.shape[1]
    g, at, row = h // group, h % group, first + s
    for b in range(count):
        job = (b * kv_heads + g) * size + s
        block = peaks[job, at], totals[job, at], sums[job, at]
        _join(out[row, h], peak[row], total[row], h, *block)


@njit(error_model="numpy", cache=True)
def _join(out, peak, total, h, block_peak, block_total, block_sum):  # type: ignore[no-untyped-def]
    """Add a block's sum to a running one; both are relative to their own peak."""
    if block_total == np.float32(0.0):  # the query sees nothing of this block
        return
    old, new, peak[h], total[h] = _merge(peak[h], total[h], block_peak, block_total)
    for i in range(out.size):
        out[i] = out[i] * old + block_sum[i] * new


@njit(cache=True)
def _blocks(q, digits, s0, size, cache, seen, peaks, totals, sums):  # type: ignore[no-untyped-def]
    """Fill peaks, totals, sums for every block, K/V head and query s0 … s0 + size; queries of a block are neighbours."""
    jobs = seen[3] * cache.keys.shape[1] * size
    _fork_blocks((q, digits, s0, size, cache, seen, peaks, totals, sums), jobs)


_TABLE, _ROWS = (types.Array(types.float32, dimensions, "C") for dimensions in (2, 3))
_INT = types.int64
for _name, _kind in KINDS.items():
    _takes = _ROWS, _kind, _INT, _INT, _ROWS
    Kernel(f"attend_{_name}", types.void(*_takes), _attend_grouped)
    Shared(f"tiles_{_name}", _takes, _some_tiles)
_WAVE = _ROWS, _TABLE, _TABLE, *[_INT] * 4, _TABLE, _TABLE, _ROWS
Shared("join_blocks", _WAVE, _join_blocks)
