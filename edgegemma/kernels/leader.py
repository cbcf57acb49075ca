"""Kernels that Python calls and that have the threads at hand all the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from edgegemma.kernels import threads
from edgegemma.kernels.fork import gather
from edgegemma.kernels.late import Kernel, call, keyed, ready
from edgegemma.kernels.team import open_team


def leader(name: str, signature: Any, function: Callable[..., Any]) -> Any:
    """Make a function for Python that runs a kernel while a team serves it, and the interpreter's lock is free.

    Parameters
    ----------
    name : str
        Unlike that of any other kernel.
    signature : Numba's signature
        What arrives may be read-only where an array is wanted.
    function : callable
        What the kernel does.
    """
    Kernel(name, signature, function)

    def run(*given):  # type: ignore[no-untyped-def]
        args = _writable(given)
        address = ready(name)
        if threads.count() == 1:
            call(name, address, args)
            return
        serve, _ = ready("serve"), ready("hand_out")
        open_team()
        gather(name, address, args, serve)

    dispatcher = njit(cache=True, nogil=True)(run)
    keyed(dispatcher, name)
    return dispatcher


def _writable_intrinsic(_context, given):  # type: ignore[no-untyped-def]
    """Forget that arrays of a tuple are read-only, as `simd.plain` does."""
    kinds = [k.copy(readonly=False) if isinstance(k, types.Array) else k for k in given]
    result = types.Tuple(kinds)

    def codegen(context: Any, b: Any, _signature: Any, args: Any) -> Any:
        context.nrt.incref(b, result, args[0])
        return cgutils.pack_struct(b, cgutils.unpack_tuple(b, args[0], len(kinds)))

    return result(given), codegen


_writable: Any = intrinsic(_writable_intrinsic)
