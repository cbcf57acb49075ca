"""An hour of prompts with pauses in one run: memory, time and every prompt stay as they were in the first minute."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from edgegemma import models
from edgegemma.audio.blocks import Block
from edgegemma.audio.features import SAMPLE_RATE
from edgegemma.audio.files import read_audio
from edgegemma.engine.memory import resident_bytes
from edgegemma.engine.model import open_model
from edgegemma.listen.events import Commit, Final, Gap
from edgegemma.listen.listener import Listener
from tests.speechlike import F32

SAMPLES = models.DATA / "samples"
BLOCK, STEP = SAMPLE_RATE * 80 // 1000, SAMPLE_RATE // 50
SETTLED_S = 300.0  # then memory is what it will be


@dataclass
class Prompt:
    """A recording's place in the hour, in seconds."""

    name: str
    start_s: float
    stop_s: float


class Prompts:
    """Recordings over and over in random order, with pauses of 0.8 to 3 s; made block by block. A `Source`."""

    name, live, backlog_s, overflows, lost = "prompts", False, 0.0, 0, None

    def __init__(self, recordings: dict[str, F32], seconds: float, seed: int = 0) -> None:
        self._recordings, self.seconds = recordings, seconds
        self._random = np.random.default_rng(seed)
        self.placed: list[Prompt] = []

    def close(self) -> None:
        self.seconds = 0.0

    def _pieces(self) -> Iterator[F32]:
        at = 0
        while at < self.seconds * SAMPLE_RATE:
            for name in self._random.permutation(sorted(self._recordings)):
                pause = np.zeros(STEP * int(self._random.integers(40, 150)), np.float32)
                sound = self._recordings[name]
                sound = np.append(sound, np.zeros(-len(sound) % STEP, np.float32))
                at += len(pause)
                self.placed.append(Prompt(name, at / SAMPLE_RATE, (at + len(sound)) / SAMPLE_RATE))
                at += len(sound)
                yield pause
                yield sound
        yield np.zeros(2 * SAMPLE_RATE, np.float32)

    def __iter__(self) -> Iterator[Block]:
        start, rest = 0, np.empty(0, np.float32)
        for piece in self._pieces():
            rest = np.append(rest, piece)
            while len(rest) >= BLOCK:
                yield Block(start, rest[:BLOCK])
                start, rest = start + BLOCK, rest[BLOCK:]
        yield Block(start, rest)


@dataclass
class Run:
    """What came of it."""

    source: Prompts
    finals: list[Final]
    said: list[str]
    memory: list[int]


def listened(source: Prompts) -> Run:
    listener = Listener(open_model(models.find("demo")), source, partials=True)
    run = Run(source, [], [""], [])
    for event in listener:
        assert not isinstance(event, Gap)
        if isinstance(event, Commit):
            run.said[-1] += event.text
        elif isinstance(event, Final):
            run.finals.append(event)
            run.said.append("")
            if event.end_s > SETTLED_S:
                run.memory.append(resident_bytes())
    assert listener.stats.overflows == 0
    return run


@pytest.fixture(scope="module")
def hour() -> Run:
    rows = json.loads((SAMPLES / "samples.json").read_text())
    recordings = {row["file"]: read_audio(SAMPLES / row["file"]).samples for row in rows}
    return listened(Prompts(recordings, 3600.0))


pytestmark = pytest.mark.slow


def test_every_prompt_becomes_one_utterance(hour: Run) -> None:
    prompts = hour.source.placed
    assert len(hour.finals) == len(prompts) > 700
    for prompt, final in zip(prompts, hour.finals, strict=True):
        assert prompt.start_s - 0.4 <= final.start_s <= prompt.start_s + 0.2
        assert prompt.stop_s - 0.2 <= final.end_s <= prompt.stop_s + 0.4
        assert final.text


def test_the_last_prompts_are_heard_as_the_first_ones(hour: Run) -> None:
    heard: dict[str, list[str]] = {}
    for prompt, final in zip(hour.source.placed, hour.finals, strict=True):
        heard.setdefault(prompt.name, []).append(final.text)
    for texts in heard.values():
        usual = statistics.mode(texts[:50])
        assert sum(text == usual for text in texts[-50:]) >= 45


def test_nothing_committed_is_taken_back(hour: Run) -> None:
    assert hour.said[:-1] == [final.text for final in hour.finals]
    assert hour.said[-1] == ""


def test_times_do_not_drift(hour: Run) -> None:
    early = [
        final.start_s - prompt.start_s
        for prompt, final in zip(hour.source.placed, hour.finals, strict=True)
    ]
    assert abs(statistics.mean(early[-50:]) - statistics.mean(early[:50])) < 0.1
    assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(hour.finals))


def test_memory_stays_flat(hour: Run) -> None:
    assert max(hour.memory) - min(hour.memory) < 20e6
