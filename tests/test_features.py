"""Mel features and the audio stream: what transformers computes, whole or in any pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgegemma.audio import features
from edgegemma.audio.encoder import AudioModel, AudioStream, encode
from edgegemma.config import ModelConfig
from edgegemma.engine.model import open_model
from edgegemma.errors import InputError
from tests.conftest import Exporter, Golden
from tests.fake_model import HIDDEN, FakeModel, FakePackage

F32 = NDArray[np.float32]
CUTS = st.lists(st.sampled_from([0, 1, 2, 7, 159, 160, 161, 320, 641, 1000]), max_size=30)
PCM_SCALE = 32767


def noise(samples: int, seed: int) -> F32:
    return (0.1 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def pieces(pcm: F32, cuts: list[int]) -> Iterator[F32]:
    yield from np.split(pcm, np.minimum(np.cumsum(cuts, dtype=np.int64), len(pcm)))


def fake() -> FakeModel:
    return FakeModel(FakePackage(Path()))


def test_features_match_transformers(golden: Callable[[str], Golden]) -> None:
    want = golden("mel")
    for i in range(2):
        got, mask = features.log_mel(want[f"wave{i}"].astype(np.float32) / np.float32(PCM_SCALE))
        assert np.array_equal(mask.astype(bool), want[f"mask{i}"])
        assert np.abs(got - want[f"features{i}"].astype(np.float32)).max() <= 1e-6


def test_the_units_are_the_published_ones() -> None:
    assert (features.HOP, features.FRAME, features.FFT, features.BINS) == (160, 320, 512, 257)
    assert (features.SAMPLES_PER_TOKEN, features.TOKENS_PER_SECOND) == (640, 25)


def test_frames_are_counted_as_transformers_counts(golden: Callable[[str], Golden]) -> None:
    for samples, frames, valid in golden("mel")["counts"].tolist():
        got, mask = features.log_mel(np.ones(samples, np.float32))
        assert (len(got), mask.sum()) == (frames, valid)


@pytest.mark.parametrize(
    ("samples", "tokens"),
    [(0, 0), (160, 0), (161, 1), (641, 1), (801, 2), (16_000, 25), (37_920, 59), (480_000, 750)],
)
def test_tokens_are_counted_from_valid_frames(samples: int, tokens: int) -> None:
    assert features.token_count(samples) == tokens


def test_frames_without_real_samples_are_zero_and_masked() -> None:
    got, mask = features.log_mel(noise(37_920, 1))
    assert not mask[236:].any()
    assert not got[236:].any()
    assert got[:236].any(axis=1).all()


@settings(deadline=None, max_examples=60)
@given(cuts=CUTS, samples=st.integers(0, 5000), seed=st.integers(0, 99))
def test_a_mel_stream_gives_the_bits_of_one_pass_for_any_cut(
    cuts: list[int], samples: int, seed: int
) -> None:
    pcm = noise(samples, seed)
    stream = features.MelStream()
    heard = [stream.feed(piece) for piece in pieces(pcm, cuts)]
    rest, mask = stream.finish()
    want, want_mask = features.log_mel(pcm)
    assert np.concatenate([*heard, rest]).tobytes() == want.tobytes()
    assert np.array_equal(want_mask, [1.0] * stream.frames + mask.tolist())


def test_a_long_piece_gives_the_bits_of_short_ones() -> None:
    pcm = noise(features._FRAMES_AT_ONCE * features.HOP * 2 + 77, 3)
    stream = features.MelStream()
    heard = np.concatenate([stream.feed(pcm[i : i + 999]) for i in range(0, len(pcm), 999)])
    assert heard.tobytes() == features.log_mel(pcm)[0][: len(heard)].tobytes()


def test_a_stream_is_not_cut_at_thirty_seconds() -> None:
    stream = features.MelStream()
    for _ in range(31):
        stream.feed(np.zeros(features.SAMPLE_RATE, np.float32))
    assert stream.frames == 3099


def test_the_next_sample_makes_a_frame_valid() -> None:
    stream = features.MelStream()
    assert len(stream.feed(np.ones(160, np.float32))) == 0
    assert len(stream.feed(np.ones(1, np.float32))) == 1


@pytest.mark.parametrize("bad", [np.zeros(5), np.zeros((5, 2), np.float32)])
def test_samples_of_another_kind_are_refused(bad: Any) -> None:
    with pytest.raises(InputError, match="want float32 mono"):
        features.MelStream().feed(bad)


@settings(deadline=None, max_examples=40)
@given(cuts=CUTS, samples=st.integers(0, 9000), seed=st.integers(0, 99))
def test_a_stream_gives_the_soft_tokens_of_one_pass_for_any_cut(
    cuts: list[int], samples: int, seed: int
) -> None:
    check_stream(fake(), noise(samples, seed), cuts)


def check_stream(model: AudioModel, pcm: F32, cuts: list[int]) -> None:
    stream = AudioStream(model)
    soft = [stream.feed(piece) for piece in pieces(pcm, cuts)]
    soft.append(stream.finish())
    assert np.concatenate(soft).tobytes() == encode(model, pcm).tobytes()
    assert stream.tokens == sum(map(len, soft)) == features.token_count(len(pcm))
    assert stream.frames == features.valid_count(len(pcm))


@pytest.mark.parametrize("token", range(4))
def test_a_token_comes_with_the_first_sample_after_its_frames(token: int) -> None:
    stream = AudioStream(fake())
    stream.feed(noise(features.SAMPLES_PER_TOKEN * (token + 1), token))
    assert stream.tokens == token
    assert len(stream.feed(noise(1, 9))) == 1


def test_silence_of_no_length_has_no_tokens() -> None:
    assert encode(fake(), np.empty(0, np.float32)).shape == (0, HIDDEN)


def test_a_finished_stream_takes_no_more() -> None:
    stream = AudioStream(fake())
    stream.finish()
    with pytest.raises(InputError, match="finished"):
        stream.feed(noise(10, 0))


def test_a_model_without_ears_is_refused() -> None:
    package = FakePackage(Path())
    package.config = ModelConfig(package.config.text, package.config.tokens)
    with pytest.raises(InputError, match="no audio encoder"):
        AudioStream(FakeModel(package))


@pytest.mark.parametrize(
    ("variant", "preset"), [("e2b", "float"), ("e2b-qat-mobile", "qat-mobile")]
)
def test_the_engine_gives_the_bits_of_one_pass_for_any_cut(
    package: Exporter, variant: str, preset: str
) -> None:
    model = open_model(package(variant, preset))
    rng = np.random.default_rng(5)
    for samples in (161, 4000, 20_011):
        for _ in range(3):
            check_stream(model, noise(samples, 8), rng.integers(0, 3000, 12).tolist())
