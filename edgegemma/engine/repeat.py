"""Plans, one behind the other, that are prepared once and run many times, with other numbers in the same arrays.

From one decoded token to the next only numbers change: an id, a position. Looking values up, checking shapes and laying
results out would say the same each time, in an interpreter that the weights have pushed out of the caches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from edgegemma.engine.plan import Call, Plan, Work


def repeats(plans: Sequence[Plan], changing: Collection[str]) -> bool:
    """Tell whether plans, of which each may take what those before it give, can be repeated while some inputs change.

    What takes one of them, or what comes from it, must be prepared, or give views of it and not read it. The last step gives the
    first output of the last plan.
    """
    changed = set(changing)
    for plan in plans:
        own = set(changed)
        for call in (step.call for step in plan.stretches):
            if not own.isdisjoint(call.inputs):
                if not (call.prepare or call.views):
                    return False
                own.update(call.node.outputs)
        changed.update(own.intersection(plan.outputs))
    last = plans[-1].stretches[-1].call if plans[-1].stretches else None
    return bool(last and last.prepare and plans[-1].outputs[0] in last.node.outputs)


class Repeat:
    """Plans that `repeats` told of, laid out once.

    Parameters
    ----------
    plans : sequence of Plan
    feeds : mapping
        Their inputs by name, but for those that plans before them give.
    changing : collection of str
        Inputs that are others in each run: arrays, each of one shape and type.
    state : object
        Handed to every call, now. It is not kept.

    Attributes
    ----------
    plans : tuple of Plan
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        feeds: Mapping[str, Any],
        changing: Collection[str],
        state: Any,
    ) -> None:
        self.plans = tuple(plans)
        self._changing = {name: np.array(feeds[name]) for name in changing}
        self._works = list[Work]()
        values = {**feeds, **self._changing}
        *plans, last = plans
        for plan in plans:
            found = self._lay_out((step.call for step in plan.stretches), values, state)
            values.update((name, found[name]) for name in plan.outputs)
        *calls, self._last = (step.call for step in last.stretches)
        self._given = self._last.given(self._lay_out(calls, values, state))
        self._place = self._last.node.outputs.index(last.outputs[0])

    def _lay_out(
        self, calls: Iterable[Call], feeds: Mapping[str, Any], state: Any
    ) -> Mapping[str, Any]:
        """Run calls that can be run once, prepare the others; give all values."""
        values = dict(feeds)
        for call in calls:
            if call.prepare:
                results, work = call.prepare(call.given(values), state)
                self._works.append(work)
            else:
                results = call.run(call.given(values), state)
            values.update(zip(call.node.outputs, results, strict=True))
        return values

    def run(self, inputs: Mapping[str, Any], state: Any) -> Any:
        """Run with other inputs, and give the last plan's first output: an array of its own each time."""
        for name, array in self._changing.items():
            np.copyto(array, inputs[name])
        assert self._last.prepare is not None  # `repeats`
        results, work = self._last.prepare(self._given, state)
        for earlier in self._works:
            earlier()
        work()
        return results[self._place]
