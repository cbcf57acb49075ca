"""The machine: memory in use, and the cores to use."""

from __future__ import annotations

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegemma.errors import BudgetError

_CPUS = Path("/sys/devices/system/cpu")
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Ledger:
    """Where the memory is, in bytes.

    Attributes
    ----------
    mapped : weights mapped from disk, resident as far as they are used and evictable at any time
    inline : small weights inside the graphs
    scratch : an estimate of what a full chunk needs while it runs
    cache : keys and values of all live caches
    audio_state : all live states of the audio encoder
    resident, peak : the process now and at its largest, everything included
    """

    mapped: int
    inline: int
    scratch: int
    cache: int
    audio_state: int
    resident: int
    peak: int


def zeros(what: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Give zeros, of which untouched pages take no memory.

    Raises
    ------
    BudgetError
        There is no room. Some of the sizes are the package's own words.
    """
    try:
        return np.zeros(shape, dtype)
    except (MemoryError, ValueError) as error:  # ValueError: more than an array can be
        raise BudgetError(
            f"{what}: no memory for {np.dtype(dtype)} {list(shape)}; want a smaller context"
        ) from error


def resident_bytes() -> int:
    """Give the process's resident memory; its peak where the system does not tell."""
    return _status("VmRSS") or peak_bytes()


def peak_bytes() -> int:
    """Give the largest resident memory the process has had."""
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status("VmHWM") or used * (1 if sys.platform == "darwin" else 1024)


def children_peak_bytes() -> int:
    """Give the largest resident memory of any child process that has ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return used * (1 if sys.platform == "darwin" else 1024)


def physical_cores() -> int:
    """Count the physical cores among the processors this process may use."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    allowed = os.sched_getaffinity(0)
    return len({_siblings(cpu) for cpu in allowed})


def _siblings(cpu: int) -> str:
    """Name the core of a processor by the list of those that share it."""
    try:
        return (_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:  # not everywhere mounted
        return str(cpu)


def _status(key: str) -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    sizes = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(sizes[0]) * 1024 if sizes else 0
