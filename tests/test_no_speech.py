"""Where nobody speaks there is not one word; what moves like a voice is heard as one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgegemma import models
from edgegemma.audio import silero
from edgegemma.audio.features import SAMPLE_RATE
from edgegemma.audio.files import read_audio
from edgegemma.audio.gate import EnergyGate, Gate
from edgegemma.audio.silero import SileroGate
from edgegemma.audio.utterances import Utterances
from edgegemma.audio.voice import GLIDING, NONE, STEADY, Voice
from edgegemma.engine.model import Model, open_model
from edgegemma.listen.events import Commit, Final
from edgegemma.listen.listener import Listener
from edgegemma.transcribe import Samples
from tests.no_speech import without_speech
from tests.speechlike import F32, join, silence, white

STEP = 320
SAMPLES = models.DATA / "samples"


@pytest.fixture(scope="module")
def demo() -> Model:
    return open_model(models.find("demo"))


def words(model: Model, sound: F32, gate: Gate) -> str:
    """All that is written, live."""
    listener = Listener(
        model, Samples(sound, block_s=0.08), utterances=Utterances(gate), partials=True
    )
    return "".join(e.text for e in listener if isinstance(e, Commit | Final))


def moves(sound: F32) -> list[int]:
    voice = Voice(STEP)
    return [voice.hear(step, True) for step in sound[: len(sound) // STEP * STEP].reshape(-1, STEP)]


def tone(hertz: np.ndarray[tuple[int], np.dtype[np.float64]]) -> F32:
    turns = np.cumsum(hertz) / SAMPLE_RATE
    return np.asarray(sum(np.sin(2 * np.pi * n * turns) / n for n in range(1, 9)), np.float32)


def test_a_pitch_that_glides_is_a_voice_and_one_that_stands_still_is_not() -> None:
    second = np.linspace(0, 1, SAMPLE_RATE)
    assert moves(tone(110 * 2**second)).count(GLIDING) > 40
    assert moves(tone(110 + 0 * second)).count(STEADY) > 47


def test_a_leap_from_note_to_note_is_no_voice() -> None:
    notes = np.repeat([110.0, 165.0, 131.0, 196.0], SAMPLE_RATE // 4)
    assert moves(tone(notes)).count(GLIDING) <= 4


def test_noise_and_zeros_have_no_pitch() -> None:
    assert moves(white(1.0)).count(NONE) > 48
    assert set(moves(silence(1.0))) == {NONE}


def test_in_a_minute_of_silence_noise_and_music_there_is_not_one_word(demo: Model) -> None:
    assert words(demo, without_speech(60), EnergyGate()) == ""


@pytest.mark.slow
def test_nor_in_ten_minutes(demo: Model) -> None:
    assert words(demo, without_speech(600), EnergyGate()) == ""


@pytest.mark.slow
@pytest.mark.skipif(silero.find_model() is None, reason="the extra vad is not installed")
def test_nor_in_ten_minutes_with_sileros_detector(demo: Model) -> None:
    assert words(demo, without_speech(600), SileroGate()) == ""


def test_no_sample_is_taken_for_noise(demo: Model) -> None:
    for row in json.loads((SAMPLES / "samples.json").read_text()):
        sound = join(silence(1), read_audio(SAMPLES / row["file"]).samples, silence(1))
        assert words(demo, sound, EnergyGate())
