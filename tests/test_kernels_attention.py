"""Attention over caches: few queries and many, against its definition and against itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgegemma.errors import InputError
from edgegemma.kernels import attention, digits, kvcache
from edgegemma.kernels import reference_layers as reference
from edgegemma.kernels.kvcache import KV
from tests.layers import Maker, distance

some = settings(deadline=None, max_examples=20)
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(["float32", "int8"])
widths = st.sampled_from([2, 6, 10, 32, 64, 96])


def filled(make: Maker, cache: KV, stop: int, chunk: int) -> None:
    """Append random keys and values of positions 0 … stop."""
    for start in range(0, stop, chunk):
        shape = min(chunk, stop - start), *cache.keys.shape[1:]
        kvcache.append(make.rows(*shape), make.rows(*shape), start, cache)


@some
@given(
    past=st.integers(0, 150),
    count=st.integers(1, 9),
    kv_heads=st.integers(1, 4),
    group=st.integers(1, 9),
    width=widths,
    window=st.integers(0, 70),
    dtype=dtypes,
    seed=seeds,
)
def test_attention_agrees_with_reference(
    past: int, count: int, kv_heads: int, group: int, width: int, window: int, dtype: str, seed: int
) -> None:
    make = Maker(seed, "float")
    capacity = past + count if window == 0 else window - 1 + 9
    cache = make.cache(capacity, kv_heads, width, dtype)
    filled(make, cache, past + count, count)
    q = make.rows(count, kv_heads * group, width)
    got = attention.attend(q, cache, past, window)
    assert distance(got, reference.attend(q, cache, past, window)) <= 3e-6


@some
@given(
    past=st.integers(0, 150),
    count=st.integers(32, 80),
    kv_heads=st.integers(1, 2),
    group=st.sampled_from([1, 3, 4, 8]),
    window=st.integers(0, 100),
    dtype=dtypes,
    seed=seeds,
)
def test_attention_of_many_queries_agrees_with_reference(
    past: int, count: int, kv_heads: int, group: int, window: int, dtype: str, seed: int
) -> None:
    make = Maker(seed, "float")
    capacity = past + count if window == 0 else window - 1 + count
    cache = make.cache(capacity, kv_heads, 64, dtype)
    filled(make, cache, past + count, count)
    q = make.rows(count, kv_heads * group, 64)
    got = attention.attend(q, cache, past, window)
    assert distance(got, reference.attend(q, cache, past, window)) <= 3e-6


@some
@given(rows=st.integers(0, 5), width=st.integers(1, 130), power=st.integers(-46, 30), seed=seeds)
def test_digits_agree_with_reference(rows: int, width: int, power: int, seed: int) -> None:
    x = Maker(seed, "float").rows(rows, width, scale=2.0**power)
    x[: rows // 3] = 0
    got, want = digits.two_digits(x), reference.two_digits(x)
    step = np.abs(x).max(axis=1, keepdims=True) / (127 * 256)
    assert (np.abs(got - want) <= np.maximum(step * 1e-3, 1e-38)).all()
    assert (np.abs(got - x) <= np.maximum(step * 0.501, 1e-33)).all()


def test_the_largest_digits_and_keys_fit_their_sums() -> None:
    make = Maker(6, "float")
    cache = make.cache(40, 1, 512, "int8")
    cache.keys[:] = np.repeat(np.array([-128, 127, -128, 126], np.int8), 10)[:, None, None]
    cache.values[:] = make.rng.integers(-128, 128, cache.values.shape)
    cache.key_scale[:], cache.value_scale[:] = 2e-5, 0.01
    q = np.repeat(np.array([[[1], [-1], [3], [-3]]], np.float32), 512, axis=2)
    got = attention.attend(q, cache, 39, 0)
    assert distance(got, reference.attend(q, cache, 39, 0)) <= 3e-6


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_a_query_that_is_not_finite_is_told_apart_from_the_others(odd: float) -> None:
    x = Maker(2, "float").rows(3, 70)
    clean = digits.two_digits(x)
    x[1, 5] = odd
    got = digits.two_digits(x)
    assert np.isnan(got[1]).all()
    np.testing.assert_array_equal(got[[0, 2]], clean[[0, 2]])


def test_queries_of_another_kind_are_refused() -> None:
    with pytest.raises(InputError, match="two_digits: got x"):
        digits.two_digits(np.zeros((2, 3, 4), np.float32))


def test_a_nan_in_a_later_key_or_value_reaches_no_earlier_query() -> None:
    make = Maker(4, "float")
    cache = make.cache(80, 1, 64, "float32")
    filled(make, cache, 80, 80)
    q = make.rows(80, 4, 64)
    clean = attention.attend(q, cache, 0, 0)
    cache.keys[41], cache.values[50] = np.nan, np.nan
    got = attention.attend(q, cache, 0, 0)
    np.testing.assert_array_equal(got[:41], clean[:41])
    assert np.isnan(got[41:]).all()


@pytest.mark.parametrize(("past", "count"), [(3000, 9), (17000, 1)])
def test_attention_over_a_long_past_goes_in_several_waves(past: int, count: int) -> None:
    make = Maker(3, "float")
    cache = make.cache(past + count, 1, 512, "float32")
    filled(make, cache, past + count, 1000)
    q = make.rows(count, 5, 512, scale=0.2)
    got = attention.attend(q, cache, past, 0)
    assert distance(got, reference.attend(q, cache, past, 0)) <= 3e-6
    alone = attention.attend(q[-1:], cache, past + count - 1, 0)
    np.testing.assert_array_equal(got[-1:], alone)


@some
@given(
    cuts=st.lists(st.integers(0, 90), max_size=8),
    window=st.integers(0, 80),
    width=st.sampled_from([40, 64]),
    dtype=dtypes,
    seed=seeds,
)
def test_attention_has_the_same_bits_for_every_cut(
    cuts: list[int], window: int, width: int, dtype: str, seed: int
) -> None:
    make = Maker(seed, "float")
    cache = make.cache(170, 2, width, dtype)
    filled(make, cache, 90, 90)
    q = make.rows(90, 6, width)
    parts = np.split(q, sorted(cuts))
    starts = [0, *sorted(cuts)]
    heard = [
        attention.attend(p, cache, s, window) for p, s in zip(parts, starts, strict=True) if len(p)
    ]
    np.testing.assert_array_equal(np.concatenate(heard), attention.attend(q, cache, 0, window))


def test_a_window_of_one_gives_the_value_itself() -> None:
    make = Maker(5, "float")
    cache = make.cache(7, 2, 6, "float32")
    filled(make, cache, 20, 7)
    got = attention.attend(make.rows(1, 2, 6), cache, 19, 1)
    np.testing.assert_allclose(got[0], cache.values[19 % 7], rtol=1e-6)


@pytest.mark.parametrize(
    ("position", "count", "window"), [(-1, 1, 4), (0, 12, 4), (8, 8, 4), (10, 1, 0), (8, 3, 0)]
)
def test_a_cache_too_small_for_the_chunk_is_refused(position: int, count: int, window: int) -> None:
    make = Maker(0, "float")
    cache = make.cache(10, 1, 6, "float32")
    with pytest.raises(InputError, match="attend: got"):
        attention.attend(make.rows(count, 1, 6), cache, position, window)
