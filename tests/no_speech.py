"""Ten minutes in which nobody speaks: silence, noises of rooms and machines, and music, all of it made from a seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgegemma.audio.features import SAMPLE_RATE
from tests.speechlike import F32, silence, tones, white

Random = np.random.Generator

LEVELS_DB = (-45.0, -15.0)
ROOM_DB = -65.0


def coloured(seconds: float, generator: Random, power: float) -> NDArray[np.float64]:
    """Noise whose power falls with frequency: 1 is pink, 2 brown."""
    count = round(seconds * SAMPLE_RATE)
    spectrum = np.fft.rfft(generator.standard_normal(count))
    hertz = np.maximum(np.fft.rfftfreq(count, 1 / SAMPLE_RATE), 20.0)
    return _even(np.fft.irfft(spectrum * hertz ** (-power / 2), count))


def hum(seconds: float, generator: Random) -> NDArray[np.float64]:
    """Mains and a motor: harmonics that stand still, and slow swells."""
    at, base = _time(seconds), generator.choice([50.0, 60.0, 87.0, 120.0])
    sound = sum(np.sin(2 * np.pi * base * n * at) / n for n in range(1, 30))
    return _even(np.asarray(sound) * (1 + 0.5 * np.sin(2 * np.pi * 0.7 * at)))


def wind(seconds: float, generator: Random) -> NDArray[np.float64]:
    """Pink noise in gusts of a second or two."""
    at = _time(seconds)
    swell = sum(
        np.sin(2 * np.pi * f * at + generator.uniform(0, 7)) for f in (0.31, 0.53, 0.83, 1.7)
    )
    return _even(coloured(seconds, generator, 1.0) * 10 ** np.asarray(0.35 * swell))


def knocks(seconds: float, generator: Random) -> NDArray[np.float64]:
    """Keys, cups and doors: short bursts that ring for some tens of milliseconds."""
    sound = np.zeros(round(seconds * SAMPLE_RATE))
    for start in generator.uniform(0, seconds, round(3 * seconds)):
        ring, hertz = generator.uniform(0.004, 0.05), generator.uniform(300, 3000)
        at = _time(8 * ring)
        burst = np.exp(-at / ring) * (
            np.sin(2 * np.pi * hertz * at) + 0.5 * generator.standard_normal(len(at))
        )
        _add(sound, start, generator.uniform(0.1, 1) * burst)
    return _even(sound)


def strings(seconds: float, generator: Random) -> NDArray[np.float64]:
    """A melody of plucked notes over a bass, three to six a second, each ringing into the next."""
    sound, start = np.zeros(round(seconds * SAMPLE_RATE)), 0.0
    scale = np.array([0, 2, 4, 7, 9])
    while start < seconds:
        note = 52 + 12 * generator.integers(0, 2) + generator.choice(scale)
        _add(sound, start, _plucked(440 * 2 ** ((note - 69) / 12), 1.2, generator))
        if generator.random() < 0.3:
            _add(sound, start, _plucked(440 * 2 ** ((note - 93) / 12), 1.5, generator))
        start += generator.choice([0.17, 0.33])
    return _even(sound)


def band(seconds: float, generator: Random) -> NDArray[np.float64]:
    """Drums, chords and a flute with vibrato."""
    sound = 0.6 * np.asarray(tones(seconds, -20.0, int(generator.integers(1 << 30))), np.float64)
    beat = generator.uniform(0.4, 0.6)
    for n in range(int(seconds / beat)):
        at = _time(0.25)
        drum = np.exp(-at / 0.06) * np.sin(2 * np.pi * (60 + 60 * np.exp(-at / 0.02)) * at)
        snare = 0.5 * np.exp(-at / 0.05) * generator.standard_normal(len(at))
        _add(sound, n * beat, 0.3 * (drum if n % 2 == 0 else snare))
    at = _time(seconds)
    note = 440 * 2 ** (generator.integers(0, 12, len(at) // 8000 + 1) / 12)
    pitch = np.repeat(note, 8000)[: len(at)] * (1 + 0.006 * np.sin(2 * np.pi * 5.5 * at))
    return _even(sound + 0.1 * np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE))


KINDS: tuple[Callable[[float, Random], NDArray[np.float64]], ...] = (
    lambda seconds, _: np.asarray(silence(seconds), np.float64),
    lambda seconds, random: np.asarray(white(seconds, 0.0, int(random.integers(1 << 30)))),
    lambda seconds, random: coloured(seconds, random, 1.0),
    lambda seconds, random: coloured(seconds, random, 2.0),
    hum,
    wind,
    knocks,
    lambda seconds, random: _even(np.asarray(tones(seconds, 0.0, int(random.integers(1 << 30))))),
    strings,
    band,
)


def without_speech(seconds: float, seed: int = 0) -> F32:
    """Pieces of every kind by turns, of some seconds and any loudness, in a room that is never quite still."""
    generator = np.random.default_rng(seed)
    pieces: list[F32] = []
    while sum(map(len, pieces)) < seconds * SAMPLE_RATE:
        for kind in generator.permutation(len(KINDS)):
            level_db = generator.uniform(*LEVELS_DB)
            sound = KINDS[kind](generator.uniform(3, 9), generator) * 10 ** (level_db / 20)
            pieces.append(sound.astype(np.float32))
    sound = np.concatenate(pieces)[: round(seconds * SAMPLE_RATE)]
    return (sound + white(seconds, ROOM_DB, seed)[: len(sound)]).clip(-1, 1).astype(np.float32)


def _time(seconds: float) -> NDArray[np.float64]:
    return np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE


def _even(sound: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give it the loudness of full scale, mean square 1."""
    return np.asarray(sound / np.sqrt(np.mean(np.square(sound)) + 1e-12))


def _add(sound: NDArray[np.float64], start_s: float, piece: NDArray[np.float64]) -> None:
    at = round(start_s * SAMPLE_RATE)
    room = sound[at : at + len(piece)]
    room += piece[: len(room)]


def _plucked(hertz: float, seconds: float, generator: Random) -> NDArray[np.float64]:
    """Harmonics of a string; the high ones die first."""
    at, loud = _time(seconds), generator.uniform(0.5, 1.0)
    harmonics = range(1, min(16, int(7000 / hertz)))
    sound = sum(np.sin(2 * np.pi * hertz * n * at) * np.exp(-at * (2 + n)) / n for n in harmonics)
    return np.asarray(loud * sound)
