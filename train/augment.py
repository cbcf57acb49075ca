"""Changes to recordings that the model must not mind: pace, loudness, noise, room, bandwidth, codec."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import soxr
from scipy import signal

from train.voices import SAMPLE_RATE, Samples

MU = 255.0


def paced(samples: Samples, factor: float) -> Samples:
    """Play faster (factor above 1) or slower; the pitch and the formants move along."""
    return np.asarray(soxr.resample(samples, SAMPLE_RATE * factor, SAMPLE_RATE), dtype=np.float32)


def noise(count: int, slope: float, generator: np.random.Generator) -> Samples:
    """Make noise of unit power whose spectrum falls with frequency to the power `slope`."""
    spectrum = np.fft.rfft(generator.standard_normal(count))
    spectrum *= np.maximum(np.arange(len(spectrum)), 1.0) ** -slope
    made = np.fft.irfft(spectrum, count)
    return (made / (made.std() + 1e-9)).astype(np.float32)


def in_room(samples: Samples, generator: np.random.Generator) -> Samples:
    """Add the echo of a small room."""
    decay = generator.uniform(0.08, 0.3)
    time = np.arange(int(decay * SAMPLE_RATE)) / SAMPLE_RATE
    tail = generator.standard_normal(len(time)) * 10 ** (-3 * time / decay)
    tail *= generator.uniform(0.05, 0.4) / np.sqrt((tail**2).sum())
    tail[0] = 1.0
    return signal.fftconvolve(samples, tail)[: len(samples)].astype(np.float32)


def band_limited(samples: Samples, generator: np.random.Generator) -> Samples:
    """Keep what a telephone keeps."""
    low, high = generator.uniform(80, 300), generator.uniform(3_300, 3_900)
    filters = signal.butter(4, (low, high), "bandpass", fs=SAMPLE_RATE, output="sos")
    return signal.sosfilt(filters, samples).astype(np.float32)


def coded(samples: Samples) -> Samples:
    """Send samples over a digital telephone line: 8,000 a second, of eight bits in the mu-law of ITU-T G.711, as a formula."""
    slow = soxr.resample(samples, SAMPLE_RATE, SAMPLE_RATE // 2).clip(-1, 1)
    levels = np.round(127 * np.log1p(MU * np.abs(slow)) / np.log1p(MU))
    slow = np.sign(slow) * np.expm1(levels / 127 * np.log1p(MU)) / MU
    back = soxr.resample(slow, SAMPLE_RATE // 2, SAMPLE_RATE)
    return np.asarray(np.resize(back, len(samples)), dtype=np.float32)


def padded(samples: Samples, generator: np.random.Generator, longest: float = 0.4) -> Samples:
    """Put silence of up to `longest` seconds before and after."""
    before, after = (generator.uniform(0, longest, 2) * SAMPLE_RATE).astype(int)
    return np.pad(samples, (before, after))


def degraded(samples: Samples, generator: np.random.Generator, *, pad: bool = True) -> Samples:
    """Apply a random mild choice of everything in this module except the pace."""
    if generator.random() < 0.25:
        samples = in_room(samples, generator)
    if generator.random() < 0.15:
        samples = band_limited(samples, generator)
    elif generator.random() < 0.10:
        samples = coded(samples)
    if pad:
        samples = padded(samples, generator)
    peak = np.abs(samples).max() + 1e-9
    samples = samples * (10 ** generator.uniform(-1.2, -0.05) / peak)
    if generator.random() < 0.7:
        loudness = np.sqrt((samples**2).mean()) + 1e-9
        below = 10 ** (-generator.uniform(12, 50) / 20)
        samples = (
            samples + noise(len(samples), generator.uniform(0, 1), generator) * loudness * below
        )
    return np.clip(samples, -1, 1).astype(np.float32)


def notes(count: int, generator: np.random.Generator) -> Samples:
    """Make a tune of notes that ring into each other, struck or sung, with a chord or a beat below it."""
    made = np.zeros(count)
    start, swing = 0, generator.uniform(0, 0.01)
    while start < count:
        hertz = 55 * 2 ** (generator.integers(0, 49) / 12)
        time = np.arange(min(count - start, int(generator.uniform(0.2, 1.5) * SAMPLE_RATE)))
        time = time / SAMPLE_RATE
        phase = 2 * np.pi * hertz * (time + swing * np.sin(30 * time) / 30)
        for harmonic in range(1, generator.integers(2, 14)):
            fall = np.exp(-time * generator.choice((0.5, 3, 3 + harmonic)))
            made[start : start + len(time)] += np.sin(harmonic * phase) * fall / harmonic
        start += int(generator.choice((0, 0.12, 0.17, 0.33, 0.5)) * SAMPLE_RATE) + 1
    return (made / (made.std() + 1e-9)).astype(np.float32)


def knocks(count: int, generator: np.random.Generator) -> Samples:
    """Make short bursts that ring."""
    made = np.zeros(count)
    for start in generator.integers(0, count, generator.integers(2, 14)):
        time = np.arange(min(count - start, SAMPLE_RATE // 3)) / SAMPLE_RATE
        ring = np.sin(2 * np.pi * generator.uniform(60, 3_000) * time)
        ring += generator.uniform(0, 1) * generator.standard_normal(len(time))
        made[start : start + len(time)] += ring * np.exp(-time / generator.uniform(0.004, 0.06))
    return (made / (made.std() + 1e-9)).astype(np.float32)


def room_tone(pauses: Sequence[Samples], generator: np.random.Generator) -> Samples:
    """Play pauses of recordings one after the other, faded into each other, as loud as a microphone's gain control may make them."""
    count, fade = int(generator.uniform(0.5, 6.0) * SAMPLE_RATE), SAMPLE_RATE // 100
    rise = np.linspace(0, 1, fade)
    made, end = np.zeros(count + max(map(len, pauses))), 0
    while end < count:
        pause = pauses[generator.integers(len(pauses))].copy()
        pause[:fade] *= rise
        pause[-fade:] *= rise[::-1]
        made[end : end + len(pause)] += pause
        end += len(pause) - fade
    return np.clip(made[:count] * 10 ** generator.uniform(0, 2), -1, 1).astype(np.float32)


def silence(generator: np.random.Generator) -> Samples:
    """Make a clip without speech: nothing, noise steady or in gusts, hum, clicks, knocks or music."""
    count = int(generator.uniform(0.5, 6.0) * SAMPLE_RATE)
    level = 10 ** generator.uniform(-4.5, -0.8)
    kind = generator.integers(9)
    if kind == 0:
        return np.zeros(count, dtype=np.float32)
    made = noise(count, generator.uniform(0, 1), generator) * level
    time = np.arange(count) / SAMPLE_RATE
    if kind == 2:
        made += level * 3 * np.sin(2 * np.pi * generator.uniform(50, 1_500) * time)
    if kind == 3:
        made[generator.integers(0, count, 5)] += generator.uniform(-0.5, 0.5, 5)
    if kind == 4:
        made *= 10 ** (0.6 * np.sin(2 * np.pi * generator.uniform(0.2, 2) * time))
    if kind == 5:
        made = made * 0.1 + level * knocks(count, generator)
    if kind > 5:
        made = made * generator.uniform(0, 0.3) + level * notes(count, generator)
    return np.clip(made, -1, 1).astype(np.float32)
