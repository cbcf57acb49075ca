"""What each call of a package takes and gives in the engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegemma.engine.graph import Graph, Node
from edgegemma.engine.layers import Chunk
from edgegemma.engine.session import EngineModel
from edgegemma.kernels import threads as pool
from edgegemma.package import Package

Array = NDArray[Any]


@dataclass
class Seen:
    """A node's values in the engine, run by run."""

    node: Node
    inputs: list[dict[str, Array]] = field(default_factory=list)
    outputs: list[dict[str, Array]] = field(default_factory=list)


class Recorder(EngineModel):
    """The engine, call by call, keeping all values between calls. For short inputs.

    Attributes
    ----------
    seen : dict
        What every node saw, by graph and the node's first output; in the order of the graph.
    """

    def __init__(self, package: Package, threads: int) -> None:
        super().__init__(package, threads, "float32")
        self.seen: dict[str, dict[str, Seen]] = {}
        self._repeats = False  # a single token is looked at, too

    def graph(self, name: str) -> Graph:
        """Give a graph of the package."""
        return self._programs[name].graph

    def _run(
        self, name: str, outputs: Sequence[str], feeds: Mapping[str, Any], state: Any, several: bool
    ) -> list[Any]:
        pool.use(self.prefill_threads if several else self.threads)
        before = _cached(self.graph(name).inputs, state, state.start) if state else {}
        values = {**feeds, **before}
        seen = self.seen.setdefault(name, {})
        with pool.lock, np.errstate(all="ignore"):
            for step in self._programs[name].plan(outputs).steps:
                node = step.call.node
                given = [values.get(key) for key in step.call.inputs]
                values.update(zip(node.outputs, step.call.run(given, state), strict=True))
                if state:
                    values.update(_cached(node.outputs, state, state.stop))
                entry = seen.setdefault(node.outputs[0], Seen(node))
                entry.inputs.append({key: values[key] for key in node.inputs if key in values})
                entry.outputs.append({key: values[key] for key in node.outputs})
        return [values[key] for key in outputs]


def _cached(names: Sequence[str] | Mapping[str, Any], chunk: Chunk, stop: int) -> dict[str, Array]:
    """Give the keys and values among some names as ONNX has them: float32 [1, kv_heads, stop, D].

    Right while no ring has wrapped around: the inputs are shorter than a window.
    """
    found = {}
    for name in names:
        kind, _, rest = name.partition(".")
        if kind in ("past_key_values", "present"):
            layer, part = rest.split(".")
            slot = chunk.cache.slot(int(layer))
            rows = slot.keys if part == "key" else slot.values
            found[name] = rows[:stop].transpose(1, 0, 2)[None].copy()
    return found
