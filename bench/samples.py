"""Samples of work that is measured in turns, and what is said of them: the median and the middle half."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """What several samples of one thing say.

    Attributes
    ----------
    median : float
    low, high : float
        The quarters of the samples below and above lie outside of them.
    count : int
        Samples.
    """

    median: float
    low: float
    high: float
    count: int

    def text(self, factor: float = 1.0, digits: int = 1) -> str:
        """``12.3 (11.9–12.8)``, every number times the factor."""
        median, low, high = (f"{x * factor:.{digits}f}" for x in (self.median, self.low, self.high))
        return f"{median} ({low}–{high})"


def figure(samples: Sequence[float]) -> Figure:
    """Sum up samples, of which there is at least one."""
    if len(samples) == 1:
        return Figure(samples[0], samples[0], samples[0], 1)
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Figure(median, low, high, len(samples))


def in_turns(works: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Do every work once in each round, A B A B …, and keep what each gives.

    What changes slowly on the machine, its clock and its other users, so meets all of them alike.
    """
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(work())
    return found


def ratio(over: Sequence[float], under: Sequence[float]) -> Figure:
    """Sum up the ratios of samples of the same round."""
    return figure([a / b for a, b in zip(over, under, strict=True)])
