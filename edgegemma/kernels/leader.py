"""Kernels that Python calls and that have the threads at hand all the way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from numba import njit

from edgegemma.kernels import threads
from edgegemma.kernels.fork import Shared, fork, gather
from edgegemma.kernels.late import kept_as, keyed, ready
from edgegemma.kernels.simd import plain
from edgegemma.kernels.team import open_team


def leader(kind: str, signature: Any, function: Callable[..., Any]) -> Any:
    """Make a function for Python that runs a kernel while a team serves it, and the interpreter's lock is free.

    Parameters
    ----------
    kind : str
        What tells it from others that are made of a function of this name.
    signature : Numba's signature
        What arrives may be read-only where an array is wanted.
    function : callable
        What the kernel does.
    """
    name = f"{function.__name__}_{hashlib.sha256(kind.encode()).hexdigest()[:16]}"
    work = njit(function)

    def led(*given):  # type: ignore[no-untyped-def]
        work(*given[:-2])  # of all jobs, one

    kept_as(function, led)
    Shared(name, signature.args, led)

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
