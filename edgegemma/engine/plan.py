"""A graph and the outputs that are wanted, as a flat list of steps.

Walking back from the outputs leaves everything else unrun: asking a decoder for its ``present.*`` alone
never reaches the layers that share K/V, the last norm or the head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edgegemma.engine.graph import Graph, Node
from edgegemma.engine.ops import FAILURES, OPS
from edgegemma.errors import PackageError
from edgegemma.package import Package

Run = Callable[[Sequence[Any], Any], Sequence[Any]]


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
    reads : mapping
        Bytes of weights that one run reads, by kind: "linear", "head", "float", "vector".
    row_bytes : int
        Bytes that it reads from disk for each position.
    width : int
        Floats of scratch that the kernel takes for each position, about.
    narrow : callable or None
        From the names of values that are taken later to a call that gives no more than those need.
    parts : tuple
        What the call consists of, if it may run as one with the call after it.
    join : callable or None
        From the parts of calls of which each takes the first output of the one before as its first input, to what runs them
        all: from the inputs of the first and the other inputs of the rest to the first output of the last and the other
        outputs of all. None if they do not go together.
    """

    node: Node
    inputs: tuple[str, ...]
    run: Run
    after: tuple[str, ...] = ()
    reads: Mapping[str, int] = field(default_factory=dict)
    row_bytes: int = 0
    width: int = 0
    narrow: Callable[[Set[str]], Call] | None = None
    parts: tuple[Any, ...] = ()
    join: Callable[[tuple[Any, ...]], Run | None] | None = None


@dataclass(frozen=True)
class Step:
    """A call in a plan, and the values nobody needs after it."""

    call: Call
    frees: tuple[str, ...]


@dataclass(frozen=True)
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
        """Run the steps.

        Parameters
        ----------
        feeds : mapping
            The graph's inputs by name. A value is freed after its last use.
        state : object
            Handed to every call: the cache and the positions of a decoder's chunk.
        after : callable, optional
            Called when a step is done; steps are not joined then.

        Returns
        -------
        list
            The plan's outputs, in its order.
        """
        values = dict(feeds)
        for step in self.steps if after else self.stretches:
            call = step.call
            given = [values[name] if name else None for name in call.inputs]
            results = call.run(given, state)
            values.update(zip(call.node.outputs, results, strict=True))
            for name in step.frees:
                del values[name]
            if after is not None:
                after()
        return [values[name] for name in self.outputs]

    @functools.cached_property
    def reads(self) -> Mapping[str, int]:
        """Bytes of weights that one run reads, by kind."""
        return _summed(step.call.reads for step in self.steps)


def make(graph: Graph, calls: Sequence[Call], outputs: Sequence[str]) -> Plan:
    """Keep the calls that the outputs need, in the graph's order."""
    needed, kept = set(outputs), []
    for call in reversed(calls):
        if needed.intersection(call.node.outputs):
            kept.append(call.narrow(needed) if call.narrow else call)
            needed.update(call.inputs, call.after)
    alive, steps = set(outputs), []
    for call in kept:  # backwards: the first use met is the last
        touched = {name for name in (*call.inputs, *call.node.outputs) if name}
        frees = tuple(sorted(touched - alive))
        alive |= touched
        steps.append(Step(call, frees))
    steps.reverse()
    return Plan(graph.name, tuple(steps), tuple(_joined(steps)), tuple(outputs))


def _joined(steps: Sequence[Step]) -> list[Step]:
    joined: list[Step] = []
    for step in steps:
        both = _both(joined[-1], step) if joined else None
        if both:
            joined[-1] = both
        else:
            joined.append(step)
    return joined


def _both(first: Step, second: Step) -> Step | None:
    """Make one step of two, if the second takes what the first gives, as its first input alone, and nobody else does."""
    one, other = first.call, second.call
    value, *rest = one.node.outputs
    if not (one.join and other.parts and other.inputs[0] == value and value in second.frees):
        return None
    if set(one.node.outputs).intersection(other.inputs[1:]):
        return None
    parts = one.parts + other.parts
    run = one.join(parts)
    if run is None:
        return None
    node = replace(one.node, outputs=(other.node.outputs[0], *rest, *other.node.outputs[1:]))
    inputs = one.inputs + other.inputs[1:]
    reads = _summed((one.reads, other.reads))
    frees = sorted({*first.frees, *second.frees} - {value})
    call = replace(one, node=node, inputs=inputs, run=run, reads=reads, parts=parts)
    return Step(call, tuple(frees))


def _summed(reads: Iterable[Mapping[str, int]]) -> Mapping[str, int]:
    total: dict[str, int] = {}
    for one in reads:
        for kind, size in one.items():
            total[kind] = total.get(kind, 0) + size
    return total


def glue(graph: Graph, package: Package, node: Node) -> Call:
    """Make an op ready to run; inputs that are constants are bound."""
    op, attributes = OPS[node.op], node.attributes
    alone = [one for one in graph.nodes if one.op == "Constant" and not (one.domain or one.inputs)]
    given = {name: one for one in alone for name in one.outputs}
    constants: dict[int, Any] = {}
    for i, name in enumerate(node.inputs):
        if name in graph.tensors:
            constants[i] = graph.tensors[name].array(package)
        elif name in given:
            (constants[i],) = glue(graph, package, given[name]).run((), None)
    names = tuple(name for i, name in enumerate(node.inputs) if i not in constants)
    places = [i for i in range(len(node.inputs)) if i not in constants]

    def run(values: Sequence[Any], state: Any) -> Sequence[Any]:
        del state
        every: list[Any] = [constants.get(i) for i in range(len(node.inputs))]
        for place, value in zip(places, values, strict=True):
            every[place] = value
        try:
            if not all(value is None or isinstance(value, np.ndarray) for value in every):
                raise TypeError("got keys or values of the cache; want an array")
            results = op(attributes, every)
        except FAILURES as error:
            raise PackageError(f"{graph.name}: {node.name!r}: {error}") from error
        if len(results) != len(node.outputs):
            raise PackageError(f"{graph.name}: {node.name!r}: gives {len(results)} outputs")
        return results

    return Call(node, names, run)
