"""Calls of decoder layers: one bound to its kernel, and several in a row that run as one.

Binding checks every weight against the attributes; running checks every value before the first layer runs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from edgegemma.engine.cache import KVCache
from edgegemma.engine.graph import Graph, Node
from edgegemma.engine.plan import Call, Run
from edgegemma.engine.values import rows
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
from edgegemma.kernels.stack import Beside, HeldLayer, decoder_layers
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
    weights : the kernel's
    """

    where: str
    hidden: int
    half: int
    own: bool
    slot: int
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
    if not gated:
        layer = Layer(where, hidden, half, own, slot, weights)
        run = partial(_run_plain, layer, w.expert_bytes)
        return Call(node, given[:taken], run, after, w.reads, width)
    layers = (Layer(where, hidden, half, own, slot, HeldLayer(weights)),)
    run = partial(_run_stack, layers)
    return Call(node, given[:taken], run, after, w.reads, width, parts=layers, join=_join)


def _join(layers: tuple[Layer, ...]) -> Run | None:
    """Give what runs layers in a row, if one kernel does."""
    first = layers[0]
    same = all(layer.weights.kind is first.weights.kind for layer in layers)
    return partial(_run_stack, layers) if same else None


def _run_stack(layers: tuple[Layer, ...], values: Sequence[Any], chunk: Chunk) -> Sequence[Any]:
    """Run layers of one kind; ``values`` are the residual stream, then four of each layer."""
    first = layers[0]
    x = rows(first.where, values[0], first.hidden)
    inputs = _Inputs(len(x), chunk)
    beside = []
    for layer, i in zip(layers, range(1, len(values), 4), strict=True):
        ple, cos, sin, positions = values[i : i + 4]
        position = inputs.position(layer, positions)
        per_layer = rows(layer.where, ple, 1, layer.weights.per_layer, count=len(x))[:, 0]
        tables = inputs.table(layer, cos), inputs.table(layer, sin)
        beside.append(Beside(per_layer, *tables, chunk.cache.held(layer.slot)))
    y = decoder_layers(x, position, beside, [layer.weights for layer in layers])
    present = (None,) * (2 * len(layers)) if first.own else ()
    return y[None], *present


def _run_plain(
    layer: Layer, expert_bytes: int, values: Sequence[Any], chunk: Chunk
) -> Sequence[Any]:
    x = rows(layer.where, values[0], layer.hidden)
    inputs = _Inputs(len(x), chunk)
    _, cos, sin, positions = values
    tables = inputs.table(layer, cos), inputs.table(layer, sin)
    position = inputs.position(layer, positions)
    y, used = decoder_layer_plain(x, *tables, position, chunk.cache.slot(layer.slot), layer.weights)
    chunk.reads["experts"] += used * expert_bytes
    return (y[None], None, None) if layer.own else (y[None],)


class _Inputs:
    """Checks what layers take besides the residual stream; what several of them take is looked at once."""

    def __init__(self, count: int, chunk: Chunk) -> None:
        self._count, self._chunk = count, chunk
        self._tables: dict[tuple[int, int], Any] = {}  # by the value's id: it lives while they run
        self._positions: dict[int, int] = {}

    def table(self, layer: Layer, value: Any) -> Any:
        """Give cosines or sines as float32 [S, D/2]."""
        key = id(value), layer.half
        if key not in self._tables:
            self._tables[key] = rows(layer.where, value, layer.half, count=self._count)
        return self._tables[key]

    def position(self, layer: Layer, value: Any) -> int:
        """Give the position of the first row, after the graph's positions agree with the cache."""
        key = id(value)
        if key not in self._positions:
            self._positions[key] = _position(
                layer.where, value, self._count, self._chunk, layer.own
            )
        return self._positions[key]


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


def _position(where: str, value: Any, count: int, chunk: Chunk, own: bool) -> int:
    """Give the position of the first row, after the graph's positions agree with the cache."""
    positions = rows(where, value, dtype=np.int64, count=count)
    first = chunk.start if own else chunk.stop - count
    if (
        count < 1
        or first < chunk.start
        or not np.array_equal(positions, np.arange(first, chunk.stop))
    ):
        raise PackageError(f"{where}: got other positions than the {count} before {chunk.stop}")
    return first
