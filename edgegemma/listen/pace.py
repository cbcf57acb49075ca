"""How much to do while somebody speaks: less when sound waits, more again when it does not. No sound is ever left out.

Encoding and reading cost less a second when they take more sound at once; hypotheses on the way are a luxury.
"""

from __future__ import annotations

from typing import NamedTuple


class Mode(NamedTuple):
    """Sound is taken ``block_s`` at a time, with a hypothesis after each block or only at the end."""

    block_s: float
    partials: bool


MODES = (Mode(0.16, True), Mode(0.32, True), Mode(0.64, True), Mode(0.64, False))
FILE = Mode(5.12, False)  # as fast as it goes: whole chunks of prefill

BEHIND_SECONDS = 0.5  # sound that waits: this is too slow…
BESIDE_SECONDS = 0.2  # …and this is fast enough…
CALM_SECONDS = 3.0  # …if it lasts
SETTLE_SECONDS = 1.0  # after a change, its effect is waited for


class Pace:
    """Chooses among `MODES` by the lag.

    Parameters
    ----------
    partials : bool
        whether hypotheses on the way are wanted at all
    """

    def __init__(self, partials: bool = True) -> None:
        self._modes = MODES if partials else MODES[-1:]
        self._level = 0
        self._changed_s = self._behind_s = 0.0

    @property
    def mode(self) -> Mode:
        """How to work now."""
        return self._modes[self._level]

    def update(self, heard_s: float, lag_s: float) -> bool:
        """Note the lag after ``heard_s`` seconds of sound; say whether the mode has changed."""
        if lag_s > BESIDE_SECONDS:
            self._behind_s = heard_s
        level = self._level
        if lag_s > BEHIND_SECONDS and heard_s - self._changed_s >= SETTLE_SECONDS:
            level = min(level + 1, len(self._modes) - 1)
        elif heard_s - max(self._behind_s, self._changed_s) >= CALM_SECONDS:
            level = max(level - 1, 0)
        if level == self._level:
            return False
        self._level, self._changed_s = level, heard_s
        return True
