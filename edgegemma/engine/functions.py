"""Function calls of the embedding and decoder graphs, each bound to one kernel.

Binding checks every weight against the attributes; running checks the shape of every value, because the
glue between calls is the package's and compiled code does not look where it reads. The audio tower's calls
are in `functions_audio`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegemma.engine import functions_audio, plan
from edgegemma.engine.cache import KVCache
from edgegemma.engine.graph import Graph, Node
from edgegemma.engine.plan import Call
from edgegemma.engine.values import rows
from edgegemma.engine.weights import CODE_BITS, FLOATS, Weights
from edgegemma.errors import InputError, PackageError
from edgegemma.kernels import decoder
from edgegemma.kernels.decoder import DecoderLayerSharedWeights, DecoderLayerWeights
from edgegemma.kernels.gather import gather_rows
from edgegemma.kernels.plainlayers import (
    DecoderLayerExpertsTiedWeights,
    DecoderLayerExpertsWeights,
    DecoderLayerPlainTiedWeights,
    DecoderLayerPlainWeights,
    decoder_layer_plain,
)
from edgegemma.kernels.rotary import rotary_table
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


def bind(package: Package, graph: Graph, node: Node) -> Call:
    """Make a node ready to run.

    Raises
    ------
    PackageError
        A weight or attribute is not as the function wants it.
    """
    if not node.domain:
        return plan.glue(graph, package, node)
    return _BINDERS[node.op](package, graph, node)


def _gather_rows(package: Package, graph: Graph, node: Node) -> Call:
    """Bind to reads from disk: the tables of E2B have 2.8 G weights, a token needs 42 KB of them."""
    w = Weights(package, graph, node)
    width, bits, multiplier = w.integer("width"), w.integer("bits"), w.number("multiplier")
    table, scale = w.tensor("table"), w.tensor("scale")
    count, groups = w.shape("table", 2)[0], w.shape("scale", 2)[1]
    if bits in CODE_BITS:
        if width * bits % 8 or width % groups:
            raise w.wrong("scale", list(scale.shape), f"[{count}, groups that divide {width}]")
        want = (("uint8", (count, width * bits // 8)), ("float32", (count, groups)))
    else:
        want = ((FLOATS.get(bits, f"{bits} bits"), (count, width)), ("float32", (1, 1)))
    for name, tensor, layout in (("table", table, want[0]), ("scale", scale, want[1])):
        if (tensor.dtype, tensor.shape) != layout:
            raise w.wrong(name, f"{tensor.dtype} {list(tensor.shape)}", f"{layout[0]} {layout[1]}")
    gather, gather_scale = _RowSource(package, table), _RowSource(package, scale)
    no_scale = np.zeros((0, 1), np.float32)

    def run(values: Sequence[Any], state: Any) -> Sequence[Any]:
        del state
        ids = rows(node.name, values[0], dtype=np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < count:
            raise InputError(f"{node.name}: got an id beyond the table; want 0 to {count - 1}")
        codes = gather(ids)
        scales = gather_scale(ids).view(np.float32) if bits in CODE_BITS else no_scale
        return [gather_rows(codes, scales, bits, multiplier)[None]]

    row_bytes = gather.row_bytes + (gather_scale.row_bytes if bits in CODE_BITS else 0)
    return Call(node, w.given("input_ids"), run, row_bytes=row_bytes)


class _RowSource:
    """Rows of a table as bytes: from disk, or from the graph when it is small enough to be inline."""

    def __init__(self, package: Package, tensor: Any) -> None:
        self._package, self._tensor = package, tensor
        size = len(tensor.data) if tensor.data is not None else tensor.length
        self.row_bytes = size // tensor.shape[0]
        self._inline = None
        if tensor.data is not None:
            self._inline = np.frombuffer(tensor.data, np.uint8).reshape(-1, self.row_bytes)

    def __call__(self, ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self._inline is not None:
            return self._inline[ids]
        tensor = self._tensor
        return self._package.read_rows(tensor.location, tensor.offset, self.row_bytes, ids)


def _rotary_table(package: Package, graph: Graph, node: Node) -> Call:
    w = Weights(package, graph, node)
    steps = w.vector("inv_freq", *w.shape("inv_freq", 1))

    def run(values: Sequence[Any], state: Any) -> Sequence[Any]:
        del state
        cos, sin = rotary_table(rows(node.name, values[0], dtype=np.int64), steps)
        return [cos[None], sin[None]]

    return Call(node, w.given("position_ids"), run, reads=w.reads)


def _per_layer_inputs(package: Package, graph: Graph, node: Node) -> Call:
    """Bind to the layers whose inputs anybody takes: a chunk without logits ends before those that share K/V."""
    w = Weights(package, graph, node)
    layers, width, hidden = w.integer("layers"), w.integer("width"), w.integer("hidden_size")
    eps = w.number("eps")
    projection = w.floats("projection_weight", layers * width, hidden).rows
    norm = w.vector("norm_weight", width)
    names = w.given("inputs_embeds", "per_layer_inputs")
    ends = _ends(graph, node.outputs[0])

    def narrow(needed: Set[str]) -> Call:
        count = max((end for name, end in ends.items() if name in needed), default=layers)
        count = min(max(count, 1), layers)
        matrix = projection[: count * width]

        def run(values: Sequence[Any], state: Any) -> Sequence[Any]:
            del state
            x = rows(node.name, values[0], hidden)
            tokens = rows(node.name, values[1], layers, width, count=len(x))
            return [decoder.per_layer_inputs(x, tokens, matrix, norm, eps)[None]]

        reads = w.reads | {"float": matrix.nbytes}
        return Call(node, names, run, reads=reads, width=2 * layers * width, narrow=narrow)

    return narrow(set())


def _ends(graph: Graph, value: str) -> dict[str, int]:
    """Give for each part that a value is split into the layer before which it ends; nothing if it is not split."""
    takers = [node for node in graph.nodes if value in node.inputs]
    if len(takers) != 1 or takers[0].op != "Split" or value in graph.outputs:
        return {}
    sizes = [
        node.attributes.get("value_ints", ())
        for node in graph.nodes
        if node.op == "Constant" and node.outputs[0] == takers[0].inputs[-1]
    ]
    return dict(zip(takers[0].outputs, np.cumsum(sizes).tolist(), strict=False))


LAYERS: dict[str, tuple[Any, Any]] = {
    "DecoderLayer": (decoder.decoder_layer, DecoderLayerWeights),
    "DecoderLayerShared": (decoder.decoder_layer_shared, DecoderLayerSharedWeights),
    "DecoderLayerPlain": (decoder_layer_plain, DecoderLayerPlainWeights),
    "DecoderLayerPlainTied": (decoder_layer_plain, DecoderLayerPlainTiedWeights),
    "DecoderLayerExperts": (decoder_layer_plain, DecoderLayerExpertsWeights),
    "DecoderLayerExpertsTied": (decoder_layer_plain, DecoderLayerExpertsTiedWeights),
}
"""The kernel of each kind of layer, and the weights it takes: what a layer is and does follows from their names."""
OWNERS = frozenset(name for name, (_, kind) in LAYERS.items() if "k_proj" in kind._fields)


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


def _layer(package: Package, graph: Graph, node: Node) -> Call:
    w = Weights(package, graph, node)
    kernel, kind = LAYERS[node.op]
    fields, width = _layer_weights(w, kind._fields)
    own = node.op in OWNERS
    slot = _slot(w, package, fields, own)
    hidden, half = w.integer("q_proj_in"), fields["head_dim"] // 2
    tails: dict[str, tuple[int, ...]] = {"cos": (half,), "sin": (half,)}
    if "per_layer_input_gate" in fields:
        tails = {"per_layer_input": (1, w.integer("per_layer_input_gate_out"))} | tails
    state_names = ("past_key", "past_value") if own else ("key", "value")
    given = w.given("hidden_states", *tails, "position_ids", *state_names)
    layer: Any = kind(**fields)
    where = f"{graph.name}: {node.name}"
    counted = kernel is decoder_layer_plain

    def run(values: Sequence[Any], chunk: Chunk) -> Sequence[Any]:
        x = rows(where, values[0], hidden)
        beside = [
            rows(where, value, *tail, count=len(x)).reshape(len(x), tail[-1])
            for value, tail in zip(values[1:-1], tails.values(), strict=True)
        ]
        position = _position(where, values[-1], len(x), chunk, own)
        y = kernel(x, *beside, position, chunk.cache.slot(slot), layer)
        if counted:
            y, used = y
            chunk.reads["experts"] += used * w.expert_bytes
        return (y[None], None, None) if own else (y[None],)

    taken = len(given) - len(state_names)
    after = () if own else given[taken:]
    return Call(node, given[:taken], run, after, w.reads, width)


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


def _head(package: Package, graph: Graph, node: Node) -> Call:
    w = Weights(package, graph, node)
    hidden, vocabulary = w.integer("lm_head_in"), w.integer("lm_head_out")
    norm = w.vector("norm_weight", hidden)
    matrix = w.linear("lm_head", vocabulary, hidden, kind="head")
    softcap, eps = w.number("softcap"), w.number("eps")

    def run(values: Sequence[Any], state: Any) -> Sequence[Any]:
        del state
        return [decoder.head(rows(node.name, values[0], hidden), norm, matrix, softcap, eps)[None]]

    return Call(node, w.given("hidden_states"), run, reads=w.reads, width=hidden)


_BINDERS: dict[str, Callable[[Package, Graph, Node], Call]] = {
    "GatherRows": _gather_rows,
    "RotaryTable": _rotary_table,
    "PerLayerInputs": _per_layer_inputs,
    **dict.fromkeys(LAYERS, _layer),
    "Head": _head,
    "AudioSubsample": functions_audio.subsample,
    "AudioLayer": functions_audio.layer,
    "AudioHead": functions_audio.head,
}
