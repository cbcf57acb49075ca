"""The one pool of threads that kernels run on: Numba's."""

from __future__ import annotations

import threading

import numba

# Some of Numba's threading layers abort the process when two threads start parallel work at once.
lock = threading.RLock()


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
