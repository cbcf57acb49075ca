"""A real PortAudio records from a virtual microphone: choice, fallback, loss and overflow."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgegemma.audio.blocks import Block
from edgegemma.audio.features import SAMPLE_RATE
from edgegemma.audio.files import read_audio
from edgegemma.audio.utterances import End, Utterances
from tests.virtual_mic import VirtualMicrophone, missing

F32 = NDArray[np.float32]

ROOT = Path(__file__).resolve().parent.parent
SPEECH = ROOT / "edgegemma" / "data" / "samples" / "confbridge-conf-end.flac"

pytestmark = pytest.mark.skipif(missing() is not None, reason=f"virtual microphone: {missing()}")


@pytest.fixture(scope="module")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VirtualMicrophone]:
    with VirtualMicrophone(tmp_path_factory.mktemp("vmic")) as made:
        yield made


class Recorder:
    """A process that records, and what it said."""

    def __init__(self, microphone: VirtualMicrophone, out: Path, **options: Any) -> None:
        command = [sys.executable, "-m", "tests.record", str(out), json.dumps(options)]
        self._out, self.rows = out, list[dict[str, Any]]()
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=microphone.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._deadline = threading.Timer(60, self._process.kill)
        self._deadline.start()
        self.until(lambda row: True)  # the first block: the stream is open

    def until(self, wanted: Any) -> dict[str, Any]:
        """Read rows up to one that is wanted."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.rows.append(json.loads(line))
            if wanted(self.rows[-1]):
                return self.rows[-1]
        raise AssertionError(f"ended after {self.rows[-1:]}")

    def seconds(self, seconds: float) -> None:
        """Go on for a while, by the clock of the sound."""
        to = self.rows[-1]["stop"] + seconds * SAMPLE_RATE
        self.until(lambda row: row["stop"] >= to)

    def finish(self) -> tuple[dict[str, Any], F32]:
        """Read to the end; give the last row and the samples."""
        assert self._process.stdout is not None
        self.rows += map(json.loads, self._process.stdout)
        self._process.stdout.close()
        status = self._process.wait()
        self._deadline.cancel()
        assert status == 0
        return self.rows.pop(), np.load(self._out)

    def end(self) -> None:
        assert self._process.stdout is not None
        self._deadline.cancel()
        self._process.kill()
        self._process.stdout.close()
        self._process.wait()


def likeness(recorded: F32, said: F32) -> float:
    """Correlation of what was said with the stretch of the recording that is likest to it."""
    size = 1 << (len(recorded) + len(said)).bit_length()
    product = np.fft.rfft(recorded, size) * np.conj(np.fft.rfft(said, size))
    at = int(np.argmax(np.fft.irfft(product)[: len(recorded)]))
    stretch = recorded[at : at + len(said)]
    return float(np.corrcoef(stretch, said[: len(stretch)])[0, 1])


def take(microphone: VirtualMicrophone, out: Path, **options: Any) -> tuple[dict[str, Any], F32]:
    """Record the speech, played into the device of that name."""
    seconds = read_audio(SPEECH).seconds + 0.8
    recorder = Recorder(microphone, out, seconds=seconds, **options)
    player = microphone.say(SPEECH, "cd" if options.get("device") == "cd" else "vmic")
    found = recorder.finish()
    player.wait()
    return found


def test_a_device_chosen_by_a_part_of_its_name_hears_what_is_said(
    microphone: VirtualMicrophone, tmp_path: Path
) -> None:
    last, samples = take(microphone, tmp_path / "x.npy", device="VMI")
    assert (last["name"], last["rate"], last["overflows"]) == ("vmic", SAMPLE_RATE, 0)
    assert likeness(samples, read_audio(SPEECH).samples) > 0.99


def test_a_device_chosen_by_its_number_is_another_than_the_default(
    microphone: VirtualMicrophone, tmp_path: Path
) -> None:
    code = "from edgegemma.audio import mic; print(*(d.name for d in mic.list_devices()))"
    command = [sys.executable, "-c", code]
    listed = subprocess.check_output(command, cwd=ROOT, env=microphone.environment, text=True)
    number = listed.split().index("cd")
    last, samples = take(microphone, tmp_path / "x.npy", device=number)
    assert last["name"] == "cd"
    assert not samples.any()  # the speech went into the other one


def test_a_stereo_device_at_44100_hz_comes_through_soxr(
    microphone: VirtualMicrophone, tmp_path: Path
) -> None:
    last, samples = take(microphone, tmp_path / "x.npy", device="cd", refuse=[SAMPLE_RATE])
    assert (last["rate"], last["channels"]) == (44_100, 2)
    assert likeness(samples, read_audio(SPEECH).samples) > 0.99


def test_a_server_killed_in_mid_speech_ends_the_recording_with_what_was_heard(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with VirtualMicrophone(tmp_path_factory.mktemp("vmic")) as microphone:
        recorder = Recorder(microphone, tmp_path / "x.npy", device="vmic", on_lost="stop")
        player = microphone.say(SPEECH)
        recorder.seconds(1.5)
        microphone.kill()
        last, samples = recorder.finish()
        player.wait()
    assert last["lost"].startswith("sound: vmic went away: ")
    assert [row["cut"] for row in recorder.rows[-2:]] == [False, True]
    found = Utterances()
    events = [*found.feed(Block(0, samples)), *found.feed(Block(len(samples), samples[:0], True))]
    (end,) = (event for event in events if isinstance(event, End))
    assert end.reason == "break"
    assert end.speech_s > 0.5


def test_a_device_that_comes_back_is_waited_for_and_time_goes_on(
    microphone: VirtualMicrophone, tmp_path: Path
) -> None:
    recorder = Recorder(microphone, tmp_path / "x.npy", device="vmic", on_lost="wait")
    try:
        recorder.seconds(0.3)
        microphone.unplug("cd")  # or the server records from it instead
        microphone.unplug("vmic")
        cut = recorder.until(lambda row: row["cut"])
        assert "went away" in cut["lost"]
        microphone.plug("vmic")
        microphone.plug("cd")
        back = recorder.until(lambda row: not row["cut"])
        assert back["lost"] is None
        assert 0.9 <= (back["start"] - cut["stop"]) / SAMPLE_RATE <= 5.0
        recorder.seconds(0.5)
    finally:
        recorder.end()


def test_sound_that_is_not_taken_in_time_is_counted_and_leaves_a_gap(
    microphone: VirtualMicrophone, tmp_path: Path
) -> None:
    options = {"device": "vmic", "queue_s": 0.4, "wait_s": 1.5, "seconds": 1.0}
    recorder = Recorder(microphone, tmp_path / "x.npy", **options)
    last, samples = recorder.finish()
    places = [(row["start"], row["stop"]) for row in recorder.rows]
    gaps = [b[0] - a[1] for a, b in itertools.pairwise(places) if b[0] != a[1]]
    assert len(gaps) == 1
    assert gaps[0] == last["overflows"] * 1_280
    assert 0.7 <= gaps[0] / SAMPLE_RATE <= 1.6
    assert len(samples) == sum(stop - start for start, stop in places)
