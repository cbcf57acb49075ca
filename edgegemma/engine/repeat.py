"""A plan that is prepared once and run many times, with other numbers in the same arrays.

From one decoded token to the next only numbers change: an embedding, a position. Looking values up, checking shapes and laying
results out would say the same each time, in an interpreter that the weights have pushed out of the caches.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from edgegemma.engine.plan import Plan, Work


def repeats(plan: Plan, changing: Collection[str]) -> bool:
    """Tell whether a plan can be repeated while some of its inputs change.

    What takes one of them, or what comes from it, must be prepared, or give views of it and not read it. The last step gives the
    plan's first output.
    """
    changed = set(changing)
    for step in plan.stretches:
        call = step.call
        if not changed.isdisjoint(call.inputs):
            if not (call.prepare or call.views):
                return False
            changed.update(call.node.outputs)
    last = plan.stretches[-1].call if plan.stretches else None
    return last is not None and last.prepare is not None and plan.outputs[0] in last.node.outputs


class Repeat:
    """A plan that `repeats`, laid out once.

    Parameters
    ----------
    plan : Plan
    feeds : mapping
        Its inputs by name.
    changing : collection of str
        Those that are others in each run: arrays, each of one shape and type.
    state : object
        Handed to every call, now. It is not kept.

    Attributes
    ----------
    plan : Plan
    """

    def __init__(
        self, plan: Plan, feeds: Mapping[str, Any], changing: Collection[str], state: Any
    ) -> None:
        self.plan = plan
        self._changing = {name: np.array(feeds[name]) for name in changing}
        values = {**feeds, **self._changing}
        self._works = list[Work]()
        *steps, self._last = (step.call for step in plan.stretches)
        for call in steps:
            if call.prepare:
                results, work = call.prepare(call.given(values), state)
                self._works.append(work)
            else:
                results = call.run(call.given(values), state)
            values.update(zip(call.node.outputs, results, strict=True))
        self._given = self._last.given(values)
        self._place = self._last.node.outputs.index(plan.outputs[0])

    def run(self, feeds: Mapping[str, Any], state: Any) -> Any:
        """Run with other inputs, and give the plan's first output: an array of its own each time."""
        for name, array in self._changing.items():
            np.copyto(array, feeds[name])
        assert self._last.prepare is not None  # `repeats`
        results, work = self._last.prepare(self._given, state)
        for earlier in self._works:
            earlier()
        work()
        return results[self._place]
