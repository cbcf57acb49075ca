"""Subtitles as a foreign reader finds them: every word once and in order, cues that do not overlap, marks escaped."""

from __future__ import annotations

import html
import io
import itertools

import pytest
import webvtt
from hypothesis import given
from hypothesis import strategies as st

from edgegemma.audio.quietest import quietest
from edgegemma.audio.subtitles import Cue, spread, srt, vtt
from edgegemma.listen.events import Commit, Event, Final, Translation, Word
from edgegemma.listen.writers import writer
from tests.speechlike import silence, white

words = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=12)
utterances = st.lists(
    st.tuples(st.floats(0, 2), st.lists(st.tuples(words, st.floats(0.001, 0.8)), max_size=30)),
    max_size=5,
)


def events(said: list[tuple[float, list[tuple[str, float]]]]) -> list[Event]:
    """Utterances of words with their lengths, each after a pause."""
    found: list[Event] = []
    at = 0.0
    for pause, texts in said:
        start = at = at + pause
        for text, length in texts:
            found.append(Commit(f" {text}", at, at + length, (Word(text, at, at + length),)))
            at += length
        joined = " ".join(text for text, _ in texts)
        found.append(Final(joined, start, at, "silence", "stop", len(texts), 0.1))
    return found


def written(found: list[Event], form: str, translated: bool = False) -> str:
    stream = io.StringIO()
    sink = writer(form, stream, translated)
    for event in found:
        sink.write(event)
    sink.finish()
    return stream.getvalue()


def read(text: str, form: str) -> list[webvtt.Caption]:
    """Read as another program does."""
    return webvtt.from_buffer(io.StringIO(text), format=form).captions


@pytest.mark.parametrize("form", ["srt", "vtt"])
@given(said=utterances)
def test_a_foreign_reader_finds_every_word_once_in_cues_that_do_not_overlap(
    form: str, said: list[tuple[float, list[tuple[str, float]]]]
) -> None:
    text = written(events(said), form)
    cues = read(text, form) if any(texts for _, texts in said) else []
    shown = " ".join(cue.raw_text for cue in cues)
    wanted = " ".join(text for _, texts in said for text, _ in texts)
    if form == "vtt":
        shown = html.unescape(shown)
    else:
        wanted = wanted.replace("-->", "->")
    assert shown.split() == wanted.split()
    edges = [at for cue in cues for at in (cue.start, cue.end)]
    assert edges == sorted(edges)
    assert all(cue.start < cue.end for cue in cues)
    assert all(len(cue.lines) <= 2 for cue in cues)


def test_translations_are_shown_instead_if_there_are_any() -> None:
    found: list[Event] = [*events([(1.0, [("one", 0.5)])])]
    found.append(Translation("uno", "one", "Spanish", 1.0, 1.5))
    (cue,) = read(written(found, "vtt", translated=True), "vtt")
    assert (cue.text, cue.start, cue.end) == ("uno", "00:00:01.000", "00:00:01.500")


def test_subrip_is_as_players_read_it() -> None:
    assert srt(1, Cue(0.0, 1.5, "Hello")) == "1\n00:00:00,000 --> 00:00:01,500\nHello\n\n"
    assert srt(2, Cue(3661.0255, 3662.0, "a --> b")) == (
        "2\n01:01:01,026 --> 01:01:02,000\na -> b\n\n"
    )


def test_webvtt_is_escaped() -> None:
    made = vtt(Cue(0, 1, "<b> & --> c"))
    assert made == "00:00:00.000 --> 00:00:01.000\n&lt;b&gt; &amp; --&gt; c\n\n"


def test_long_text_is_spread_over_cues_of_two_lines() -> None:
    cues = spread(Cue(10.0, 40.0, "word " * 60))
    assert len(cues) > 3
    assert (cues[0].start_s, cues[-1].end_s) == (10.0, 40.0)
    assert all(a.end_s == b.start_s for a, b in itertools.pairwise(cues))
    assert all(len(line) <= 42 for c in cues for line in c.text.split("\n"))


def test_the_quietest_place_is_the_last_of_equals() -> None:
    sound = white(3.0)
    for at in (16_000, 32_000):
        sound[at : at + 3200] = 0.0
    assert quietest(sound) == 32_000 + 1600
    assert quietest(silence(1.0)) == 16_000 - 1600
