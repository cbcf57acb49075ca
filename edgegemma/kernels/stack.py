"""Decoder layers, one after the other in one compiled call.

Between two layers Python would check, take arrays apart and look names up, in code that the weights of the last layer have just
pushed out of the caches: a tenth of a token. So everything is checked before the first layer runs, and what changes from layer to
layer is handed over as addresses. Meaning: ``reference_layers.decoder_layers``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit
from numba.np.numpy_support import carray
from numpy.typing import NDArray

from edgegemma.errors import InputError
from edgegemma.kernels.decoder import (
    DecoderLayerSharedWeights,
    DecoderLayerWeights,
    _decoder_layer,
    _rows_of,
    matrix_shape,
)
from edgegemma.kernels.held import Held, floats, opened
from edgegemma.kernels.kvcache import KV, check_entries, check_room

F32 = NDArray[np.float32]


class HeldLayer(Held):
    """A layer's weights, held, with the sizes that what it takes is checked by.

    Attributes
    ----------
    hidden, per_layer, half : floats of a row of the residual stream, of the per-layer inputs, of cos and sin
    window : see `DecoderLayerWeights`
    heads : K/V heads and their width
    """

    def __init__(self, weights: DecoderLayerWeights | DecoderLayerSharedWeights) -> None:
        super().__init__(weights)
        self.hidden = weights.input_layernorm.size
        self.per_layer = matrix_shape(weights.per_layer_input_gate)[0]
        self.half, self.window = weights.head_dim // 2, weights.window
        self.heads = weights.kv_heads, weights.head_dim


class HeldCache(Held):
    """A layer's keys and values, held.

    Attributes
    ----------
    capacity : positions there is room for
    heads : K/V heads and their width
    """

    values: KV

    def __init__(self, cache: KV) -> None:
        check_entries("cache", cache)
        super().__init__(cache)
        self.capacity, *heads = cache.keys.shape
        self.heads = tuple(heads)


class Beside(NamedTuple):
    """What a layer takes besides the residual stream.

    Attributes
    ----------
    ple : float32 [S, P], its per-layer inputs
    cos, sin : float32 [S, D/2], of the chunk's positions
    cache : the keys and values it writes and reads, or reads
    """

    ple: F32
    cos: F32
    sin: F32
    cache: HeldCache


def decoder_layer(
    x: F32,
    ple: F32,
    cos: F32,
    sin: F32,
    position: int,
    cache: KV,
    layer: DecoderLayerWeights | DecoderLayerSharedWeights,
) -> F32:
    """Run one layer; see `decoder_layers`."""
    beside = Beside(ple, cos, sin, HeldCache(cache))
    return decoder_layers(x, position, [beside], [HeldLayer(layer)])


def decoder_layers(
    x: F32, position: int, beside: Sequence[Beside], layers: Sequence[HeldLayer]
) -> F32:
    """Run layers: write the chunk's keys and values into the cache where a layer owns some, attend, feed forward.

    Parameters
    ----------
    x : float32 [S, H]
    position : that of ``x[0]``
    beside : for each layer; C-contiguous
    layers : all of one kind (`Held.kind`); trusted, whoever binds them has checked the shapes of their weights

    Returns
    -------
    float32 [S, H]
    """
    if x.ndim != 2 or x.dtype != np.float32:
        raise InputError(f"decoder layer: got x {x.dtype} {x.shape}; want float32 [S, H]")
    first, one = layers[0], beside[0].cache
    places: dict[int, int] = {}  # of arrays that several layers take, by their ids
    table = []
    for layer, given in zip(layers, beside, strict=True):
        if layer.kind is not first.kind or given.cache.kind is not one.kind:
            raise InputError("decoder layers: got several kinds; want one")
        _check(x.shape, position, given, layer)
        for array in given[:3]:
            if id(array) not in places:
                places[id(array)] = _address(array)
        where = [places[id(array)] for array in given[:3]]
        table.append((*where, given.cache.address, layer.address))
    y = np.array(x, order="C")
    _decoder_layers(y, position, np.array(table, np.int64), one.values, first.values)
    return y


def _check(shape: tuple[int, ...], position: int, beside: Beside, layer: HeldLayer) -> None:
    """Refuse what does not fit: compiled code does not look where it reads."""
    ple, cos, sin, cache = beside
    count, hidden = shape
    if hidden != layer.hidden or ple.shape != (count, layer.per_layer):
        raise InputError(f"decoder layer: got x {shape}, per-layer input {ple.shape}")
    if cos.shape != (count, layer.half) or sin.shape != cos.shape:
        want = count, layer.half
        raise InputError(f"decoder layer: got cos {cos.shape}, sin {sin.shape}; want {want}")
    if cache.heads != layer.heads:
        raise InputError(f"decoder layer: got a cache of {cache.heads} for this layer's heads")
    check_room("decoder layer", cache.capacity, position, count, layer.window)


def _address(array: F32) -> int:
    if array.dtype != np.float32 or not array.flags.c_contiguous:
        raise InputError(f"decoder layer: got {array.dtype}; want contiguous float32")
    return int(array.ctypes.data)


@njit(cache=True)
def _decoder_layers(x, position, table, cache, w):  # type: ignore[no-untyped-def]
    """Run layers on x in place; ``cache`` and ``w`` are those of any of them, for their types."""
    count = x.shape[0]
    for row in table:
        kv, layer = opened(cache, row[3]), opened(w, row[4])
        ple = carray(floats(row[0]), (count, _rows_of(layer.per_layer_input_gate)))
        cos = carray(floats(row[1]), (count, layer.head_dim // 2))
        sin = carray(floats(row[2]), (count, layer.head_dim // 2))
        _decoder_layer(x, ple, cos, sin, position, kv, layer)
