"""`edgegemma listen` hears a virtual microphone: a held-out recording goes in, its words come out while it plays."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from edgegemma import models
from edgegemma.audio.features import SAMPLE_RATE
from edgegemma.audio.files import read_audio
from edgegemma.engine.model import open_model
from edgegemma.transcribe import transcribe
from tests.speechlike import silence
from tests.virtual_mic import VirtualMicrophone, missing

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = models.DATA / "samples"
PATIENCE_S = 120.0
RUN = """
import signal
import sys
from tests.record import refuse
refuse({rates})
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
from edgegemma.cli.main import main
main()
"""

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"virtual microphone: {missing()}")


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualMicrophone]:
    with VirtualMicrophone(tmp_path_factory.mktemp("vmic")) as made:
        yield made


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Give a recording, three times with pauses, whose words the model hears right in a room, and the words."""
    model = open_model(models.find("demo"))
    for row in json.loads((SAMPLES / "samples.json").read_text()):
        samples = np.append(read_audio(SAMPLES / row["file"]).samples, silence(1.2))
        if [f.text for f in transcribe(model, samples)] == [row["text"]]:
            path = tmp_path_factory.mktemp("said") / "said.wav"
            soundfile.write(path, np.tile(samples, 3), SAMPLE_RATE, subtype="PCM_16")
            return path, row["text"]
    pytest.fail("the embedded model hears none of its samples right")


class Listening:
    """A running `edgegemma listen`, and what it has written so far, with the time of each line."""

    def __init__(self, microphone: VirtualMicrophone, *options: str, refuse: Any = ()) -> None:
        command = [sys.executable, "-c", RUN.format(rates=list(refuse)), "listen", *options]
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=microphone.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._deadline = threading.Timer(PATIENCE_S, self._process.kill)
        self._deadline.start()
        self.lines: list[tuple[float, str]] = []
        self.notes: list[str] = []
        self._readers = [threading.Thread(target=read) for read in (self._read, self._read_notes)]
        for reader in self._readers:
            reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self.lines.append((time.monotonic(), line.rstrip("\n")))

    def _read_notes(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self.notes.append(line.rstrip("\n"))

    def until(self, note: str) -> None:
        """Wait until it has said something that contains this."""
        until = time.monotonic() + PATIENCE_S
        while not any(note in line for line in self.notes):
            assert self._process.poll() is None, self.notes
            assert time.monotonic() < until, self.notes
            time.sleep(0.02)

    def ready(self) -> None:
        """Wait until it records: what is played while a stream opens is lost."""
        self.until("listening to")
        time.sleep(0.7)

    def heard(self, count: int, kind: str) -> list[dict[str, Any]]:
        """Wait for so many events of a kind, written as JSON lines."""
        until = time.monotonic() + PATIENCE_S
        while len(found := [row for _, row in self.events() if row["type"] == kind]) < count:
            assert time.monotonic() < until, self.notes
            time.sleep(0.02)
        return found

    def events(self) -> list[tuple[float, dict[str, Any]]]:
        return [(at, json.loads(line)) for at, line in self.lines]

    def stop(self) -> None:
        """Ctrl-C, as a person would."""
        self._process.send_signal(2)
        assert self.end() == 0

    def end(self) -> int:
        """Wait for its end; give its status."""
        status = self._process.wait()
        self._deadline.cancel()
        for reader in self._readers:
            reader.join()
        return status


def test_the_right_words_come_and_the_first_before_the_recording_has_ended(
    microphone: VirtualMicrophone, prompt: tuple[Path, str]
) -> None:
    path, text = prompt
    listening = Listening(microphone, "--device", "vmic", "-f", "jsonl", "--vad", "energy")
    listening.ready()
    microphone.say(path).wait()
    ended = time.monotonic()
    finals = listening.heard(3, "final")
    listening.stop()
    assert [final["text"] for final in finals] == [text] * 3
    first = next(at for at, row in listening.events() if row["type"] == "commit")
    assert first < ended
    assert any("listening to vmic" in note for note in listening.notes)


def test_a_stereo_device_at_44100_hz_is_heard_as_well(
    microphone: VirtualMicrophone, prompt: tuple[Path, str]
) -> None:
    path, text = prompt
    listening = Listening(
        microphone, "-d", "cd", "-f", "jsonl", "--vad", "energy", refuse=[SAMPLE_RATE]
    )
    listening.ready()
    microphone.say(path, "cd").wait()
    finals = listening.heard(3, "final")
    listening.stop()
    assert text in [final["text"] for final in finals]


def test_a_source_that_dies_in_mid_speech_ends_it_with_what_was_heard_on_disk(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, prompt: tuple[Path, str]
) -> None:
    out = tmp_path / "out.txt"
    with VirtualMicrophone(tmp_path_factory.mktemp("vmic")) as microphone:
        listening = Listening(microphone, "-d", "vmic", "-o", str(out), "--on-lost", "stop")
        listening.ready()
        player = microphone.say(prompt[0])
        time.sleep(1.5)
        microphone.kill()
        assert listening.end() == 0
        player.wait()
    assert any("vmic went away" in note for note in listening.notes)
    assert out.read_text().endswith("\n")
    assert out.read_text().split()


def test_a_device_that_comes_back_is_heard_again(
    tmp_path_factory: pytest.TempPathFactory, prompt: tuple[Path, str]
) -> None:
    path, text = prompt
    with VirtualMicrophone(tmp_path_factory.mktemp("vmic")) as microphone:
        listening = Listening(microphone, "-d", "vmic", "-f", "jsonl", "--vad", "energy")
        listening.ready()
        microphone.unplug("cd")  # or the server records from it instead
        microphone.unplug("vmic")
        (gap,) = listening.heard(1, "gap")
        assert "went away" in gap["reason"]
        microphone.plug("vmic")
        microphone.plug("cd")
        listening.heard(2, "gap")  # it is there again, and tells how long it was not
        player = microphone.say(path)
        finals = listening.heard(1, "final")
        player.wait()
        listening.stop()
    assert finals[0]["text"] == text


def test_an_unknown_name_is_answered_with_the_nearest(microphone: VirtualMicrophone) -> None:
    listening = Listening(microphone, "-d", "vmick")
    assert listening.end() == 2
    assert "'vmic'" in listening.notes[-1]
