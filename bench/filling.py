"""A long context without reading one: a cache whose keys and values are random.

Attention reads the same bytes and does the same work whatever they are, so speed and memory are those of a context that
was read; what the model says is of no use. Every page is written, so it is resident as a real one would be.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from edgegemma.config import TextConfig
    from edgegemma.engine.model import Cache, Model

POOL = 1 << 20  # random numbers, used again and again
STEP = 64  # positions reserved at once; less than any cache's slack


def filled(model: Model, length: int, room: int) -> Cache:
    """Give a cache of ``length`` random positions with room for ``room`` more.

    Raises
    ------
    InputError
        The context would be longer than the model's.
    """
    made = model.new_cache(length + room)
    cache: Any = made  # its insides differ with the executor
    if model.executor == "onnxruntime":
        for name, array in cache.arrays.items():
            _, heads, _, dim = array.shape
            cache.arrays[name] = np.empty((1, heads, length, dim), np.float32)
        cache.length = length
    else:
        for start in range(0, length, STEP):
            count = min(STEP, length - start)
            cache.reserve(count)
            cache.advance(count)
    if length:
        for array in _arrays(model, cache):
            _fill(array)
    return made


def rewind(model: Model, cache: Cache, length: int, room: int) -> Cache:
    """Go back to ``length`` positions, with a new cache where the old one has lost what came before."""
    from edgegemma.errors import InputError

    try:
        cache.truncate(length)
    except InputError:
        return filled(model, length, room)
    return cache


def cache_bytes(text: TextConfig, context: int, kind: str) -> int:
    """Bytes of keys and values that one token at position ``context`` reads, over all layers."""
    total = 0
    for layer in range(text.num_hidden_layers):
        heads, dim = text.heads_of(layer)
        window = text.window_of(layer)
        seen = min(context + 1, window) if window else context + 1
        total += seen * 2 * heads * (dim + 4 if kind == "int8" else 4 * dim)
    return total


def _arrays(model: Model, cache: Any) -> Iterator[NDArray[Any]]:
    if model.executor == "onnxruntime":
        yield from cache.arrays.values()
        return
    for layer in range(model.config.text.first_shared_layer):
        yield from cache.slot(layer)


def _fill(array: NDArray[Any]) -> None:
    """Write random numbers into all of an array, in place."""
    rng = np.random.default_rng(0)
    if array.dtype == np.int8:
        pool: NDArray[Any] = rng.integers(-127, 128, POOL, np.int8)
    elif array.ndim == 2:  # scales of int8
        pool = np.full(POOL, 0.01, np.float32)
    else:
        pool = rng.standard_normal(POOL, np.float32)
    flat = array.reshape(-1)
    assert np.shares_memory(flat, array) or not array.size
    for start in range(0, flat.size, POOL):
        piece = flat[start : start + POOL]
        piece[:] = pool[: len(piece)]
