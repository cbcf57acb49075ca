"""From blocks of sound to utterances: what is worth hearing, and where it begins and ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from edgegemma.audio.features import F32

Reason = Literal["silence", "limit", "break", "end of input"]


@dataclass(frozen=True)
class Begin:
    """An utterance begins at this sample; its first `Sound` does too."""

    at: int


@dataclass(frozen=True, eq=False)
class Sound:
    """The next samples of the utterance, float32 [n], n > 0; they follow those of the `Sound` before."""

    at: int
    samples: F32

    @property
    def stop(self) -> int:
        """Place after the last sample."""
        return self.at + len(self.samples)


@dataclass(frozen=True)
class Pause:
    """Nothing was said for a moment before this sample: a good time for a hypothesis."""

    at: int


@dataclass(frozen=True)
class End:
    """The utterance is complete.

    Attributes
    ----------
    at : int
        its last `Sound` stops here
    reason : {"silence", "limit", "break", "end of input"}
        ``silence``: the endpoint. ``limit``: it is as long as the model can hear; what was being said goes on in
        the next one. ``break``: sound was lost after it.
    speech_s : float
        seconds in it that the gate took for speech
    """

    at: int
    reason: Reason
    speech_s: float


Event: TypeAlias = Begin | Sound | Pause | End
