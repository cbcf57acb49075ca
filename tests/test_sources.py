"""Recordings and pipes are sources: every sample once, in order, at the pace that is asked for."""

from __future__ import annotations

import io
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from edgegemma.audio.blocks import Block
from edgegemma.audio.features import SAMPLE_RATE
from edgegemma.audio.files import read_audio
from edgegemma.audio.sources import Pcm16, RealTime, Recording
from edgegemma.errors import InputError
from tests.speechlike import F32, white


def recorded(seconds: float, rate: int = SAMPLE_RATE) -> bytes:
    file = io.BytesIO()
    samples = white(seconds * rate / SAMPLE_RATE)
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def joined(blocks: list[Block]) -> F32:
    places = [block.start for block in blocks]
    assert places == [0, *(block.stop for block in blocks)][: len(blocks)]
    return np.concatenate([np.empty(0, np.float32), *(block.samples for block in blocks)])


@pytest.mark.parametrize("rate", [SAMPLE_RATE, 44_100])
def test_a_recording_is_given_whole_in_blocks_of_one_length(rate: int) -> None:
    sound = recorded(21.01, rate)
    blocks = list(Recording(sound, block_s=0.1))
    assert np.array_equal(joined(blocks), read_audio(sound).samples)
    assert {len(block.samples) for block in blocks[:-1]} == {1_600}


def test_a_recording_knows_its_length_and_waits_for_its_reader() -> None:
    source = Recording(recorded(0.5))
    assert (source.seconds, source.live, source.backlog_s) == (0.5, False, 0.0)
    source.close()


def test_a_closed_recording_ends() -> None:
    source = Recording(recorded(1.0))
    blocks = iter(source)
    next(blocks)
    source.close()
    assert list(blocks) == []


def test_a_recording_closed_before_it_is_read_gives_nothing() -> None:
    source = Recording(recorded(1.0))
    source.close()
    assert list(source) == []


def test_real_time_gives_a_block_when_it_has_been_said() -> None:
    source = RealTime(Recording(recorded(0.5)), pace=2.0)
    start = time.monotonic()
    early = [start + block.stop / SAMPLE_RATE / 2 - time.monotonic() for block in source]
    assert len(early) == 7
    assert max(early) <= 1e-3


def test_what_a_slow_reader_missed_waits_for_it() -> None:
    source = RealTime(Recording(recorded(1.0), block_s=0.05), pace=10.0)
    blocks = iter(source)
    next(blocks)
    time.sleep(0.15)
    assert source.backlog_s == pytest.approx(0.95)
    assert len(list(blocks)) == 19
    assert source.backlog_s == 0.0


def test_closing_wakes_a_source_that_waits() -> None:
    source = RealTime(Recording(recorded(30.0), block_s=10.0))
    threading.Timer(0.05, source.close).start()
    assert list(source) == []


@pytest.mark.parametrize("pace", [0.0, -1.0, float("inf"), float("nan")])
def test_an_impossible_pace_is_refused(pace: float) -> None:
    with pytest.raises(InputError, match=r"pace: got .*; want a number above 0"):
        RealTime(Recording(recorded(0.1)), pace)


class Trickle(io.RawIOBase):
    """A pipe that gives its bytes in pieces of odd sizes."""

    def __init__(self, data: bytes, pieces: list[int]) -> None:
        self._data, self._pieces = data, pieces

    def read(self, size: int = -1) -> bytes:
        self._pieces = [*self._pieces[1:], self._pieces[0]]
        count = min(size, self._pieces[0])
        given, self._data = self._data[:count], self._data[count:]
        return given


@settings(max_examples=40)
@given(
    values=st.lists(st.integers(-(1 << 15), (1 << 15) - 1), max_size=300),
    pieces=st.lists(st.integers(1, 50), min_size=1, max_size=5),
)
def test_a_pipe_gives_every_sample_in_whatever_pieces_it_comes(
    values: list[int], pieces: list[int]
) -> None:
    data = np.array(values, "<i2").tobytes()
    found = joined(list(Pcm16(Trickle(data, pieces))))  # type: ignore[arg-type]
    assert np.array_equal(found * 32_768, np.array(values, np.float32))


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_a_pipe_of_another_rate_is_resampled(rate: int) -> None:
    said = np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    data = np.round(said * 20_000).astype("<i2").tobytes()
    found = joined(list(Pcm16(io.BytesIO(data), rate)))
    assert len(found) == SAMPLE_RATE
    middle = np.arange(2_000, 14_000)
    wanted = np.sin(2 * np.pi * 440 * middle / SAMPLE_RATE) * 20_000 / 32_768
    assert np.abs(found[middle] - wanted).max() < 1e-3


def test_half_a_sample_at_the_end_is_told_after_what_was_whole() -> None:
    blocks = iter(Pcm16(io.BytesIO(b"\x00\x40" * 5 + b"\x01")))
    found: list[Block] = []
    with pytest.raises(InputError, match=r"stdin: got 11 bytes; want an even number, .*s16le"):
        found.extend(blocks)
    assert np.array_equal(joined(found), np.full(5, 0.5, np.float32))


def test_an_impossible_rate_is_refused() -> None:
    with pytest.raises(InputError, match="rate: got 10 Hz; want 1000 to 1000000 Hz"):
        Pcm16(io.BytesIO(), 10)


def test_a_pipe_gives_what_is_there_without_waiting_for_more(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    with os.fdopen(reads, "rb") as pipe, os.fdopen(writes, "wb", buffering=0) as writer:
        writer.write(b"\x00\x40" * 7)
        source = Pcm16(pipe)
        assert len(next(iter(source)).samples) == 7


def test_closing_wakes_a_pipe_that_waits(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    with os.fdopen(reads, "rb") as pipe, os.fdopen(writes, "wb"):
        source: Any = Pcm16(pipe)
        threading.Timer(0.05, source.close).start()
        assert list(source) == []
