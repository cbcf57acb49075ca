"""Cut a recording into pieces the model can hear at once, at its quietest places.

Segments partition the samples exactly: nothing is lost, nothing is heard twice. A piece ends inside the last
`SEARCH_SECONDS` of what it may hold, in the middle of the quietest 200 ms there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgegemma.audio.features import F32, SAMPLE_RATE, as_pcm
from edgegemma.errors import InputError

LIMIT_SECONDS = 30.0  # what Gemma 4 was trained to hear in one piece: 750 soft tokens
SEARCH_SECONDS = 8.0
SILENCE_RMS = 1e-3  # -60 dBFS in 20 ms
MIN_SOUND_SECONDS = 0.12  # less sound than this in a segment is a click, not speech

_STEP = SAMPLE_RATE // 50  # 20 ms, the grid of the energy
_QUIET_STEPS = 10  # 200 ms


class Segment(NamedTuple):
    """A piece of a recording: its samples and where they are."""

    start: int
    samples: F32

    @property
    def stop(self) -> int:
        """Index after its last sample."""
        return self.start + len(self.samples)


class Splitter:
    """Segments while the samples arrive; the same ones for any cut of the input.

    A segment is given as soon as more samples than the limit are waiting; the rest by `finish`.
    """

    def __init__(self, limit_s: float = LIMIT_SECONDS) -> None:
        self.limit = int(limit_s * SAMPLE_RATE)
        if self.limit < 2 * _STEP * _QUIET_STEPS:
            want = 2 * _STEP * _QUIET_STEPS / SAMPLE_RATE
            raise InputError(f"segment limit: got {limit_s:g} s; want {want:g} s or more")
        self._start = 0
        self._pieces: list[F32] = []
        self._waiting = 0

    def feed(self, pcm: F32) -> list[Segment]:
        """Take the next samples; give the segments that are complete."""
        self._pieces.append(as_pcm(pcm))
        self._waiting += len(pcm)
        if self._waiting <= self.limit:
            return []
        samples, complete = np.concatenate(self._pieces), []
        while len(samples) > self.limit:
            cut = _cut(samples[: self.limit])
            complete.append(Segment(self._start, samples[:cut]))
            self._start += cut
            samples = samples[cut:]
        self._pieces, self._waiting = [samples], len(samples)
        return complete

    def finish(self) -> list[Segment]:
        """Give what is left, if anything."""
        samples = np.concatenate([*self._pieces, np.empty(0, np.float32)])
        segment = Segment(self._start, samples)
        self._start, self._pieces, self._waiting = segment.stop, [], 0
        return [segment] if len(samples) else []


def segments(blocks: Iterable[F32], limit_s: float = LIMIT_SECONDS) -> Iterator[Segment]:
    """Cut a stream of blocks; memory is bounded by the limit and one block."""
    splitter = Splitter(limit_s)
    for block in blocks:
        yield from splitter.feed(block)
    yield from splitter.finish()


def split(pcm: F32, limit_s: float = LIMIT_SECONDS) -> list[tuple[int, int]]:
    """Cut a recording, float32 [N], into ``(start, stop)`` pairs that partition ``range(N)``."""
    return [(s.start, s.stop) for s in segments([pcm], limit_s)]


def sound_span(pcm: F32) -> tuple[int, int] | None:
    """From the first to the last 20 ms that are not silent, in samples; None if there is no sound worth hearing."""
    loud = np.flatnonzero(_energy(pcm) > SILENCE_RMS**2)
    if len(loud) * _STEP < MIN_SOUND_SECONDS * SAMPLE_RATE:
        return None
    return int(loud[0]) * _STEP, min(len(pcm), (int(loud[-1]) + 1) * _STEP)


def _energy(pcm: F32) -> npt.NDArray[np.float64]:
    """Mean square of each whole 20 ms, and of the rest at the end."""
    whole = len(pcm) // _STEP
    squares = np.square(pcm[: whole * _STEP].reshape(whole, _STEP), dtype=np.float64).mean(axis=1)
    rest = pcm[whole * _STEP :]
    return np.append(squares, np.square(rest, dtype=np.float64).mean()) if len(rest) else squares


def quietest(samples: F32) -> int:
    """Where to cut: the middle of the quietest 200 ms of these samples, the last one among equals.

    Parameters
    ----------
    samples : float32 [n]
        at least 200 ms; only whole steps of 20 ms from the first sample on are looked at
    """
    energy = _energy(samples[: len(samples) // _STEP * _STEP])
    sums = np.concatenate(([0.0], np.cumsum(energy)))
    quiet = sums[_QUIET_STEPS:] - sums[:-_QUIET_STEPS]
    floor = (
        quiet.min() * (1 + 1e-9) + 1e-12
    )  # differences of running sums: equal silence must compare equal
    last = int(np.flatnonzero(quiet <= floor)[-1])
    return (last + _QUIET_STEPS // 2) * _STEP


def _cut(samples: F32) -> int:
    """Where a segment that is full ends."""
    search = min(int(SEARCH_SECONDS * SAMPLE_RATE), len(samples) // 2) // _STEP * _STEP
    return len(samples) - search + quietest(samples[len(samples) - search :])
