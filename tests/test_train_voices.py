"""What the voices of the training recipe say, and which of them may be trained on."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("hibari")

import numpy as np

from train import kokoro
from train.corpus import further
from train.sources import may_train
from train.split import Ban
from train.texts import ALONE, LISTED, WORDS, Sentences, transcript
from train.voices import ALONE_SHARES, MORE_SHARES, NEURAL_SHARES, SHARES, UNSEEN_VOICE, VOICES

MIXTURES = [SHARES, MORE_SHARES, NEURAL_SHARES, ALONE_SHARES]


@pytest.mark.parametrize("shares", MIXTURES)
def test_a_mixture_is_of_voices_that_may_be_trained_on(shares: dict[str, float]) -> None:
    may_train(shares)
    assert UNSEEN_VOICE not in shares
    assert shares.keys() <= VOICES.keys()
    assert sum(shares.values()) == pytest.approx(1)


def test_a_word_alone_is_one_word_and_every_listed_one_is_said() -> None:
    source = Sentences(["dial the number, please."], Ban(()), ["apple"], 3, ALONE)
    said = {transcript(source.draw()) for _ in range(5_000)}
    assert not [text for text in said if len(text.split()) != 1]
    listed = {word.lower() for name in LISTED for word in WORDS[name]}
    assert said == listed | {"dial", "the", "number", "please", "apple"}


def test_further_phrases_are_said_once_and_are_none_of_the_first() -> None:
    said = ("yes please", "good night", "yes please", "good night", "well done", "well done")
    clips = [(np.zeros(1), text, UNSEEN_VOICE, f"test/{n}") for n, text in enumerate(said)]
    assert [clip[3] for clip in further(iter(clips), 2)] == ["test/4"]
    assert [clip[3] for clip in further(iter(clips), 1)] == ["test/1", "test/4"]


def test_silence_before_and_after_is_cut_and_nothing_else() -> None:
    tone = np.sin(np.arange(4_000) * 0.3)
    padded = np.pad(tone, (30_000, 20_000))
    cut = kokoro.trimmed(padded)
    assert len(tone) < len(cut) <= len(tone) + 2 * kokoro.MARGIN
    assert np.abs(cut).sum() == pytest.approx(np.abs(tone).sum())
