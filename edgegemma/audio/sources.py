"""Sound that does not come from a sound card: recordings, at once or at their own pace, and pipes of raw samples."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from edgegemma.audio import files
from edgegemma.audio.blocks import BLOCK_SECONDS, Block, Source
from edgegemma.audio.features import F32, SAMPLE_RATE
from edgegemma.audio.files import RATES, AudioFile
from edgegemma.audio.mono import Mono
from edgegemma.errors import InputError

WIDTH = 2  # bytes of a sample of a pipe
LOOK_SECONDS = 0.1  # how often a pipe that gives nothing looks whether it was closed


class Recording:
    """A sound file, as fast as it can be read. A `Source`.

    Parameters
    ----------
    source : path, bytes or binary file object
    block_s : float
        length of the blocks
    """

    live = False
    backlog_s = 0.0
    overflows = 0
    lost = None

    def __init__(self, source: files.Source, block_s: float = BLOCK_SECONDS) -> None:
        self._file = AudioFile(source)
        self._block = max(1, round(block_s * SAMPLE_RATE))
        self._closed, self._reading = threading.Event(), False
        self.name, self.seconds = self._file.name, self._file.seconds

    def close(self) -> None:
        """Close the file; the iterator ends."""
        self._closed.set()
        if not self._reading:  # else the iterator does it, whose thread may be in the file now
            self._file.close()

    def __iter__(self) -> Iterator[Block]:
        """Give blocks of the same length; the last one may be shorter."""
        self._reading = True
        try:
            if self._closed.is_set():  # by a thread that did not know yet that somebody reads
                return
            start, rest = 0, np.empty(0, np.float32)
            for samples in self._file.blocks():
                rest = np.concatenate([rest, samples])
                whole = len(rest) // self._block * self._block
                for piece in rest[:whole].reshape(-1, self._block):
                    if self._closed.is_set():
                        return
                    yield Block(start, piece)
                    start += len(piece)
                rest = rest[whole:]
            if len(rest):
                yield Block(start, rest)
        finally:
            self._reading = False
            self.close()


class RealTime:
    """Another source at the pace of time: a block is given when its last sample would have been said. A `Source`.

    The clock starts with the iteration and nothing moves it, so a reader that was slow for a moment finds what it
    missed waiting, as it would from a microphone.

    Parameters
    ----------
    source : Source
        a `Recording`
    pace : float
        2 plays it in half the time
    """

    live = True
    overflows = 0
    lost = None

    def __init__(self, source: Source, pace: float = 1.0) -> None:
        if not 0 < pace < float("inf"):
            raise InputError(f"pace: got {pace:g}; want a number above 0")
        self._source, self._pace = source, pace
        self.name, self.seconds = source.name, source.seconds
        self._closed = threading.Event()
        self._began: float | None = None
        self._given = 0  # place after the last block that was given

    @property
    def backlog_s(self) -> float:
        """Seconds of sound that would have been said and were not taken."""
        if self._began is None:
            return 0.0
        said = (time.monotonic() - self._began) * self._pace
        if self.seconds is not None:
            said = min(said, self.seconds)
        return max(0.0, said - self._given / SAMPLE_RATE)

    def close(self) -> None:
        """Close the source and end the iterator, also while it waits."""
        self._closed.set()
        self._source.close()

    def __iter__(self) -> Iterator[Block]:
        """Give the source's blocks when they are due."""
        try:
            self._began = time.monotonic()
            for block in self._source:
                due = self._began + block.stop / SAMPLE_RATE / self._pace
                if self._closed.wait(max(0.0, due - time.monotonic())):
                    return
                self._given = block.stop
                yield block
        finally:
            self.close()


class Pcm16:
    """Raw samples from a pipe: signed 16 bits, little-endian, mono. A `Source`.

    Blocks are given as they come, whatever their length, up to ``block_s``.

    Parameters
    ----------
    stream : binary file object
        ``sys.stdin.buffer``, say; it is not closed
    rate : int
        of the samples, Hz
    block_s : float
        longest block
    """

    live = True
    seconds = None
    backlog_s = 0.0  # what was not read waits with its writer
    overflows = 0
    lost = None

    def __init__(
        self, stream: BinaryIO, rate: int = SAMPLE_RATE, block_s: float = BLOCK_SECONDS
    ) -> None:
        if rate not in RATES:
            raise InputError(f"rate: got {rate} Hz; want {RATES.start} to {RATES.stop - 1} Hz")
        name = getattr(stream, "name", None)
        self.name = name.strip("<>") if isinstance(name, str) else "stdin"
        self._stream, self._rate = stream, rate
        self._bytes = max(1, round(block_s * rate)) * WIDTH
        self._closed = threading.Event()

    def close(self) -> None:
        """End the iterator, also while it waits for its writer."""
        self._closed.set()

    def __iter__(self) -> Iterator[Block]:
        """Give the samples as they come.

        Raises
        ------
        InputError
            after the last block, if half a sample is left
        """
        mono, place, rest, count = Mono(self._rate), 0, b"", 0
        while data := self._read():
            count += len(data)
            data = rest + data
            whole = len(data) // WIDTH * WIDTH
            rest = data[whole:]
            if whole and len(samples := mono.feed(_floats(data[:whole]))):
                yield Block(place, samples)
                place += len(samples)
        if len(samples := mono.finish()):
            yield Block(place, samples)
        if rest and not self._closed.is_set():
            raise InputError(
                f"{self.name}: got {count} bytes; want an even number, for samples of 16 bits (s16le)"
            )

    def _read(self) -> bytes:
        """Wait for bytes and give those that are there; none at the end."""
        number = None
        with contextlib.suppress(OSError, AttributeError):  # an object in memory never waits
            number = self._stream.fileno()
        while not self._closed.is_set():
            if number is None:
                return self._stream.read(self._bytes)
            if select.select([number], [], [], LOOK_SECONDS)[0]:
                return os.read(number, self._bytes)
        return b""


def _floats(data: bytes) -> F32:
    """Turn samples of 16 bits into float32 [n, 1] in [-1, 1)."""
    return (np.frombuffer(data, "<i2").astype(np.float32) / np.float32(1 << 15))[:, None]
