"""Words cut out of recordings and put in another order, and the scope that the sentences are of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("hibari")

from train import splices
from train.features import FRAMES_PER_TOKEN, MELS
from train.scope import LONGEST, scope, within
from train.splices import Cut, edges, spliced
from train.split import Ban
from train.texts import Sentences

WIDTH = FRAMES_PER_TOKEN * MELS


def test_words_are_cut_at_the_quietest_place_near_where_the_phones_say() -> None:
    rows = np.ones((20, WIDTH), np.float32)
    rows[9] = 0  # between the second and the third phone, which are told 1.5 tokens late
    found = edges(rows, [2, 4], np.array([5, 7, 14, 16]), np.array([5, 8, 14, 16]))
    assert found.tolist() == [3, 9, 17]


def test_words_follow_each_other_even_where_the_phones_do_not() -> None:
    rows = np.random.default_rng(0).standard_normal((6, WIDTH)).astype(np.float32)
    for seed in range(50):
        told = np.sort(np.random.default_rng(seed).integers(0, 6, 4))
        found = edges(rows, [1, 2, 4], told, told)
        assert found[0] >= 0
        assert found[-1] <= 7
        assert (np.diff(found) >= 0).all()


def test_a_spliced_sentence_is_made_of_the_rows_of_its_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = {"one": 1, "two": 2, "three": 3}
    texts = ["one two three", "three one"]
    monkeypatch.setattr(
        splices,
        "sentences",
        lambda work, seed, *_: Sentences(texts, Ban(()), list(said), seed, {"any_words": 1}),
    )
    cuts = []
    for text in texts:
        words = text.split()
        heard = [0, 0, *(said[word] for word in words for _ in range(3)), 0, 0]
        rows = np.repeat(np.array(heard, np.float32)[:, None], WIDTH, axis=1)
        at = 2 + 3 * np.arange(len(words) + 1)
        cuts.append(Cut(rows, words, [word.upper() for word in words], at))
    for frames, text, *_, phones in spliced(cuts, tmp_path, 5, 40):
        rows = frames.reshape(-1, WIDTH)[:, 0].astype(int)
        assert [n for n in rows if n] == [said[word] for word in text.split() for _ in range(3)]
        assert phones == text.upper()


def test_the_scope_is_the_tables_and_what_two_prompts_say() -> None:
    words = scope(["please waggle the flange", "a flange, please"])
    assert {"flange", "please", "xray", "coffee", "seventeen"} <= words
    assert "waggle" not in words


@pytest.mark.parametrize(
    ("text", "seconds", "inside"),
    [
        ("press one", 2.0, True),
        ("press", 1.0, False),
        ("press flange", 2.0, False),
        ("press one", LONGEST + 1, False),
        ("", 1.0, False),
    ],
)
def test_a_phrase_is_in_scope_by_its_words_and_its_length(
    text: str, seconds: float, inside: bool
) -> None:
    assert within(text, {"press", "one"}, seconds) is inside
