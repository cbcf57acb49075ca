"""Decoded tokens whose plan is prepared once: the bits of a plan prepared for each."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgegemma.engine import abi, plan
from edgegemma.engine.cache import KVCache
from edgegemma.engine.graph import Graph, Node
from edgegemma.engine.graphs import DECODER
from edgegemma.engine.model import open_model
from edgegemma.engine.repeat import Repeat, repeats
from edgegemma.engine.session import EngineModel
from edgegemma.package import Package
from export.recording import Recorder
from tests import packages
from tests.fake_source import CONFIG, Kind

F32 = NDArray[np.float32]
IDS = np.random.default_rng(2).integers(0, CONFIG.text.vocab_size, 90)


def opened(folder: Path) -> EngineModel:
    model = open_model(folder, threads=1)
    assert isinstance(model, EngineModel)
    return model


@pytest.fixture(scope="module", params=["codes", "float32"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EngineModel:
    kind: Kind = request.param
    return opened(packages.small(tmp_path_factory.mktemp(kind) / "small", kind))


@pytest.fixture(scope="module")
def once(model: EngineModel) -> EngineModel:
    """The same, which prepares its plan for every token."""
    other = opened(model.package.path)
    other._repeats = False
    return other


def token(model: EngineModel, cache: Any, n: int) -> F32:
    return model.decode(int(IDS[n]), cache)[None]


def test_a_decoder_repeats(model: EngineModel) -> None:
    assert model._repeats


def test_tokens_have_the_bits_of_single_runs(model: EngineModel, once: EngineModel) -> None:
    caches = [each.new_cache(100, 8) for each in (model, once)]
    for n in range(80):  # beyond the windows, and around the rings
        one, other = (token(m, c, n) for m, c in zip((model, once), caches, strict=True))
        np.testing.assert_array_equal(one, other)


def test_a_text_may_go_back_and_be_read_in_chunks_between_tokens(
    model: EngineModel, once: EngineModel
) -> None:
    found = []
    for each in (model, once):
        cache = each.new_cache(60)
        said = [token(each, cache, n) for n in range(5)]
        cache.truncate(2)
        said.append(each.forward(*each.embed(IDS[10:30]), cache))
        said += [token(each, cache, n) for n in range(40, 44)]
        found.append(np.concatenate(said))
    np.testing.assert_array_equal(found[0], found[1])


def test_texts_by_turns_do_not_disturb_each_other(model: EngineModel) -> None:
    alone, one, other = (model.new_cache(30) for _ in range(3))
    for n in range(6):
        want, found = token(model, alone, n), token(model, one, n)
        np.testing.assert_array_equal(found, want)
        token(model, other, 50 - n)


def test_logits_stay_as_they_are(model: EngineModel) -> None:
    cache = model.new_cache(8)
    first = token(model, cache, 0)
    before = first.copy()
    token(model, cache, 1)
    np.testing.assert_array_equal(first, before)


def test_another_plan_is_not_taken_for_the_one_before(model: EngineModel) -> None:
    cache, ran = model.new_cache(8), list[str]()
    token(model, cache, 0)
    steps = model.decoder_plan(logits=True)
    *first, last = steps.stretches

    def prepare(values: Sequence[Any], state: Any) -> tuple[Sequence[Any], plan.Work]:
        assert last.call.prepare
        ran.append(last.call.node.name)
        return last.call.prepare(values, state)

    noted = replace(last, call=replace(last.call, prepare=prepare))
    plans = model._programs[DECODER]._plans
    kept = dict(plans)
    plans.update({key: replace(steps, stretches=(*first, noted)) for key in plans})
    try:
        token(model, cache, 1)
    finally:
        plans.update(kept)
    assert ran == ["lm_head"]


def test_a_recorder_sees_single_tokens(model: EngineModel) -> None:
    recorder = Recorder(Package.open(model.package.path), 1)
    cache = recorder.new_cache(8)
    for n in range(2):
        token(recorder, cache, n)
    assert [len(entry.outputs) for entry in recorder.seen[DECODER].values()] == [2] * len(
        recorder.seen[DECODER]
    )


def test_a_text_that_is_gone_leaves_nothing(model: EngineModel) -> None:
    cache = model.new_cache(8)
    token(model, cache, 0)
    assert isinstance(cache, KVCache)
    seen = weakref.ref(cache)
    del cache
    gc.collect()
    assert seen() is None


Give = Callable[[NDArray[Any]], NDArray[Any]]


def call(name: str, given: str, give: Give, how: str) -> plan.Call:
    """A call of one value: prepared, a view of it, or run at once."""
    node = Node("Op", "", name, (given,), (name,), {})

    def prepare(values: Sequence[Any], _: Any) -> tuple[Sequence[Any], plan.Work]:
        y = np.empty_like(values[0])
        return [y], lambda: np.copyto(y, give(values[0]))

    def run(values: Sequence[Any], _: Any) -> Sequence[Any]:
        return [give(values[0])]

    if how == "prepared":
        return plan.Call(node, (given,), plan.at_once(prepare), prepare)
    return plan.Call(node, (given,), run, views=how == "view")


def made(*calls: plan.Call) -> plan.Plan:
    nodes = tuple(each.node for each in calls)
    graph = Graph("g.onnx", abi.IR_VERSION, abi.OPSETS, {}, {}, nodes, {}, {})
    return plan.make(graph, calls, [nodes[-1].name])


def test_a_plan_is_run_again_on_what_its_inputs_hold_now() -> None:
    steps = made(
        call("tail", "x", lambda v: v[1:], "view"),
        call("half", "tail", lambda v: v / 2, "prepared"),
        call("more", "half", lambda v: v + 1, "prepared"),
    )
    repeat = Repeat([steps], {"x": np.array([0.0, 2.0])}, ["x"], None)
    found = [repeat.run({"x": np.array([0.0, value])}, None) for value in (2.0, 6.0)]
    assert [each.tolist() for each in found] == [[2.0], [4.0]]


@pytest.mark.parametrize(
    ("how", "changing", "can"),
    [
        (("run", "prepared"), "x", False),  # it would keep what it gave the first time
        (("run", "prepared"), "other", True),
        (("view", "prepared"), "x", True),
        (("prepared", "run"), "x", False),
        (("prepared", "view"), "x", False),  # every run gives an output of its own
    ],
)
def test_what_reads_what_changes_must_be_prepared(
    how: tuple[str, str], changing: str, can: bool
) -> None:
    first, second = how
    steps = made(call("a", "x", lambda v: v, first), call("b", "a", lambda v: v, second))
    assert repeats([steps], [changing]) == can
