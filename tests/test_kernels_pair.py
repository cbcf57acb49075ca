"""Two products of the same rows in one call: the definition's, and the same bits as apart."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgegemma.errors import InputError
from edgegemma.kernels import reference
from edgegemma.kernels.linear import CodeMatrix, FloatMatrix, Matrix, linear, linear_pair
from tests.test_kernels_linear import room

F32 = NDArray[np.float32]


def matrix(rng: np.random.Generator, rows: int, columns: int, kind: str, static: float) -> Matrix:
    """A matrix of codes with a scale a row or a block of 32, or of floats."""
    activation = np.array([static, 0], np.float32)
    if kind == "floats":
        return FloatMatrix(rng.standard_normal((rows, columns), np.float32), activation)
    bits, groups = int(kind[0]), columns // 32 if kind.endswith("blocks") else 1
    codes = rng.integers(0, 256, (rows, columns * bits // 8), np.uint8)
    return CodeMatrix(codes, rng.standard_normal((rows, groups), np.float32), activation, bits, 32)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[F32, Matrix, Matrix]:
    """Rows and two matrices, alike or not in width of codes, scales, activations and number of rows."""
    kinds = ["2 rows", "4 rows", "8 rows", "2 blocks", "8 blocks", "floats"]
    columns = 32 * draw(st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    one, other = (
        matrix(
            rng,
            draw(st.sampled_from([1, 3, 4, 5, 37, 700])),
            columns,
            draw(st.sampled_from(kinds)),
            draw(st.sampled_from([0.0, 0.125, 0.25])),
        )
        for _ in range(2)
    )
    x = rng.standard_normal((draw(st.sampled_from([0, 1, 3, 4, 9])), columns), np.float32)
    return x, one, other


@settings(deadline=None, max_examples=150)
@given(pairs())
def test_a_pair_has_the_bits_of_two_products_apart(case: tuple[F32, Matrix, Matrix]) -> None:
    x, w, v = case
    y, z = linear_pair(x, w, v)
    np.testing.assert_array_equal(y, linear(x, w))
    np.testing.assert_array_equal(z, linear(x, v))


@settings(deadline=None, max_examples=50)
@given(pairs())
def test_a_pair_agrees_with_the_definition(case: tuple[F32, Matrix, Matrix]) -> None:
    x, w, v = case
    wanted = reference.linear_pair(x, w, v)
    for one, found, want in zip((w, v), linear_pair(x, w, v), wanted, strict=True):
        assert np.all(np.abs(found - want) <= room(x, one))


@pytest.mark.parametrize("rows", [(700, 700), (8, 700), (700, 3)])
def test_a_pair_does_not_depend_on_threads(rows: tuple[int, int]) -> None:
    rng = np.random.default_rng(4)
    w, v = (matrix(rng, count, 1536, "2 rows", 0.1) for count in rows)
    x = rng.standard_normal((1, 1536), np.float32)
    most = numba.get_num_threads()
    together = linear_pair(x, w, v)
    numba.set_num_threads(1)
    try:
        alone = linear_pair(x, w, v)
    finally:
        numba.set_num_threads(most)
    np.testing.assert_array_equal(together[0], alone[0])
    np.testing.assert_array_equal(together[1], alone[1])


def test_a_matrix_of_another_width_is_refused() -> None:
    rng = np.random.default_rng(5)
    w, v = matrix(rng, 4, 64, "2 rows", 0.1), matrix(rng, 4, 32, "2 rows", 0.1)
    with pytest.raises(InputError, match=r"want contiguous float32 \(M, 32\)"):
        linear_pair(np.zeros((1, 64), np.float32), w, v)
