"""Recordings to finals: times, silence, progress, and guards against a text that runs away."""

from __future__ import annotations

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
from edgegemma.listen.guards import token_limit, without_loop
from edgegemma.listen.recognizer import SpeechModel
from edgegemma.listen.task import Task
from edgegemma.text.tokenizer import Tokenizer
from edgegemma.transcribe import transcribe
from tests.fake_model import TOKENS, FakeModel, FakePackage, fake_package
from tests.speechlike import join, silence, speech

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


def test_a_recording_becomes_finals_with_times(files: FakePackage, words: list[int]) -> None:
    model = FakeModel(files, [*words, EOS])
    done: list[tuple[float, float | None]] = []
    found = list(transcribe(model, speech(70), progress=lambda *at: done.append(at)))
    assert {final.text for final in found} == {"the speech"}
    assert {final.stop for final in found} == {"stop"}
    assert all(final.tokens == len(words) for final in found)
    assert (found[0].start_s, found[-1].end_s) == (0, 70)
    assert all(a.end_s == b.start_s for a, b in itertools.pairwise(found))
    assert all(final.end_s - final.start_s <= 28 for final in found)
    assert [at for at, _ in done] == sorted(at for at, _ in done)
    assert {total for _, total in done} == {70}
    assert sum(model.encoded) == pytest.approx(70 * 25, abs=3)


def test_the_instruction_stands_before_the_sound(files: FakePackage) -> None:
    model, tokenizer = FakeModel(files, [EOS]), Tokenizer(files)
    for instruction, want in ((None, "the speech"), ("user text", "user text")):
        list(transcribe(model, speech(1), task=Task(instruction=instruction)))
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
        (final,) = transcribe(model, source, progress=lambda _, total: totals.append(total))
        assert (final.start_s, final.end_s, final.text) == (0, 2, "the speech")
    assert set(totals) == {2.0}


def test_silence_is_not_shown_to_the_model(files: FakePackage, words: list[int]) -> None:
    model, done = FakeModel(files, [*words, EOS]), []
    assert list(transcribe(model, silence(3), progress=lambda at, _: done.append(at))) == []
    assert (model.encoded, model.forwards, done) == ([], [], [3.0])


def test_times_are_of_the_sound_not_of_the_silence_around_it(
    files: FakePackage, words: list[int]
) -> None:
    pcm = join(silence(2), speech(1), silence(2))
    (final,) = transcribe(FakeModel(files, [*words, EOS]), pcm)
    assert (final.start_s, final.end_s) == pytest.approx((2 - 0.3, 3 + 0.3), abs=0.1)


def test_too_little_sound_gives_nothing(files: FakePackage) -> None:
    model = FakeModel(files, [EOS])
    assert list(transcribe(model, speech(0.005))) == []
    assert list(transcribe(model, speech(0))) == []


def test_a_text_that_runs_away_is_cut_and_says_so(files: FakePackage, words: list[int]) -> None:
    (final,) = transcribe(FakeModel(files, words + words[-3:] * 60), speech(4))
    assert (final.stop, final.text) == ("loop", "the speech")
    letters = list(range(600, 999))
    (final,) = transcribe(FakeModel(files, letters), speech(2))
    assert (final.stop, final.tokens) == ("length", token_limit(2, 1024))


def test_a_limit_grows_with_the_sound_and_with_small_vocabularies() -> None:
    assert token_limit(0.1, 262_144) == 4
    assert token_limit(10, 262_144) == 94
    assert token_limit(10, 768) == 244


def test_cancelling_ends_with_what_there_is(files: FakePackage) -> None:
    model = FakeModel(files, list(range(600, 700)))
    found = list(transcribe(model, speech(70), cancel=lambda: len(model.forwards) > 12))
    assert [final.stop for final in found] in ([], ["cancelled"])
    assert sum(model.encoded) < 30 * 25


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
