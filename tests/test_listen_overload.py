"""A machine that is too slow: it does less at a time, says so, comes back, and leaves no sound out."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgegemma.audio.blocks import Block
from edgegemma.audio.features import SAMPLE_RATE
from edgegemma.audio.sources import RealTime
from edgegemma.listen.events import Lag, Partial
from edgegemma.listen.listener import Listener
from edgegemma.listen.pace import MODES
from edgegemma.transcribe import Samples
from tests.fake_model import TOKENS, FakeModel, FakePackage, fake_package
from tests.speechlike import F32, join, silence, speech
from tests.test_listen import Played, Talker, finals

EOS = TOKENS.eos[1]


@pytest.fixture
def files(tmp_path: Path) -> FakePackage:
    return fake_package(tmp_path)


class Slow(Played):
    """A source whose sound waits, as a script of seconds says."""

    def __init__(self, samples: F32, backlog: dict[float, float]) -> None:
        super().__init__(samples)
        self._waits = backlog

    def __iter__(self) -> Iterator[Block]:
        for block in super().__iter__():
            at = block.stop / SAMPLE_RATE
            self.backlog_s = [wait for since, wait in self._waits.items() if since <= at][-1]
            yield block


def test_who_falls_behind_widens_then_waits_for_the_end_and_comes_back(
    files: FakePackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)  # only what the source says counts
    source = Slow(join(speech(25)), {0: 0.0, 3: 2.1, 10: 0.0})
    events = list(Listener(Talker(files), source))
    lags = [event for event in events if isinstance(event, Lag)]
    changes = [mode for mode, _ in itertools.groupby((lag.block_s, lag.partials) for lag in lags)]
    down, up = [tuple(mode) for mode in MODES[1:]], [tuple(mode) for mode in MODES[-2::-1]]
    assert changes == down + up
    assert all(lag.seconds > 2 for lag in lags[:3])
    heard = [event.end_s for event in events if isinstance(event, Partial)]
    assert not [at for at in heard if 6 < at < 12]  # words come at the end…
    assert [at for at in heard if at > 20]  # …until it has caught up


def test_no_sound_is_left_out_by_who_falls_behind(files: FakePackage) -> None:
    sound = join(speech(12), silence(1))
    models = [FakeModel(files, [EOS]) for _ in range(2)]
    list(Listener(models[0], Played(sound)))
    list(Listener(models[1], Slow(sound, {0: 9.0})))
    assert sum(models[0].encoded) == sum(models[1].encoded)


class Sluggish(Talker):
    """Takes its time for everything it reads."""

    def forward(self, embeds: F32, per_layer: F32, cache: Any, num_logits: int = 1) -> F32:
        time.sleep(0.1)
        return super().forward(embeds, per_layer, cache, num_logits)


def test_a_model_that_is_too_slow_for_the_clock_says_so_and_hears_everything(
    files: FakePackage,
) -> None:
    sound = join(speech(14), silence(1))
    wanted = Talker(files)
    texts = [f.text for f in finals(list(Listener(wanted, Samples(sound))))]
    model = Sluggish(files)
    listener = Listener(model, RealTime(Samples(sound, block_s=0.08), pace=4.0))
    listener.prepare()
    prepared = sum(model.encoded)
    events = list(listener)
    lags = [event for event in events if isinstance(event, Lag)]
    assert [lag.block_s for lag in lags][:2] == [MODES[1].block_s, MODES[2].block_s]
    assert not lags[2].partials
    assert max(lag.seconds for lag in lags) > 0.5
    assert [f.text for f in finals(events)] == texts
    assert sum(model.encoded) - prepared == sum(wanted.encoded)
    assert listener.stats.overflows == 0
