"""Plans made of calls: what runs, in which order, as one or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import pytest

from edgegemma.engine import abi, plan
from edgegemma.engine.graph import Graph, Node
from edgegemma.errors import PackageError
from edgegemma.package import Package


def graph_of(nodes: Sequence[Node]) -> Graph:
    return Graph("g.onnx", abi.IR_VERSION, abi.OPSETS, {}, {}, tuple(nodes), {}, {})


def chain() -> plan.Plan:
    """x → a → b → c and x → d; c wants b and a."""
    edges = [("a", ["x"]), ("b", ["a"]), ("d", ["x"]), ("c", ["b", "a"])]
    nodes = [Node("Sum", "", name, tuple(given), (name,), {}) for name, given in edges]
    calls = [
        plan.Call(node, node.inputs, lambda values, state: [sum(values) + state], reads={"w": 10})
        for node in nodes
    ]
    return plan.make(graph_of(nodes), calls, ["c"])


def test_only_what_the_outputs_need_is_run() -> None:
    assert [step.call.node.name for step in chain().steps] == ["a", "b", "c"]


def test_values_are_freed_after_their_last_use() -> None:
    assert [step.frees for step in chain().steps] == [("x",), (), ("a", "b")]


def test_a_plan_gives_its_outputs_and_what_it_reads() -> None:
    feeds = {"x": 1}
    assert chain().run(feeds, 100) == [402]
    assert feeds == {"x": 1}
    assert chain().reads == {"w": 30}


def test_an_output_that_is_an_input_needs_no_step() -> None:
    assert plan.make(graph_of([]), [], ["x"]).run({"x": 5}) == [5]


def test_a_call_runs_after_those_whose_cache_it_reads() -> None:
    nodes = [Node("L", "edgegemma", name, (), (name,), {}) for name in ("writes", "reads")]
    ran: list[str] = []

    def run(name: str) -> plan.Run:
        def note(values: Sequence[Any], state: Any) -> Sequence[Any]:
            ran.append(name)
            return [name]

        return note

    calls = [
        plan.Call(nodes[0], (), run("writes")),
        plan.Call(nodes[1], (), run("reads"), after=("writes",)),
    ]
    plan.make(graph_of(nodes), calls, ["reads"]).run({})
    assert ran == ["writes", "reads"]


def test_a_constant_is_bound_and_one_that_takes_something_is_run() -> None:
    nodes = [
        Node("Constant", "", "alone", (), ("shape",), {"value_ints": [2, 1]}),
        Node("Constant", "", "taking", ("x",), ("odd",), {"value_int": 7}),
        Node("Reshape", "", "reshape", ("x", "shape"), ("y",), {}),
        Node("Identity", "", "same", ("odd",), ("z",), {}),
    ]
    graph = graph_of(nodes)
    calls = [plan.glue(graph, cast("Package", None), node) for node in nodes]
    made = plan.make(graph, calls, ["y", "z"])
    assert [step.call.node.name for step in made.steps] == ["taking", "reshape", "same"]
    y, z = made.run({"x": np.array([3, 4])})
    assert y.tolist() == [[3], [4]]
    assert z == 7


def test_glue_runs_next_to_what_it_needs() -> None:
    """A function of weights, then glue that needs it not, then glue that does."""
    nodes = [
        Node("L", "edgegemma", "first", ("x",), ("a",), {}),
        Node("L", "edgegemma", "second", ("a",), ("b",), {}),
        Node("Neg", "", "of x", ("x",), ("c",), {}),
        Node("Neg", "", "of a", ("a",), ("d",), {}),
        Node("L", "edgegemma", "third", ("b", "c", "d"), ("e",), {}),
    ]
    calls = [plan.Call(node, node.inputs, lambda values, state: [0]) for node in nodes]
    steps = plan.make(graph_of(nodes), calls, ["e"]).steps
    assert [step.call.node.name for step in steps] == ["of x", "first", "of a", "second", "third"]


@pytest.mark.parametrize(
    ("kind", "sizes", "axis", "pieces"),
    [
        ("value_ints", [1, 1, 2], 2, {"p": ("x", 0, 4), "q": ("x", 1, 4)}),
        ("value_ints", [2, 1, 1], 2, {"q": ("x", 2, 4), "r": ("x", 3, 4)}),
        ("value_ints", [1, 1, 2], 1, {}),
        ("value_ints", [1, 3], 2, {}),
        ("value_ints", [1, 1, 0], 2, {}),
        ("value_int", 3, 2, {}),
        ("value_floats", [1.0, 1.0, 1.0], 2, {}),
    ],
)
def test_parts_that_are_one_wide_are_known_to_be_pieces(
    kind: str, sizes: Any, axis: int, pieces: dict[str, tuple[str, int, int]]
) -> None:
    nodes = [
        Node("Constant", "", "sizes", (), ("s",), {kind: sizes}),
        Node("Split", "", "split", ("x", "s"), ("p", "q", "r"), {"axis": axis}),
    ]
    call = plan.glue(graph_of(nodes), cast("Package", None), nodes[1])
    assert call.pieces == pieces


def test_parts_of_a_constant_are_no_pieces() -> None:
    """A plan has no such value to hand over whole."""
    nodes = [
        Node("Constant", "", "whole", (), ("x",), {"value_floats": [1.0, 2.0]}),
        Node("Constant", "", "sizes", (), ("s",), {"value_ints": [1, 1]}),
        Node("Split", "", "split", ("x", "s"), ("p", "q"), {"axis": 2}),
    ]
    assert not plan.glue(graph_of(nodes), cast("Package", None), nodes[2]).pieces


def nothing() -> None:
    """Work that is done already."""


def events(between: Node, *constants: Node) -> list[str]:
    """What happens, in order, to x → first → between → second, of which the functions are prepared."""
    happened: list[str] = []

    def prepared(node: Node) -> plan.Call:
        def prepare(values: Sequence[Any], state: Any) -> tuple[Sequence[Any], plan.Work]:
            happened.append(f"prepare {node.name}")
            return [values[0]], partial(happened.append, f"do {node.name}")

        return plan.Call(node, node.inputs, plan.at_once(prepare), prepare)

    first = Node("L", "edgegemma", "first", ("x",), ("a",), {})
    second = Node("L", "edgegemma", "second", ("b",), ("c",), {})
    graph = graph_of([first, between, second, *constants])
    glue = plan.glue(graph, cast("Package", None), between)

    def run(values: Sequence[Any], state: Any) -> Sequence[Any]:
        happened.append(between.op)
        return glue.run(values, state)

    calls = [prepared(first), replace(glue, run=run), prepared(second)]
    plan.make(graph, calls, ["c"]).run({"x": np.ones((1, 2, 3), np.float32)})
    return happened


def test_all_calls_are_prepared_before_the_first_works() -> None:
    node = Node("Identity", "", "view", ("a",), ("b",), {})
    assert events(node) == ["prepare first", "Identity", "prepare second", "do first", "do second"]


def test_what_a_function_gives_is_reshaped_before_it_is_filled() -> None:
    shape = Node("Constant", "", "shape", (), ("shape",), {"value_ints": [3, 2]})
    node = Node("Reshape", "", "view", ("a", "shape"), ("b",), {})
    happened = events(node, shape)
    assert happened == ["prepare first", "Reshape", "prepare second", "do first", "do second"]


def test_a_reshape_of_nothing_is_refused() -> None:
    node = Node("Reshape", "", "empty", (), ("y",), {})
    call = plan.glue(graph_of([node]), cast("Package", None), node)
    with pytest.raises(PackageError, match="empty"):
        call.run((), None)


def test_an_op_that_reads_a_value_waits_for_it() -> None:
    node = Node("Neg", "", "reads", ("a",), ("b",), {})
    assert events(node) == ["prepare first", "do first", "Neg", "prepare second", "do second"]


def test_calls_that_run_as_one_run_after_all_whose_cache_they_read() -> None:
    nodes = [
        Node("L", "edgegemma", "writes", (), ("k",), {}),
        Node("L", "edgegemma", "first", ("x",), ("a",), {}),
        Node("L", "edgegemma", "second", ("a",), ("b",), {}),
    ]

    def join(parts: Sequence[Any], pieces: Mapping[str, plan.Piece]) -> plan.Joined:
        return lambda values, state: (["both"], nothing), ()

    calls = [
        plan.Call(nodes[0], (), lambda values, state: ["k"]),
        plan.Call(nodes[1], ("x",), lambda values, state: ["a"], kind="L", join=join),
        plan.Call(nodes[2], ("a",), lambda values, state: ["b"], after=("k",), kind="L", join=join),
    ]
    made = plan.make(graph_of(nodes), calls, ["b"])
    assert [step.call.node.name for step in made.stretches] == ["writes", "first"]


def test_a_split_of_which_only_one_part_is_wanted_gives_only_that() -> None:
    nodes = [
        Node("Constant", "", "sizes", (), ("s",), {"value_ints": [1, 2]}),
        Node("Split", "", "split", ("x", "s"), ("p", "q"), {"axis": 0}),
    ]
    graph = graph_of(nodes)
    calls = [plan.glue(graph, cast("Package", None), node) for node in nodes]
    (step,) = plan.make(graph, calls, ["q"]).steps
    first, second = step.call.run([np.arange(3)], None)
    assert first is None
    assert second.tolist() == [1, 2]


def pair(between: str, beside: str = "y") -> plan.Plan:
    """x → a → b, which may run as one; b takes ``beside`` too, and b and ``between`` are wanted."""
    nodes = [
        Node("L", "", "a", ("x",), ("a", "k"), {}),
        Node("L", "", "b", ("a", beside), ("b",), {}),
    ]

    def join(parts: Sequence[Any], pieces: Mapping[str, plan.Piece]) -> plan.Joined:
        numbers = [number for number, _ in parts]
        names = tuple(name for _, own in parts for name in own)
        return lambda values, state: ([f"{values} by {numbers}", "k of both"], nothing), names

    def run(values: Sequence[Any], state: Any) -> Sequence[Any]:
        return [f"{values} alone", "k"]

    one: dict[str, Any] = {"kind": "L", "join": join}
    calls = [
        plan.Call(nodes[0], ("x",), run, reads={"w": 1}, part=(1, ()), **one),
        plan.Call(nodes[1], ("a", beside), lambda v, s: run(v, s)[:1], part=(2, (beside,)), **one),
    ]
    return plan.make(graph_of(nodes), calls, ["b", between])


def test_two_calls_run_as_one_with_the_inputs_of_both() -> None:
    assert pair("k").run({"x": "X", "y": "Y"}) == ["['X', 'Y'] by [1, 2]", "k of both"]
    assert pair("k").reads == {"w": 1}


def test_a_value_that_is_wanted_keeps_two_calls_apart() -> None:
    assert pair("a").run({"x": "X", "y": "Y"})[1] == "['X'] alone"


@pytest.mark.parametrize("beside", ["a", "k"])
def test_a_value_that_is_taken_beside_the_first_keeps_two_calls_apart(beside: str) -> None:
    assert pair("b", beside).run({"x": "X"})[0].endswith("alone")


def test_calls_run_one_by_one_for_somebody_who_looks_after_each() -> None:
    seen: list[str] = []
    (first, _) = pair("k").run({"x": "X", "y": "Y"}, None, lambda: seen.append("step"))
    assert "alone" in first
    assert len(seen) == 2
