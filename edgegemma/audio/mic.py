"""The sound card, and only here. sounddevice loads PortAudio when it is imported, so that is done late."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgegemma.errors import DeviceError

INSTALL = "install it, on Debian: apt install libportaudio2"


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


def _sounddevice() -> Any:
    try:
        import sounddevice
    except OSError as error:  # the library itself is missing
        raise DeviceError(f"sound: PortAudio was not found; {INSTALL}") from error
    except ImportError as error:
        raise DeviceError(
            "sound: the package sounddevice is missing; install edgegemma again"
        ) from error
    return sounddevice
