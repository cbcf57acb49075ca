"""The K/V cache: where a position lies, how far back one can go, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.shapes import published
from edgegemma.engine.cache import PAGE, Kind, KVCache, Layout
from edgegemma.engine.memory import resident_bytes
from edgegemma.errors import InputError
from export.configuration import parse

WINDOW, SLACK, LIMIT = 5, 4, 2000
SLIDING, FULL = Layout(1, 2, WINDOW), Layout(2, 4, 0)


def small_cache(kind: Kind = "float32", limit: int = LIMIT) -> KVCache:
    return KVCache([SLIDING, FULL], limit, kind, SLACK)


def layouts_of(name: str) -> list[Layout]:
    """Give the K/V of a published model."""
    text = parse(published(name)).text
    return [Layout(*text.heads_of(i), text.window_of(i)) for i in range(text.first_shared_layer)]


def write(cache: KVCache, count: int, stamp: int) -> None:
    """Read positions as a decoder does: each key is its position and the reading it belongs to."""
    cache.reserve(count)
    for index in (0, 1):
        keys = cache.slot(index).keys
        for position in range(cache.length, cache.length + count):
            keys[position % len(keys)] = position + stamp * 10_000
    cache.advance(count)


def seen(cache: KVCache, index: int, window: int) -> list[int]:
    """Keys before the next position that its query will want."""
    keys = cache.slot(index).keys
    first = max(0, cache.length - window + 1) if window else 0
    return [int(keys[p % len(keys)].max()) for p in range(first, cache.length)]


Step = tuple[str, int]
steps = st.lists(st.tuples(st.sampled_from(["read", "back"]), st.integers(0, 30)), max_size=40)


def pieces(count: int) -> Iterator[int]:
    while count:
        yield (piece := min(count, SLACK))
        count -= piece


@settings(deadline=None, max_examples=150)
@given(steps=steps)
def test_a_query_finds_the_keys_of_its_window_after_any_reading_and_going_back(
    steps: list[Step],
) -> None:
    cache = small_cache()
    truth: list[int] = []
    highest = 0
    for stamp, (kind, size) in enumerate(steps):
        if kind == "read":
            for piece in pieces(size):
                write(cache, piece, stamp)
            truth += [p + stamp * 10_000 for p in range(len(truth), len(truth) + size)]
        else:
            length = max(0, len(truth) - size)
            try:
                cache.truncate(length)
            except InputError:
                assert highest - length > SLACK
                continue
            truth = truth[:length]
            highest *= length > 0
        highest = max(highest, len(truth))
        assert cache.length == len(truth)
        assert seen(cache, 0, WINDOW) == truth[max(0, len(truth) - WINDOW + 1) :]
        assert seen(cache, 1, 0) == truth


@settings(deadline=None)
@given(size=st.integers(1, 100), back=st.integers(0, SLACK))
def test_going_back_within_the_slack_always_works(size: int, back: int) -> None:
    cache = small_cache()
    for piece in pieces(size):
        write(cache, piece, 0)
    cache.truncate(max(0, size - back))
    assert cache.length == max(0, size - back)


def test_going_back_too_far_is_refused_and_says_how_far_is_possible() -> None:
    cache = small_cache()
    for piece in pieces(40):
        write(cache, piece, 0)
    with pytest.raises(InputError, match="got length 10; want 0 or at least 35"):
        cache.truncate(10)
    assert cache.length == 40
    cache.truncate(35)


def test_slack_used_up_by_one_way_back_is_not_there_for_the_next() -> None:
    cache = small_cache()
    for piece in pieces(40):
        write(cache, piece, 0)
    cache.truncate(36)
    with pytest.raises(InputError):
        cache.truncate(33)


def test_the_start_is_always_in_reach() -> None:
    cache = small_cache()
    for piece in pieces(100):
        write(cache, piece, 0)
    cache.truncate(0)
    for piece in pieces(3):
        write(cache, piece, 1)
    cache.truncate(1)
    assert seen(cache, 0, WINDOW) == [10_000]


@pytest.mark.parametrize("length", [-1, 8])
def test_only_the_past_can_be_gone_back_to(length: int) -> None:
    cache = small_cache()
    for piece in pieces(7):
        write(cache, piece, 0)
    with pytest.raises(InputError, match=f"got length {length}; want 0 to 7"):
        cache.truncate(length)


def test_more_positions_than_the_limit_are_refused_before_anything_changes() -> None:
    cache = small_cache(limit=6)
    write(cache, 4, 0)
    with pytest.raises(InputError, match="got 8 positions; want at most 6"):
        cache.reserve(4)
    write(cache, 2, 0)
    assert cache.length == 6


def test_full_layers_are_counted_by_the_pages_written() -> None:
    cache = small_cache(limit=3 * PAGE + 10)
    sizes = []
    for piece in pieces(3 * PAGE + 10):
        write(cache, piece, 0)
        sizes.append(cache.nbytes)
    pages = sorted(set(sizes))
    assert sizes == sorted(sizes)
    assert np.diff(pages).tolist() == [n * cache.bytes_per_token for n in (PAGE, PAGE, 10)]
    cache.truncate(0)
    assert cache.nbytes == pages[-1]


def test_positions_that_were_not_written_take_no_memory() -> None:
    layouts = layouts_of("E2B")
    before = resident_bytes()
    cache = KVCache(layouts, 1 << 17, "int8")
    assert resident_bytes() - before < 50e6
    assert sum(array.nbytes for i in range(len(layouts)) for array in cache.slot(i)) > 400e6
    assert cache.planned(1 << 17) == pytest.approx(410.6e6, rel=0.001)


def test_a_sliding_layer_never_grows() -> None:
    cache = small_cache()
    for piece in pieces(500):
        write(cache, piece, 0)
    assert len(cache.slot(0).keys) == WINDOW + SLACK


@pytest.mark.parametrize(("kind", "item"), [("float32", 4 * 4), ("int8", 4 + 4)])
def test_bytes_are_counted(kind: Kind, item: int) -> None:
    cache = small_cache(kind)
    ring = (WINDOW + SLACK) * 2 * (8 if kind == "float32" else 2 + 4)
    assert cache.bytes_per_token == 2 * 2 * item
    assert cache.nbytes == ring + PAGE * cache.bytes_per_token


# Bytes in bfloat16 of the real models: a position of the full layers, and all windows of the sliding ones (Gemma 4's
# specification: 6,144 B and 6.3 MB for E2B, 16,384 B and 21 MB for E4B). Float32 is twice that.
@pytest.mark.parametrize(
    ("name", "position", "windows"), [("E2B", 6144, 6.3), ("E4B", 16384, 21.0)]
)
def test_a_position_of_the_real_models_costs_what_the_specification_says(
    name: str, position: int, windows: float
) -> None:
    layouts = layouts_of(name)
    assert KVCache(layouts, PAGE).bytes_per_token == 2 * position
    sliding = sum(x.window * x.position_bytes("float32") for x in layouts)
    assert sliding / 2 / 1e6 == pytest.approx(windows, rel=0.01)


def test_int8_entries_have_scales_and_floats_none() -> None:
    assert small_cache("float32").slot(1).key_scale.shape == (0, 0)
    slot = small_cache("int8").slot(1)
    assert slot.keys.dtype == slot.values.dtype == np.int8
    assert slot.key_scale.shape == slot.value_scale.shape == (LIMIT, 2)
