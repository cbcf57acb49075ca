"""Real speech from Debian packages, and the part of it that is never trained on.

The recordings are downloaded with apt, unpacked into the work folder and never committed. Which
prompts are held out is decided by a hash of their key and written to `heldout.txt`, which is
committed (`split`).
"""

from __future__ import annotations

import gzip
import hashlib
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.split import Ban, held_out_keys
from train.texts import transcript
from train.voices import Samples, read

HELD_OUT_SHARE = 5  # one key in five
QUIET_DECIBELS, QUIET_FRAME, QUIET_FRAMES, QUIET_EDGE = -45.0, 160, 25, 5
RECORDED = ("asterisk-core-sounds-en", "asterisk-core-sounds-en-g722")
PACKAGES = (*RECORDED, "pocketsphinx-testdata", "tuxpaint-stamps-default")
TRANSCRIPTS = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
SOUNDS = "usr/share/asterisk/sounds"
LIBRIVOX = "usr/share/pocketsphinx/test/data/librivox"
STAMPS, SAID = "usr/share/tuxpaint/stamps", "_desc.ogg"


@dataclass(frozen=True)
class Recording:
    """One recorded utterance."""

    key: str
    text: str
    path: Path

    @property
    def transcript(self) -> str:
        """What the model should write."""
        return transcript(self.text)

    def samples(self) -> Samples:
        """Decode to 16 kHz."""
        if self.path.suffix != ".g722":
            return read(self.path)
        command = [
            "ffmpeg",
            "-v",
            "error",
            "-f",
            "g722",
            "-i",
            str(self.path),
            "-ar",
            "16000",
            "-f",
            "s16le",
            "-",
        ]
        raw = subprocess.run(command, check=True, capture_output=True).stdout
        return np.frombuffer(raw, dtype="<i2").astype(np.float32) / 32768


def pauses(samples: Samples) -> list[Samples]:
    """Cut out where nobody speaks: 0.25 s and more that is 45 dB below the loudest 10 ms, but for 50 ms at each end."""
    frames = samples[: len(samples) // QUIET_FRAME * QUIET_FRAME].reshape(-1, QUIET_FRAME)
    power = np.square(frames, dtype=np.float64).mean(1)
    quiet = power < power.max(initial=0) * 10 ** (QUIET_DECIBELS / 10)
    edges = np.flatnonzero(np.diff(quiet, prepend=False, append=False)).reshape(-1, 2)
    return [
        frames[a + QUIET_EDGE : b - QUIET_EDGE].reshape(-1)
        for a, b in edges
        if b - a >= QUIET_FRAMES
    ]


def fetch(work: Path) -> None:
    """Download and unpack the packages into `work/packages`."""
    folder = work / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    unpacked = folder / "unpacked"  # written last: a run may be stopped between two packages
    if unpacked.exists() and unpacked.read_text().split() == list(PACKAGES):
        return
    subprocess.run(["apt-get", "download", *PACKAGES], cwd=folder, check=True)
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", str(package), str(folder)], check=True)
    unpacked.write_text("\n".join(PACKAGES))


def prompts(work: Path) -> list[Recording]:
    """List the telephone prompts that are speech and have a transcript, by key."""
    folder = work / "packages"
    sounds = {
        str(path.relative_to(root).with_suffix("")): path
        for root in (folder / SOUNDS).glob("*")
        for path in root.rglob("*.g722")
    }
    found = {}
    for line in gzip.decompress((folder / TRANSCRIPTS).read_bytes()).decode().splitlines():
        if match := re.match(r"([\w/.-]+): *(.+)", line):
            key, text = match.groups()
            if key in sounds and transcript(text):
                found[key] = Recording(key, text.strip(), sounds[key])
    return [found[key] for key in sorted(found)]


def librivox(work: Path) -> list[Recording]:
    """List the five sentences of read literature: speech out of the model's scope."""
    folder = work / "packages" / LIBRIVOX
    lines = (folder / "transcription").read_text().splitlines()
    pairs = [re.match(r"(.+) \((\S+)\)$", line) for line in lines]
    return [Recording(m[2], re.sub(r"</?s>", "", m[1]), folder / f"{m[2]}.wav") for m in pairs if m]


def tux_paint(work: Path) -> list[Recording]:
    """List what a stamp of Tux Paint shows, said in English: another person than the prompts', words out of the model's scope."""
    root, found = work / "packages" / STAMPS, []
    for words in sorted(root.rglob("*.txt")):
        path = words.with_name(words.stem + SAID)
        if path.exists():
            key = path.relative_to(root).as_posix().removesuffix(SAID)
            found.append(Recording(key, words.read_text("utf-8").splitlines()[0], path))
    return found


def chosen_keys(recordings: Iterable[Recording]) -> set[str]:
    """Choose the keys to hold out.

    One key in five by its hash, and every other take of the same words where these are three or
    more, so that no held-out sentence was heard in another recording.
    """
    recordings = list(recordings)
    hashed = {
        r.key
        for r in recordings
        if hashlib.sha256(r.key.encode()).digest()[0] % HELD_OUT_SHARE == 0
    }
    said = {r.transcript for r in recordings if r.key in hashed}
    return hashed | {
        r.key for r in recordings if r.transcript in said and len(r.transcript.split()) > 2
    }


def divided(recordings: Iterable[Recording]) -> tuple[list[Recording], list[Recording]]:
    """Divide recordings into those to train on and those held out, by the committed list.

    A recording that says all of one that is held out, and something before or after it, is in neither.
    """
    keys = held_out_keys()
    training: list[Recording] = []
    testing: list[Recording] = []
    for recording in recordings:
        (testing if recording.key in keys else training).append(recording)
    ban = ban_on(testing)
    return [r for r in training if not ban.on(r.transcript)], testing


def ban_on(testing: Iterable[Recording]) -> Ban:
    """Give what no training clip may say, for the recordings that are held out."""
    return Ban({recording.transcript for recording in testing})
