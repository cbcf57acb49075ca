"""What every source of sound gives: blocks of float32 mono at 16 kHz, in order, with their place in time.

A microphone, a file and a pipe are all a `Source`; nothing above knows which. The place of a block is counted in
samples since the source began, so a gap in the sound is a gap in the places, never a shift of what follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from edgegemma.audio.features import F32, SAMPLE_RATE

BLOCK_SECONDS = 0.08  # two soft tokens


@dataclass(frozen=True, eq=False)
class Block:
    """A stretch of sound.

    Attributes
    ----------
    start : int
        place of its first sample, in samples at 16 kHz since the source began. It is the previous block's
        ``stop``, or later where sound was lost.
    samples : float32 [n]
        mono at 16 kHz; may be empty if ``cut``
    cut : bool
        the sound breaks off after this block (a device went away): what was said so far is all there is of it
    """

    start: int
    samples: F32
    cut: bool = False

    @property
    def stop(self) -> int:
        """Place after its last sample."""
        return self.start + len(self.samples)

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.samples) / SAMPLE_RATE


class Source(Protocol):
    """Where sound comes from. Iterate it once; `close` may be called from any thread, and more than once.

    After `close` the iterator ends soon, also one that waits for sound. An error of the source (a damaged file,
    half a sample at a pipe's end) is raised by the iterator after every block that was whole.
    """

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def live(self) -> bool:
        """Whether it goes on at its own pace, so that who is slow falls behind."""

    @property
    def seconds(self) -> float | None:
        """Its length, if that is known beforehand."""

    @property
    def backlog_s(self) -> float:
        """Seconds of sound that exist and were not taken yet; 0 for one that waits for its reader."""

    @property
    def overflows(self) -> int:
        """How often sound was lost because it was not taken in time."""

    @property
    def lost(self) -> str | None:
        """Why the device went away: for good, or until it is None again."""

    def __iter__(self) -> Iterator[Block]:
        """Give the blocks in order."""
        ...

    def close(self) -> None:
        """Give the device or file back and end the iterator."""
