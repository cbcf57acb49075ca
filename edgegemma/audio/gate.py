"""Is anybody speaking? An energy gate that adapts to the noise of the room, and listens for a voice.

Sound is judged in whole steps of 20 ms, one at a time, so decisions are the same for any cut of the input. A step's
level is its power between 200 and 4000 Hz: hum and a sound card's constant offset are not heard. The floor is the
lowest level of the last seconds. Speech falls to the floor many times a second; what never does, for as long as the
window is, has become noise itself. What is loud is not yet speech: `edgegemma.audio.voice` says if it moves like a voice.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

import numpy as np
import numpy.typing as npt

from edgegemma.audio.features import F32, SAMPLE_RATE, as_pcm
from edgegemma.audio.voice import Voice

Levels = npt.NDArray[np.uint8]

QUIET = 0  # at the level of the noise
LOUD = 1  # above it
STEADY = 2  # above it, with a pitch that stands still or leaps
SPEAKING = 3  # above it, moving like a voice

STEP = SAMPLE_RATE // 50  # 20 ms
LOWEST_HZ, HIGHEST_HZ = 200, 4_000

SILENCE_DB = -70.0  # nothing is quieter than this
FIRST_FLOOR_DB = -60.0  # until the room has been heard
WINDOW_SECONDS = 3.0
ON_DB, OFF_DB = 10.0, 6.0  # above the floor: speech begins, speech goes on


class Gate(Protocol):
    """Decides step by step whether there is speech: `QUIET`, `LOUD`, `STEADY` or `SPEAKING`.

    Attributes
    ----------
    step : int
        samples of a decision
    """

    step: int

    @property
    def level_db(self) -> float:
        """Level of the last step, in dB of full scale."""

    @property
    def floor_db(self) -> float:
        """Level of the noise, in dB of full scale."""

    def feed(self, pcm: F32) -> Levels:
        """Take the next samples, float32 [n]; decide for each step that is whole now."""
        ...

    def restart(self) -> None:
        """Forget an unfinished step: what comes next does not follow from it."""


class EnergyGate:
    """See the module. A `Gate`.

    Parameters
    ----------
    step : int
        samples of a decision
    on_db, off_db : float
        how far above the floor speech is taken to begin and to go on

    Attributes
    ----------
    level_db, floor_db : float
        of the last step and of the noise, in dB of full scale
    """

    def __init__(self, step: int = STEP, on_db: float = ON_DB, off_db: float = OFF_DB) -> None:
        self.step = step
        self.level_db, self.floor_db = SILENCE_DB, FIRST_FLOOR_DB
        self._on_db, self._off_db = on_db, off_db
        self._open = False
        self._steps = Steps(step)
        self._voice = Voice(step)
        self._floor = SlidingMinimum(round(WINDOW_SECONDS * SAMPLE_RATE / step), FIRST_FLOOR_DB)
        self._window = np.hanning(step + 1)[:-1]
        hertz = np.fft.rfftfreq(step, 1 / SAMPLE_RATE)
        self._band = slice(*np.searchsorted(hertz, (LOWEST_HZ, HIGHEST_HZ)))
        self._power = 2 / (step * np.square(self._window).sum())

    def feed(self, pcm: F32) -> Levels:
        """Take the next samples, float32 [n]; decide for each step that is whole now."""
        return np.array([self.judge(step) for step in self._steps.feed(pcm)], np.uint8)

    def restart(self) -> None:
        """Forget an unfinished step; the noise of the room is remembered."""
        self._steps.restart()
        self._voice.restart()

    def judge(self, step: F32) -> int:
        """Decide for the next step, float32 [step]."""
        loud = self.loud(step)
        moves = self._voice.hear(step, loud)
        return LOUD + moves if loud else QUIET

    def loud(self, step: F32) -> bool:
        """Say whether a step, float32 [step], is louder than the noise."""
        spectrum = np.fft.rfft(step * self._window)[self._band]
        power = self._power * float(np.square(spectrum.real).sum() + np.square(spectrum.imag).sum())
        level = 10 * np.log10(max(power, 10 ** (SILENCE_DB / 10)))
        self.level_db = float(level) if np.isfinite(level) else SILENCE_DB
        if power:  # zeros come from a driver that starts or a gap that was filled, not from a room
            self.floor_db = self._floor.push(self.level_db)
        self._open = self.level_db > self.floor_db + (self._off_db if self._open else self._on_db)
        return self._open


class Steps:
    """Cuts a stream into whole steps, whatever pieces it comes in."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._rest = np.empty(0, np.float32)

    def feed(self, pcm: F32) -> npt.NDArray[np.float32]:
        """Give the steps that are whole now, float32 [n, step]."""
        samples = np.concatenate([self._rest, as_pcm(pcm)])
        whole = len(samples) // self._step * self._step
        self._rest = samples[whole:]
        return samples[:whole].reshape(-1, self._step)

    def restart(self) -> None:
        """Forget the unfinished step."""
        self._rest = self._rest[:0]


class SlidingMinimum:
    """The lowest of the last ``count`` values; before there are so many, ``first`` is one of them."""

    def __init__(self, count: int, first: float) -> None:
        self._count, self._seen = count, 0
        self._rising: deque[tuple[int, float]] = deque([(0, first)])

    def push(self, value: float) -> float:
        """Take a value; give the lowest."""
        self._seen += 1
        while self._rising and self._rising[-1][1] >= value:
            self._rising.pop()
        self._rising.append((self._seen, value))
        if self._rising[0][0] <= self._seen - self._count:
            self._rising.popleft()
        return self._rising[0][1]
