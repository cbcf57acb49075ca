"""The laws of choosing a token."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edgegemma.errors import EdgeGemmaError, InputError
from edgegemma.text import sampler
from edgegemma.text.sampler import Sampler, Sampling, logprob

F32 = NDArray[np.float32]

some_logits = hnp.arrays(
    np.float32, st.integers(1, 40), elements=st.floats(-30, 30, width=32, allow_nan=False)
)
options: Any = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 1e-9, 0.5, 1.0, 100.0]),
        "top_k": st.sampled_from([0, 1, 2, 5, 100]),
        "top_p": st.sampled_from([1e-9, 0.3, 0.95, 1.0]),
        "min_p": st.sampled_from([0.0, 0.05, 1.0]),
        "repetition_penalty": st.sampled_from([0.5, 1.0, 1.3]),
        "seed": st.integers(0, 99),
    }
)


@given(logits=some_logits, chosen=options)
def test_probabilities_sum_to_one_and_the_best_is_always_possible(
    logits: F32, chosen: dict[str, Any]
) -> None:
    chances = Sampler(Sampling(**chosen)).probabilities(logits)
    assert chances.sum() == pytest.approx(1)
    assert (chances >= 0).all()
    assert chances[np.argmax(logits)] == chances.max() > 0


@given(logits=some_logits, chosen=options, seen=st.lists(st.integers(0, 0), max_size=2))
def test_what_is_picked_had_a_chance(logits: F32, chosen: dict[str, Any], seen: list[int]) -> None:
    draw = Sampler(Sampling(**chosen))
    chances = draw.probabilities(logits, seen)
    assert all(chances[draw.pick(logits, seen)] > 0 for _ in range(5))


@given(logits=some_logits, seed=st.integers(0, 99), temperature=st.floats(0.01, 9))
def test_the_most_likely_of_one_is_greedy(logits: F32, seed: int, temperature: float) -> None:
    greedy = Sampler(Sampling()).pick(logits)
    for option in ({"top_k": 1}, {"top_p": 1e-12}):
        draw = Sampler(Sampling(temperature=temperature, seed=seed, **option))
        assert draw.pick(logits) == greedy == int(np.argmax(logits))


@given(logits=some_logits, chosen=options, data=st.data())
def test_the_forbidden_never_comes(
    logits: F32, chosen: dict[str, Any], data: st.DataObject
) -> None:
    ids = data.draw(st.sets(st.integers(0, len(logits) - 1), max_size=len(logits) - 1))
    draw = Sampler(Sampling(**chosen, forbidden=tuple(ids)))
    assert draw.probabilities(logits)[sorted(ids)].sum() == 0
    assert not {draw.pick(logits) for _ in range(5)} & ids


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1, 33, 1000, 5003]),
    steps=st.sampled_from([1, 8, 1000]),
    chosen=options,
)
def test_the_likely_of_a_large_vocabulary_are_those_of_the_whole_order(
    seed: int, size: int, steps: int, chosen: dict[str, Any]
) -> None:
    spread = np.random.default_rng(seed).standard_normal(size) * 3
    logits = (np.rint(spread * steps) / steps).astype(np.float32)  # few steps: many equals
    sampling = Sampling(**chosen | {"temperature": 1.0, "repetition_penalty": 1.0})
    order = np.argsort(-logits, kind="stable")[: sampling.top_k or None]
    shares = np.exp(logits[order].astype(np.float64))
    shares /= shares.sum()
    before = np.cumsum(shares) - shares
    assume(np.abs(before - sampling.top_p).min() > 1e-12)  # else rounding decides
    kept = (before < sampling.top_p) & (shares >= sampling.min_p * shares[0])
    wanted = np.zeros(size)
    wanted[order[kept]] = shares[kept] / shares[kept].sum()
    found = Sampler(sampling).probabilities(logits)
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_the_same_seed_gives_the_same_choices() -> None:
    logits = np.zeros(50, np.float32)
    runs = [[Sampler(Sampling(1.0, seed=7)).pick(logits)] for _ in range(2)]
    long = [
        [draw.pick(logits) for _ in range(20)]
        for draw in (Sampler(Sampling(1.0, seed=7)), Sampler(Sampling(1.0, seed=7)))
    ]
    assert runs[0] == runs[1]
    assert long[0] == long[1]
    assert len(set(long[0])) > 5


def test_shares_are_those_of_the_softmax() -> None:
    logits = np.array([1.0, 0.0, 3.0, 2.0], np.float32)
    want = np.exp(logits / 2.0) / np.exp(logits / 2.0).sum()
    got = Sampler(Sampling(temperature=2.0)).probabilities(logits)
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_part_of_a_token_cannot_be_kept() -> None:
    with pytest.raises(InputError, match=r"top_k: got 64\.5"):
        Sampling(1.0, top_k=64.5)  # type: ignore[arg-type]


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    draw = Sampler(Sampling(temperature=1.0, seed=0))
    counts = np.bincount([draw.pick(logits) for _ in range(3000)], minlength=3) / 3000
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.2], atol=0.03)


LOGITS = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))


@pytest.mark.parametrize(
    ("option", "kept"),
    [
        ({"top_k": 2}, 2),
        ({"top_p": 0.6}, 2),
        ({"top_p": 0.4}, 1),
        ({"top_p": 0.76}, 3),
        ({"min_p": 0.29}, 3),
        ({"min_p": 0.31}, 2),
        ({"top_k": 3, "top_p": 0.99, "min_p": 0.4}, 2),
    ],
)
def test_each_option_keeps_what_it_says(option: dict[str, Any], kept: int) -> None:
    chances = Sampler(Sampling(temperature=1.0, **option)).probabilities(LOGITS)
    assert np.count_nonzero(chances) == kept
    np.testing.assert_allclose(
        chances[:kept], np.exp(LOGITS[:kept]) / np.exp(LOGITS[:kept]).sum(), rtol=1e-6
    )


def test_equal_logits_are_cut_by_the_lower_id() -> None:
    chances = Sampler(Sampling(temperature=1.0, top_k=2)).probabilities(np.zeros(9, np.float32))
    assert chances.tolist() == [0.5, 0.5, *[0.0] * 7]


def test_a_penalty_lowers_what_was_said_whatever_its_sign() -> None:
    draw = Sampler(Sampling(repetition_penalty=2.0))
    assert draw.pick(np.array([3.0, 2.0], np.float32), [0]) == 1
    assert draw.pick(np.array([-2.0, -3.0], np.float32), [0]) == 1
    assert draw.pick(np.array([3.0, 2.0], np.float32), []) == 0


def test_logits_are_not_changed() -> None:
    logits = np.array([3.0, 2.0], np.float32)
    Sampler(Sampling(1.0, repetition_penalty=2.0, forbidden=(0,))).pick(logits, [1])
    assert logits.tolist() == [3.0, 2.0]


def test_extreme_logits_are_safe() -> None:
    logits = np.array([3e38, -3e38, -np.inf, 0], np.float32)
    for temperature in (0.0, 1e-30, 1.0, 1e30):
        assert Sampler(Sampling(temperature, seed=1, top_k=1)).pick(logits) == 0
    assert Sampler(Sampling(1.0)).probabilities(logits).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_logits_are_named(bad: float) -> None:
    with pytest.raises(EdgeGemmaError, match="the model's output is broken"):
        Sampler(Sampling()).pick(np.array([0.0, bad], np.float32))


def test_forbidding_everything_is_refused() -> None:
    with pytest.raises(InputError, match="every token is forbidden"):
        Sampler(Sampling(forbidden=(0, 1))).pick(np.zeros(2, np.float32))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("seed", -1),
    ],
)
def test_options_out_of_range_are_named(field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{field}: got"):
        Sampling(**{field: value})  # type: ignore[arg-type]


@given(logits=some_logits)
def test_log_probabilities_are_the_models(logits: F32) -> None:
    total = sum(np.exp(logprob(logits, i)) for i in range(len(logits)))
    assert total == pytest.approx(1, rel=1e-5)


def test_examples_in_the_documentation_run() -> None:
    assert doctest.testmod(sampler).failed == 0
