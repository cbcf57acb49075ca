"""A graph and the outputs that are wanted, as a flat list of steps.

Walking back from the outputs leaves everything else unrun: asking a decoder for its ``present.*`` alone
never reaches the layers that share K/V, the last norm or the head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from edgegemma.engine.graph import Graph, Node
from edgegemma.engine.ops import FAILURES, OPS, VIEWS, Op, reshape_view, split
from edgegemma.errors import PackageError
from edgegemma.package import Package

Run = Callable[[Sequence[Any], Any], Sequence[Any]]
Work = Callable[[], object]
Prepare = Callable[[Sequence[Any], Any], tuple[Sequence[Any], Work]]
Joined = tuple[Prepare, tuple[str, ...]]


class Piece(NamedTuple):
    """Where a value is in another one, ``total`` wide, of which it is split off."""

    whole: str
    place: int
    total: int


@dataclass(frozen=True)
class Call:
    """A node that is ready to run.

    Attributes
    ----------
    node : Node
    inputs : tuple of str
        Values it takes while running; its weights are bound already. "" for one left out.
    after : tuple of str
        Values that it does not take, but whose giver must have run: keys and values in the cache.
    run : callable
        From input values and the run's state to output values.
    prepare : callable or None
        The same in two parts: it checks, and gives output values that are not filled yet with the work that fills them.
    views : bool
        Its outputs are views of its inputs, which it does not read: they may be filled later.
    reads : mapping
        Bytes of weights that one run reads, by kind: "linear", "head", "float", "vector".
    row_bytes : int
        Bytes that it reads from disk for each position.
    width : int
        Floats of scratch that the kernel takes for each position, about.
    narrow : callable or None
        From the names of values that are taken later to a call that gives no more than those need.
    pieces : mapping
        Outputs that are one wide along the third dimension of a value that the call splits.
    kind : hashable
        Calls of one kind run as one where each takes the first output of the one before as its first input; None if it runs
        alone.
    part : object
        What it is to `join`.
    join : callable or None
        From the parts of such calls, and from pieces that may be taken whole, to what runs them all and the names of what that
        takes besides the first input. It gives the first output of the last and the other outputs of all.
    """

    node: Node
    inputs: tuple[str, ...]
    run: Run
    prepare: Prepare | None = None
    views: bool = False
    after: tuple[str, ...] = ()
    reads: Mapping[str, int] = field(default_factory=dict)
    row_bytes: int = 0
    width: int = 0
    narrow: Callable[[Set[str]], Call] | None = None
    pieces: Mapping[str, Piece] = field(default_factory=dict)
    kind: Hashable = None
    part: Any = None
    join: Callable[[Sequence[Any], Mapping[str, Piece]], Joined] | None = None

    def given(self, values: Mapping[str, Any]) -> list[Any]:
        """Give its inputs among some values."""
        return [values[name] if name else None for name in self.inputs]


@dataclass(frozen=True)
class Step:
    """A call in a plan, and the values nobody needs after it."""

    call: Call
    frees: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """Steps that give some outputs of a graph.

    Attributes
    ----------
    name : the graph's
    steps : one for each call
    stretches : the same with calls joined that can run as one
    outputs : names of values
    """

    name: str
    steps: tuple[Step, ...]
    stretches: tuple[Step, ...]
    outputs: tuple[str, ...]

    def run(
        self, feeds: Mapping[str, Any], state: Any = None, after: Callable[[], None] | None = None
    ) -> list[Any]:
        """Run the steps: prepare as many as can be before the work of the first, so that Python runs in one go.

        Parameters
        ----------
        feeds : mapping
            The graph's inputs by name. A value is freed after its last use.
        state : object
            Handed to every call: the cache and the positions of a decoder's chunk.
        after : callable, optional
            Called when a step is done; steps are not joined then, nor prepared before another.

        Returns
        -------
        list
            The plan's outputs, in its order.
        """
        values, waiting = dict(feeds), list[Work]()
        for step in self.steps if after else self.stretches:
            call = step.call
            given = call.given(values)
            if call.prepare and not after:
                results, work = call.prepare(given, state)
                waiting.append(work)
            else:
                if not call.views:
                    _finish(waiting)
                results = call.run(given, state)
            values.update(zip(call.node.outputs, results, strict=True))
            for name in step.frees:
                del values[name]
            if after is not None:
                after()
        _finish(waiting)
        return [values[name] for name in self.outputs]

    @functools.cached_property
    def reads(self) -> Mapping[str, int]:
        """Bytes of weights that one run reads, by kind."""
        return _summed(step.call.reads for step in self.steps)


def _finish(waiting: list[Work]) -> None:
    for work in waiting:
        work()
    waiting.clear()


def at_once(prepare: Prepare) -> Run:
    """Prepare and work."""

    def run(values: Sequence[Any], state: Any) -> Sequence[Any]:
        results, work = prepare(values, state)
        work()
        return results

    return run


def make(graph: Graph, calls: Sequence[Call], outputs: Sequence[str]) -> Plan:
    """Keep the calls that the outputs need, in the graph's order, but for glue."""
    steps = _steps(_glue_first(_needed(calls, outputs)), outputs)
    stretches = _steps(_needed(_joined(steps), outputs), outputs)
    return Plan(graph.name, tuple(steps), tuple(stretches), tuple(outputs))


def _needed(calls: Sequence[Call], outputs: Sequence[str]) -> list[Call]:
    needed, kept = set(outputs), []
    for call in reversed(calls):
        if needed.intersection(call.node.outputs):
            kept.append(call.narrow(needed) if call.narrow else call)
            needed.update(call.inputs, call.after)
    return kept[::-1]


def _steps(calls: Sequence[Call], outputs: Sequence[str]) -> list[Step]:
    alive, steps = set(outputs), []
    for call in reversed(calls):  # the first use met is the last
        touched = {name for name in (*call.inputs, *call.node.outputs) if name}
        steps.append(Step(call, tuple(sorted(touched - alive))))
        alive |= touched
    return steps[::-1]


def _glue_first(calls: Sequence[Call]) -> list[Call]:
    """Move glue up to right behind the last function call that it needs.

    A function's weights push the interpreter out of the CPU's caches, so what runs next to other Python is several times faster.
    """
    after: dict[str, int] = {}  # the function calls before which a value is not there
    places, functions = [], 0
    for call in calls:
        place = max((after.get(name, 0) for name in (*call.inputs, *call.after)), default=0)
        if call.node.domain:
            functions += 1
            place = functions
        places.append((place, not call.node.domain))
        after |= dict.fromkeys(call.node.outputs, place)
    order = sorted(range(len(calls)), key=places.__getitem__)
    return [calls[i] for i in order]


def _joined(steps: Sequence[Step]) -> list[Call]:
    """Give the calls of steps, with those in one that can run as one; it takes whole what was split for it."""
    groups: list[list[Step]] = []
    for step in steps:
        if groups and _continues(groups[-1], step.call, step.frees):
            groups[-1].append(step)
        else:
            groups.append([step])
    pieces = {name: piece for step in steps for name, piece in step.call.pieces.items()}
    return [_as_one([step.call for step in group], pieces) for group in groups]


def _continues(group: Sequence[Step], call: Call, frees: Sequence[str]) -> bool:
    """Tell whether a call is of a group's kind and takes what it gives, as its first input alone, and nobody else does."""
    last = group[-1].call
    value = last.node.outputs[0]
    if last.kind is None or last.kind != call.kind:
        return False
    if call.inputs[0] != value or value not in frees:
        return False
    given = {name for step in group for name in step.call.node.outputs}
    return given.isdisjoint(call.inputs[1:])


def _as_one(calls: Sequence[Call], pieces: Mapping[str, Piece]) -> Call:
    first, last = calls[0], calls[-1]
    if first.join is None or (len(calls) == 1 and pieces.keys().isdisjoint(first.inputs)):
        return first
    prepare, names = first.join([call.part for call in calls], pieces)
    others = [name for call in calls for name in call.node.outputs[1:]]
    return replace(
        first,
        node=replace(first.node, outputs=(last.node.outputs[0], *others)),
        inputs=(first.inputs[0], *names),
        run=at_once(prepare),
        prepare=prepare,
        after=tuple(name for call in calls for name in call.after),
        reads=_summed(call.reads for call in calls),
    )


def _summed(reads: Iterable[Mapping[str, int]]) -> Mapping[str, int]:
    total: dict[str, int] = {}
    for one in reads:
        for kind, size in one.items():
            total[kind] = total.get(kind, 0) + size
    return total


def glue(graph: Graph, package: Package, node: Node) -> Call:
    """Make an op ready to run; inputs that are constants are bound."""
    attributes, views = node.attributes, node.op in VIEWS or _reshapes_given(graph, node)
    op = reshape_view if node.op == "Reshape" and views else OPS[node.op]
    bound = [_constant(graph, package, name) for name in node.inputs]
    places = [i for i, value in enumerate(bound) if value is None]
    names = tuple(node.inputs[i] for i in places)

    def run(values: Sequence[Any], state: Any, op: Op = op) -> Sequence[Any]:
        del state
        every = bound.copy()
        for place, value in zip(places, values, strict=True):
            every[place] = value
        try:
            if not all(value is None or isinstance(value, np.ndarray) for value in values):
                raise TypeError("got keys or values of the cache; want an array")
            results = op(attributes, every)
        except FAILURES as error:
            raise PackageError(f"{graph.name}: {node.name!r}: {error}") from error
        if len(results) != len(node.outputs):
            raise PackageError(f"{graph.name}: {node.name!r}: gives {len(results)} outputs")
        return results

    if node.op != "Split":
        return Call(node, names, run, views=views)

    def narrow(needed: Set[str]) -> Call:
        wanted = [name in needed for name in node.outputs]
        some = partial(run, op=partial(split, wanted=wanted))
        return Call(node, names, some, views=views, narrow=narrow, pieces=pieces)

    pieces = _pieces(node, bound)
    return Call(node, names, run, views=views, narrow=narrow, pieces=pieces)


def _reshapes_given(graph: Graph, node: Node) -> bool:
    """Tell whether a node reshapes what a function gives: that lies in a row."""
    given = set(node.inputs[:1]) if node.op == "Reshape" else set()
    return any(not given.isdisjoint(other.outputs) for other in graph.nodes if other.domain)


def _constant(graph: Graph, package: Package, name: str) -> Any:
    """Give a value that is the same in each run; None for others."""
    if name in graph.tensors:
        return graph.tensors[name].array(package)
    if name in graph.constants:
        return glue(graph, package, graph.constants[name]).run((), None)[0]
    return None


def _pieces(node: Node, bound: Sequence[Any]) -> dict[str, Piece]:
    """Give the outputs of a Split of a value along its third dimension, by sizes that are constant, that are one wide."""
    if node.attributes.get("axis", 0) != 2 or len(bound) != 2:
        return {}
    value, sizes = bound
    if value is not None or sizes is None:  # what is split has to be there when a plan runs
        return {}
    if sizes.dtype != np.int64 or sizes.shape != (len(node.outputs),):
        return {}
    wide = sizes.tolist()
    if min(wide) < 1:
        return {}
    places = [sum(wide[:i]) for i in range(len(wide))]
    return {
        name: Piece(node.inputs[0], place, sum(wide))
        for name, place, size in zip(node.outputs, places, wide, strict=True)
        if size == 1
    }
