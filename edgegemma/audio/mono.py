"""Sound at any rate and with any channels to float32 mono at 16 kHz, while it arrives."""

from __future__ import annotations

import numpy as np
import soxr

from edgegemma.audio.features import F32, SAMPLE_RATE


class Mono:
    """A converter for one stream: the mean of its channels, through soxr where the rate is another.

    soxr sees what comes next before it gives a sample, so samples come a little late; none is lost, and their places
    are those of the input.
    """

    def __init__(self, rate: int) -> None:
        self._convert = None
        if rate != SAMPLE_RATE:
            self._convert = soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")

    def feed(self, frames: F32) -> F32:
        """Take frames, float32 [n, channels]; give the samples that are ready."""
        mono: F32 = np.ascontiguousarray(frames.mean(axis=1, dtype=np.float32))
        if self._convert is None:
            return mono
        ready: F32 = self._convert.resample_chunk(mono)
        return ready

    def finish(self) -> F32:
        """Give the samples that waited for what comes next."""
        nothing = np.empty(0, np.float32)
        if self._convert is None:
            return nothing
        rest: F32 = self._convert.resample_chunk(nothing, last=True)
        return rest
