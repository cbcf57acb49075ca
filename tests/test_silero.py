"""Silero's detector as a gate: it hears speech and not music, the same at any cut of the input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgegemma.audio import silero
from edgegemma.audio.blocks import Block
from edgegemma.audio.features import SAMPLE_RATE
from edgegemma.audio.files import read_audio
from edgegemma.audio.silero import SileroGate
from edgegemma.audio.utterances import Begin, End, Utterances
from edgegemma.errors import MissingExtraError
from tests.speechlike import F32, join, rustle, silence, tones, white

SAMPLES = Path(__file__).resolve().parent.parent / "edgegemma" / "data" / "samples"

detector = pytest.mark.skipif(silero.find_model() is None, reason="the extra vad is not installed")


def said() -> F32:
    return read_audio(SAMPLES / "confbridge-conf-end.flac").samples


@detector
def test_a_sentence_is_one_utterance() -> None:
    sentence = said()
    pcm = join(silence(1.5), sentence, silence(1.5))
    found = Utterances(SileroGate())
    events = found.feed(Block(0, pcm)) + found.finish()
    (begin,) = (event.at for event in events if isinstance(event, Begin))
    (end,) = (event.at for event in events if isinstance(event, End))
    assert 1.0 <= begin / SAMPLE_RATE <= 1.6
    assert -0.4 <= (end - len(pcm)) / SAMPLE_RATE + 1.5 <= 0.4


@detector
@pytest.mark.parametrize("sound", [join(tones(20.0)), white(20.0, -30), join(rustle(20.0))])
def test_music_and_noise_begin_nothing(sound: F32) -> None:
    found = Utterances(SileroGate())
    assert found.feed(Block(0, sound)) + found.finish() == []


@detector
@settings(max_examples=10)
@given(cuts=st.lists(st.integers(1, 5_000), max_size=8))
def test_any_cut_of_the_input_gives_the_same_decisions(cuts: list[int]) -> None:
    pcm, gate = said()[: 2 * SAMPLE_RATE], SileroGate()
    pieces = np.split(pcm, np.minimum(np.cumsum(cuts, dtype=np.int64), len(pcm)))
    decided = np.concatenate([gate.feed(piece) for piece in pieces])
    assert np.array_equal(decided, SileroGate().feed(pcm))
    assert decided.any()


@detector
def test_a_gate_that_was_restarted_hears_as_a_new_one() -> None:
    pcm, gate = said(), SileroGate()
    gate.feed(white(1.3, -100))
    gate.restart()
    assert np.array_equal(gate.feed(pcm)[50:], SileroGate().feed(pcm)[50:])


def test_without_the_extra_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silero, "PACKAGES", ("no_such_package",))
    with pytest.raises(MissingExtraError, match=r"pip install -e '\.\[vad\]'"):
        SileroGate()
