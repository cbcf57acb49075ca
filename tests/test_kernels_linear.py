"""Linear kernels: any shape against the definition, the same bits however the rows are cut."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgegemma.errors import InputError
from edgegemma.kernels import cpu, reference
from edgegemma.kernels.linear import (
    CodeMatrix,
    FloatMatrix,
    Matrix,
    _clipped_linear,
    _linear,
    clipped_linear,
    linear,
)

F32 = NDArray[np.float32]
ROOT = Path(__file__).parents[1]
BITS = (2, 4, 8)
OFF = np.zeros(2, np.float32)


def code_matrix(
    rng: np.random.Generator, n: int, k: int, bits: int, block: int, per_block: bool
) -> CodeMatrix:
    """Random codes with scales of either sign, read-only as a mapped file is."""
    codes = rng.integers(0, 256, (n, k * bits // 8), np.uint8)
    scale = rng.standard_normal((n, k // block if per_block else 1), np.float32)
    for array in (codes, scale, OFF):
        array.setflags(write=False)
    return CodeMatrix(codes, scale, OFF, bits, block)


def with_scales(w: CodeMatrix, inner: float, outer: float) -> CodeMatrix:
    return w._replace(activation=np.array([inner, outer], np.float32))


def room(x: F32, w: Matrix) -> NDArray[np.float64]:
    """Rounding errors are proportional to |W| · |x|, both as the kernel sees them."""
    if isinstance(w, FloatMatrix):
        rows = reference.widen(w.rows)
        return 1e-6 * np.abs(reference.fake_quantize(x, w.activation[0])) @ np.abs(rows).T
    q, scale = reference.quantize_activations(x, w.activation[0], w.block)
    seen = np.abs(q) * np.repeat(scale, w.block, axis=1)
    return np.asarray(1e-6 * seen @ np.abs(reference.dequantize(w)).T)


@st.composite
def cases(draw: st.DrawFn) -> tuple[F32, CodeMatrix]:
    """Give x and a matrix of any width, block and shape, K a multiple of 16."""
    k = 16 * draw(st.integers(1, 40))
    block = draw(st.sampled_from([b for b in (16, 32, 48, 64, 96, 128) if k % b == 0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    w = code_matrix(
        rng, draw(st.integers(1, 37)), k, draw(st.sampled_from(BITS)), block, draw(st.booleans())
    )
    x = rng.standard_normal((draw(st.sampled_from([0, 1, 2, 3, 4, 5, 9, 17])), k), np.float32)
    x *= np.float32(10) ** rng.integers(-6, 6, (len(x), 1))
    if draw(st.booleans()):
        x[rng.random(x.shape) < 0.5] = 0
    return x, w


@settings(deadline=None, max_examples=200)
@given(cases())
def test_dynamic_activations_agree_with_the_definition(case: tuple[F32, CodeMatrix]) -> None:
    x, w = case
    assert np.all(np.abs(linear(x, w) - reference.linear(x, w)) <= room(x, w))


@settings(deadline=None, max_examples=200)
@given(cases(), st.floats(1e-3, 10))
def test_static_activations_agree_with_the_definition(
    case: tuple[F32, CodeMatrix], scale: float
) -> None:
    x, w = case
    static = with_scales(w, scale, 0)
    assert np.all(np.abs(linear(x, static) - reference.linear(x, static)) <= room(x, static))


@settings(deadline=None, max_examples=100)
@given(cases())
def test_static_activations_with_a_scale_a_row_are_exact(case: tuple[F32, CodeMatrix]) -> None:
    x, w = case
    w = w._replace(scale=w.scale[:, :1].copy(), activation=np.array([0.5, 0], np.float32))
    wanted = reference.linear(x, w)
    # Not even cancellation costs bits: one integer, two float32 products.
    assert np.all(np.abs(linear(x, w) - wanted) <= 3e-7 * np.abs(wanted))


@settings(deadline=None, max_examples=50)
@given(cases(), st.floats(1e-3, 1e3), st.booleans())
def test_static_output_scale_rounds_the_result(
    case: tuple[F32, CodeMatrix], scale: float, static: bool
) -> None:
    x, w = case
    inner = 0.1 if static else 0.0
    plain = linear(x, with_scales(w, inner, 0))
    rounded = linear(x, with_scales(w, inner, scale))
    np.testing.assert_array_equal(rounded, reference.fake_quantize(plain, np.float32(scale)))


@settings(deadline=None, max_examples=100)
@given(cases(), st.sampled_from([0.0, 0.25]))
def test_a_row_has_the_same_bits_alone_and_in_company(
    case: tuple[F32, CodeMatrix], static: float
) -> None:
    x, w = case
    w = with_scales(w, static, 0)
    alone = [linear(row[None], w) for row in x]
    np.testing.assert_array_equal(
        linear(x, w), np.concatenate([np.empty((0, len(w[0])), "f"), *alone])
    )


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("static", [0.0, 0.25])
def test_columns_beyond_one_block_of_the_matrix_product_count(bits: int, static: float) -> None:
    rng = np.random.default_rng(bits)
    w = with_scales(code_matrix(rng, 21, 3216, bits, 48, False), static, 0)
    x = rng.standard_normal((19, 3216), np.float32)
    few = np.concatenate([linear(x[i : i + 1], w) for i in range(19)])
    np.testing.assert_array_equal(linear(x, w), few)


@pytest.mark.parametrize("static", [0.0, 0.25])
def test_a_matrix_of_many_jobs_is_whole(static: float) -> None:
    rng = np.random.default_rng(3)
    w = with_scales(code_matrix(rng, 1203, 1024, 8, 64, False), static, 0)
    x = rng.standard_normal((1, 1024), np.float32)
    assert np.all(np.abs(linear(x, w) - reference.linear(x, w)) <= room(x, w))


@pytest.mark.parametrize("bits", BITS)
def test_the_largest_products_do_not_overflow(bits: int) -> None:
    codes = np.full((5, 2048 * bits // 8), 255, np.uint8)
    scale = np.ones((5, 1), np.float32)
    w = CodeMatrix(codes, scale, np.array([1, 0], np.float32), bits, 128)
    for sign in (-128, 127):
        x = np.full((9, 2048), sign, np.float32)
        assert np.all(linear(x, w) == sign * 2048 * ((1 << (bits - 1)) - 1))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("per_block", [False, True])
@pytest.mark.parametrize("static", [0.0, 0.1])
def test_bits_do_not_depend_on_threads(bits: int, per_block: bool, static: float) -> None:
    rng = np.random.default_rng(bits)
    w = with_scales(code_matrix(rng, 300, 176, bits, 16, per_block), static, 0)
    x = rng.standard_normal((6, 176), np.float32)
    many, threads = linear(x, w), numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        one = linear(x, w)
    finally:
        numba.set_num_threads(threads)
    np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("block", [0, 16, 128])
def test_extreme_codes_and_activations_do_not_saturate(bits: int, block: int) -> None:
    k = 1024
    for byte in (0, 0xFF):
        codes = np.full((5, k * bits // 8), byte, np.uint8)
        scale = np.ones((5, k // block if block else 1), np.float32)
        w = CodeMatrix(codes, scale, np.array([1, 0], np.float32), bits, block or 128)
        for value in (-128.0, 127.0, -1e30, 1e30):
            x = np.full((5, k), value, np.float32)
            x[1, ::2] *= -1
            x[2, 1::4] *= -1
            np.testing.assert_array_equal(linear(x, w), reference.linear(x, w))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("per_block", [False, True])
@pytest.mark.parametrize("static", [0.0, 0.1])
def test_a_nan_reaches_its_own_row_and_no_other(bits: int, per_block: bool, static: float) -> None:
    rng = np.random.default_rng(3)
    w = with_scales(code_matrix(rng, 7, 336, bits, 16, per_block), static, 0.5)
    x = rng.standard_normal((6, 336), np.float32)
    clean = linear(x, w)
    for column in (0, 17, 335):
        spoilt = x.copy()
        spoilt[4, column] = np.nan
        got = linear(spoilt, w)
        assert np.isnan(got[4]).all()
        np.testing.assert_array_equal(np.delete(got, 4, 0), np.delete(clean, 4, 0))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("per_block", [False, True])
@pytest.mark.parametrize("static", [0.0, 0.1])
def test_an_infinity_is_clamped_or_gives_nan(bits: int, per_block: bool, static: float) -> None:
    rng = np.random.default_rng(4)
    w = with_scales(code_matrix(rng, 7, 96, bits, 32, per_block), static, 0)
    x = rng.standard_normal((2, 96), np.float32)
    x[0, 40], x[1, 3] = -np.inf, np.inf
    got = linear(x, w)
    assert np.isnan(got).all() == (static == 0)
    np.testing.assert_allclose(got, reference.linear(x, w), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bits", BITS)
def test_zero_rows_give_zeros_and_tiny_ones_no_nan(bits: int) -> None:
    rng = np.random.default_rng(5)
    w = code_matrix(rng, 9, 64, bits, 32, True)
    x = np.zeros((3, 64), np.float32)
    x[1, 5] = 1e-45
    x[2, 9] = 1e-44
    np.testing.assert_allclose(linear(x, w), 0, atol=1e-38)
    np.testing.assert_array_equal(linear(x[:1], w), 0)


@settings(deadline=None, max_examples=100)
@given(
    m=st.sampled_from([0, 1, 2, 3, 4, 5, 9]),
    n=st.integers(1, 20),
    k=st.integers(1, 200),
    half=st.booleans(),
    static=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, 2**32 - 1),
)
def test_float_rows_agree_with_the_definition(
    m: int, n: int, k: int, half: bool, static: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    w = float_matrix(rng, n, k, half, static)
    x = rng.standard_normal((m, k), np.float32)
    got = linear(x, w)
    assert np.all(np.abs(got - reference.linear(x, w)) <= room(x, w))
    for row, y in zip(x, got, strict=True):
        np.testing.assert_array_equal(linear(row[None], w)[0], y)


def float_matrix(
    rng: np.random.Generator, n: int, k: int, half: bool, static: float = 0
) -> FloatMatrix:
    rows = rng.standard_normal((n, k), np.float32)
    activation = np.array([static, 0], np.float32)
    if half:
        return FloatMatrix((rows.view(np.uint32) >> 16).astype(np.uint16), activation)
    return FloatMatrix(rows, activation)


@pytest.mark.parametrize("kind", ["codes", "float32", "bfloat16"])
def test_clipped_linear_clamps_before_and_after(kind: str) -> None:
    rng = np.random.default_rng(6)
    w: Matrix = float_matrix(rng, 11, 160, kind == "bfloat16")
    if kind == "codes":
        w = code_matrix(rng, 11, 160, 4, 32, False)
    x = 3 * rng.standard_normal((5, 160), np.float32)
    clip = np.array([-1.5, 1, -4, 5], np.float32)
    inside = np.clip(x, -1.5, 1)
    np.testing.assert_array_equal(clipped_linear(x, w, clip), np.clip(linear(inside, w), -4, 5))
    x[2, 3] = np.nan
    assert np.isnan(clipped_linear(x, w, clip)[2]).all()


def test_wrong_shapes_are_refused() -> None:
    rng = np.random.default_rng(7)
    w = code_matrix(rng, 4, 64, 4, 32, True)
    wide: Any = np.zeros((2, 64))
    for x in (wide[:, :32].astype("f"), np.zeros(64, "f"), wide, np.zeros((64, 2), "f").T):
        with pytest.raises(InputError, match="x"):
            linear(x, w)
    x = np.zeros((1, 64), np.float32)
    for wrong in (
        w._replace(bits=3),
        w._replace(block=24),
        w._replace(block=64),
        w._replace(scale=w.scale[:2]),
        w._replace(codes=w.codes.astype(np.int32)),
        w._replace(activation=np.zeros(3, np.float32)),
    ):
        with pytest.raises(InputError, match=r"linear: got"):
            linear(x, wrong)
    with pytest.raises(InputError, match="clip"):
        clipped_linear(x, w, np.zeros(3, np.float32))


def test_without_a_compiler_the_kernels_are_their_definition() -> None:
    rng = np.random.default_rng(9)
    w = code_matrix(rng, 5, 64, 4, 32, True)
    x, y = rng.standard_normal((3, 64), np.float32), np.empty((3, 5), np.float32)
    _linear(x, w, y)
    np.testing.assert_array_equal(y, reference.linear(x, w))
    _clipped_linear(x, w, np.array([-1, 1, -2, 2], np.float32), y)
    assert np.abs(y).max() <= 2


SAMPLE = """
import sys
import numpy as np
from tests.test_kernels_linear import sample
np.save(sys.argv[1], sample())
"""


def sample() -> F32:
    """Results of every code width and kind of scale, one after the other."""
    rng = np.random.default_rng(8)
    results = []
    for bits in BITS:
        for static in (0.5, 0.0):
            w = with_scales(code_matrix(rng, 21, 400, bits, 16, not static), static, 0)
            results.append(linear(rng.standard_normal((5, 400), np.float32), w))
    return np.stack(results)


def sample_from(path: str, out: Path, before: str = "", **environment: str) -> F32:
    """Give the `sample` of a child process on a vector path."""
    command = [sys.executable, "-c", before + SAMPLE, str(out)]
    subprocess.run(
        command, check=True, cwd=ROOT, env=os.environ | environment | {cpu.OVERRIDE: path}
    )
    return cast(F32, np.load(out))


def assert_agree(got: F32, wanted: F32) -> None:
    np.testing.assert_array_equal(got[::2], wanted[::2])  # static: integers are integers
    largest = np.abs(wanted).max(axis=(1, 2), keepdims=True)
    assert np.all(np.abs(got - wanted) <= 1e-6 * largest)


@pytest.mark.parametrize("path", cpu._RUNS[cpu.target().best][1:])
def test_every_path_of_this_cpu_agrees(path: str, tmp_path: Path) -> None:
    assert_agree(sample_from(path, tmp_path / "sample.npy"), sample())


@pytest.mark.slow
def test_every_path_agrees_in_vectors_of_64_bytes(tmp_path: Path) -> None:
    # The layout of AVX-512, also where there is none.
    before = "from edgegemma.kernels import cpu; cpu.WIDTH['generic'] = 64"
    got = sample_from("generic", tmp_path / "a.npy", before, NUMBA_CACHE_DIR=str(tmp_path))
    assert_agree(got, sample())
