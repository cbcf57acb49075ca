"""The quantizer's loops: what they promise, and what the definition finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from edgegemma.errors import InputError
from edgegemma.kernels import quantize, reference
from edgegemma.kernels.quantize import pack_codes, quantize_rows, unpack_codes

F32 = NDArray[np.float32]
BITS = st.sampled_from([2, 4, 8])


@st.composite
def matrices(draw: st.DrawFn) -> tuple[F32, int, int]:
    """Give weights, bits and block; magnitudes from tiny to huge, some groups of zeros."""
    block = draw(st.sampled_from([0, 16, 32, 128]))
    k = draw(st.integers(1, 300)) if block == 0 else block * draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(0, 6))
    w = rng.standard_normal((n, k), np.float32) + np.float32(draw(st.sampled_from([0, 0, 1, -3])))
    w *= np.float32(10) ** rng.integers(-20, 20, (n, 1))
    w[rng.random(n) < 0.2] = 0
    return w, draw(BITS), block


def losses(
    w: F32, found: tuple[NDArray[np.uint8], F32, NDArray[np.uint8] | None], bits: int
) -> NDArray[np.float64]:
    codes, scale, zero = found
    middle = np.full(scale.shape, 1 << (bits - 1), np.uint8) if zero is None else zero
    width = w.shape[1] // scale.shape[1]
    levels = codes.astype(np.float64) - np.repeat(middle, width, axis=1)
    off = levels * np.repeat(scale.astype(np.float64), width, axis=1) - w
    return np.asarray((off.reshape(*scale.shape, width) ** 2).sum(axis=2))


@settings(deadline=None, max_examples=100)
@given(matrices(), st.booleans())
def test_the_search_loses_no_more_than_the_definition(
    case: tuple[F32, int, int], asymmetric: bool
) -> None:
    w, bits, block = case
    ours = losses(w, quantize_rows(w, bits, block, asymmetric), bits)
    theirs = losses(w, reference.quantize_rows(w, bits, block, asymmetric), bits)
    rounding = w.size * (np.abs(w).max(initial=0.0) * 2.0**-22) ** 2  # of a float32 scale
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=rounding)


@settings(deadline=None, max_examples=100)
@given(matrices(), st.booleans())
def test_every_code_is_the_nearest_level(case: tuple[F32, int, int], asymmetric: bool) -> None:
    w, bits, block = case
    codes, scale, zero = quantize_rows(w, bits, block, asymmetric)
    assert scale.shape == (len(w), w.shape[1] // block if block else 1)
    assert (scale > 0).all()
    width = block or w.shape[1]
    for row, column in np.ndindex(scale.shape):
        part = slice(column * width, (column + 1) * width)
        middle = 1 << (bits - 1) if zero is None else int(zero[row, column])
        step = np.float32(scale[row, column])
        wanted = reference.nearest(w[row, part], step, middle, bits)
        np.testing.assert_array_equal(codes[row, part], wanted)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("value", [0.0, 0.37, -3.5, 1e-30])
def test_a_group_of_one_magnitude_is_exact(bits: int, value: float) -> None:
    w = np.full((2, 64), value, np.float32)
    w[1, ::3] *= -1
    codes, scale, _ = quantize_rows(w, bits)
    np.testing.assert_array_equal((codes.astype(np.float32) - (1 << (bits - 1))) * scale, w)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_group_that_is_not_finite_says_so_by_its_scale(wrong: float) -> None:
    w = np.ones((3, 64), np.float32)
    w[1, 40] = wrong
    scale = quantize_rows(w, 4, 32)[1]
    np.testing.assert_array_equal(np.isnan(scale), [[False, False], [False, True], [False, False]])


@settings(deadline=None, max_examples=50)
@given(BITS, st.data())
def test_pack_and_unpack_are_inverses(bits: int, data: st.DataObject) -> None:
    shape = (data.draw(st.integers(0, 4)), 8 // bits * data.draw(st.integers(1, 40)))
    elements = st.integers(0, (1 << bits) - 1)
    codes = data.draw(hnp.arrays(np.uint8, shape, elements=elements))
    packed = pack_codes(codes, bits)
    np.testing.assert_array_equal(packed, reference.pack_codes(codes, bits))
    np.testing.assert_array_equal(unpack_codes(packed, bits), codes)
    np.testing.assert_array_equal(reference.unpack_codes(packed, bits), codes)


def test_kernel_and_definition_try_the_same_scales() -> None:
    kernel = {2: quantize._SHARES2, 4: quantize._SHARES4, 8: quantize._SHARES8}
    assert kernel == reference.SHARES
    assert quantize._FITS == reference.FITS


def test_wrong_arguments_are_refused() -> None:
    w = np.zeros((2, 48), np.float32)
    for bits, block in ((3, 0), (4, 32), (4, -1)):
        with pytest.raises(InputError, match="quantize_rows: got"):
            quantize_rows(w, bits, block)
    with pytest.raises(InputError, match="contiguous"):
        quantize_rows(w.T, 4)
    with pytest.raises(InputError, match="pack_codes: got"):
        pack_codes(np.zeros((2, 3), np.uint8), 2)
