"""The bank of soft tokens: what is put together says the text, and where."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("hibari")

from train import bank
from train.bank import RECORDED, Bank
from train.listening import mix
from train.schedule import Settings
from train.split import Ban
from train.texts import PUT_TOGETHER, Sentences, transcript

PIECES = 6


def clip(said: list[int], speaker: str, kind: str) -> tuple[np.ndarray, dict[str, object]]:
    """Two soft tokens of silence, two for each piece, which tell it, and two of silence."""
    heard = [0, 0, *(piece for piece in said for _ in range(2)), 0, 0]
    first = [2 + 2 * place for place in range(len(said))]
    path = [first, [at + 1 for at in first]]
    line = {"kind": kind, "speaker": speaker, "text": "x", "tokens": len(heard), "pieces": said}
    return np.eye(PIECES)[heard], line | {"path": path}


@pytest.fixture
def filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bank:
    """A bank of two speakers whose soft tokens are one-hot, and which hears without an error."""
    for name in ("BLENDED", "STRETCHED"):
        monkeypatch.setattr(bank, name, 0.0)
    made = [
        clip([1, 2, 3, 1, 4], RECORDED, "real"),
        clip([3, 2, 1], RECORDED, "real"),
        clip([1, 2, 3, 4, 5], "hibari", "hibari"),
    ]
    np.save(tmp_path / "bank-0.npy", np.concatenate([soft for soft, _ in made]).astype(np.float16))
    told = {"clips": [line for _, line in made], "confused": [{1: 1.0}] * PIECES}
    (tmp_path / "bank-0.json").write_text(json.dumps(told))
    return Bank.read([tmp_path / "bank-0"])


@pytest.mark.parametrize("said", [[1], [2, 3, 1, 4], [4, 4, 1, 3], [1, 2, 3, 4, 5], [5, 5]])
def test_each_piece_is_heard_where_the_path_says(filled: Bank, said: list[int]) -> None:
    for seed in range(20):
        made = filled.spoken("x", said, np.random.default_rng(seed))
        assert made is not None
        assert made.path is not None
        first, last = made.path
        assert made.soft[first].argmax(1).tolist() == said
        assert made.soft[last].argmax(1).tolist() == said


def test_nothing_but_the_pieces_and_silence_is_heard(filled: Bank) -> None:
    made = filled.spoken("x", [3, 1, 4], np.random.default_rng(2))
    assert made is not None
    heard = [0, *made.soft.argmax(1).tolist()]
    changes = [piece for before, piece in pairwise(heard) if piece and piece != before]
    assert changes == [3, 1, 4]


def test_a_text_with_a_piece_that_nobody_says_is_not_put_together(filled: Bank) -> None:
    assert filled.spoken("x", [1, 7], np.random.default_rng(0)) is None


def test_the_recorded_speaker_says_as_much_as_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bank, "BLENDED", 0.0)
    quiet, loud = clip([1, 2], RECORDED, "real"), clip([1, 2], "hibari", "hibari")
    both = Bank(np.concatenate([quiet[0], 3 * loud[0]]), [quiet[1], loud[1]])
    generator = np.random.default_rng(0)
    for share, least, most in ((1.0, 400, 400), (0.5, 250, 350), (0.0, 150, 250)):
        made = [both.spoken("x", [1, 2], generator, share) for _ in range(400)]
        recorded = sum(one is not None and one.soft.max() < 2 for one in made)
        assert least <= recorded <= most  # half of the others' is the recorded speaker's, too


@pytest.mark.parametrize("cycle", [0, 1, 3])
def test_what_the_decoder_listens_to_adds_up_and_is_in_the_bank(cycle: int) -> None:
    told = mix(cycle)
    assert sum(told.kinds.values()) == pytest.approx(1)
    assert {"put together", *told.clips} == set(told.kinds)


def test_a_sentence_depends_on_its_seed_alone(filled: Bank) -> None:
    one, two = (filled.spoken("x", [1, 2, 4], np.random.default_rng(5)) for _ in range(2))
    assert one is not None
    assert two is not None
    assert np.array_equal(one.soft, two.soft)


def test_no_text_that_is_put_together_contains_a_banned_transcript() -> None:
    prompts = ["please hold the line", "hold the line please", "goodbye now, press one"]
    words = ["hold", "the", "line"]
    source = Sentences(prompts, Ban({"hold the line"}), words, 3, PUT_TOGETHER)
    said = [transcript(source.draw()) for _ in range(500)]
    assert not [text for text in said if "hold the line" in text]


def test_what_a_piece_is_taken_for_is_that_of_all_processes() -> None:
    one, other = [{"7": 3.0, "8": 2.0}, {}], [{"8": 2.0, "9": 1.0}, {}]
    assert bank.most_confused([one, other]) == [[8, 7, 9], []]


def test_the_rate_falls_to_nothing_for_the_tower_and_for_the_decoder_in_every_cycle() -> None:
    settings = Settings(cycles=(1_000, 500, 400))
    parts = ((0, 1_000, 0.54), (1_000, 500, 0.65), (1_500, 400, 0.65))
    for cycle, (start, length, turn) in enumerate(parts):
        tower, decoder = start + round(turn * length), start + length
        peak = settings.peak_rate / (2 if cycle else 1)
        assert settings.rate(tower - 1) < 0.01 * peak
        assert settings.rate(tower) == peak
        assert settings.rate(decoder - 1) < 0.01 * peak


def test_spliced_sentences_are_heard_only_once_the_recordings_can_be_cut() -> None:
    settings = Settings(cycles=(100, 60))
    heard = [settings.kinds(step).get("spliced", 0) > 0 for step in range(settings.steps)]
    assert heard == [False] * 12 + [True] * 148
    for step in (0, 5, 90, 120):
        assert sum(settings.kinds(step).values()) == pytest.approx(1)


def test_the_steps_at_which_a_cycle_ends_are_known() -> None:
    settings = Settings(cycles=(100, 60))
    ended = {step: settings.ended(step) for step in range(settings.steps + 1)}
    assert {step: cycle for step, cycle in ended.items() if cycle is not None} == {100: 0, 160: 1}


def test_tower_and_decoder_take_turns_and_what_has_begun_goes_on() -> None:
    settings = Settings(cycles=(100, 100))
    stages = "".join(settings.stage(step)[0] for step in range(settings.steps))
    assert stages == "t" * 54 + "d" * 46 + "t" * 65 + "d" * 35
    begun = [settings.reached(settings.quantised_from, step) for step in range(settings.steps)]
    assert begun == [step >= 88 for step in range(settings.steps)]
    assert not any(settings.reached(settings.static_from, s) for s in range(settings.steps))
