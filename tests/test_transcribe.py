"""Recordings to passages: times, silence, guards, progress."""

from __future__ import annotations

import dataclasses
import io
import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgegemma.audio.features import SAMPLE_RATE
from edgegemma.audio.files import Pcm
from edgegemma.errors import InputError
from edgegemma.text.tokenizer import Tokenizer
from edgegemma.transcribe import SpeechModel, Transcriber, token_limit, transcribe, without_loop
from tests.fake_model import TOKENS, FakeModel, FakePackage, fake_package

if TYPE_CHECKING:
    from edgegemma.engine.model import Model

F32 = NDArray[np.float32]
EOS = TOKENS.eos[1]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> FakePackage:
    return fake_package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def words(files: FakePackage) -> list[int]:
    return list(map(int, Tokenizer(files).encode("the speech")))


def engine_fits(model: Model) -> SpeechModel:
    """Checked by mypy: the engine's model has what a transcriber needs."""
    return model


def speech(seconds: float, level: float = 0.1) -> F32:
    count = int(seconds * SAMPLE_RATE)
    return (level * np.random.default_rng(1).standard_normal(count)).astype(np.float32)


def test_a_recording_becomes_passages_with_times(files: FakePackage, words: list[int]) -> None:
    model = FakeModel(files, [*words, EOS])
    done: list[tuple[float, float | None]] = []
    found = list(transcribe(model, speech(70), progress=lambda *at: done.append(at)))
    assert [p.text for p in found] == ["the speech"] * 3
    assert {p.stop for p in found} == {"stop"}
    assert all(p.tokens == len(words) for p in found)
    assert found[0].start_s == 0
    assert found[-1].end_s == 70
    assert all(0 < b.start_s - a.start_s <= 30 for a, b in itertools.pairwise(found))
    assert [at for at, _ in done] == pytest.approx([p.end_s for p in found], abs=0.021)
    assert {total for _, total in done} == {70}
    assert sum(model.encoded) == pytest.approx(70 * 25, abs=3)


def test_the_instruction_stands_before_the_sound(files: FakePackage) -> None:
    model, tokenizer = FakeModel(files, [EOS]), Tokenizer(files)
    for instruction, want in ((None, "the speech"), ("user text", "user text")):
        list(transcribe(model, speech(1), instruction=instruction))
        rows = np.stack(model.last_cache.embeds)
        before = tokenizer.encode(f"<bos><|turn>user\n{want}<|audio>")
        assert np.array_equal(rows[: len(before)], model.embed(before)[0])
        after = tokenizer.encode("<audio|><turn|>\n<|turn>model\n")
        assert np.array_equal(rows[len(before) + 25 :], model.embed(after)[0])


def test_files_arrays_and_pcm_are_heard_alike(files: FakePackage, words: list[int]) -> None:
    buffer, pcm = io.BytesIO(), speech(2)
    soundfile.write(buffer, pcm, SAMPLE_RATE, format="WAV", subtype="FLOAT")
    model = FakeModel(files, [*words, EOS])
    totals: list[float | None] = []
    for source in (pcm, Pcm(pcm, "x", SAMPLE_RATE, 1), buffer.getvalue()):
        (passage,) = transcribe(model, source, progress=lambda _, total: totals.append(total))
        assert (passage.start_s, passage.end_s, passage.text) == (0, 2, "the speech")
    assert totals == [2.0] * 3


def test_silence_is_not_shown_to_the_model(files: FakePackage, words: list[int]) -> None:
    model, done = FakeModel(files, [*words, EOS]), []
    assert list(transcribe(model, speech(3, 1e-5), progress=lambda at, _: done.append(at))) == []
    assert (model.encoded, model.forwards, done) == ([], [], [3.0])


def test_times_are_of_the_sound_not_of_the_silence_around_it(
    files: FakePackage, words: list[int]
) -> None:
    pcm = np.concatenate([speech(2, 0), speech(1), speech(2, 0)])
    (passage,) = transcribe(FakeModel(files, [*words, EOS]), pcm)
    assert (passage.start_s, passage.end_s) == (2.0, 3.0)


def test_too_little_sound_gives_nothing(files: FakePackage) -> None:
    model = FakeModel(files, [EOS])
    assert list(transcribe(model, speech(0.005))) == []
    assert list(transcribe(model, speech(0))) == []


def test_a_text_that_repeats_itself_is_cut(files: FakePackage, words: list[int]) -> None:
    model = FakeModel(files, words + words[-3:] * 60)
    (passage,) = transcribe(model, speech(4))
    assert passage.stop == "loop"
    assert passage.text == "the speech"
    assert len(model.forwards) < len(words) + 20


def test_a_text_that_does_not_end_is_cut_by_the_length_of_the_sound(files: FakePackage) -> None:
    letters = list(np.random.default_rng(0).integers(600, 640, 999))
    (passage,) = transcribe(FakeModel(files, letters), speech(2))
    assert (passage.stop, passage.tokens) == ("length", token_limit(2, 1024))


def test_a_limit_grows_with_the_sound_and_with_small_vocabularies() -> None:
    assert token_limit(0.1, 262_144) == 4
    assert token_limit(10, 262_144) == 94
    assert token_limit(10, 768) == 244


def test_media_tokens_are_never_written(files: FakePackage) -> None:
    (passage,) = transcribe(FakeModel(files, [TOKENS.audio or 0, EOS]), speech(1))
    assert passage.text == ""
    assert passage.stop == "stop"


def test_cancelling_ends_with_what_there_is(files: FakePackage, words: list[int]) -> None:
    model = FakeModel(files, [*words, EOS])
    calls = iter([False] * 4 + [True] * 99)
    (passage,) = transcribe(model, speech(70), cancel=lambda: next(calls))
    assert passage.stop == "cancelled"
    assert "the speech".startswith(passage.text)


def test_a_worker_takes_blocks_as_they_come(files: FakePackage, words: list[int]) -> None:
    worker = Transcriber(FakeModel(files, [*words, EOS]), limit_s=2)
    found = list(worker.blocks(np.split(speech(5), 10)))
    assert [p.text for p in found] == ["the speech"] * 3


def test_a_package_without_a_prompt_needs_an_instruction(files: FakePackage) -> None:
    model = FakeModel(dataclasses.replace(files, prompts={}), [EOS])
    with pytest.raises(InputError, match="has no prompt 'transcribe'"):
        next(transcribe(model, speech(1)))
    assert list(transcribe(model, speech(1), instruction="the text"))


def test_a_missing_file_is_named(files: FakePackage) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        next(transcribe(FakeModel(files, [EOS]), Path("nowhere.wav")))


@given(
    head=st.lists(st.integers(0, 50), max_size=20),
    phrase=st.lists(st.integers(0, 5), min_size=1, max_size=24),
    times=st.integers(4, 20),
)
def test_a_loop_is_cut_to_a_beginning(head: list[int], phrase: list[int], times: int) -> None:
    ids = head + phrase * times
    keep = without_loop(ids)
    if len(phrase) * times >= 12 and times >= max(4, 12 // len(phrase)):
        assert keep < len(ids)
    assert set(ids[keep:]) <= set(phrase)


@given(st.lists(st.integers(0, 9), max_size=60, unique=True))
def test_a_text_without_repetition_is_kept(ids: list[int]) -> None:
    assert without_loop(ids) == len(ids)
    assert without_loop(ids * 3) == len(ids * 3)
