"""Function calls of the embedding and decoder graphs, each bound to one kernel.

Binding checks every weight against the attributes; running checks the shape of every value, because the
glue between calls is the package's and compiled code does not look where it reads. The decoder layers' calls are
in `layers`, the audio tower's in `functions_audio`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegemma.engine import functions_audio, layers, plan
from edgegemma.engine.graph import Graph, Node
from edgegemma.engine.plan import Call, Work, at_once
from edgegemma.engine.values import view
from edgegemma.engine.weights import CODE_BITS, FLOATS, Weights
from edgegemma.errors import InputError, UnsupportedError
from edgegemma.kernels import decoder
from edgegemma.kernels.gather import gather_rows
from edgegemma.kernels.rotary import prepare_rotary_table
from edgegemma.package import Package


def bind(package: Package, graph: Graph, node: Node) -> Call:
    """Make a node ready to run.

    Raises
    ------
    PackageError
        A weight or attribute is not as the function wants it.
    """
    if not node.domain:
        return plan.glue(graph, package, node)
    if node.op not in _BINDERS:
        raise UnsupportedError(
            f"{graph.name}: {node.name!r}: {node.op!r} stands alone; want it within another function's body"
        )
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

    def prepare(values: Sequence[Any], state: Any) -> tuple[Sequence[Any], Work]:
        del state
        ids = view(node.name, values[0], dtype=np.int64)
        y = np.empty((len(ids), width), np.float32)

        def work() -> None:
            chosen = ids.tolist()
            if min(chosen, default=0) < 0 or max(chosen, default=0) >= count:
                raise InputError(f"{node.name}: got an id beyond the table; want 0 to {count - 1}")
            scales = gather_scale(chosen).view(np.float32) if bits in CODE_BITS else no_scale
            gather_rows(gather(chosen), scales, bits, multiplier, y)

        return [y[None]], work

    row_bytes = gather.row_bytes + (gather_scale.row_bytes if bits in CODE_BITS else 0)
    names = w.given("input_ids")
    return Call(node, names, at_once(prepare), prepare, row_bytes=row_bytes)


class _RowSource:
    """Rows of a table as bytes: from disk, or from the graph when it is small enough to be inline."""

    def __init__(self, package: Package, tensor: Any) -> None:
        self._package, self._tensor = package, tensor
        size = len(tensor.data) if tensor.data is not None else tensor.length
        self.row_bytes = size // tensor.shape[0]
        self._inline = None
        if tensor.data is not None:
            self._inline = np.frombuffer(tensor.data, np.uint8).reshape(-1, self.row_bytes)

    def __call__(self, ids: Sequence[int]) -> NDArray[np.uint8]:
        if self._inline is not None:
            return self._inline[ids]
        tensor = self._tensor
        return self._package.read_rows(tensor.location, tensor.offset, self.row_bytes, ids)


def _rotary_table(package: Package, graph: Graph, node: Node) -> Call:
    w = Weights(package, graph, node)
    steps = w.vector("inv_freq", *w.shape("inv_freq", 1))

    def prepare(values: Sequence[Any], state: Any) -> tuple[Sequence[Any], Work]:
        del state
        y, work = prepare_rotary_table(view(node.name, values[0], dtype=np.int64), steps)
        return [y[:1], y[1:]], work

    return Call(node, w.given("position_ids"), at_once(prepare), prepare, reads=w.reads)


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

        def prepare(values: Sequence[Any], state: Any) -> tuple[Sequence[Any], Work]:
            del state
            x = view(node.name, values[0], hidden)
            tokens = view(node.name, values[1], layers, width, count=len(x))
            y, work = decoder.prepare_per_layer_inputs(x, tokens, matrix, norm, eps)
            return [y[None]], work

        reads = w.reads | {"float": matrix.nbytes}
        return Call(node, names, at_once(prepare), prepare, reads=reads, width=2 * layers * width)

    return replace(narrow(set()), narrow=narrow)


def _ends(graph: Graph, value: str) -> dict[str, int]:
    """Give for each part that a value is split into the layer before which it ends; nothing if it is not split."""
    takers = [node for node in graph.nodes if value in node.inputs]
    if len(takers) != 1 or takers[0].op != "Split" or value in graph.outputs:
        return {}
    constant = graph.constants.get(takers[0].inputs[-1])
    sizes = constant.attributes.get("value_ints") if constant else None
    if not isinstance(sizes, tuple) or not all(isinstance(size, int) for size in sizes):
        return {}
    return dict(zip(takers[0].outputs, np.cumsum(sizes).tolist(), strict=False))


def _head(package: Package, graph: Graph, node: Node) -> Call:
    w = Weights(package, graph, node)
    hidden, vocabulary = w.integer("lm_head_in"), w.integer("lm_head_out")
    norm = w.vector("norm_weight", hidden)
    matrix = w.linear("lm_head", vocabulary, hidden, kind="head")
    softcap, eps = w.number("softcap"), w.number("eps")

    def prepare(values: Sequence[Any], state: Any) -> tuple[Sequence[Any], Work]:
        del state
        x = view(node.name, values[0], hidden)
        y, work = decoder.prepare_head(x, norm, matrix, softcap, eps)
        return [y[None]], work

    names = w.given("hidden_states")
    return Call(node, names, at_once(prepare), prepare, reads=w.reads, width=hidden)


_BINDERS: dict[str, Callable[[Package, Graph, Node], Call]] = {
    "GatherRows": _gather_rows,
    "RotaryTable": _rotary_table,
    "PerLayerInputs": _per_layer_inputs,
    **dict.fromkeys(layers.LAYERS, layers.bind),
    "Head": _head,
    "AudioSubsample": functions_audio.subsample,
    "AudioLayer": functions_audio.layer,
    "AudioHead": functions_audio.head,
}
