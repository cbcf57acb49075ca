"""The sound card, and only here. sounddevice loads PortAudio when it is imported, so that is done late.

PortAudio's own thread calls us with every piece of sound; it only copies it into a queue. All else (mixing,
resampling, a device that went away) is the business of who iterates. A queue that is full is counted, and what did
not fit leaves a gap in the places of the blocks.

PortAudio looks for devices once, when it starts, and with some drivers it cannot be started twice in a process. So
a device that went away is waited for where it was, by opening it again.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edgegemma.audio.blocks import BLOCK_SECONDS, Block
from edgegemma.audio.features import F32, SAMPLE_RATE
from edgegemma.audio.mono import Mono
from edgegemma.errors import DeviceError, InputError

INSTALL = "install it, on Debian: apt install libportaudio2"
OTHER_RATES = (48_000, 44_100)  # what nearly every device can, should it not tell its own
QUEUE_SECONDS = 60.0
DEAF_SECONDS = 3.0  # a device that gave nothing for so long has gone away
RETRY_SECONDS = 1.0
UNAVAILABLE = -9985  # PortAudio's code for a device in use


@dataclass(frozen=True)
class Device:
    """A sound device that can record."""

    index: int
    name: str
    channels: int
    rate: float
    default: bool


def list_devices() -> list[Device]:
    """Give the devices that can record; none on a machine without one.

    Raises
    ------
    DeviceError
        PortAudio is not installed or does not start; the message says what to do.
    """
    sounddevice = _sounddevice()
    try:
        found = list(sounddevice.query_devices())
        default = sounddevice.default.device[0]
    except sounddevice.PortAudioError as error:
        raise DeviceError(f"sound: PortAudio does not start: {error}") from error
    return [
        Device(i, d["name"], d["max_input_channels"], d["default_samplerate"], i == default)
        for i, d in enumerate(found)
        if d["max_input_channels"] > 0
    ]


def find_device(wanted: int | str | None = None) -> Device:
    """Find a device by its number, its name or a part of its name; the default one if nothing is wanted.

    Raises
    ------
    DeviceError
        there is none, or not just one; the message names the nearest
    """
    devices = list_devices()
    if not devices:
        raise DeviceError("sound: no device that records was found; plug one in, or give a file")
    if wanted is None:
        return next((device for device in devices if device.default), devices[0])
    if isinstance(wanted, int) or wanted.isdecimal():
        for device in devices:
            if device.index == int(wanted):
                return device
        numbers = ", ".join(f"{device.index} ({device.name})" for device in devices)
        raise DeviceError(f"sound: no device {wanted} records; there are {numbers}")
    return _named(wanted, devices)


def _named(wanted: str, devices: list[Device]) -> Device:
    low = wanted.casefold()
    same = [device for device in devices if device.name.casefold() == low]
    fit = same or [device for device in devices if low in device.name.casefold()]
    if len(fit) == 1:
        return fit[0]
    if fit:
        names = ", ".join(f"{device.index} ({device.name})" for device in fit)
        raise DeviceError(f"sound: {wanted!r} fits {len(fit)} devices: {names}; give its number")
    known = {device.name.casefold(): device.name for device in devices}
    near = difflib.get_close_matches(low, known, n=3, cutoff=0.3) or list(known)[:3]
    listed = ", ".join(repr(known[name]) for name in near)
    raise DeviceError(f"sound: no device that records is named {wanted!r}; the nearest: {listed}")


class Microphone:
    """A device that records. A `Source`; it is opened at once and records from the first iteration on.

    Parameters
    ----------
    device : int or str, optional
        its number, its name or a part of its name; the system's default
    block_s : float
        length of the blocks
    queue_s : float
        sound that may wait for its reader before any is lost
    on_lost : {"wait", "stop"}
        what to do when the device goes away, after an empty block with ``cut`` that says so

    Attributes
    ----------
    rate, channels : int
        what the device was opened with
    started : threading.Event
        set when the first sound has come

    Raises
    ------
    DeviceError
        there is no such device, it is in use or it takes none of the rates
    """

    live = True
    seconds = None

    def __init__(
        self,
        device: int | str | None = None,
        block_s: float = BLOCK_SECONDS,
        queue_s: float = QUEUE_SECONDS,
        on_lost: Literal["wait", "stop"] = "wait",
    ) -> None:
        if not 0.01 <= block_s <= queue_s:
            raise InputError(f"sound: got blocks of {block_s:g} s; want 0.01 to {queue_s:g} s")
        self.started = threading.Event()
        self.lost: str | None = None
        self._device = find_device(device)
        self._block_s, self._most, self._on_lost = block_s, int(queue_s / block_s), on_lost
        self._overflows = 0
        self._place = 0  # of the next block
        self._closed = threading.Event()
        self._capture = self._open()
        self.name = self._device.name
        self.rate, self.channels = self._capture.rate, self._capture.channels

    @property
    def overflows(self) -> int:
        """How often sound was lost because it was not taken in time, by us or by the driver."""
        return self._overflows + self._capture.overflows

    @property
    def backlog_s(self) -> float:
        """Seconds of sound that wait in the queue."""
        return self._capture.pieces.qsize() * self._block_s

    def close(self) -> None:
        """Give the device back and end the iterator."""
        self._closed.set()
        self._capture.close()

    def __iter__(self) -> Iterator[Block]:
        """Give the blocks in order, until `close` or until the device is lost and not waited for."""
        try:
            self._capture.start()
            while True:
                yield from self._blocks()
                if self._closed.is_set():
                    return
                lost_at = time.monotonic()
                yield Block(self._place, np.empty(0, np.float32), cut=True)
                if self._on_lost == "stop" or not self._reopen():
                    return
                self._place += round((time.monotonic() - lost_at) * SAMPLE_RATE)
        finally:
            self.close()

    def _blocks(self) -> Iterator[Block]:
        """Give the blocks of one stretch of recording; afterwards it is closed or ``lost`` says why."""
        capture, first, expected = self._capture, self._place, 0
        mono = Mono(capture.rate)
        while (piece := capture.next()) is not None:
            self.started.set()
            at, frames = piece
            if at != expected:  # the queue was full
                yield from self._placed(mono.finish())
                mono = Mono(capture.rate)
                self._place = max(self._place, first + at * SAMPLE_RATE // capture.rate)
            expected = at + len(frames)
            yield from self._placed(mono.feed(frames))
        if not self._closed.is_set():
            self.lost = f"sound: {self.name} went away: {capture.reason}"
            capture.close()
        yield from self._placed(mono.finish())

    def _placed(self, samples: F32) -> Iterator[Block]:
        if len(samples):
            block = Block(self._place, samples)
            self._place = block.stop
            yield block

    def _reopen(self) -> bool:
        """Wait until the device is there again; false if we were closed meanwhile."""
        while not self._closed.wait(RETRY_SECONDS):
            try:
                capture = self._open()
            except DeviceError:
                continue
            self._overflows += self._capture.overflows
            self._capture, self.lost = capture, None
            try:
                capture.start()
            except DeviceError as error:
                self.lost = str(error)
                capture.close()
                continue
            if self._closed.is_set():  # closed while it was opened
                capture.close()
            return not self._closed.is_set()
        return False

    def _open(self) -> _Capture:
        device, refused = self._device, ""
        rates = dict.fromkeys((SAMPLE_RATE, round(device.rate), *OTHER_RATES))
        for rate in rates:
            try:
                return _Capture(device, rate, round(self._block_s * rate), self._most)
            except _RefusedError as error:
                refused = str(error)
        listed = ", ".join(map(str, rates))
        raise DeviceError(f"sound: {device.name} takes none of {listed} Hz: {refused}")


class _RefusedError(Exception):
    """A device does not take a rate."""


class _Capture:
    """One opened stream: its callback, and the queue in which the callback leaves what it hears."""

    def __init__(self, device: Device, rate: int, block: int, most: int) -> None:
        self.rate, self.channels = rate, min(device.channels, 2)
        self.overflows = 0
        self.reason = "it was unplugged, or its driver or sound server stopped"
        self.pieces: queue.SimpleQueue[tuple[int, F32] | None] = queue.SimpleQueue()
        self._name, self._most, self._heard = device.name, most, 0
        # A signal's handler may close it in the middle of our own closing.
        self._closing, self._closed = threading.RLock(), False
        self._sounddevice = _sounddevice()
        format = {"device": device.index, "channels": self.channels, "dtype": "float32"}
        try:
            with _hushed():
                self._sounddevice.check_input_settings(samplerate=rate, **format)
                self._stream = self._sounddevice.InputStream(
                    samplerate=rate,
                    blocksize=block,
                    callback=self._hear,
                    finished_callback=lambda: self.pieces.put(None),
                    **format,
                )
        except self._sounddevice.PortAudioError as error:
            if UNAVAILABLE in error.args:
                raise DeviceError(
                    f"sound: {device.name} is in use; close the program that records from it"
                ) from error
            raise _RefusedError(str(error)) from error

    def _hear(self, frames: F32, count: int, _time: Any, status: Any) -> None:
        if status.input_overflow:
            self.overflows += 1
        at, self._heard = self._heard, self._heard + count
        if self.pieces.qsize() < self._most:
            self.pieces.put((at, frames.copy()))
        else:
            self.overflows += 1

    def start(self) -> None:
        """Begin to record."""
        try:
            with _hushed():
                self._stream.start()
        except self._sounddevice.PortAudioError as error:
            raise DeviceError(f"sound: {self._name} does not start: {error}") from error

    def next(self) -> tuple[int, F32] | None:
        """Wait for the next piece: its first frame's number and float32 [n, channels]; None: no more will come."""
        try:
            return self.pieces.get(timeout=DEAF_SECONDS)
        except queue.Empty:
            self.reason = f"it gave no sound for {DEAF_SECONDS:g} s"
            return None

    def close(self) -> None:
        """Give the device back. No piece comes after this."""
        with self._closing, _hushed():
            if not self._closed:  # PortAudio frees a stream that it closes
                self._closed = True
                self._stream.close()
        self.pieces.put(None)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep ALSA and PortAudio from writing to stderr what we say in a line of our own."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _sounddevice() -> Any:
    try:
        with _hushed():
            import sounddevice
    except OSError as error:  # the library itself is missing
        raise DeviceError(f"sound: PortAudio was not found; {INSTALL}") from error
    except ImportError as error:
        raise DeviceError(
            "sound: the package sounddevice is missing; install edgegemma again"
        ) from error
    return sounddevice
