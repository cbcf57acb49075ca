"""PCM to log-mel frames, as Gemma 4's processor computes them, in one pass or while it arrives.

Frame ``i`` sees the samples ``[160i - 160, 160i + 160)``; zeros stand before the first one. It is valid once the
sample after its last one exists, so a stream gives every valid frame while audio arrives and `finish` only adds
the padded frames that a whole clip has. No operation mixes frames (no matrix product): the bits of a frame do not
depend on how the samples were cut. Nothing is truncated at 30 s here; that limit belongs to `utterances`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgegemma.errors import InputError

F32 = npt.NDArray[np.float32]

SAMPLE_RATE = 16_000
HOP = SAMPLE_RATE // 100  # 10 ms
FRAME = 2 * HOP  # 20 ms
PAD_LEFT = FRAME // 2  # zeros before the first sample
FFT = 1 << (FRAME - 1).bit_length()
BINS = FFT // 2 + 1
MELS = 128
MEL_FLOOR = 1e-3  # added, not a maximum
PAD_MULTIPLE = 128  # a whole clip is padded to a multiple of this
FRAMES_PER_TOKEN = 4
SAMPLES_PER_TOKEN = FRAMES_PER_TOKEN * HOP  # 40 ms
TOKENS_PER_SECOND = SAMPLE_RATE // SAMPLES_PER_TOKEN

_FRAMES_AT_ONCE = 512  # bounds the scratch memory of a long piece


def frame_count(samples: int) -> int:
    """Frames of a clip of ``samples`` samples, the invalid ones at its end included."""
    padded = -(-samples // PAD_MULTIPLE) * PAD_MULTIPLE
    return max(0, (padded + PAD_LEFT - FRAME - 1) // HOP + 1)


def valid_count(samples: int) -> int:
    """Frames of a clip of ``samples`` samples that hold only real samples."""
    return max(0, samples - 1) // HOP


def token_count(samples: int) -> int:
    """Soft tokens of a clip of ``samples`` samples."""
    return -(-valid_count(samples) // FRAMES_PER_TOKEN)


def window() -> F32:
    """Return the periodic Hann window, ``[320]``."""
    n = np.arange(FRAME)
    return (0.5 - 0.5 * np.cos(2 * np.pi * n / FRAME)).astype(np.float32)


def mel_filters() -> npt.NDArray[np.float64]:
    """Return the triangular filters on the HTK scale without area normalisation, ``[257, 128]``."""
    nyquist = SAMPLE_RATE / 2
    top = 2595.0 * np.log10(1.0 + nyquist / 700.0)
    edges = 700.0 * (np.power(10, np.linspace(0.0, top, MELS + 2) / 2595.0) - 1.0)
    slopes = edges[None, :] - np.linspace(0, nyquist, BINS)[:, None]
    width = np.diff(edges)
    down = -slopes[:, :-2] / width[:-1]
    up = slopes[:, 2:] / width[1:]
    return np.maximum(0.0, np.minimum(down, up))


def _taps(filters: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Bins and weights of each filter, ``[taps, 128]``: a filter covers a few neighbouring bins only."""
    first = np.argmax(filters > 0, axis=0)
    bins = first + np.arange(int(np.count_nonzero(filters, axis=0).max()))[:, None]
    inside = np.minimum(bins, BINS - 1)
    return inside, np.where(bins < BINS, np.take_along_axis(filters, inside, axis=0), 0.0)


_WINDOW = window()
_TAP_BINS, _TAP_WEIGHTS = _taps(mel_filters())


def log_mel(pcm: F32) -> tuple[F32, F32]:
    """Compute the features of a whole clip.

    Parameters
    ----------
    pcm : float32 [N]
        mono, 16 kHz, in [-1, 1]

    Returns
    -------
    features : float32 [frames, 128]
        zeros where a frame is not valid
    mask : float32 [frames]
        1 for valid frames, 0 for the padded ones at the end
    """
    pcm = as_pcm(pcm)
    frames, valid = frame_count(len(pcm)), valid_count(len(pcm))
    features = np.zeros((frames, MELS), np.float32)
    padded = np.concatenate((np.zeros(PAD_LEFT, np.float32), pcm))
    features[:valid] = _frames_of(padded, valid)
    return features, (np.arange(frames) < valid).astype(np.float32)


class MelStream:
    """The same features while the samples arrive, bit for bit, however they are cut.

    Attributes
    ----------
    samples : int
        samples heard so far
    frames : int
        valid frames given so far
    """

    def __init__(self) -> None:
        self.samples = 0
        self.frames = 0
        self._rest = np.zeros(PAD_LEFT, np.float32)  # from the first sample of the next frame on

    def feed(self, pcm: F32) -> F32:
        """Take the next samples (any number, also none); return the frames they complete, ``[n, 128]``."""
        pcm = as_pcm(pcm)
        heard = np.concatenate((self._rest, pcm))
        self.samples += len(pcm)
        new = valid_count(self.samples) - self.frames
        features = _frames_of(heard, new)
        self._rest = heard[new * HOP :].copy()
        self.frames += new
        return features

    def finish(self) -> tuple[F32, F32]:
        """Return the clip's padded frames and their mask, all zeros: ``[n, 128]``, ``[n]``."""
        left = frame_count(self.samples) - self.frames
        return np.zeros((left, MELS), np.float32), np.zeros(left, np.float32)


def as_pcm(pcm: F32) -> F32:
    """Check that these are mono float32 samples; a programming error otherwise."""
    if pcm.ndim != 1 or pcm.dtype != np.float32:
        raise InputError(f"pcm: got {pcm.dtype} {list(pcm.shape)}; want float32 mono samples")
    return pcm


def _frames_of(samples: F32, count: int) -> F32:
    """Features of the first ``count`` frames of these samples; frame 0 starts at sample 0."""
    features = np.empty((count, MELS), np.float32)
    for start in range(0, count, _FRAMES_AT_ONCE):
        some = features[start : start + _FRAMES_AT_ONCE]
        piece = samples[start * HOP : (start + len(some) - 1) * HOP + FRAME]
        some[:] = _log_mel(np.lib.stride_tricks.sliding_window_view(piece, FRAME)[::HOP])
    return features


def _log_mel(frames: F32) -> npt.NDArray[np.float64]:
    """``[n, 320]`` samples to ``[n, 128]`` features; the sum over a filter's bins has a fixed order."""
    spectrum = np.abs(np.fft.rfft(frames * _WINDOW, n=FFT, axis=-1))
    mel = np.zeros((len(frames), MELS))
    for bins, weights in zip(_TAP_BINS, _TAP_WEIGHTS, strict=True):
        mel += spectrum[:, bins] * weights
    return np.log(mel + MEL_FLOOR)
