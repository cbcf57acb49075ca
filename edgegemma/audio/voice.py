"""Is that a voice? The pitch of somebody who speaks glides; that of an instrument or a machine stands still.

Every step of 20 ms is heard with the one before it. Its pitch is the place of the highest peak of the sound's
autocorrelation, if that is high enough for the sound to have one. Where two steps in a row have a pitch that has
moved a little, somebody may be speaking; where it stands still a note is held, and where it leaps another one begins.
"""

from __future__ import annotations

import numpy as np

from edgegemma.audio.features import F32, SAMPLE_RATE

LOWEST_HZ, HIGHEST_HZ = 70, 400  # pitch of people
BAND_HZ = (100, 1_500)  # where its harmonics are strong
PERIODIC = 0.8  # autocorrelation of a sound that has a pitch
STILL, LEAP = 0.01, 0.15  # natural logarithm of the pitch's ratio from a step to the next

NONE, STEADY, GLIDING = 0, 1, 2


class Voice:
    """Follows the pitch.

    Parameters
    ----------
    step : int
        samples of a step
    """

    def __init__(self, step: int) -> None:
        self._window = np.hanning(2 * step + 1)[:-1]
        self._shortest, self._longest = SAMPLE_RATE // HIGHEST_HZ, SAMPLE_RATE // LOWEST_HZ
        self._size = 1 << (2 * step + self._longest).bit_length()  # no lag wraps around
        hertz = np.fft.rfftfreq(self._size, 1 / SAMPLE_RATE)
        self._band = (hertz > BAND_HZ[0]) & (hertz < BAND_HZ[1])
        taper = np.fft.irfft(np.square(np.abs(np.fft.rfft(self._window, self._size))))
        self._taper = taper[: self._longest + 1] / taper[0]
        self._before = np.zeros(step, np.float32)
        self._pitch: float | None = None

    def restart(self) -> None:
        """Forget the last step."""
        self._before = np.zeros_like(self._before)
        self._pitch = None

    def hear(self, step: F32, loud: bool) -> int:
        """Judge one step, float32 [step]: `NONE`, `STEADY` or `GLIDING`. What is not loud has no pitch."""
        sound = np.concatenate([self._before, step])
        last, self._before = self._pitch, step
        self._pitch = self._found(sound) if loud else None
        if last is None or self._pitch is None:
            return NONE
        return GLIDING if STILL < abs(self._pitch - last) < LEAP else STEADY

    def _found(self, sound: F32) -> float | None:
        """Give the natural logarithm of the pitch, if there is one."""
        power = np.square(np.abs(np.fft.rfft(sound * self._window, self._size))) * self._band
        likeness = np.fft.irfft(power)[: self._longest + 1]
        if not likeness[0] > 0:
            return None
        likeness = likeness / likeness[0] / self._taper
        lag = int(np.argmax(likeness[self._shortest : -1])) + self._shortest
        left, top, right = likeness[lag - 1 : lag + 2]
        if not top > PERIODIC:
            return None
        bend = left - 2 * top + right
        shift = 0.5 * (left - right) / bend if bend < 0 else 0.0
        return float(np.log(SAMPLE_RATE / (lag + min(max(shift, -0.5), 0.5))))
