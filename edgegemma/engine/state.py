"""What steps read and change: the state of a text, of sound, and the count of what was done."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]


class Cache(Protocol):
    """The state of a text. Make one with `Model.new_cache`."""

    @property
    def length(self) -> int:
        """Positions read so far."""

    @property
    def limit(self) -> int:
        """Positions it may ever hold."""

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""

    @property
    def bytes_per_token(self) -> int:
        """Bytes that each further position takes."""

    def truncate(self, length: int) -> None:
        """Go back to an earlier length."""


@dataclass(eq=False)
class AudioState:
    """What the audio encoder carries from step to step. Make one with `Model.new_audio_state`."""

    arrays: dict[str, F32]
    position: int = 0  # soft tokens so far

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def copy(self) -> AudioState:
        """Give a state that goes its own way from here. Steps replace arrays and never write into them."""
        return AudioState(dict(self.arrays), self.position)


@dataclass
class Counters:
    """What a model has done so far.

    Attributes
    ----------
    calls : Counter
        Steps by kind: "embed", "prefill" (no logits), "logits", "audio".
    read_bytes : Counter
        Bytes of weights that steps read, by kind: "linear", "head", "float", "vector", "rows", and "experts", of which
        those that some position chose.
        Only our engine counts them.
    """

    calls: Counter[str] = field(default_factory=Counter)
    read_bytes: Counter[str] = field(default_factory=Counter)
