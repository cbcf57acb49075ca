"""Segments partition a recording at quiet places; cues become subtitle files."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgegemma.audio import segments, subtitles
from edgegemma.audio.features import SAMPLE_RATE
from edgegemma.audio.segments import Splitter, sound_span, split
from edgegemma.audio.subtitles import Cue
from edgegemma.errors import InputError

F32 = NDArray[np.float32]
SECOND = SAMPLE_RATE


def noise(samples: int, seed: int = 0, level: float = 0.1) -> F32:
    return (level * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def sentences(pauses: list[float], total: float) -> F32:
    """Noise with 300 ms of near silence at the given seconds."""
    pcm = noise(int(total * SECOND))
    for at in pauses:
        pcm[int(at * SECOND) : int((at + 0.3) * SECOND)] *= 0.001
    return pcm


@settings(deadline=None, max_examples=50)
@given(
    samples=st.integers(0, 5 * SECOND),
    limit=st.floats(0.4, 3.0),
    cuts=st.lists(st.integers(0, SECOND), max_size=8),
    seed=st.integers(0, 99),
)
def test_segments_partition_the_samples_whatever_the_cut(
    samples: int, limit: float, cuts: list[int], seed: int
) -> None:
    pcm = noise(samples, seed)
    splitter, found = Splitter(limit), []
    for piece in np.split(pcm, np.minimum(np.cumsum(cuts, dtype=np.int64), samples)):
        found += splitter.feed(piece)
    found += splitter.finish()
    assert [(s.start, s.stop) for s in found] == split(pcm, limit)
    assert np.array_equal(np.concatenate([pcm[:0], *(s.samples for s in found)]), pcm)
    assert [s.start for s in found] == [0, *(s.stop for s in found)][: len(found)]
    assert all(0 < len(s.samples) <= limit * SECOND for s in found)


def test_a_short_recording_is_one_segment() -> None:
    assert split(noise(30 * SECOND)) == [(0, 30 * SECOND)]
    assert split(noise(1)) == [(0, 1)]
    assert split(noise(0)) == []


def test_the_cut_is_in_the_pause() -> None:
    (_, cut), (_, stop) = split(sentences([26.0], 40.0))
    assert 26.0 * SECOND < cut < 26.3 * SECOND
    assert stop == 40 * SECOND


def test_a_pause_before_the_search_range_is_not_used() -> None:
    (_, cut), _ = split(sentences([5.0], 40.0))
    assert 22 * SECOND <= cut <= 30 * SECOND


def test_digital_silence_gives_the_longest_segments() -> None:
    stops = [stop for _, stop in split(np.zeros(95 * SECOND, np.float32))]
    assert stops[:3] == [int(29.9 * SECOND * n) for n in (1, 2, 3)]


def test_an_impossible_limit_is_refused() -> None:
    with pytest.raises(InputError, match="segment limit: got"):
        Splitter(0.1)


def test_sound_is_found_and_silence_is_not() -> None:
    pcm = noise(3 * SECOND, level=1e-4)
    assert sound_span(pcm) is None
    assert sound_span(pcm[:0]) is None
    pcm[SECOND : 2 * SECOND] = noise(SECOND, level=0.05)
    assert sound_span(pcm) == (SECOND, 2 * SECOND)


def test_a_click_is_not_sound() -> None:
    pcm = np.zeros(SECOND, np.float32)
    pcm[5_000:5_400] = 0.9
    assert sound_span(pcm) is None


def test_a_span_ends_with_the_samples() -> None:
    pcm = noise(SECOND + 7)
    assert sound_span(pcm) == (0, SECOND + 7)
    assert segments.SILENCE_RMS == 1e-3


times = st.floats(0, 400_000, allow_nan=False)
some_cues = st.lists(st.builds(Cue, times, times, st.text(max_size=200)), max_size=8)


@given(cues=some_cues)
def test_tidy_cues_are_in_order_and_do_not_overlap(cues: list[Cue]) -> None:
    tidy = list(subtitles.tidy(cues))
    plain = [re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", cue.text).split() for cue in cues]
    assert [c.text.split(" ") for c in tidy] == [words for words in plain if words]
    edges = [round(t * 1000) for c in tidy for t in (c.start_s, c.end_s)]
    assert edges == sorted(edges)
    assert all(c.end_s > c.start_s for c in tidy)


@given(cues=some_cues, form=st.sampled_from(["srt", "vtt"]))
def test_files_hold_as_many_blocks_as_arrows(cues: list[Cue], form: str) -> None:
    blocks = "".join(subtitles.write(cues, form)).strip("\n").split("\n\n")
    blocks = [b for b in blocks if b and b != "WEBVTT"]
    arrow = r"\d{2,}:\d\d:\d\d[,.]\d{3} --> \d{2,}:\d\d:\d\d[,.]\d{3}"
    for number, block in enumerate(blocks, 1):
        lines = block.split("\n")
        if form == "srt":
            assert lines.pop(0) == str(number)
        assert re.fullmatch(arrow, lines.pop(0))
        assert not any("-->" in line for line in lines)


def test_subrip_is_as_players_read_it() -> None:
    cues = [Cue(0.0, 1.5, "Hello"), Cue(3661.0255, 3662.0, "a --> b")]
    assert "".join(subtitles.write(cues, "srt")) == (
        "1\n00:00:00,000 --> 00:00:01,500\nHello\n\n2\n01:01:01,026 --> 01:01:02,000\na -> b\n\n"
    )


def test_webvtt_is_escaped() -> None:
    made = "".join(subtitles.write([Cue(0, 1, "<b> & --> c")], "vtt"))
    assert made == "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\n&lt;b&gt; &amp; --&gt; c\n\n"


def test_rows_are_json_with_the_text_as_it_is() -> None:
    made = "".join(subtitles.write([Cue(0.12345, 1, "ü\n")], "jsonl"))
    assert json.loads(made) == {"start": 0.123, "end": 1, "text": "ü\n"}
    assert "ü" in made


def test_long_text_is_spread_over_cues_of_two_lines() -> None:
    cues = subtitles.spread(Cue(10.0, 40.0, "word " * 60))
    assert len(cues) > 3
    assert (cues[0].start_s, cues[-1].end_s) == (10.0, 40.0)
    assert all(a.end_s == b.start_s for a, b in itertools.pairwise(cues))
    assert all(len(line) <= 42 for c in cues for line in c.text.split("\n"))


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(InputError, match="want srt, vtt or jsonl"):
        list(subtitles.write([], "ass"))
