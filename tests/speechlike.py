"""Sounds that are like speech in what a gate hears of it, and sounds that are not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgegemma.audio.features import SAMPLE_RATE

F32 = NDArray[np.float32]


def white(seconds: float, level_db: float = -20.0, seed: int = 0) -> F32:
    """Noise of a level in dB of full scale."""
    samples = np.random.default_rng(seed).standard_normal(round(seconds * SAMPLE_RATE))
    samples = 10 ** (level_db / 20) * samples
    return samples.astype(np.float32)


def silence(seconds: float) -> F32:
    """Digital silence."""
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def speech(seconds: float, level_db: float = -25.0, seed: int = 0) -> F32:
    """Voiced syllables of 150 to 250 ms with dips of 30 to 80 ms between them, as in fluent speech."""
    shape = _syllables(seconds, seed)
    generator = np.random.default_rng(seed)
    at = np.arange(len(shape)) / SAMPLE_RATE
    rate, phase = generator.uniform(1.0, 2.0), generator.uniform(0, 6)
    melody = np.sin(2 * np.pi * rate * at + phase) + 0.5 * np.sin(5.1 * np.pi * rate * at)
    turns = np.cumsum(130 * 2 ** (0.2 * melody)) / SAMPLE_RATE
    voice = sum(np.sin(2 * np.pi * n * turns + n * n) / n for n in range(1, 25))
    shape *= 10 ** (level_db / 20) * np.asarray(voice) / 0.9  # the harmonics' root mean square
    return shape.astype(np.float32)


def rustle(seconds: float, level_db: float = -25.0, seed: int = 0) -> F32:
    """Noise that comes and goes like the syllables of `speech`."""
    return (_syllables(seconds, seed) * white(seconds, level_db, seed)).astype(np.float32)


def _syllables(seconds: float, seed: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    shape = np.full(round(seconds * SAMPLE_RATE), 0.003)
    at = 0
    while at < len(shape):
        stop = at + int(generator.uniform(0.15, 0.25) * SAMPLE_RATE)
        shape[at:stop] = generator.uniform(0.4, 1.0)
        at = stop + int(generator.uniform(0.03, 0.08) * SAMPLE_RATE)
    return shape


def tones(seconds: float, level_db: float = -25.0, seed: int = 0) -> F32:
    """A chord of a few notes that changes every two seconds without a rest between, like an organ."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    sound = np.zeros(len(time))
    for start in range(0, len(time), 2 * SAMPLE_RATE):
        part = slice(start, start + 2 * SAMPLE_RATE)
        for note in generator.choice(np.arange(48, 84), 4, replace=False):
            sound[part] += np.sin(2 * np.pi * 440 * 2 ** ((note - 69) / 12) * time[part])
    sound *= 10 ** (level_db / 20) / np.sqrt(2)
    return sound.astype(np.float32)


def join(*pieces: F32, room_db: float | None = -60.0) -> F32:
    """One after the other, in a room with some noise."""
    sound = np.concatenate(pieces)
    if room_db is not None:
        sound += white(len(sound) / SAMPLE_RATE, room_db, seed=99)[: len(sound)]
    return sound.astype(np.float32)
