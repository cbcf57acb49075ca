"""Sources of sound for a command: which one is meant, and who looks on while its blocks go by."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgegemma.errors import InputError

if TYPE_CHECKING:
    from edgegemma.audio.blocks import Block, Source

STDIN = "-"


class Watched:
    """A source whose blocks are shown to others as they go by. A `Source`."""

    def __init__(self, source: Source, *watchers: Callable[[Block], None]) -> None:
        self._source, self._watchers = source, watchers
        self.name, self.live, self.seconds = source.name, source.live, source.seconds

    @property
    def backlog_s(self) -> float:
        """Seconds of sound that wait."""
        return self._source.backlog_s

    @property
    def overflows(self) -> int:
        """How often sound was lost."""
        return self._source.overflows

    @property
    def lost(self) -> str | None:
        """Why the device went away."""
        return self._source.lost

    def close(self) -> None:
        """End the iterator."""
        self._source.close()

    def __iter__(self) -> Iterator[Block]:
        """Give the blocks."""
        for block in self._source:
            for watch in self._watchers:
                watch(block)
            yield block


class Saver:
    """Writes blocks into a WAV file, silence where sound was lost.

    A context manager: until it is entered, what was in the file stays.
    """

    def __init__(self, path: Path) -> None:
        path.open("ab").close()  # says why it cannot be written, which libsndfile does not
        self._path = path

    def __enter__(self) -> Saver:
        import soundfile

        from edgegemma.audio.features import SAMPLE_RATE

        with self._told():
            self._file = soundfile.SoundFile(
                self._path, "w", SAMPLE_RATE, channels=1, subtype="PCM_16", format="WAV"
            )
        return self

    def __exit__(self, *_: object) -> None:
        with self._told():
            self._file.close()

    def __call__(self, block: Block) -> None:
        """Write a block."""
        import numpy as np

        with self._told():
            if (gap := block.start - self._file.tell()) > 0:
                self._file.write(np.zeros(gap, np.float32))
            self._file.write(block.samples)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Name the file that cannot be written; libsndfile keeps the system's reason to itself."""
        import soundfile

        try:
            yield
        except soundfile.LibsndfileError as error:
            why = error.error_string.rstrip(".")
            raise InputError(
                f"--save-audio {self._path}: cannot be written ({why}); is the disk full?"
            ) from error


def spare(option: str, path: Path, file: str | None) -> None:
    """Refuse to write over the recording that is read."""
    if file is None or file == STDIN:
        return
    with suppress(OSError):  # one of them is not there
        if path.samefile(file):
            raise InputError(f"{option} {path}: is the recording itself; give another name")


@contextmanager
def drivers_hushed() -> Iterator[None]:
    """Keep what a sound driver's threads write to stderr out of ours, also when a device goes away."""
    before, nowhere = sys.stderr, os.open(os.devnull, os.O_WRONLY)
    encoding, errors = before.encoding, before.errors
    with os.fdopen(os.dup(2), "w", 1, encoding=encoding, errors=errors) as kept:
        os.dup2(nowhere, 2)
        os.close(nowhere)
        sys.stderr = kept
        try:
            yield
        finally:
            sys.stderr = before
            os.dup2(kept.fileno(), 2)


def source_of(
    file: str | None,
    device: str | None,
    rate: int,
    realtime: bool,
    on_lost: Literal["wait", "stop"],
) -> Source:
    """Open what is to be heard: a file, raw samples from stdin, or a microphone."""
    if file is None:
        from edgegemma.audio.mic import Microphone

        return Microphone(device, on_lost=on_lost)
    if device is not None:
        raise InputError("--device: has no place beside --file; leave one out")
    from edgegemma.audio.sources import Pcm16, RealTime, Recording

    if file == STDIN:
        return Pcm16(sys.stdin.buffer, rate)
    recording = Recording(file)
    return RealTime(recording) if realtime else recording
