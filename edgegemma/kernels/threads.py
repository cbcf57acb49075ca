"""The one pool of threads that kernels run on: Numba's."""

from __future__ import annotations

import os
import threading
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

SPINS = "10000"

# Some of Numba's threading layers abort the process when two threads start parallel work at once.
lock = threading.RLock()


def calm() -> None:
    """Have waiting threads give their core away soon, unless the environment says how they wait.

    OpenMP's threads wait for each other by spinning, by default for some milliseconds. When a token had some 200
    parallel regions, that cost seconds where other programs wanted the cores too: a token of an E2B-sized 2-bit
    model on two busy cores took 7 to 12 s. Too few spins cost as well: a thread that went to sleep takes 20 µs to
    wake, and the same model took 52 ms a token with 300 spins, 46 ms with 20,000 on two idle cores. These are some
    0.1 ms. Within layers a `team` waits in its own way. libgomp reads the number when it is loaded, which is when Numba sees the first parallel function: call
    this before.
    """
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def use(count: int) -> int:
    """Let kernels called from this thread run on ``count`` threads.

    Returns
    -------
    int
        How many it will be: Numba's pool has a size of its own (``NUMBA_NUM_THREADS``).
    """
    allowed = max(1, min(count, int(vars(numba.config)["NUMBA_NUM_THREADS"])))
    if numba.get_num_threads() != allowed:
        numba.set_num_threads(allowed)
    return allowed


def count_of(b: Any) -> Any:
    """Give the number of threads, in LLVM's terms."""
    kind = ir.FunctionType(ir.IntType(64), [])
    return b.call(cgutils.get_or_insert_function(b.module, kind, "get_num_threads"), [])


def _count(_context):  # type: ignore[no-untyped-def]
    """Give the number of threads, in compiled code: `numba.get_num_threads` cannot be kept in the cache."""

    def codegen(_context: Any, b: Any, _signature: Any, _args: Any) -> Any:
        return count_of(b)

    return types.int64(), codegen


count: Any = intrinsic(_count)
