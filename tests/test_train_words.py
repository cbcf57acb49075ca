"""Pieces of words, Spanish, paces and the optimiser of the training recipe."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("hibari")

import torch

from train.augment import coded
from train.frames import FLOOR, TAIL, coloured, paced, trimmed
from train.muon import Muon, orthogonal
from train.split import kept
from train.tokens import ANSWER_TRANSLATED, ENGLISH, VOCABULARY, answer_ids, train_tokenizer
from train.translations import Translations, chrf

SAID = ["please hold the line", "hold the line please", "the line is free"] * 9
SPANISH = ["la línea está libre", "no cuelgue", "la línea no está libre"] * 9


def test_every_word_of_the_corpus_is_one_piece_wherever_it_stands() -> None:
    tokenizer = train_tokenizer(SAID)
    pieces = [tokenizer.id_to_token(n) for n in answer_ids(tokenizer, "line please hold the line")]
    assert pieces == ["▁line", "▁please", "▁hold", "▁the", "▁line"]


def test_spanish_is_learnt_on_top_and_leaves_english_as_it_was() -> None:
    plain, both = train_tokenizer(SAID), train_tokenizer(SAID, SPANISH)
    assert both.get_vocab_size() == plain.get_vocab_size() == VOCABULARY
    for text in SAID:
        assert answer_ids(plain, text) == answer_ids(both, text)
        assert max(answer_ids(both, text)) < ENGLISH
    ids = answer_ids(both, ANSWER_TRANSLATED.format("hold the line", "la línea está libre"))
    pieces = [both.id_to_token(n) for n in ids]
    assert pieces[-4:] == ["▁la", "▁línea", "▁está", "▁libre"]
    assert both.decode(ids).strip() == "hold the line\nSpanish: la línea está libre"


def test_no_held_out_sentence_is_given_for_training() -> None:
    training, testing = Translations(3), Translations(3, testing=True)
    assert not [text for text, _ in (training.draw() for _ in range(300)) if kept(text)]
    assert all(kept(text) for text, _ in (testing.draw() for _ in range(50)))


def test_both_sides_of_a_pair_are_whole() -> None:
    source = Translations(7)
    drawn = [source.draw() for _ in range(2_000)]
    for english, spanish in drawn:
        for text in (english, spanish):
            assert text == text.lower().strip()
            assert not set(text) & set("{}|.,?0123456789")
    cancelled = {
        spanish for english, spanish in drawn if english == "if you wish to cancel press two"
    }
    assert cancelled == {"si desea cancelar pulse dos"}


def test_chrf_is_a_hundred_for_the_same_and_nothing_for_another_text() -> None:
    assert chrf(["no cuelgue", "hola"], ["no cuelgue", "hola"]) == pytest.approx(100)
    assert chrf(["hola"], ["mundo"]) < 20
    assert chrf(["hola"], [""]) == 0


def test_a_pace_changes_the_length_and_keeps_the_ends() -> None:
    frames = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    slower = paced(frames, 0.8)
    assert len(slower) == 50
    assert np.array_equal(slower[[0, -1]], frames[[0, -1]])
    assert np.allclose(paced(frames, 1.0), frames)


def test_only_the_silence_after_the_last_sound_is_cut() -> None:
    frames = np.zeros((90, 3), np.float32)
    frames[10:50] = 1.0
    for seed in range(20):
        made = trimmed(frames, np.random.default_rng(seed))
        assert 50 <= len(made) < 50 + TAIL
        assert np.array_equal(made, frames[: len(made)])


def test_a_channel_filters_all_frames_alike_and_leaves_silence_silent() -> None:
    magnitudes = np.random.default_rng(0).uniform(0.1, 3, (30, 128))
    magnitudes[:5] = 0
    made = coloured(np.log(magnitudes + FLOOR).astype(np.float32), np.random.default_rng(1))
    assert np.allclose(made[:5], np.log(FLOOR), atol=1e-4)
    gains = (np.exp(made[5:]) - FLOOR) / magnitudes[5:]
    assert np.allclose(gains, gains[0], rtol=1e-3)
    assert np.abs(np.diff(np.log(gains[0]))).max() < 0.2
    assert np.log(gains[0]).std() > 0.05


@pytest.mark.parametrize("shape", [(3, 20, 20), (2, 12, 40), (1, 40, 12)])
def test_a_direction_is_about_orthogonal(shape: tuple[int, ...]) -> None:
    made = orthogonal(torch.from_numpy(np.random.default_rng(1).standard_normal(shape)).float())
    sizes = torch.linalg.svdvals(made)
    assert made.shape == shape
    assert sizes.min() > 0.5
    assert sizes.max() < 1.4


def test_muon_finds_a_matrix() -> None:
    torch.manual_seed(0)
    wanted, found = torch.randn(6, 9), torch.nn.Parameter(torch.zeros(6, 9))
    optimiser = Muon([found], weight_decay=0.0)
    for step in range(200):
        optimiser.param_groups[0]["lr"] = 0.2 * (1 - step / 200)
        optimiser.zero_grad()
        (found - wanted).square().sum().backward()
        optimiser.step()
    assert torch.allclose(found, wanted, atol=0.3)


@pytest.mark.parametrize("loudness", [0.02, 0.2, 0.9])
def test_a_telephone_line_keeps_the_voice_and_nothing_above_four_kilohertz(loudness: float) -> None:
    time = np.arange(16_001) / 16_000
    low, high = (np.sin(2 * np.pi * hertz * time) for hertz in (440, 5_000))
    heard = coded((loudness * low).astype(np.float32))
    assert len(heard) == len(time)
    middle = slice(1_000, -1_000)
    wrong = (heard - loudness * low)[middle].std() / (loudness * low)[middle].std()
    assert wrong < 10 ** (
        -30 / 20
    )  # G.711 keeps 33 dB or more between a tone and what is wrong with it
    assert coded((loudness * high).astype(np.float32))[middle].std() < 0.01 * loudness
