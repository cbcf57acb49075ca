"""Changes to mel frames that the model must not mind, made anew for every batch: other voices, paces, ends, channels and gaps."""

from __future__ import annotations

import numpy as np

from train.features import FRAMES_PER_TOKEN, MELS, Clip

WARPED_SHARE, WARP = 0.6, (0.86, 1.16)
PACED_SHARE, PACE = 0.5, (0.85, 1.18)
TRIMMED_SHARE, TAIL = 0.5, 12
COLOURED_SHARE, COLOUR = 0.6, (0.5, 0.5, 0.35, 0.25, 0.15)
FLOOR = 1e-3  # what Gemma 4's features add before the logarithm


def _hertz(mels: np.ndarray) -> np.ndarray:
    return 700 * (np.exp(mels / 1127) - 1)


def _mels(hertz: np.ndarray) -> np.ndarray:
    return 1127 * np.log1p(hertz / 700)


def warped(frames: np.ndarray, factor: float) -> np.ndarray:
    """Move all frequencies by a factor, as a longer or shorter vocal tract does."""
    centres = np.linspace(0, _mels(np.array(8_000.0)), MELS + 2)[1:-1]
    places = np.interp(_mels(_hertz(centres) / factor), centres, np.arange(MELS))
    low = np.minimum(places.astype(int), MELS - 2)
    share = (places - low).astype(np.float32)
    return frames[:, low] * (1 - share) + frames[:, low + 1] * share


def paced(frames: np.ndarray, factor: float) -> np.ndarray:
    """Play faster (factor above 1) or slower; the pitch stays."""
    count = max(FRAMES_PER_TOKEN, round(len(frames) / factor))
    places = np.linspace(0, len(frames) - 1, count)
    low = np.minimum(places.astype(int), len(frames) - 2)
    share = (places - low).astype(np.float32)[:, None]
    return frames[low] * (1 - share) + frames[low + 1] * share


def trimmed(frames: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Cut the silence after the last sound, but for up to `TAIL` frames: recordings may end at once."""
    loudness = frames.mean(1)
    floor, top = np.percentile(loudness, (5, 95))
    sounds = np.flatnonzero(loudness > floor + 0.25 * (top - floor))
    last = int(sounds[-1]) if len(sounds) else len(frames)
    return frames[: max(FRAMES_PER_TOKEN, last + 1 + int(generator.integers(TAIL)))]


def coloured(frames: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Filter as another microphone or room would: gain, tilt and some gentle bends, normally distributed in nepers."""
    bands = np.linspace(0, np.pi, MELS, dtype=np.float32)
    bends = np.cos(np.arange(len(COLOUR))[:, None] * bands)
    curve = (generator.standard_normal(len(COLOUR)) * COLOUR) @ bends
    magnitudes = np.maximum(np.exp(frames) - FLOOR, 0) * np.exp(curve)
    return np.log(magnitudes + FLOOR).astype(np.float32)


def spec_augmented(frames: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Hide up to two bands of frequency and two spans of time behind the clip's mean."""
    frames, mean = frames.copy(), frames.mean()
    for _ in range(2):
        width = generator.integers(0, 18)
        start = generator.integers(0, MELS - width)
        frames[:, start : start + width] = mean
        length = generator.integers(0, min(16, len(frames) // 6) + 1)
        start = generator.integers(0, len(frames) - length + 1)
        frames[start : start + length] = mean
    return frames


def changed(frames: np.ndarray, clip: Clip, generator: np.random.Generator) -> np.ndarray:
    """Apply a random choice of everything in this module; what would move phones of known time is left out."""
    if generator.random() < WARPED_SHARE:
        frames = warped(frames, generator.uniform(*WARP))
    if not clip.timed and generator.random() < PACED_SHARE:
        frames = paced(frames, generator.uniform(*PACE))
    if clip.text and not clip.timed and generator.random() < TRIMMED_SHARE:
        frames = trimmed(frames, generator)
    if generator.random() < COLOURED_SHARE:
        frames = coloured(frames, generator)
    return spec_augmented(frames, generator)
