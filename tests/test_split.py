"""What the recipe keeps for testing is neither heard nor said in training."""

from __future__ import annotations

import pytest

from train.split import Ban, guard, held_out_keys, kept
from train.texts import MEANT, PUT_TOGETHER, SPOKEN, Sentences, transcript

PROMPTS = ["Please hold the line.", "Press one to hold, press two to go on.", "Goodbye now."]
WORDS = ["apple", "river", "hold", "line"]
BAN = Ban({"goodbye now", "press one", "star"})


def said(testing: bool, kinds: dict[str, int]) -> set[str]:
    source = Sentences(PROMPTS, BAN, WORDS, 3, kinds, testing=testing)
    return {transcript(source.draw()) for _ in range(400)}


def test_one_text_in_six_is_kept_but_no_word_alone() -> None:
    texts = [f"press {one} {other}" for one in range(60) for other in range(60)]
    assert sum(map(kept, texts)) / len(texts) == pytest.approx(1 / 6, abs=0.02)
    assert not [word for word in map(str, range(1_000)) if kept(word)]


@pytest.mark.parametrize("kinds", [SPOKEN, PUT_TOGETHER])
def test_no_voice_says_for_training_what_is_kept(kinds: dict[str, int]) -> None:
    assert not [text for text in said(False, kinds) if kept(text) or BAN.on(text)]


def test_the_tests_have_only_what_is_kept_and_no_prompt() -> None:
    tested = said(True, MEANT)
    assert all(kept(text) and not BAN.on(text) for text in tested)
    assert tested.isdisjoint(map(transcript, PROMPTS))


def test_a_ban_is_on_whole_words_of_texts_of_several() -> None:
    found = {text: BAN.on(text) for text in ("please press one now", "press ones", "the star key")}
    assert found == {"please press one now": True, "press ones": False, "the star key": False}


@pytest.mark.parametrize(
    ("kind", "key", "text"),
    [
        ("real", min(held_out_keys()), "anything"),
        ("joined", "some-key", "please press one now"),
        ("voices-00", "0/1", next(text for n in range(99) if kept(text := f"press {n} twice"))),
    ],
)
def test_a_clip_that_is_kept_is_refused(kind: str, key: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"{kind}: held-out"):
        guard(kind, [key], [text], BAN)
    guard(kind, ["other-key"], ["hold on"], BAN)
