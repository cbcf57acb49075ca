"""Experts, and layers without per-layer inputs: compiled against their definitions."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgegemma.errors import InputError
from edgegemma.kernels import experts, plainlayers, rotary
from edgegemma.kernels import reference_experts as reference
from edgegemma.kernels.plainlayers import PlainWeights
from export import functions_text
from tests.layers import F32, Maker

some = settings(deadline=None, max_examples=15)
seeds = st.integers(0, 2**32 - 1)
KINDS = get_args(PlainWeights)
CODE_TOLERANCE = 0.03  # an activation on the edge of two int8 codes may fall either way
FLOAT_TOLERANCE = 1e-5
sizes = st.tuples(
    st.sampled_from([32, 96]), st.sampled_from([16, 48]), st.integers(1, 9), st.integers(1, 9)
)  # hidden, inner, experts, top_k


@pytest.mark.parametrize("kind", ["float", "codes"])
@some
@given(size=sizes, rows=st.integers(0, 12), seed=seeds)
def test_experts_agree_with_reference(
    kind: str, size: tuple[int, int, int, int], rows: int, seed: int
) -> None:
    make = Maker(seed, kind)
    w = make.experts(*size[:3], min(size[2:]))
    x = make.rows(rows, size[0])
    got, want = experts.moe_feed_forward(x, w), reference.moe_feed_forward(x, w)
    room = FLOAT_TOLERANCE if kind == "float" else CODE_TOLERANCE
    # The mean: where two experts are within a last bit of each other the row takes the other.
    assert np.abs(got - want).mean() <= room * max(want.std(), 1e-30) if rows else not got.size


@pytest.mark.parametrize("kind", ["float", "codes"])
@some
@given(size=sizes, cut=st.integers(0, 20), seed=seeds)
def test_experts_give_a_row_the_same_bits_in_every_chunk(
    kind: str, size: tuple[int, int, int, int], cut: int, seed: int
) -> None:
    make = Maker(seed, kind)
    w = make.experts(*size[:3], min(size[2:]))
    x = make.rows(20, size[0])
    whole = experts.moe_feed_forward(x, w)
    parts = [experts.moe_feed_forward(part, w) for part in (x[:cut], x[cut:])]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    order = make.rng.permutation(20)
    np.testing.assert_array_equal(experts.moe_feed_forward(x[order], w), whole[order])


def test_all_experts_of_equal_rank_are_taken_in_their_order() -> None:
    scores, per_expert = np.zeros(5, np.float32), np.ones(5, np.float32)
    chosen, share = np.empty(3, np.int64), np.empty(3, np.float32)
    experts._best(scores, chosen, share)
    experts._shares(per_expert, chosen, share)
    assert chosen.tolist() == [0, 1, 2]
    np.testing.assert_allclose(share, 1 / 3, rtol=1e-6)


def test_a_row_of_nan_stays_in_its_row_and_chooses_experts_there_are() -> None:
    make = Maker(9, "float")
    w, x = make.experts(32, 16, 5, 3), make.rows(6, 32)
    clean = experts.moe_feed_forward(x, w)
    x[2] = np.nan
    got = experts.moe_feed_forward(x, w)
    np.testing.assert_array_equal(np.delete(got, 2, 0), np.delete(clean, 2, 0))
    assert np.isnan(got[2]).all()


def test_experts_that_do_not_fit_are_refused() -> None:
    make = Maker(0, "codes")
    w, x = make.experts(32, 16, 4, 2), make.rows(2, 32)
    for wrong in (
        w._replace(top_k=5),
        w._replace(expert_down=make.stacked(3, 32, 16)),
        w._replace(expert_gate_up=make.stacked(4, 32, 48)),
        w._replace(expert_down=make.stacked(4, 16, 16)),
    ):
        with pytest.raises(InputError, match=r"got"):
            experts.moe_feed_forward(x, wrong)
    with pytest.raises(InputError, match="want float32"):
        experts.moe_feed_forward(x[:, 1:], w)


def run(kernels: Any, make: Maker, layer: PlainWeights, dtype: str, x: F32, cuts: list[int]) -> F32:
    """Run a layer over x in pieces, with a ring as small as can be."""
    pieces = [p for p in np.split(np.arange(len(x)), sorted(cuts)) if len(p)]
    capacity = len(x)
    if layer.window:
        capacity = layer.window - 1 + max(len(p) for p in pieces)
    cache = make.cache(capacity, layer.kv_heads, layer.head_dim, dtype)
    inv_freq = np.linspace(1, 0, layer.head_dim // 2).astype(np.float32)
    cos, sin = rotary.rotary_table(np.arange(len(x)), inv_freq)
    return np.concatenate(
        [
            kernels.decoder_layer_plain(x[p], cos[p], sin[p], int(p[0]), cache, layer)[0]
            for p in pieces
        ]
    )


layers = st.tuples(
    st.sampled_from([32, 96]), st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    st.sampled_from([16, 32]), st.integers(0, 12),
)  # fmt: skip
CACHES = {"float": "float32", "codes": "int8"}


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("kind", ["float", "codes"])
@settings(deadline=None, max_examples=8)
@given(size=layers, count=st.integers(1, 9), seed=seeds)
def test_plain_layers_agree_with_reference(
    weights: type[PlainWeights],
    kind: str,
    size: tuple[int, tuple[int, int], int, int],
    count: int,
    seed: int,
) -> None:
    make = Maker(seed, kind)
    layer = make.plain_layer(weights, *size)
    x = make.rows(count, size[0])
    got = run(plainlayers, make, layer, CACHES[kind], x, [])
    want = run(reference, make, layer, CACHES[kind], x, [])
    room = FLOAT_TOLERANCE if kind == "float" else CODE_TOLERANCE
    assert np.abs(got - want).mean() <= room * want.std()


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("kind", ["float", "codes"])
@settings(deadline=None, max_examples=6)
@given(size=layers, cuts=st.lists(st.integers(0, 20), max_size=20), seed=seeds)
def test_plain_layers_have_the_same_bits_for_every_cut(
    weights: type[PlainWeights],
    kind: str,
    size: tuple[int, tuple[int, int], int, int],
    cuts: list[int],
    seed: int,
) -> None:
    make = Maker(seed, kind)
    layer = make.plain_layer(weights, *size)
    x = make.rows(20, size[0])
    whole = run(plainlayers, make, layer, CACHES[kind], x, [])
    np.testing.assert_array_equal(run(plainlayers, make, layer, CACHES[kind], x, cuts), whole)


@pytest.mark.parametrize("weights", KINDS)
def test_a_layer_tells_how_many_experts_it_read(weights: type[PlainWeights]) -> None:
    make = Maker(3, "codes")
    layer = make.plain_layer(weights, 32, (2, 1), 16, 0)
    x, table = make.rows(4, 32), make.rows(4, 8)
    caches = [make.cache(4, 1, 16, "float32") for _ in range(2)]
    state = x, table, table, 0
    _, got = plainlayers.decoder_layer_plain(*state, caches[0], layer)
    _, want = reference.decoder_layer_plain(*state, caches[1], layer)
    assert got == want
    assert (got > 0) == hasattr(layer, "router")


@pytest.mark.parametrize("weights", KINDS)
def test_weights_are_in_the_order_of_the_function(weights: type[PlainWeights]) -> None:
    slots = functions_text.LAYERS[weights.__name__.removesuffix("Weights")]
    names = [slot.name for slot in slots]
    assert list(weights._fields[: len(names)]) == names


def test_a_layer_refuses_inputs_that_do_not_fit_it() -> None:
    make = Maker(0, "float")
    layer = make.plain_layer(KINDS[0], 32, (2, 1), 16, 4)
    cache, cos, x = make.cache(8, 1, 16, "float32"), make.rows(2, 8), make.rows(2, 32)
    wide: Any = x.astype(np.float64)
    for wrong, angles in ((x[:, 1:], cos), (x, cos[:1]), (wide, cos)):
        with pytest.raises(InputError, match="decoder layer: got"):
            plainlayers.decoder_layer_plain(wrong, angles, cos, 0, cache, layer)
