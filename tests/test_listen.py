"""Events of a listener: what is committed stays, nothing is lost, silence has no words."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgegemma import models
from edgegemma.audio.blocks import Block
from edgegemma.audio.features import SAMPLE_RATE
from edgegemma.audio.files import read_audio
from edgegemma.engine.model import Model, open_model
from edgegemma.errors import InputError
from edgegemma.listen.events import (
    Commit,
    Event,
    Final,
    Gap,
    Partial,
    Silence,
    Translation,
    from_json,
    to_json,
)
from edgegemma.listen.listener import Listener
from edgegemma.listen.task import Task
from edgegemma.text.tokenizer import Tokenizer
from edgegemma.transcribe import transcribe
from tests.fake_model import TOKENS, FakeModel, FakePackage, fake_package
from tests.speechlike import join, silence, speech

F32 = NDArray[np.float32]
EOS = TOKENS.eos[1]
SAMPLES = Path(models.__file__).parent / "data" / "samples"


class Played:
    """Sound in blocks of 80 ms, as from a microphone; what it raises comes after the last one."""

    name, live, seconds = "played", True, None

    def __init__(self, samples: F32, error: Exception | None = None, block: int = 1280) -> None:
        self._samples, self._error, self._block = samples, error, block
        self.backlog_s, self.overflows = 0.0, 0
        self.lost: str | None = None
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def __iter__(self) -> Iterator[Block]:
        for start in range(0, len(self._samples), self._block):
            if self.closed:
                return
            yield Block(start, self._samples[start : start + self._block])
        if self._error is not None:
            raise self._error


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> FakePackage:
    return fake_package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def demo() -> Model:
    return open_model(models.find("demo"))


def words(files: FakePackage, text: str) -> list[int]:
    return list(map(int, Tokenizer(files).encode(text)))


def finals(events: list[Event]) -> list[Final]:
    return [event for event in events if isinstance(event, Final)]


def said(events: list[Event]) -> list[str]:
    """Joined commits of each utterance."""
    texts = [""]
    for event in events:
        if isinstance(event, Commit):
            texts[-1] += event.text
        elif isinstance(event, Final):
            texts.append("")
    assert texts.pop() == ""
    return texts


class Talker(FakeModel):
    """Writes a word for each half second of sound it has read since the last instruction; the last one wavers."""

    def __init__(self, package: FakePackage) -> None:
        super().__init__(package)
        self.best = 19.0
        self._words = [words(package, f" w{n}") for n in range(60)]

    def forward(self, embeds: F32, per_layer: F32, cache: Any, num_logits: int = 1) -> F32:
        sound = sum(1 for row in (*cache.embeds, *embeds) if abs(row).max() > 1)
        self.script = [*itertools.chain(*self._words[: sound // 12]), 600 + sound % 7, EOS]
        return super().forward(embeds, per_layer, cache, num_logits)


class Doubter(Talker):
    """Says the same, and believes little of it."""

    def forward(self, embeds: F32, per_layer: F32, cache: Any, num_logits: int = 1) -> F32:
        return 0.2 * super().forward(embeds, per_layer, cache, num_logits)


@pytest.fixture(scope="module")
def long_talk() -> F32:
    return join(speech(4), silence(1.5), speech(2.5), silence(1.2))


def test_commits_join_to_the_final_and_nothing_is_taken_back(
    files: FakePackage, long_talk: F32
) -> None:
    events = list(Listener(Talker(files), Played(long_talk)))
    assert said(events) == [final.text for final in finals(events)]
    assert [f.reason for f in finals(events)] == ["silence", "silence"]
    commits = [event for event in events if isinstance(event, Commit)]
    first_final = events.index(finals(events)[0])
    assert sum(events.index(commit) < first_final - 1 for commit in commits) > 3  # while he speaks


def test_a_partial_is_what_may_still_change(files: FakePackage, long_talk: F32) -> None:
    events = list(Listener(Talker(files), Played(long_talk)))
    before = events[: events.index(finals(events)[0])]
    wavering = {event.text[-9:] for event in before if isinstance(event, Partial) and event.text}
    assert len(wavering) > 3  # the wavering end was shown…
    *on_the_way, _ = (event.text for event in before if isinstance(event, Commit))
    assert re.fullmatch(r"(w\d+ ?)+", "".join(on_the_way))  # …and not committed


def test_what_the_model_does_not_believe_is_neither_shown_nor_written(
    files: FakePackage, long_talk: F32
) -> None:
    events = list(Listener(Doubter(files), Played(long_talk)))
    assert [final.text for final in finals(events)] == ["", ""]
    assert not [event for event in events if isinstance(event, Partial | Commit)]


def test_times_go_on_and_words_lie_in_their_utterance(files: FakePackage, long_talk: F32) -> None:
    events = list(Listener(Talker(files), Played(long_talk)))
    times = [
        (word.start_s, word.end_s)
        for event in events
        if isinstance(event, Commit)
        for word in event.words
    ]
    flat = [at for span in times for at in span]
    assert flat == sorted(flat)
    first, second = finals(events)
    assert first.start_s <= flat[0]
    assert flat[-1] <= second.end_s
    assert first.end_s <= second.start_s
    assert second.start_s == pytest.approx(5.5 - 0.3, abs=0.1)


def test_silence_is_told_and_costs_nothing(files: FakePackage) -> None:
    model = FakeModel(files, [EOS])
    listener = Listener(model, Played(join(silence(3))))
    listener.prepare()
    model.encoded, model.forwards = [], []
    assert list(listener) == [Silence(0.0, 3.0)]
    assert (model.encoded, model.forwards) == ([], [])
    assert listener.stats.skipped_s == pytest.approx(3.0)


def test_finals_and_silences_cover_the_sound(files: FakePackage, long_talk: F32) -> None:
    events = list(Listener(Talker(files), Played(long_talk)))
    spans = [(e.start_s, e.end_s) for e in events if isinstance(e, Final | Silence)]
    assert spans[0][0] == 0
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    assert spans[-1][1] == len(long_talk) / SAMPLE_RATE


def test_a_click_has_no_words(files: FakePackage) -> None:
    click = join(silence(1), speech(0.1), silence(1))
    assert finals(list(Listener(Talker(files), Played(click)))) == []


def test_an_error_comes_after_what_was_heard(files: FakePackage) -> None:
    listener = Listener(Talker(files), Played(join(speech(2)), InputError("damaged")))
    events: list[Event] = []
    with pytest.raises(InputError, match="damaged"):
        events.extend(listener)
    (final,) = finals([*events])
    assert final.reason == "end of input"
    assert final.text


def test_closing_the_source_finishes_the_sentence(files: FakePackage, long_talk: F32) -> None:
    source = Played(long_talk)
    events: list[Event] = []
    for event in Listener(Talker(files), source):
        events.append(event)
        if isinstance(event, Commit):
            source.close()
    (final,) = finals(events)
    assert final.reason == "end of input"


def test_cancelling_stops_at_once(files: FakePackage, long_talk: F32) -> None:
    events: list[Event] = []
    listener = Listener(Talker(files), Played(long_talk), cancel=lambda: len(events) > 3)
    events.extend(listener)
    assert len(events) < 8


class Broken(Played):
    """A device that goes away for a second."""

    def __iter__(self) -> Iterator[Block]:
        for block in super().__iter__():
            yield block
            if block.stop >= 2 * SAMPLE_RATE:
                break
        self.lost, self.overflows = "unplugged", 1
        yield Block(block.stop, block.samples[:0], cut=True)
        self.lost = None
        for late in super().__iter__():
            yield Block(late.start + 3 * SAMPLE_RATE, late.samples)


def test_lost_sound_is_told_and_ends_the_utterance(files: FakePackage) -> None:
    events = list(Listener(Talker(files), Broken(join(speech(3)))))
    assert [final.reason for final in finals(events)] == ["break", "end of input"]
    unplugged, gone = (event for event in events if isinstance(event, Gap))
    assert (unplugged.reason, unplugged.start_s) == ("unplugged", 2.0)
    assert (gone.reason, gone.start_s, gone.end_s) == ("the device was away", 2.0, 3.0)
    assert gone.overflows == 1


def test_what_took_its_time_before_the_first_sound_is_no_lag(
    files: FakePackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, lags = [0.0], []

    class Asked(Played):
        def __iter__(self) -> Iterator[Block]:
            lags.append(listener.lag_s)
            yield from super().__iter__()

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    listener = Listener(FakeModel(files, [EOS]), Asked(silence(1)))
    now[0] = 100.0
    list(listener)
    assert lags == [0.0]


def test_what_is_done_already_is_left_out(files: FakePackage, long_talk: F32) -> None:
    whole = finals(list(Listener(Talker(files), Played(long_talk), partials=False)))
    done = round(whole[0].end_s * SAMPLE_RATE)
    rest = list(Listener(Talker(files), Played(long_talk), partials=False, done=done))
    assert [(f.text, f.start_s) for f in finals(rest)] == [(whole[1].text, whole[1].start_s)]


@settings(max_examples=10)
@given(block=st.integers(200, 20_000))
def test_blocks_change_no_text(files: FakePackage, long_talk: F32, block: int) -> None:
    want = [
        f.text for f in finals(list(Listener(Talker(files), Played(long_talk), partials=False)))
    ]
    played = Played(long_talk, block=block)
    got = [f.text for f in finals(list(Listener(Talker(files), played, partials=False)))]
    assert got == want


# The embedded model


def test_the_samples_are_heard_live_as_in_a_file(demo: Model) -> None:
    spoken = [read_audio(path).samples for path in sorted(SAMPLES.glob("*.flac"))]
    sound = np.concatenate([np.append(samples, silence(1)) for samples in spoken])
    wanted = [f.text for f in transcribe(demo, sound)]
    events = list(Listener(demo, Played(sound)))
    assert [f.reason for f in finals(events)] == ["silence"] * len(spoken)
    assert said(events) == [final.text for final in finals(events)]
    assert [f.text for f in finals(list(Listener(demo, Played(sound), partials=False)))] == wanted


# Translation


def test_each_committed_sentence_is_translated(files: FakePackage) -> None:
    sentence = [*words(files, "one. two"), EOS]
    model = FakeModel(files, sentence)
    model.best = 19.0
    task = Task(translate_to="es", both=True)
    events = list(Listener(model, Played(join(speech(2), silence(1))), task))
    first, second = (event for event in events if isinstance(event, Translation))
    assert (first.source, second.source) == ("one.", "two")
    assert {first.language, second.language} == {"Spanish"}
    assert events.index(first) < events.index(finals(events)[0]) < events.index(second)


def test_a_package_without_a_prompt_needs_to_be_told(files: FakePackage) -> None:
    model = FakeModel(dataclasses.replace(files, prompts={}), [EOS])
    with pytest.raises(InputError, match="has no prompt 'transcribe'"):
        Listener(model, Played(silence(1)))
    Listener(model, Played(silence(1)), Task("fr"))


# Events as JSON


def test_events_survive_json(files: FakePackage, long_talk: F32) -> None:
    for event in Listener(Talker(files), Played(long_talk)):
        record = json.loads(json.dumps(to_json(event)))
        assert to_json(from_json(record)) == record
