"""Joules, where the machine has a meter: a Raspberry Pi 5's power chip, or RAPL of an x86 one.

A Pi 5's ``vcgencmd pmic_read_adc`` tells current and voltage of each of its rails as they are now: they are read several
times a second, and the power is added up over time. What the board takes past that chip, USB for one, is not in
it. RAPL counts microjoules of the processor package itself.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

RAPL = Path("/sys/class/powercap")
PERIOD = 0.1  # seconds between two looks at the power chip
_RAIL = re.compile(r"(\w+)_([AV]) (?:current|volt)\(\d+\)=([\d.]+)[AV]")


class Meter(Protocol):
    """Adds up joules."""

    name: str

    def start(self) -> None:
        """Begin to add up."""

    def stop(self) -> float:
        """Give the joules since `start`."""


class Rapl:
    """Counters of the processor packages, each in a file of microjoules that begins again at its range."""

    name = "RAPL, processor package"

    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders
        self._before: list[int] = []

    def start(self) -> None:
        """Note the counters."""
        self._before = self._read("energy_uj")

    def stop(self) -> float:
        """Give the joules since `start`."""
        ranges = self._read("max_energy_range_uj")
        used = zip(self._read("energy_uj"), self._before, ranges, strict=True)
        return sum((now - before) % (most + 1) for now, before, most in used) / 1e6

    def _read(self, name: str) -> list[int]:
        return [int((folder / name).read_text()) for folder in self._folders]


class Pmic:
    """The power chip of a Raspberry Pi 5, read by a thread of its own while the work runs."""

    name = "Raspberry Pi power chip (all rails)"

    def __init__(self, watts: Callable[[], float], period: float = PERIOD) -> None:
        self._watts, self._period = watts, period
        self._done = threading.Event()
        self._thread = threading.Thread()
        self._joules = 0.0

    def start(self) -> None:
        """Begin to read."""
        self._done.clear()
        self._joules = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Give the joules since `start`."""
        self._done.set()
        self._thread.join()
        return self._joules

    def _run(self) -> None:
        at, watts = time.perf_counter(), self._watts()
        while not self._done.wait(self._period):
            at, watts = self._add(at, watts)
        self._add(at, watts)

    def _add(self, at: float, watts: float) -> tuple[float, float]:
        now, power = time.perf_counter(), self._watts()
        self._joules += (now - at) * (watts + power) / 2
        return now, power


def watts_of(text: str) -> float:
    """Add up volts times amperes of every rail that ``vcgencmd pmic_read_adc`` names with both."""
    rails: dict[str, dict[str, float]] = {}
    for rail, kind, value in _RAIL.findall(text):
        rails.setdefault(rail, {})[kind] = float(value)
    return sum(rail["A"] * rail["V"] for rail in rails.values() if len(rail) == 2)


def _ask_chip() -> float:
    command = ["vcgencmd", "pmic_read_adc"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return watts_of(done.stdout) if done.returncode == 0 else 0.0


def find(rapl: Path = RAPL, ask: Callable[[], float] = _ask_chip) -> Meter | None:
    """Give the machine's meter; None where there is none, or it may not be read."""
    if shutil.which("vcgencmd") and ask() > 0:
        return Pmic(ask)
    folders = sorted(rapl.glob("intel-rapl:[0-9]"))
    try:
        for folder in folders:
            (folder / "energy_uj").read_text()
    except OSError:  # only root may, on many systems
        return None
    return Rapl(folders) if folders else None
