"""A plan that is prepared once and run many times, with other numbers in the same arrays.

From one decoded token to the next only numbers change: an embedding, a position. Looking values up, checking shapes and laying
results out would say the same each time, in an interpreter that the weights have pushed out of the caches.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegemma.engine.layers import Chunk
from edgegemma.engine.plan import Plan, Work

F32 = NDArray[np.float32]
CHANGING = ("inputs_embeds", "per_layer_inputs", "position_ids")
"""Inputs of a decoder that are other ones for each token."""


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
    """A plan that `repeats`, with its inputs.

    Parameters
    ----------
    plan : Plan
    feeds : mapping
        Its inputs by name. Those that change are arrays that are written to before each run.
    state : object
        Handed to every call, now. It is not kept.
    """

    def __init__(self, plan: Plan, feeds: Mapping[str, Any], state: Any) -> None:
        values = dict(feeds)
        self._works = list[Work]()
        *steps, last = (step.call for step in plan.stretches)
        for call in steps:
            given = [values[name] if name else None for name in call.inputs]
            if call.prepare:
                results, work = call.prepare(given, state)
                self._works.append(work)
            else:
                results = call.run(given, state)
            values.update(zip(call.node.outputs, results, strict=True))
        self._last = last
        self._given = [values[name] if name else None for name in last.inputs]
        self._place = last.node.outputs.index(plan.outputs[0])

    def run(self, state: Any) -> Any:
        """Run once more, and give the plan's first output: an array of its own each time."""
        assert self._last.prepare is not None  # `repeats`
        results, work = self._last.prepare(self._given, state)
        for earlier in self._works:
            earlier()
        work()
        return results[self._place]


class Token:
    """A decoder's step for one token of one text.

    Parameters
    ----------
    plan : Plan
        The decoder's; it `repeats` while `CHANGING` do.
    absent : mapping
        Inputs that it is told it gets none of.
    embeds, per_layer : float32 [1, H] and [1, L, P]
        Of the first token, or others of this shape.
    chunk : object
        Where the text is; see `Repeat`.

    Attributes
    ----------
    plan : Plan
    """

    def __init__(
        self, plan: Plan, absent: Mapping[str, Any], embeds: F32, per_layer: F32, chunk: Chunk
    ) -> None:
        self.plan = plan
        self._embeds, self._per_layer = np.empty_like(embeds), np.empty_like(per_layer)
        self._position = np.array([[chunk.start]])
        feeds = {
            **absent,
            "inputs_embeds": self._embeds[None],
            "per_layer_inputs": self._per_layer[None],
            "position_ids": self._position,
            "num_logits_to_keep": np.array(1),
        }
        self._repeat = Repeat(plan, feeds, chunk)

    def run(self, embeds: F32, per_layer: F32, chunk: Chunk) -> Any:
        """Read a token at the chunk's position; give the decoder's logits."""
        np.copyto(self._embeds, embeds)
        np.copyto(self._per_layer, per_layer)
        self._position[0, 0] = chunk.start
        return self._repeat.run(chunk)
