"""Kernels that Python calls and that have the threads at hand all the way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from numba import njit

from edgegemma.kernels import threads
from edgegemma.kernels.fork import Shared, fork, gather
from edgegemma.kernels.late import keyed, ready
from edgegemma.kernels.simd import plain
from edgegemma.kernels.team import open_team


def leader(kind: str, kinds: Sequence[Any], function: Callable[..., Any]) -> Any:
    """Make a function for Python that runs a kernel while a team serves it, and the interpreter's lock is free.

    Parameters
    ----------
    kind : str
        What tells it from others that are made of a function of this name.
    kinds : sequence of Numba's types
        Those of the arguments. What arrives may be read-only where an array is wanted.
    function : callable
        What the kernel does: as that of a `Shared` kernel of one job.
    """
    name = f"{function.__name__}_{hashlib.sha256(kind.encode()).hexdigest()[:16]}"
    Shared(name, kinds, function)

    def run(*given):  # type: ignore[no-untyped-def]
        args = plain(given)
        address = ready(name)
        if threads.count() == 1:
            fork(name, address, args, 1)
            return
        serve, _ = ready("serve"), ready("hand_out")
        open_team()
        gather(name, address, args, serve)

    dispatcher = njit(cache=True, nogil=True)(run)
    keyed(dispatcher, name)
    return dispatcher
