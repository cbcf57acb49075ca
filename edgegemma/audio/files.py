"""Sound files and streams to float32 mono at 16 kHz, block by block.

libsndfile reads wav, flac, ogg (vorbis, opus), mp3, aiff and more; what it cannot (m4a, mp4, webm, amr…) PyAV
reads, if the ``video`` extra is installed. soxr resamples. One block is in memory at a time: an hour costs no
more than a minute. Everything that can be wrong with a user's file is an `InputError` of one line.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self, cast

import numpy as np
import soundfile
import soxr

from edgegemma.audio.features import F32, SAMPLE_RATE
from edgegemma.errors import EdgeGemmaError, InputError, MissingExtraError

Source = str | os.PathLike[str] | BinaryIO | bytes

BLOCK_SECONDS = 10
RATES = range(1_000, 1_000_001)  # what a real recording can have; soxr would try to serve anything

_SPOOL_IN_MEMORY = 16 << 20  # a pipe longer than this goes to a temporary file
_TAGS_BYTES = 1 << 16  # what may stand behind the sound: tags, as of a title
_FOREIGN = {  # offset and first bytes of the containers that libsndfile does not know and PyAV does
    "MP4 or M4A": (4, b"ftyp"),
    "WebM or Matroska": (0, b"\x1a\x45\xdf\xa3"),
    "AMR": (0, b"#!AMR"),
    "Windows Media": (0, b"\x30\x26\xb2\x75"),
    "Flash video": (0, b"FLV"),
    "AVI": (8, b"AVI "),
    "AAC": (0, b"\xff\xf1"),
    "AAC (MPEG-2)": (0, b"\xff\xf9"),
    "3GPP": (4, b"3gp"),
}


@dataclass(frozen=True)
class Pcm:
    """A whole recording in memory, float32 mono at 16 kHz, and what it was in its file."""

    samples: F32
    name: str
    source_rate: int
    source_channels: int

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.samples) / SAMPLE_RATE


class _Reader(Protocol):
    """One library's view of an opened file."""

    rate: int
    channels: int
    frames: int  # 0: not known

    def read(self) -> Iterator[F32]: ...  # float32 [n, channels], n > 0
    def close(self) -> None: ...


class AudioFile:
    """An opened recording: its header is read and checked, its samples come by blocks. A context manager.

    Attributes
    ----------
    name : str
        for messages
    rate, channels : int
        of the file
    seconds : float or None
        duration as the header tells, if it does
    """

    def __init__(self, source: Source) -> None:
        self.name, self._held = _open(source)
        try:
            self._reader = _reader(self.name, self._held)
            _check_header(self.name, self._reader)
        except EdgeGemmaError:
            self.close()
            raise
        self.rate, self.channels = self._reader.rate, self._reader.channels
        self.seconds = self._reader.frames / self.rate if self._reader.frames else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file (also one that was handed in as an object, except a caller's own stream)."""
        reader = getattr(self, "_reader", None)
        if reader is not None:
            reader.close()
        if self._held is not None:
            self._held.close()

    def blocks(self) -> Iterator[F32]:
        """Give the samples in order, float32 [n], n > 0, mono at 16 kHz."""
        convert = None
        if self.rate != SAMPLE_RATE:
            convert = soxr.ResampleStream(self.rate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
        count = 0
        for block in self._reader.read():
            if not np.isfinite(block).all():
                at = count / self.rate
                raise InputError(
                    f"{self.name}: holds NaN or infinite samples after {at:.1f} s; re-encode it"
                )
            count += len(block)
            mono = block[:, 0] if self.channels == 1 else block.mean(axis=1, dtype=np.float32)
            mono = np.ascontiguousarray(mono)
            if convert is not None:
                mono = convert.resample_chunk(mono)
            if len(mono):
                yield mono
        if count == 0:
            raise InputError(f"{self.name}: holds no samples")
        if convert is not None and len(
            rest := convert.resample_chunk(np.empty(0, np.float32), last=True)
        ):
            yield rest


def read_audio(source: Source) -> Pcm:
    """Read a whole recording.

    Parameters
    ----------
    source : path, bytes or binary file object
        an object that cannot seek (a pipe, stdin) is copied first

    Returns
    -------
    Pcm
        float32 mono at 16 kHz
    """
    with AudioFile(source) as file:
        samples = np.concatenate(list(file.blocks()) or [np.empty(0, np.float32)])
        return Pcm(samples, file.name, file.rate, file.channels)


def stream_audio(source: Source) -> Iterator[F32]:
    """Give the same samples block by block, float32 [n]; little memory for any length."""
    with AudioFile(source) as file:
        yield from file.blocks()


def _open(source: Source) -> tuple[str, BinaryIO]:
    """Open a source for reading and seeking; the name is for messages."""
    if isinstance(source, bytes):
        return "audio", io.BytesIO(source)
    if isinstance(source, str | os.PathLike):
        return _open_path(Path(source))
    name = getattr(source, "name", "audio")
    name = name if isinstance(name, str) else "audio"
    try:
        if source.seekable():
            source.seek(0)
            return name, cast(BinaryIO, _Borrowed(source))
        return name, _spooled(source)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: cannot be read: {error}") from error


def _open_path(path: Path) -> tuple[str, BinaryIO]:
    name = str(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{name}: is a folder; want a sound file")
        # By its descriptor, which has no name: libsndfile's wrapper goes by the ending, and wants a rate for `.raw`.
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb")
        if stat.S_ISREG(mode):
            return name, file
        with file:
            return name, _spooled(file)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{name}: cannot be read: {reason}") from error


def _spooled(source: BinaryIO) -> BinaryIO:
    """Copy a pipe to where it can be sought."""
    spool = tempfile.SpooledTemporaryFile(max_size=_SPOOL_IN_MEMORY)  # noqa: SIM115  AudioFile closes it
    shutil.copyfileobj(source, spool)
    spool.seek(0)
    return cast(BinaryIO, spool)


class _Borrowed(io.RawIOBase):
    """A caller's own file object: read through, never closed."""

    def __init__(self, source: BinaryIO) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        return self._source.tell()


def _reader(name: str, file: BinaryIO) -> _Reader:
    """Let libsndfile try, then PyAV."""
    head = file.read(16)
    if not head:
        raise InputError(f"{name}: is empty; want a sound file")
    file.seek(0)
    try:
        return _SoundFile(name, file)
    except soundfile.LibsndfileError as error:
        kind = next((k for k, (at, magic) in _FOREIGN.items() if head[at:].startswith(magic)), None)
        if kind is None:
            said = error.error_string.rstrip(".")
            raise InputError(
                f"{name}: is not sound in a known format ({said}); want wav, flac, ogg, mp3…"
            ) from error
    file.seek(0)
    return _AvFile(name, file, kind)


def _check_header(name: str, reader: _Reader) -> None:
    if reader.rate not in RATES or reader.channels < 1:
        got = f"{reader.rate} Hz, {reader.channels} channels"
        raise InputError(f"{name}: got {got}; want {RATES.start} to {RATES.stop - 1} Hz")


class _SoundFile:
    """libsndfile."""

    def __init__(self, name: str, file: BinaryIO) -> None:
        self._name, self._bytes, self._file = name, file, soundfile.SoundFile(file)
        self.rate, self.channels = int(self._file.samplerate), int(self._file.channels)
        self.frames = max(0, int(self._file.frames))

    def read(self) -> Iterator[F32]:
        done = 0
        while True:
            try:
                block = self._file.read(BLOCK_SECONDS * self.rate, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                at = self._file.tell() / self.rate
                raise InputError(
                    f"{self._name}: is damaged after {at:.1f} s: {error.error_string}"
                ) from error
            if len(block) == 0:
                return self._check_end(done)
            done += len(block)
            yield block

    def _check_end(self, done: int) -> None:
        """Refuse an end that libsndfile takes for one: the header promised more, or there is more behind it."""
        seconds = done / self.rate
        if self.frames - done > self.rate:
            raise InputError(
                f"{self._name}: ends after {seconds:.1f} of {self.frames / self.rate:.1f} s: it is cut short"
            )
        if self._file.format in ("MP3", "OGG", "FLAC"):
            rest = -self._bytes.tell() + self._bytes.seek(0, os.SEEK_END)
            if rest > _TAGS_BYTES:
                raise InputError(
                    f"{self._name}: {rest:,} bytes after {seconds:.1f} s cannot be read: it is several files in one, "
                    "or its header is wrong; convert it first: ffmpeg -i FILE out.wav"
                )

    def close(self) -> None:
        self._file.close()


class _AvFile:
    """PyAV: the first sound track of a container."""

    def __init__(self, name: str, file: BinaryIO, kind: str) -> None:
        try:
            import av  # an extra, and large: imported only for the files that need it
        except ImportError as error:
            raise MissingExtraError(f"{name}: {kind} needs PyAV", "video") from error
        self._av, self._name = av, name
        try:
            self._container = av.open(file, mode="r")
        except (av.FFmpegError, OSError, ValueError) as error:
            raise InputError(f"{name}: looks like {kind} but cannot be opened: {error}") from error
        if not self._container.streams.audio:
            self._container.close()
            raise InputError(f"{name}: {kind} without a sound track")
        self._track = self._container.streams.audio[0]
        self.rate, self.channels = int(self._track.rate or 0), int(self._track.channels or 0)
        seconds = (self._container.duration or 0) / av.time_base
        self.frames = int(seconds * self.rate)

    def read(self) -> Iterator[F32]:
        av = self._av
        plain = av.AudioResampler(format="fltp", layout=self._track.layout.name, rate=self.rate)
        waiting: list[F32] = []
        try:
            for frame in self._container.decode(self._track):
                waiting += [made.to_ndarray().T for made in plain.resample(frame)]
                if sum(map(len, waiting)) >= BLOCK_SECONDS * self.rate:
                    yield np.concatenate(waiting)
                    waiting = []
            waiting += [made.to_ndarray().T for made in plain.resample(None)]
        except (av.FFmpegError, OSError, ValueError) as error:
            raise InputError(f"{self._name}: is damaged: {error}") from error
        if any(map(len, waiting)):
            yield np.concatenate(waiting)

    def close(self) -> None:
        self._container.close()
