"""Cached keys and values of a layer, and how a chunk is written into them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from edgegemma.errors import InputError

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]


class KV(NamedTuple):
    """The cache of one layer; position p lies in row ``p % capacity``.

    Attributes
    ----------
    keys, values : float32 or int8 [capacity, kv_heads, D], keys after rotation, values after their norm
    key_scale, value_scale : float32 [capacity, kv_heads] for int8; [0, 0] for float32
    """

    keys: F32 | I8
    values: F32 | I8
    key_scale: F32
    value_scale: F32


def append(
    keys: F32,
    values: F32,
    position: int,
    cache: KV,
    key_scale: float = 0.0,
    value_scale: float = 0.0,
) -> None:
    """Write a chunk's keys and values into the cache; see ``reference_layers.append``.

    Parameters
    ----------
    keys, values : float32 [S, kv_heads, D]
    position : that of the chunk's first row
    cache : written to. int8 entries take ``key_scale`` and ``value_scale`` where these are positive, else
        max|x| / 127 of each position and head
    """
    check_cache("append", cache, position, keys.shape[0], 1)
    want = (keys.shape[0], *cache.keys.shape[1:])
    if keys.shape != want or values.shape != want or keys.dtype != np.float32:
        raise InputError(f"append: got keys {keys.shape}, values {values.shape}; want {want}")
    _append(keys, values, position, cache, key_scale, value_scale)


def check_cache(where: str, cache: KV, position: int, count: int, window: int) -> None:
    """Refuse a cache whose arrays disagree, or too small for ``count`` rows from ``position`` on."""
    check_entries(where, cache)
    check_room(where, len(cache.keys), position, count, window)


def check_entries(where: str, cache: KV) -> None:
    """Refuse a cache whose arrays disagree."""
    capacity, kv_heads = cache.keys.shape[:2]
    scales = (capacity, kv_heads) if cache.keys.dtype == np.int8 else (0, 0)
    sound = (
        cache.keys.shape == cache.values.shape
        and cache.keys.dtype == cache.values.dtype
        and cache.keys.dtype in (np.int8, np.float32)
        and cache.key_scale.shape == scales
        and cache.value_scale.shape == scales
    )
    if not sound:
        raise InputError(
            f"{where}: got keys {cache.keys.dtype} {cache.keys.shape}, values {cache.values.dtype} "
            f"{cache.values.shape}, scales {cache.key_scale.shape}; want matching float32 or int8"
        )


def check_room(where: str, capacity: int, position: int, count: int, window: int) -> None:
    """Refuse a cache too small for ``count`` rows from ``position`` on.

    A chunk is written before it attends: its first query still needs the ``window - 1`` rows before it.
    """
    fits = position + count <= capacity or (window > 0 and window - 1 + count <= capacity)
    if position < 0 or not fits:
        raise InputError(
            f"{where}: got {count} rows from position {position} for a cache of {capacity} rows and a "
            f"window of {window}; want a shorter chunk or a larger cache"
        )


@njit(cache=True)
def _append(keys, values, position, cache, key_scale, value_scale):  # type: ignore[no-untyped-def]
    for s in range(keys.shape[0]):
        row = (position + s) % cache.keys.shape[0]
        for h in range(keys.shape[1]):
            if cache.key_scale.size == 0:
                for i in range(keys.shape[2]):
                    cache.keys[row, h, i] = keys[s, h, i]
                    cache.values[row, h, i] = values[s, h, i]
            else:
                cache.key_scale[row, h] = _store(keys[s, h], key_scale, cache.keys[row, h])
                cache.value_scale[row, h] = _store(values[s, h], value_scale, cache.values[row, h])


@njit(error_model="numpy", cache=True)
def _store(x, static, entry):  # type: ignore[no-untyped-def]
    """Round one head to int8 and return its scale."""
    scale = np.float32(static)
    if scale <= np.float32(0.0):
        top = np.float32(0.0)
        for i in range(x.size):
            top = max(top, abs(x[i]))
        scale = top / np.float32(127.0)
    step = scale if scale > np.float32(0.0) else np.float32(1.0)
    for i in range(x.size):
        code = np.rint(x[i] / step)
        entry[i] = np.int8(min(max(code, np.float32(-128.0)), np.float32(127.0)))
    return scale
