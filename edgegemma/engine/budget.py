"""What a session will need, part by part, and whether a limit can hold: said before anything is allocated.

Interpreter and kernels are measured once (`edgegemma run --stats` and `bench memory`, E2B): how much Python and its
libraries take, and what the kept kernels and LLVM's tables take when they are loaded. Everything else is counted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from edgegemma.engine.graph import Graph
from edgegemma.errors import BudgetError

INTERPRETER_BYTES = 150_000_000
KERNELS_BYTES = 65_000_000


@dataclass(frozen=True)
class Plan:
    """Bytes of a session at its largest, by part.

    Attributes
    ----------
    weights : mapped matrices of the decoder, its head included; rows of tables are read, not mapped
    audio : the encoder's mapped weights and its state; 0 without one
    inline : small weights inside the graphs
    scratch : what a full chunk needs while it runs
    cache : keys and values of the contexts asked for
    interpreter, kernels : Python and its libraries, compiled code and LLVM
    """

    weights: int
    audio: int
    inline: int
    scratch: int
    cache: int
    interpreter: int = INTERPRETER_BYTES
    kernels: int = KERNELS_BYTES

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(vars(self).values())

    def check(self, limit: int) -> None:
        """Refuse a limit below the total, with the parts.

        Raises
        ------
        BudgetError
        """
        if self.total > limit:
            parts = ", ".join(f"{name} {size / 1e6:.0f}" for name, size in vars(self).items())
            raise BudgetError(
                f"memory limit: got {limit / 1e6:.0f} MB; want {self.total / 1e6:.0f} MB: {parts}; "
                "ask for a shorter context or --kv int8, or raise the limit"
            )


def external_bytes(graphs: Iterable[Graph]) -> int:
    """Bytes of the files' ranges that these graphs map, a range that two name counted once; not tables that are read by row."""
    ranges = {}
    for graph in graphs:
        rowwise = {n for node in graph.nodes if node.op == "GatherRows" for n in node.inputs}
        for tensor in graph.tensors.values():
            if tensor.data is None and tensor.name not in rowwise:
                ranges[tensor.location, tensor.offset] = tensor.length
    return sum(ranges.values())
