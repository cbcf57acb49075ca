"""Changes to recordings that the model must not mind: pace, loudness, noise, room, bandwidth."""

from __future__ import annotations

import numpy as np
import soxr
from scipy import signal

from train.voices import SAMPLE_RATE, Samples


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


def silence(generator: np.random.Generator) -> Samples:
    """Make a clip without speech: nothing, noise, hum or clicks."""
    count = int(generator.uniform(0.5, 4.0) * SAMPLE_RATE)
    level = 10 ** generator.uniform(-4.5, -1.2)
    kind = generator.integers(4)
    if kind == 0:
        return np.zeros(count, dtype=np.float32)
    made = noise(count, generator.uniform(0, 1), generator) * level
    if kind == 2:
        time = np.arange(count) / SAMPLE_RATE
        made += level * 3 * np.sin(2 * np.pi * generator.uniform(50, 1_500) * time)
    if kind == 3:
        made[generator.integers(0, count, 5)] += generator.uniform(-0.5, 0.5, 5)
    return np.clip(made, -1, 1).astype(np.float32)
