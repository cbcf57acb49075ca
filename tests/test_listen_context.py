"""Where an utterance is cut because it is as long as the model can hear, the next one knows what was said before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgegemma.audio.utterances import Utterances
from edgegemma.listen.events import Final
from edgegemma.listen.listener import Listener
from edgegemma.listen.recognizer import Recognizer
from edgegemma.listen.task import Task, last_sentence
from edgegemma.text.tokenizer import Tokenizer
from edgegemma.transcribe import Samples
from tests.fake_model import TOKENS, FakeModel, FakePackage, fake_package
from tests.speechlike import join, silence, speech, white

EOS = TOKENS.eos[1]
CARD = {
    "transcribe": "Write.\n\nFollow these specific instructions for formatting the answer:\n* x"
}


@pytest.fixture
def files(tmp_path: Path) -> FakePackage:
    return fake_package(tmp_path)


class Noting(Recognizer):
    """A recognizer that notes its instructions."""

    noted: list[str]

    def begin(self, instruction: str | None = None) -> None:
        super().begin(instruction)
        if instruction is not None:
            self.noted.append(instruction)


def run(
    files: FakePackage, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> tuple[list[str], list[Final]]:
    """Listen to speech that is cut at 5 s; give the instructions and what came."""
    monkeypatch.setattr("edgegemma.listen.listener.Recognizer", Noting)
    Noting.noted = []
    ids = [*map(int, Tokenizer(files).encode("One. The second")), EOS]
    talk = [x for _ in range(2) for x in (speech(2.0), silence(1.0))]
    sound = join(speech(9.0), silence(1.0), *talk)
    listener = Listener(
        FakeModel(files, ids), Samples(sound), utterances=Utterances(limit_s=5.0), **options
    )
    return Noting.noted, [event for event in listener if isinstance(event, Final)]


def test_the_next_part_knows_the_last_sentence_and_only_that_part(
    files: FakePackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.prompts = CARD
    asked, finals = run(files, monkeypatch)
    assert [final.reason for final in finals] == ["limit", "limit", "silence", "silence"]
    assert {asked[0], asked[-1]} == {CARD["transcribe"]}
    for instruction in asked[1:-1]:
        assert instruction.startswith(CARD["transcribe"])
        assert instruction.endswith("not to be repeated: The second")


def test_a_model_that_knows_one_prompt_is_asked_nothing_else(
    files: FakePackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, _ = run(files, monkeypatch)
    assert set(asked) == {files.prompts["transcribe"]}


def test_who_goes_on_after_an_interruption_is_told_what_was_said_before(
    files: FakePackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.prompts = CARD
    whole, finals = run(files, monkeypatch)
    whole = list(whole)
    done = round(finals[0].end_s * 16_000)
    assert run(files, monkeypatch, done=done, context=finals[0].text)[0] == whole[1:]


def test_what_two_instructions_share_is_read_once(files: FakePackage) -> None:
    model = FakeModel(files)
    recognizer = Recognizer(model, "the speech")
    samples = white(1.0)
    texts = []
    for instruction in ("the speech", "the speech and more", "the speech"):
        recognizer.begin(instruction)
        recognizer.hear(samples)
        rows = recognizer.work.instruction_rows
        texts.append((recognizer.hypothesis().ids, Recognizer(model, instruction)))
    for ids, fresh in texts:
        fresh.hear(samples)
        assert fresh.hypothesis().ids == ids
    once = len(Tokenizer(files).encode("<bos><|turn>user\nthe speech<|audio>"))
    more = len(Tokenizer(files).encode("<bos><|turn>user\nthe speech and more<|audio>"))
    assert once < rows < once + more + once - 8


def test_a_sentence_is_the_last_one_and_not_too_long() -> None:
    assert last_sentence("One. Two is two. Three and") == "Three and"
    assert last_sentence("One. Two is two.") == "Two is two."
    assert last_sentence("") == ""
    long = last_sentence("word " * 200)
    assert 190 < len(long) <= 200
    assert np.all([word == "word" for word in long.split()])
    assert Task("en").speech_prompt({}, "a. b").endswith(": b")
