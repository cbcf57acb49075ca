"""A second device for machines that have one: tensors there may not meet tensors here.

It stands in for a GPU in tests of where things are. It calls itself "meta", which every build of torch knows; its
tensors have numbers all the same, computed on the CPU by the same kernels, so that results are equal bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

ELSEWHERE = torch.device("meta")
INTO = torch.ops.aten.copy_.default  # its first tensor is what is written
MOVES = (torch.ops.aten._to_copy.default, INTO)


class Away(torch.Tensor):
    """A tensor on the second device, around the one that holds its numbers."""

    def __new__(cls, held: torch.Tensor) -> Away:
        """Look like a tensor, but elsewhere."""
        made: Away = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=ELSEWHERE,
        )
        return made

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def tolist(self) -> Any:
        """Fetch the numbers, which torch does for its own tensors only."""
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        """Refuse what nobody looks after."""
        raise RuntimeError(f"{func}: on the second device outside of `two_devices`")


class TwoDevices(TorchDispatchMode):
    """Runs every operation where its tensors are; refuses one that has tensors on both devices."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        options = dict(kwargs or {})
        tensors = [t for t in tree_leaves((args, options)) if isinstance(t, torch.Tensor)]
        away = [t for t in tensors if isinstance(t, Away)]
        here = [t for t in tensors if not isinstance(t, Away) and t.dim()]  # a number may travel
        if away and here and func not in MOVES:
            raise RuntimeError(f"{func}: has tensors on two devices")
        goes = isinstance(args[0], Away) if func is INTO else bool(away)
        if options.get("device") is not None:
            goes, options["device"] = torch.device(options["device"]) == ELSEWHERE, "cpu"
        own = {id(t.held): t for t in away}
        args, options = tree_map_only(Away, lambda t: t.held, (args, options))
        made = func(*args, **options)

        def placed(tensor: torch.Tensor) -> torch.Tensor:
            given = own.get(id(tensor))  # what an operation writes in place is still that tensor
            if given is not None:
                return given
            return Away(tensor) if goes else tensor

        return tree_map_only(torch.Tensor, placed, made)


class Moved(TorchFunctionMode):
    """Makes tensors of numbers of Python here and then moves them: torch does it where `TwoDevices` cannot look."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function."""
        options = dict(kwargs or {})
        if func is torch.tensor and options.get("device") == ELSEWHERE:
            return func(*args, **options | {"device": "cpu"}).to(ELSEWHERE)
        return func(*args, **options)


@contextmanager
def two_devices() -> Iterator[torch.device]:
    """Give the second device."""
    with Moved(), TwoDevices():
        yield ELSEWHERE
