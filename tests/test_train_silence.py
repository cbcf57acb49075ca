"""What is called silence: where the recordings are quiet, and clips made of it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("soxr")
pytest.importorskip("scipy")
pytest.importorskip("hibari")

from train import augment
from train.recordings import pauses


def test_pauses_are_the_quiet_between_the_loud_and_nothing_shorter() -> None:
    generator = np.random.default_rng(1)
    samples = generator.standard_normal(16_000).astype(np.float32) * 0.1
    samples[3_200:8_000] *= 0.001
    samples[12_000:14_000] *= 0.001  # 0.125 s: a stop, not a pause
    (found,) = pauses(samples)
    assert np.array_equal(found, samples[4_000:7_200])


def test_a_recording_that_is_loud_throughout_has_no_pauses() -> None:
    assert pauses(np.ones(8_000, dtype=np.float32)) == []


def test_room_tone_fades_its_pieces_so_that_no_joint_clicks() -> None:
    generator = np.random.default_rng(2)
    pieces = [np.full(count, 0.01, dtype=np.float32) for count in (1_600, 4_000)]
    made = augment.room_tone(pieces, generator)
    assert np.abs(np.diff(made)).max() <= 2 * made.max() / (16_000 // 100)
