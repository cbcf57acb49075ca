"""Seconds from nothing to the first token, in a process of its own: with kernels kept from before, and without.

Cold means an empty kernel cache (``NUMBA_CACHE_DIR`` in a new folder), so every kernel is compiled. The package's
files are in the page cache either way: what a disk adds depends on the disk.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from typing import Any

from bench import samples
from edgegemma.errors import EdgeGemmaError

STEPS = ("interpreter", "import", "open", "first token")


def once(package: str, engine: str, threads: int | None, cold: bool) -> dict[str, Any]:
    """Start a process that opens the package and reads one token.

    Returns
    -------
    dict
        Seconds by step of `STEPS`, ``total``, and ``peak_bytes``.
    """
    with tempfile.TemporaryDirectory(prefix="edgegemma-cold-") as folder:
        environment = dict(os.environ)
        if cold:
            environment["NUMBA_CACHE_DIR"] = folder
        given = {
            "package": package,
            "engine": engine,
            "threads": threads,
            "began": time.monotonic(),
        }
        command = [sys.executable, "-P", "-m", "bench.opening", json.dumps(given)]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, env=environment, text=True, check=False
        )
    if done.returncode:
        raise EdgeGemmaError(f"{package}: opening it ended with status {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def measure(
    package: str, engine: str, threads: int | None, rounds: int, cold: int
) -> dict[str, Any]:
    """Open a package again and again.

    Parameters
    ----------
    rounds, cold : int
        Times with kept kernels, after one that is not counted, and with none.

    Returns
    -------
    dict
        ``warm`` and ``cold``: a figure of seconds for each step and the total.
    """
    found: dict[str, Any] = {"engine": engine}
    if cold and engine == "edgegemma":
        found["cold"] = _sum_up([once(package, engine, threads, True) for _ in range(cold)])
    once(package, engine, threads, False)
    found["warm"] = _sum_up([once(package, engine, threads, False) for _ in range(rounds)])
    return found


def _sum_up(runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: asdict(samples.figure([run[key] for run in runs])) for key in runs[0]}


def child(package: str, engine: str, threads: int | None, began: float) -> dict[str, Any]:
    """Do it, in this process; ``began`` is `time.monotonic` of the parent, which Linux shares."""
    marks = [began, time.monotonic()]
    import numpy as np

    from edgegemma.engine import ahead
    from edgegemma.engine.memory import peak_bytes
    from edgegemma.engine.model import open_model

    marks.append(time.monotonic())
    model = open_model(package, executor=engine, threads=threads)
    if engine == "edgegemma" and ahead.needed(model.package, "float32"):
        ahead.compile_apart(model.package.path, "float32", lambda _: None)
    marks.append(time.monotonic())
    cache = model.new_cache(8)
    model.forward(*model.embed(np.array([2, 7], np.int64)), cache)
    model.decode(7, cache)
    marks.append(time.monotonic())
    steps = [after - before for before, after in itertools.pairwise(marks)]
    found: dict[str, Any] = dict(zip(STEPS, steps, strict=True))
    return found | {"total": marks[-1] - began, "peak_bytes": peak_bytes()}


def main() -> None:
    """Run for `once`; the result is a line of JSON on stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    sys.stdout.write(json.dumps(child(**json.loads(sys.argv[1]))) + "\n")


if __name__ == "__main__":
    main()
