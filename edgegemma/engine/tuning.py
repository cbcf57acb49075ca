"""How many threads a package runs best on here: one number for a token, one for a prompt.

A token waits for memory, which two or three cores can exhaust; a prompt waits for the cores themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np

from edgegemma.engine import memory
from edgegemma.engine.model import Model

PROMPT = 64  # positions
ROUNDS = 5
GAIN = 0.97  # more threads must take at most this share of the time: they cost power and other programs


def fastest(model: Model) -> tuple[int, int]:
    """Measure.

    Returns
    -------
    decode, prefill : int
        Threads. The model is set to them too.
    """
    counts = range(1, memory.physical_cores() + 1)
    prompt = model.embed(np.zeros(PROMPT, np.int64))
    text = model.new_cache(2 * ROUNDS * len(counts) + 2)

    def answer(threads: int) -> None:
        model.threads = threads
        model.decode(0, text)

    def read(threads: int) -> None:
        model.prefill_threads = threads
        model.forward(*prompt, model.new_cache(PROMPT), num_logits=0)

    model.threads = best({n: [] for n in counts}, answer)
    model.prefill_threads = best({n: [] for n in counts}, read)
    return model.threads, model.prefill_threads


def best(seconds: dict[int, list[float]], run: Callable[[int], None]) -> int:
    """Run on each number of threads in turn, round after round, and give the smallest that is about the fastest."""
    for number in range(ROUNDS + 1):
        for threads, taken in seconds.items():
            began = time.perf_counter()
            run(threads)
            if number:  # the first round fetches the weights
                taken.append(time.perf_counter() - began)
    return chosen({threads: median(taken) for threads, taken in seconds.items()})


def chosen(seconds: dict[int, float]) -> int:
    """Give the number of threads to use, of the time each takes."""
    found = min(seconds)
    for threads in sorted(seconds):
        if seconds[threads] < GAIN * seconds[found]:
            found = threads
    return found
