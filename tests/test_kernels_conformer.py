"""The audio tower's kernels: compiled against their definitions, and any cut against one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgegemma.errors import InputError
from edgegemma.kernels import conformer
from edgegemma.kernels import reference_audio as reference
from edgegemma.kernels.conformer import AudioLayerWeights
from export import functions_audio
from tests.layers import F32, Maker, distance

seeds = st.integers(0, 2**32 - 1)
cuts = st.lists(st.integers(0, 22), max_size=12)
sizes = st.tuples(
    st.integers(1, 4), st.sampled_from([32, 64]), st.integers(1, 13), st.integers(1, 5)
)
TOKENS = 22
MELS, C0, C1, WIDTH = 16, 24, 5, 32


class Subsampler:
    """Random weights of the subsampler, and a clip whose last frames are not valid."""

    def __init__(self, seed: int, tokens: int) -> None:
        make = Maker(seed, "float")
        self.features = make.rows(4 * tokens, MELS)
        self.mask = (np.arange(4 * tokens) < 4 * tokens - seed % 4).astype(np.float32)
        self.features[self.mask == 0] = 3.0  # must not be heard
        self.weights: tuple[Any, ...] = (
            make.vector(C0, 1, 3, 3), make.vector(C0), make.vector(C1, C0, 3, 3), make.vector(C1),
            make.bfloat16(WIDTH, MELS // 4 * C1),
        )  # fmt: skip

    def run(self, kernels: Any, at: list[int]) -> list[NDArray[np.float32]]:
        """Outputs of all steps joined, and the last state."""
        state = np.zeros((1, MELS), np.float32), np.zeros((C0, 1, MELS // 2), np.float32)
        edges = [4 * t for t in sorted(at)]
        heard = []
        for x, m in zip(np.split(self.features, edges), np.split(self.mask, edges), strict=True):
            hidden, *state = kernels.audio_subsample(x, m, *state, *self.weights, 1e-6)
            heard.append(hidden)
        return [np.concatenate(heard), *state]


@settings(deadline=None, max_examples=15)
@given(tokens=st.integers(0, 11), seed=seeds)
def test_subsampling_agrees_with_reference(tokens: int, seed: int) -> None:
    clip = Subsampler(seed, tokens)
    for got, want in zip(clip.run(conformer, []), clip.run(reference, []), strict=True):
        assert distance(got, want) <= 2e-5


@settings(deadline=None, max_examples=15)
@given(at=cuts, seed=seeds)
def test_subsampling_has_the_same_bits_for_every_cut(at: list[int], seed: int) -> None:
    clip = Subsampler(seed, TOKENS)
    for got, want in zip(clip.run(conformer, at), clip.run(conformer, []), strict=True):
        np.testing.assert_array_equal(got, want)


def run(kernels: Any, x: F32, at: list[int], layer: AudioLayerWeights) -> list[F32]:
    """Outputs of all steps joined, and the last state; the state before position 0 is noise."""
    c = x.shape[1]
    past = np.full((layer.window - 1, c), 1e4, np.float32)
    state = past, past, np.zeros((layer.kernel - 1, c), np.float32)
    position, heard = 0, []
    for part in np.split(x, sorted(at)):
        hidden, *state = kernels.audio_layer(part, position, *state, layer)
        heard.append(hidden)
        position += len(part)
    return [np.concatenate(heard), *state]


@pytest.mark.parametrize("kind", ["float", "codes"])
@settings(deadline=None, max_examples=10)
@given(shape=sizes, tokens=st.integers(0, 15), seed=seeds)
def test_audio_layers_agree_with_reference(
    kind: str, shape: tuple[int, int, int, int], tokens: int, seed: int
) -> None:
    make = Maker(seed, kind)
    layer = make.audio_layer(*shape)
    x = make.rows(tokens, shape[0] * shape[1])
    for got, want in zip(run(conformer, x, [], layer), run(reference, x, [], layer), strict=True):
        assert got.shape == want.shape
        if got.size:
            tolerance = 1e-5 if kind == "float" else 0.05
            assert np.abs(got - want).mean() <= tolerance * max(want.std(), 1)


@pytest.mark.parametrize("kind", ["float", "codes"])
@settings(deadline=None, max_examples=10)
@given(shape=sizes, at=cuts, seed=seeds)
def test_audio_layers_have_the_same_bits_for_every_cut(
    kind: str, shape: tuple[int, int, int, int], at: list[int], seed: int
) -> None:
    make = Maker(seed, kind)
    layer = make.audio_layer(*shape)
    x = make.rows(TOKENS, shape[0] * shape[1])
    for got, want in zip(run(conformer, x, at, layer), run(conformer, x, [], layer), strict=True):
        np.testing.assert_array_equal(got, want)


def test_keys_before_the_start_are_not_seen() -> None:
    make = Maker(1, "float")
    layer = make.audio_layer(2, 32, 12, 5)
    x = make.rows(3, 64)
    past, conv = np.zeros((11, 64), np.float32), np.zeros((4, 64), np.float32)
    noise = np.full_like(past, np.nan)
    silent = conformer.audio_layer(x, 0, past, past, conv, layer)[0]
    np.testing.assert_array_equal(conformer.audio_layer(x, 0, noise, noise, conv, layer)[0], silent)


def test_a_past_in_the_stream_is_seen() -> None:
    make = Maker(1, "float")
    layer = make.audio_layer(2, 32, 12, 5)
    x = make.rows(3, 64)
    past, conv = make.rows(11, 64), np.zeros((4, 64), np.float32)
    outputs = [conformer.audio_layer(x, p, past, past, conv, layer)[0] for p in (0, 1, 11, 12)]
    assert not np.array_equal(outputs[0], outputs[1])
    assert not np.array_equal(outputs[1], outputs[2])
    np.testing.assert_array_equal(outputs[2], outputs[3])


def test_audio_weights_are_in_the_order_of_the_function() -> None:
    names = []
    for slot in functions_audio.LAYER:
        names += [slot.name, f"{slot.name}_clip"] if slot.kind == "clipped" else [slot.name]
    assert list(AudioLayerWeights._fields[: len(names)]) == names


def test_the_audio_head_agrees_with_reference_and_with_itself_row_by_row() -> None:
    make = Maker(4, "float")
    x, bias = make.rows(5, 32), make.vector(48)
    weights = make.bfloat16(48, 32), bias, make.bfloat16(64, 48), 1e-6
    got = conformer.audio_head(x, *weights)
    assert distance(got, reference.audio_head(x, *weights)) <= 1e-5
    alone = [conformer.audio_head(x[i : i + 1], *weights) for i in range(5)]
    np.testing.assert_array_equal(got, np.concatenate(alone))


def test_an_audio_layer_refuses_a_state_that_does_not_fit_it() -> None:
    make = Maker(0, "float")
    layer = make.audio_layer(2, 32, 12, 5)
    x, past, conv = make.rows(3, 64), make.rows(11, 64), make.rows(4, 64)
    for state in ((0, past[1:], past, conv), (0, past, past, past), (-1, past, past, conv)):
        with pytest.raises(InputError, match="audio_layer: got"):
            conformer.audio_layer(x, *state, layer)
