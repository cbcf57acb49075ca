"""What steps read and change: the state of a text, of sound, and the count of what was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgegemma.config import AudioConfig
from edgegemma.engine import memory
from edgegemma.errors import InputError

F32 = NDArray[np.float32]
MELS = 128  # numbers of a frame of sound


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


def check_room(cache: Cache, count: int) -> None:
    """Refuse more positions than a text may ever hold."""
    if cache.length + count > cache.limit:
        raise InputError(
            f"context: got {cache.length + count} positions; want at most {cache.limit}; "
            "shorten the input or start a new one"
        )


def check_ids(where: str, ids: Sequence[int], vocabulary: int) -> None:
    """Refuse an id that is not in the vocabulary."""
    if min(ids, default=0) < 0 or max(ids, default=0) >= vocabulary:
        raise InputError(f"{where}: got an id beyond the vocabulary; want 0 to {vocabulary - 1}")


def check_floats(where: str, array: F32, shape: tuple[int, ...]) -> None:
    """Refuse an array of another shape or type."""
    if array.shape != shape or array.dtype != np.float32:
        raise InputError(
            f"{where}: got {array.dtype} {list(array.shape)}; want float32 {list(shape)}"
        )


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


def audio_arrays(audio: AudioConfig) -> dict[str, F32]:
    """Give zeros for all that the encoder carries, by the name after ``past_``."""
    channels, width = audio.subsampling_conv_channels[0], audio.hidden_size
    shapes = {"features": (1, 1, MELS), "conv": (1, channels, 1, MELS // 2)}
    for layer in range(audio.num_hidden_layers):
        for part in ("key", "value"):
            shapes[f"layers.{layer}.{part}"] = (1, audio.window - 1, width)
        shapes[f"layers.{layer}.conv"] = (1, audio.conv_kernel_size - 1, width)
    return {name: memory.zeros("audio state", shape, np.float32) for name, shape in shapes.items()}


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
