"""Where sound that has no pause is cut: in the middle of its quietest 200 ms."""

from __future__ import annotations

import numpy as np

from edgegemma.audio.features import F32, SAMPLE_RATE

STEP = SAMPLE_RATE // 50  # 20 ms
QUIET_STEPS = 10


def quietest(samples: F32) -> int:
    """Give the middle of the quietest 200 ms of these samples, the last one among equals.

    Parameters
    ----------
    samples : float32 [n]
        at least 200 ms; only whole steps of 20 ms from the first sample on are looked at
    """
    whole = len(samples) // STEP
    steps = samples[: whole * STEP].reshape(whole, STEP)
    energy = np.square(steps, dtype=np.float64).mean(axis=1)
    sums = np.concatenate(([0.0], np.cumsum(energy)))
    quiet = sums[QUIET_STEPS:] - sums[:-QUIET_STEPS]
    # Differences of running sums: equal silence must compare equal.
    floor = quiet.min() * (1 + 1e-9) + 1e-12
    last = int(np.flatnonzero(quiet <= floor)[-1])
    return (last + QUIET_STEPS // 2) * STEP
