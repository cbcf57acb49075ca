"""Decoder layers, one after the other in one compiled call.

Between two layers Python would check, take arrays apart and look names up, in code that the weights of the last layer have just
pushed out of the caches: a tenth of a token. So what does not change from token to token is checked once, the rest before the first
layer runs, and caches and weights are handed over as addresses. Meaning: ``reference_layers.decoder_layers``.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from edgegemma.errors import InputError
from edgegemma.kernels.decoder import (
    DecoderLayerSharedWeights,
    DecoderLayerWeights,
    _decoder_layer,
    matrix_shape,
)
from edgegemma.kernels.held import Held, opener
from edgegemma.kernels.kvcache import KV, check_entries, check_room
from edgegemma.kernels.leader import leader
from edgegemma.kernels.norms import _copy
from edgegemma.kernels.prepared import Prepared

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
_NO_END = 1 << 62
_LAYERS = (
    types.Array(types.float32, 2, "C"),
    types.Array(types.float32, 3, "C"),
    types.Array(types.float32, 1, "C"),
    types.int64,
    types.Array(types.int64, 2, "C"),
)


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


class Stack:
    """Layers in a row with the caches that they write and read, checked once for all tokens.

    Parameters
    ----------
    layers : sequence of HeldLayer
        All of one kind; trusted, whoever binds them has checked the shapes of their weights.
    tables : sequence of int
        Which pair of cosines and sines each layer takes.
    caches : sequence of HeldCache
        Those of each layer, all of one kind.

    Raises
    ------
    InputError
        Layers or caches of several kinds, or a cache for other heads.
    """

    def __init__(
        self, layers: Sequence[HeldLayer], tables: Sequence[int], caches: Sequence[HeldCache]
    ) -> None:
        self.layers, self.caches, self.tables = tuple(layers), tuple(caches), np.array(tables)
        self.hidden, self.per_layer = layers[0].hidden, layers[0].per_layer
        for layer, cache in zip(layers, caches, strict=True):
            if layer.kind is not layers[0].kind or cache.kind is not caches[0].kind:
                raise InputError("decoder layers: got several kinds; want one")
            if (layer.hidden, layer.per_layer) != (self.hidden, self.per_layer):
                raise InputError("decoder layers: got several widths; want one")
            if cache.heads != layer.heads:
                raise InputError(
                    f"decoder layer: got a cache of {cache.heads} for this layer's heads"
                )
        pairs = zip(tables, (layer.half for layer in layers), strict=True)
        self.halves = [half for _, half in sorted(set(pairs))]
        if sorted(set(tables)) != list(range(len(self.halves))):
            raise InputError("decoder layers: got one table for several widths of a head")
        starts = np.cumsum([0, *self.halves, *self.halves])
        cos, sin = starts[self.tables], starts[self.tables + len(self.halves)]
        held = [(cache.address, layer.address) for layer, cache in self._both()]
        self.rows = np.column_stack([cos, sin, np.array(held)])
        self.run = _layers_of(caches[0].kind, layers[0].kind)
        full = [cache.capacity for layer, cache in self._both() if not layer.window]
        rings = [(cache.capacity, layer.window) for layer, cache in self._both() if layer.window]
        self._full = min(full, default=_NO_END)
        self._ring = min((capacity for capacity, _ in rings), default=_NO_END)
        self._chunk = min((capacity - window + 1 for capacity, window in rings), default=_NO_END)

    def _both(self) -> Iterator[tuple[HeldLayer, HeldCache]]:
        return zip(self.layers, self.caches, strict=True)

    def check_room(self, position: int, count: int) -> None:
        """Refuse more rows than every cache has room for."""
        end = position + count
        fit = end <= self._full and (end <= self._ring or count <= self._chunk)
        if position < 0 or not fit:  # layers may differ in what ends first
            for layer, cache in self._both():
                check_room("decoder layer", cache.capacity, position, count, layer.window)


def decoder_layer(
    x: F32,
    ple: F32,
    cos: F32,
    sin: F32,
    position: int,
    cache: KV,
    layer: DecoderLayerWeights | DecoderLayerSharedWeights,
) -> F32:
    """Run one layer; ple float32 [S, P], its per-layer inputs. See `decoder_layers`."""
    stack = Stack([HeldLayer(layer)], [0], [HeldCache(cache)])
    return decoder_layers(x, ple[:, None], [cos], [sin], position, stack)


def decoder_layers(
    x: F32, ple: F32, cos: Sequence[F32], sin: Sequence[F32], position: int, stack: Stack
) -> F32:
    """Run layers: write the chunk's keys and values into the cache where a layer owns some, attend, feed forward.

    Parameters
    ----------
    x : float32 [S, H]
    ple : float32 [S, L, P], the per-layer inputs of the L layers
    cos, sin : float32 [S, D/2], of the chunk's positions; a pair of each for every table of the stack
    position : that of ``x[0]``
    stack : the layers

    Returns
    -------
    float32 [S, H]
    """
    return prepare_layers(x, [ple], cos, sin, np.array([position]), stack).now()


def prepare_layers(
    x: F32, ple: Sequence[F32], cos: Sequence[F32], sin: Sequence[F32], first: I64, stack: Stack
) -> Prepared:
    """Check what layers take, not what is in it; see `decoder_layers`.

    ``ple`` has the per-layer inputs in parts of float32 [S, n, P], side by side. ``first``, int64 [1], is the position of
    ``x[0]``, read again when the layers run.
    """
    count, layers = len(x), len(stack.layers)
    _check("x", x, (count, stack.hidden))
    for part in ple:
        _check("per-layer input", part, (count, *part.shape[1:2], stack.per_layer))
    if sum(part.shape[1] for part in ple) != layers:
        raise InputError(f"decoder layers: got per-layer inputs of other than {layers} layers")
    for given in (cos, sin):
        for table, half in zip(given, stack.halves, strict=True):
            _check("cos or sin", table, (count, half))
    if first.shape != (1,) or first.dtype != np.int64:
        raise InputError(
            f"decoder layer: got position {first.dtype} {first.shape}; want int64 (1,)"
        )
    stack.check_room(int(first[0]), count)
    y = np.empty((count, stack.hidden), np.float32)
    return Prepared(y, partial(_run, x, ple, (*cos, *sin), first, stack, y))


def _run(
    x: F32, ple: Sequence[F32], tables: Sequence[F32], first: I64, stack: Stack, y: F32
) -> None:
    position = int(first[0])
    stack.check_room(position, len(x))  # it may run again, further on
    np.copyto(y, x)
    whole = np.ascontiguousarray(ple[0]) if len(ple) == 1 else np.concatenate(ple, axis=1)
    flat = np.concatenate(tables, axis=None)
    stack.run(y, whole, flat, position, stack.rows)


def _check(what: str, array: F32, shape: tuple[int, ...]) -> None:
    """Refuse what does not fit: compiled code does not look where it reads."""
    if array.shape != shape or array.dtype != np.float32:
        raise InputError(
            f"decoder layer: got {what} {array.dtype} {array.shape}; want float32 {shape}"
        )


@functools.cache
def _layers_of(cache_kind: Any, weights_kind: Any) -> Any:
    """Compile layers of one kind over caches of one kind."""
    cache_at, weights_at = opener(cache_kind), opener(weights_kind)

    def layers(given, _first, _stop):  # type: ignore[no-untyped-def]
        """Run layers on x in place.

        A row is of a layer: where its cosines and its sines begin in ``tables``, for one position, and the addresses of its
        cache and its weights.
        """
        x, ples, tables, position, rows = given
        count = x.shape[0]
        ple = np.empty((count, ples.shape[2]), np.float32)
        for i in range(rows.shape[0]):
            kv, layer = cache_at(rows[i, 2]), weights_at(rows[i, 3])
            half = layer.head_dim // 2
            first, second = count * rows[i, 0], count * rows[i, 1]
            cos = tables[first : first + count * half].reshape((count, half))
            sin = tables[second : second + count * half].reshape((count, half))
            _copy(ples[:, i], ple)
            _decoder_layer(x, ple, cos, sin, position, kv, layer)

    return leader(f"{cache_kind} {weights_kind}", _LAYERS, layers)
