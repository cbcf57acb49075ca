"""Utterances are found in sound: where they begin and end, at any cut of the input, with nothing lost or doubled."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgegemma.audio.blocks import Block
from edgegemma.audio.features import SAMPLE_RATE
from edgegemma.audio.gate import EnergyGate
from edgegemma.audio.utterances import Begin, End, Event, Pause, Sound, Utterances
from edgegemma.errors import InputError
from tests.speechlike import F32, join, rustle, silence, speech, tones, white

SECOND = SAMPLE_RATE


def cut_blocks(pcm: F32, cuts: Iterable[int]) -> Iterable[Block]:
    """The samples in blocks of these lengths, over and over."""
    at = 0
    for length in itertools.cycle(cuts):
        if at >= len(pcm):
            return
        yield Block(at, pcm[at : at + length])
        at += length


def run(pcm: F32, found: Utterances | None = None, cuts: Iterable[int] = (1_280,)) -> list[Event]:
    found = found or Utterances()
    events = [event for block in cut_blocks(pcm, cuts) for event in found.feed(block)]
    return events + found.finish()


def marks(events: list[Event]) -> list[Event]:
    return [event for event in events if not isinstance(event, Sound)]


def heard(events: list[Event], pcm: F32) -> list[tuple[int, int]]:
    """Spans of the utterances; checks on the way that events are well-formed and the samples the input's."""
    spans, begin, at = [], -1, 0
    for event in events:
        if isinstance(event, Begin):
            assert begin < 0
            assert event.at >= at
            begin = at = event.at
        elif isinstance(event, Sound):
            assert begin >= 0
            assert event.at == at
            assert len(event.samples)
            assert np.array_equal(event.samples, pcm[event.at : event.stop])
            at = event.stop
        elif isinstance(event, Pause):
            assert begin >= 0
        else:
            assert event.at == at
            spans.append((begin, at))
            begin = -1
    assert begin < 0
    return spans


def ends(events: list[Event]) -> list[End]:
    return [event for event in events if isinstance(event, End)]


TALK = join(
    silence(0.7), speech(2.0, seed=1), silence(1.0), speech(0.6, seed=2), silence(0.3),
    speech(6.5, seed=3), silence(0.2), speech(4.0, seed=4), silence(0.9), speech(1.0, seed=5),
)  # fmt: skip


def test_an_utterance_has_what_was_said_and_a_little_around_it() -> None:
    pcm = join(silence(2.0), speech(1.5), silence(2.0))
    (span,) = heard(run(pcm), pcm)
    assert 2.0 - 0.35 <= span[0] / SECOND <= 2.0
    assert 3.5 <= span[1] / SECOND <= 3.5 + 0.35


def test_a_recording_that_begins_with_speech_is_heard_from_its_first_sample() -> None:
    pcm = join(speech(1.5), silence(1.0))
    ((begin, _),) = heard(run(pcm), pcm)
    assert begin == 0


def test_a_recording_that_ends_with_speech_is_heard_to_its_last_sample() -> None:
    pcm = np.concatenate([join(silence(1.0)), join(speech(1.5)), white(0.0131, -25)])
    events = run(pcm)
    assert heard(events, pcm)[-1][1] == len(pcm)
    assert ends(events)[-1].reason == "end of input"


def test_an_endpoint_ends_and_a_shorter_pause_does_not() -> None:
    pcm = join(speech(1.0), silence(0.4), speech(1.0), silence(0.9), speech(1.0), silence(2.0))
    events = run(pcm)
    assert len(heard(events, pcm)) == 2
    assert [end.reason for end in ends(events)] == ["silence", "silence"]


def test_a_pause_is_told_once() -> None:
    pcm = join(silence(1.0), speech(1.0), silence(0.4), speech(1.0), silence(0.1), speech(1.0))
    pauses = [event.at for event in run(pcm) if isinstance(event, Pause)]
    assert len(pauses) == 1
    assert 2.16 <= pauses[0] / SECOND <= 2.25


def test_the_endpoint_is_decided_when_it_has_passed() -> None:
    pcm = join(silence(1.0), speech(1.0), silence(2.0))
    found = Utterances()
    known = [
        block.stop / SECOND
        for block in cut_blocks(pcm, [320])
        for event in found.feed(block)
        if isinstance(event, End)
    ]
    assert 2.56 <= known[0] <= 2.68


def test_silence_at_the_end_is_not_given() -> None:
    pcm = join(silence(1.0), speech(1.0), silence(3.0))
    found = Utterances()
    ((begin, end),) = heard(run(pcm, found), pcm)
    assert found.skipped_s == pytest.approx(5.0 - (end - begin) / SECOND)
    assert found.skipped_s > 3.2


def test_speech_is_counted() -> None:
    pcm = join(silence(1.0), speech(2.0), silence(1.0))
    (end,) = ends(run(pcm))
    assert 1.2 < end.speech_s <= 2.1


def test_a_click_begins_nothing() -> None:
    pcm = join(silence(2.0))
    pcm[SECOND : SECOND + 700] = 0.9
    assert run(pcm) == []


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(1, 9_000), min_size=1, max_size=6))
def test_any_cut_of_the_input_gives_the_same_utterances(cuts: list[int]) -> None:
    talk = TALK if sum(cuts) >= 200 else TALK[: 4 * SECOND]
    whole = run(talk, Utterances(limit_s=5.0), [len(talk)])
    events = run(talk, Utterances(limit_s=5.0), cuts)
    assert marks(events) == marks(whole)
    assert heard(events, talk) == heard(whole, talk)


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(1, 9_000), min_size=1, max_size=6))
def test_any_cut_of_the_input_gives_the_same_decisions(cuts: list[int]) -> None:
    talk = TALK[: (5 if sum(cuts) >= 200 else 1) * SECOND]
    gate = EnergyGate()
    decided = np.concatenate([gate.feed(block.samples) for block in cut_blocks(talk, cuts)])
    assert np.array_equal(decided, EnergyGate().feed(talk))


@settings(max_examples=25)
@given(
    pieces=st.lists(st.tuples(st.floats(0.05, 7.0), st.floats(0.0, 1.2)), min_size=1, max_size=3),
    limit=st.floats(4.0, 9.0),
    endpoint=st.floats(0.16, 1.0),
    preroll=st.floats(0.0, 1.0),
    seed=st.integers(0, 50),
)
def test_utterances_are_the_input_in_order_and_within_the_limit(
    pieces: list[tuple[float, float]], limit: float, endpoint: float, preroll: float, seed: int
) -> None:
    pcm = join(*(x for said, quiet in pieces for x in (speech(said, seed=seed), silence(quiet))))
    found = Utterances(EnergyGate(), endpoint, preroll, limit)
    spans = heard(run(pcm, found), pcm)
    assert all(0 < stop - start <= limit * SECOND for start, stop in spans)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    given_s = sum(stop - start for start, stop in spans) / SECOND
    assert found.skipped_s + given_s == pytest.approx(len(pcm) / SECOND)


def test_speech_without_a_pause_is_cut_with_nothing_lost_or_doubled() -> None:
    pcm = join(silence(1.0), speech(70.0), silence(2.0))
    events = run(pcm)
    spans = heard(events, pcm)
    assert [end.reason for end in ends(events)] == ["limit", "limit", "silence"]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    assert all(26 <= (stop - start) / SECOND <= 28 for start, stop in spans[:-1])
    assert spans[0][0] <= SECOND
    assert spans[-1][1] >= 71 * SECOND


def test_a_forced_cut_is_in_the_quietest_place() -> None:
    pcm = join(silence(1.0), speech(40.0), silence(1.0), room_db=-80.0)
    at = 27 * SECOND
    pcm[at : at + 4_800] *= 0.1  # 300 ms, still louder than the room
    (cut, _), *_ = ((end.at, end) for end in ends(run(pcm)))
    assert at <= cut <= at + 4_800


def test_a_long_utterance_ends_at_a_short_pause() -> None:
    pcm = join(silence(1.0), speech(22.0), silence(0.3), speech(10.0), silence(1.0))
    events = run(pcm)
    first, _ = ends(events)
    assert first.reason == "limit"
    assert 23.0 <= first.at / SECOND <= 23.2
    spans = heard(events, pcm)
    assert spans[1][0] == spans[0][1]


def test_true_silence_gives_no_sound() -> None:
    assert run(silence(600.0), cuts=[8 * SECOND]) == []


@pytest.mark.parametrize("level_db", [-65, -45, -30, -15])
def test_noise_begins_nothing(level_db: int) -> None:
    found = Utterances()
    pcm = np.concatenate([white(10.0, -70), white(120.0, level_db), white(10.0, level_db - 12)])
    assert run(pcm, found, cuts=[8 * SECOND]) == []
    assert found.skipped_s > 138


def test_chords_and_what_rustles_begin_nothing() -> None:
    assert run(join(tones(60.0), silence(1.0), rustle(60.0)), cuts=[8 * SECOND]) == []


def test_a_voice_is_heard_that_begins_in_noise_without_what_was_long_before() -> None:
    pcm = join(silence(5.0), white(2.9, -45), white(2.0, -45) + speech(2.0, -22), silence(1.0))
    ((begin, _),) = heard(run(pcm), pcm)
    assert 6.4 <= begin / SECOND <= 7.9


def test_speech_is_heard_over_noise() -> None:
    pcm = np.concatenate([white(6.0, -45), white(3.0, -45) + speech(3.0, -22), white(3.0, -45)])
    begin, end = heard(run(pcm), pcm)[-1]
    assert 5.6 <= begin / SECOND <= 6.05
    assert 8.9 <= end / SECOND <= 9.4


def test_hum_and_a_constant_offset_are_not_heard() -> None:
    time = np.arange(20 * SECOND) / SECOND
    pcm = (0.2 + 0.1 * np.sin(2 * np.pi * 50 * time)).astype(np.float32)
    assert run(join(pcm)) == []


def test_what_follows_a_short_gap_keeps_its_place() -> None:
    pcm = join(silence(1.0), speech(3.0), silence(1.0))
    found = Utterances()
    at = 2 * SECOND
    events = found.feed(Block(0, pcm[:at])) + found.feed(Block(at + 1_280, pcm[at + 1_280 :]))
    (span,) = heard(
        events + found.finish(), np.concatenate([pcm[:at], silence(0.08), pcm[at + 1_280 :]])
    )
    assert span[1] >= 4 * SECOND
    assert found.filled_s == pytest.approx(0.08)


def test_a_long_gap_ends_the_utterance() -> None:
    pcm = join(silence(1.0), speech(3.0), silence(1.0))
    found = Utterances()
    events = found.feed(Block(0, pcm[: 2 * SECOND])) + found.feed(
        Block(60 * SECOND, pcm[2 * SECOND :])
    )
    events += found.finish()
    first, second = ends(events)
    assert (first.at, first.reason) == (2 * SECOND, "break")
    assert second.at > 61.9 * SECOND


def test_a_cut_ends_the_utterance_at_once() -> None:
    pcm = join(silence(1.0), speech(3.0))
    found = Utterances()
    found.feed(Block(0, pcm))
    events = found.feed(Block(len(pcm), pcm[:0], cut=True))
    assert [(end.at, end.reason) for end in ends(events)] == [(len(pcm), "break")]
    assert found.finish() == []


def test_blocks_come_in_order() -> None:
    found = Utterances()
    found.feed(Block(0, silence(1.0)))
    with pytest.raises(InputError, match="got a block at 5; want 16000 or later"):
        found.feed(Block(5, silence(1.0)))


def test_nan_is_silence() -> None:
    assert run(np.full(SECOND, np.nan, np.float32)) == []


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ({"endpoint_s": 0.1}, "endpoint"),
        ({"preroll_s": -1}, "pre-roll"),
        ({"limit_s": 31}, "longest"),
    ],
)
def test_impossible_lengths_are_refused(arguments: dict[str, float], place: str) -> None:
    with pytest.raises(InputError, match=f"{place}.*: got .* want"):
        Utterances(**arguments)  # type: ignore[arg-type]
