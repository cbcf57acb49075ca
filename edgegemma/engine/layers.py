"""Calls of decoder layers: one bound to its kernel, and several in a row that run as one.

Binding checks every weight against the attributes; running checks every value before the first layer runs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from edgegemma.engine.cache import KVCache
from edgegemma.engine.graph import Graph, Node
from edgegemma.engine.plan import Call, Joined, Piece, Work, at_once
from edgegemma.engine.values import rows, view
from edgegemma.engine.weights import Weights
from edgegemma.errors import PackageError
from edgegemma.kernels.decoder import DecoderLayerSharedWeights, DecoderLayerWeights
from edgegemma.kernels.plainlayers import (
    DecoderLayerExpertsTiedWeights,
    DecoderLayerExpertsWeights,
    DecoderLayerPlainTiedWeights,
    DecoderLayerPlainWeights,
    decoder_layer_plain,
)
from edgegemma.kernels.stack import HeldLayer, Stack, prepare_layers
from edgegemma.package import Package

_PAST = re.compile(r"past_key_values\.(\d{1,4})\.key")
_PRESENT = re.compile(r"present\.(\d{1,4})\.key")


@dataclass(frozen=True)
class Chunk:
    """Where a decoder step is: it reads positions ``start`` to ``stop`` of a cache.

    ``reads`` gets the bytes of weights whose number is known only when a call has run, by kind.
    """

    cache: KVCache
    start: int
    stop: int
    reads: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Layer:
    """A layer's call, bound.

    Attributes
    ----------
    where : the call, for errors
    hidden, half : floats a row of the residual stream, and of cos and sin, has
    own : it owns keys and values
    slot : whose it uses, by the number of their layer
    beside : names of the values it takes besides the residual stream
    weights : the kernel's
    """

    where: str
    hidden: int
    half: int
    own: bool
    slot: int
    beside: tuple[str, ...]
    weights: Any


LAYERS: dict[str, Any] = {
    "DecoderLayer": DecoderLayerWeights,
    "DecoderLayerShared": DecoderLayerSharedWeights,
    "DecoderLayerPlain": DecoderLayerPlainWeights,
    "DecoderLayerPlainTied": DecoderLayerPlainTiedWeights,
    "DecoderLayerExperts": DecoderLayerExpertsWeights,
    "DecoderLayerExpertsTied": DecoderLayerExpertsTiedWeights,
}
"""The weights of each kind of layer: what a layer is and does follows from their names."""
OWNERS = frozenset(name for name, kind in LAYERS.items() if "k_proj" in kind._fields)


def _layer_sizes(w: Weights) -> dict[str, Any]:
    sizes: dict[str, Any] = {name: w.integer(name) for name in ("heads", "kv_heads", "head_dim")}
    sizes["window"] = w.integer("window", 0)
    for name in ("eps", "k_cache_scale", "v_cache_scale"):
        sizes[name] = w.number(name)
    if sizes["heads"] % sizes["kv_heads"] or sizes["head_dim"] % 2:
        raise w.wrong("heads", sizes["heads"], f"a multiple of {sizes['kv_heads']}, of even width")
    return sizes


def _layer_weights(w: Weights, names: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Take the weights of a decoder layer; give the kernel's fields and the floats of its scratch."""
    fields = _layer_sizes(w)
    hidden, inner, dim = w.integer("q_proj_in"), w.integer("gate_proj_out"), fields["head_dim"]
    queries, keys = fields["heads"] * dim, fields["kv_heads"] * dim
    matrices = {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }
    if "per_layer_input_gate" in names:
        per_layer = w.integer("per_layer_input_gate_out")
        matrices["per_layer_input_gate"] = (per_layer, hidden)
        matrices["per_layer_projection"] = (hidden, per_layer)
    scratch = 4 * hidden + 2 * inner + 2 * (queries + keys)
    if "router" in names:
        fields |= _expert_weights(w, hidden)
        scratch += 4 * hidden + 3 * w.integer("expert_down_in")
    vectors = {"q_norm": dim, "k_norm": dim, "layer_scalar": 1}
    for name in names:
        if name in matrices:
            fields[name] = w.linear(name, *matrices[name])
        elif name not in fields:
            fields[name] = w.vector(name, vectors.get(name, hidden))
    return fields, scratch


def _expert_weights(w: Weights, hidden: int) -> dict[str, Any]:
    """Take a router and its experts."""
    count, top_k, inner = w.integer("experts"), w.integer("top_k"), w.integer("expert_down_in")
    if top_k > count:
        raise w.wrong("top_k", top_k, f"at most {count}")
    return {
        "top_k": top_k,
        "router": w.floats("router_weight", count, hidden),
        "per_expert_scale": w.vector("per_expert_scale", count),
        "expert_gate_up": w.experts("expert_gate_up", count, 2 * inner, hidden),
        "expert_down": w.experts("expert_down", count, hidden, inner),
    }


def bind(package: Package, graph: Graph, node: Node) -> Call:
    """Make a layer ready to run. See `functions.bind`."""
    w = Weights(package, graph, node)
    kind = LAYERS[node.op]
    fields, width = _layer_weights(w, kind._fields)
    own, gated = node.op in OWNERS, "per_layer_input_gate" in fields
    slot = _slot(w, package, fields, own)
    hidden, half = w.integer("q_proj_in"), fields["head_dim"] // 2
    beside = ("per_layer_input", "cos", "sin") if gated else ("cos", "sin")
    state_names = ("past_key", "past_value") if own else ("key", "value")
    given = w.given("hidden_states", *beside, "position_ids", *state_names)
    taken = len(given) - len(state_names)
    after = () if own else given[taken:]
    where, weights = f"{graph.name}: {node.name}", kind(**fields)
    sizes = where, hidden, half, own, slot, given[1:taken]
    if not gated:
        run = partial(_run_plain, Layer(*sizes, weights), w.expert_bytes)
        return Call(node, given[:taken], run, after=after, reads=w.reads, width=width)
    layer = Layer(*sizes, HeldLayer(weights))
    prepare, names = _join([layer], {})
    return Call(
        node,
        (given[0], *names),
        at_once(prepare),
        prepare,
        after=after,
        reads=w.reads,
        width=width,
        kind=(layer.weights.kind, layer.beside[3]),  # a kernel, and the positions
        part=layer,
        join=_join,
    )


def _join(layers: Sequence[Layer], pieces: Mapping[str, Piece]) -> Joined:
    """Give what prepares layers of one kernel and of the same positions in a row."""
    stack = _InARow(layers, pieces)
    return stack, stack.inputs


class _InARow:
    """Layers of one kind that run as one call.

    Attributes
    ----------
    inputs : names of what it takes besides the residual stream: positions, pairs of cosines and sines, per-layer inputs,
        each of these or all as the one value of which they are pieces
    """

    def __init__(self, layers: Sequence[Layer], pieces: Mapping[str, Piece]) -> None:
        self._layers = layers
        taken = [(layer.beside[1], layer.beside[2], layer.half) for layer in layers]
        tables = list(dict.fromkeys(taken))
        self._which = [tables.index(table) for table in taken]
        self._halves = [half for *_, half in tables]
        parts = [layer.beside[0] for layer in layers]
        self._piece = _neighbours([pieces.get(name) for name in parts])
        ple = [self._piece.whole] if self._piece else parts
        pairs = (name for cos, sin, _ in tables for name in (cos, sin))
        self.inputs = layers[0].beside[3], *pairs, *ple
        self._stacks: WeakKeyDictionary[KVCache, Stack] = WeakKeyDictionary()

    def __call__(self, values: Sequence[Any], chunk: Chunk) -> tuple[Sequence[Any], Work]:
        first, end = self._layers[0], 2 + 2 * len(self._halves)
        x = view(first.where, values[0], first.hidden)
        count = len(x)
        position = _position(first.where, values[1], count, chunk, first.own)
        cos, sin = (
            [
                view(first.where, value, half, count=count)
                for value, half in zip(values[start:end:2], self._halves, strict=True)
            ]
            for start in (2, 3)
        )
        ple = self._per_layer(values[end:], count)
        y, work = prepare_layers(x, ple, cos, sin, position, self._stack(chunk.cache))
        present = (None,) * (2 * len(self._layers)) if first.own else ()
        return (y[None], *present), work

    def _per_layer(self, parts: Sequence[Any], count: int) -> Sequence[Any]:
        """Give the per-layer inputs of the layers, in parts that lie side by side."""
        width, piece = self._layers[0].weights.per_layer, self._piece
        if piece:
            whole = view(self._layers[0].where, parts[0], piece.total, width, count=count)
            return [whole[:, piece.place : piece.place + len(self._layers)]]
        return [
            view(layer.where, part, 1, width, count=count)
            for layer, part in zip(self._layers, parts, strict=True)
        ]

    def _stack(self, cache: KVCache) -> Stack:
        """Give the layers with a text's keys and values."""
        if cache not in self._stacks:
            held = [cache.held(layer.slot) for layer in self._layers]
            weights = [layer.weights for layer in self._layers]
            self._stacks[cache] = Stack(weights, self._which, held)
        return self._stacks[cache]


def _neighbours(pieces: Sequence[Piece | None]) -> Piece | None:
    """Give the first of pieces of one value that follow each other there; None if they do not."""
    first = pieces[0]
    if first is None:
        return None
    row = [first._replace(place=first.place + i) for i in range(len(pieces))]
    return first if row == list(pieces) else None


def _run_plain(
    layer: Layer, expert_bytes: int, values: Sequence[Any], chunk: Chunk
) -> Sequence[Any]:
    x = rows(layer.where, values[0], layer.hidden)
    _, *tables, positions = values
    cos, sin = (rows(layer.where, table, layer.half, count=len(x)) for table in tables)
    position = int(_position(layer.where, positions, len(x), chunk, layer.own)[0])
    y, used = decoder_layer_plain(
        x, cos, sin, position, chunk.cache.slot(layer.slot), layer.weights
    )
    chunk.reads["experts"] += used * expert_bytes
    return (y[None], None, None) if layer.own else (y[None],)


def _slot(w: Weights, package: Package, sizes: dict[str, Any], own: bool) -> int:
    """Find whose K/V a layer uses: its own, or those of the layer whose present ones it is given."""
    key, value = (
        (w.values["past_key"], w.values["past_value"])
        if own
        else (w.values["key"], w.values["value"])
    )
    found = (_PAST if own else _PRESENT).fullmatch(key)
    text = package.config.text
    index = int(found[1]) if found else text.num_hidden_layers
    if index >= text.first_shared_layer or value != f"{key[:-3]}value":
        raise w.wrong("keys", [key, value], "those of one layer that owns K/V")
    if own and w.node.outputs[1:] != (f"present.{index}.key", f"present.{index}.value"):
        raise w.wrong("present", list(w.node.outputs[1:]), f"the present ones of layer {index}")
    want = (text.num_attention_heads, *text.heads_of(index), text.window_of(index))
    got = tuple(sizes[name] for name in ("heads", "kv_heads", "head_dim", "window"))
    if got != want:
        raise w.wrong("heads, kv_heads, head_dim, window", got, f"{want} as in the manifest")
    return index


def _position(where: str, value: Any, count: int, chunk: Chunk, own: bool) -> NDArray[np.int64]:
    """Give the position of the first row, [1], as it lies in memory, after the graph's positions agree with the cache."""
    positions = view(where, value, dtype=np.int64, count=count)
    first = chunk.start if own else chunk.stop - count
    if count < 1 or first < chunk.start or positions.tolist() != list(range(first, chunk.stop)):
        raise PackageError(f"{where}: got other positions than the {count} before {chunk.stop}")
    return positions[:1]
