"""The vector verbs, the choice of a path and the cache of compiled kernels."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
import pytest
from numba import njit

from edgegemma.errors import InputError
from edgegemma.kernels import cache, cpu, linear, simd
from edgegemma.kernels.lanes import lane_scales
from edgegemma.kernels.late import KERNELS, Kernel, call, ready
from edgegemma.kernels.simd import LANES
from tests.crosscompile import ARM, X86


@njit
def _rounded(x):  # type: ignore[no-untyped-def]
    q = np.zeros(x.size, np.int8)
    for i in range(0, x.size, LANES):
        simd.store_rounded(q, i, simd.load_floats(x, i))
    return q


@njit
def _scales(scale, base, index, count):  # type: ignore[no-untyped-def]
    out = np.empty(LANES, np.float32)
    simd.store_floats(out, 0, lane_scales(scale, base, index, 0, count))
    return out


@njit
def _sum(x):  # type: ignore[no-untyped-def]
    return simd.sum_floats(simd.load_floats(x, 0))


@njit
def _widened(x):  # type: ignore[no-untyped-def]
    out = np.empty(LANES, np.float32)
    simd.store_floats(out, 0, simd.load_bfloats(x, 0))
    return out


def test_rounding_is_to_even_and_clamps() -> None:
    x = np.zeros(32, np.float32)
    x[:12] = [0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, 1e30, -128.5, -1e30, np.inf, -np.inf]
    got = _rounded(x)
    assert got[:12].tolist() == [0, 2, 2, 0, -2, 126, 127, 127, -128, -128, 127, -128]


def test_rounding_a_nan_gives_a_number() -> None:
    assert _rounded(np.full(16, np.nan, np.float32)).tolist() == [127] * 16


@pytest.mark.parametrize("count", [1, 2, 4, 8, 0])
def test_lanes_share_scales_evenly_or_are_gathered(count: int) -> None:
    scale = np.arange(64, dtype=np.float32)
    shared = count if 0 < count <= LANES else LANES
    index = np.repeat(np.arange(3, 3 + shared), LANES // shared).astype(np.int32)
    np.testing.assert_array_equal(_scales(scale, 20, index, count), scale[20 + index])


def test_a_sum_is_the_same_tree_everywhere() -> None:
    x = np.random.default_rng(0).standard_normal(LANES, np.float32)
    wanted = x.copy()
    while wanted.size > 1:
        wanted = wanted[: wanted.size // 2] + wanted[wanted.size // 2 :]
    assert _sum(x) == wanted[0]


def test_bfloat16_widens_exactly() -> None:
    x = np.random.default_rng(1).standard_normal(LANES, np.float32)
    bits = (x.view(np.uint32) >> 16).astype(np.uint16)
    np.testing.assert_array_equal(_widened(bits), (bits.astype(np.uint32) << 16).view(np.float32))


@pytest.mark.parametrize(
    ("triple", "name", "path"),
    [
        (X86, "x86-64", "generic"),
        (X86, "haswell", "avx2"),
        (X86, "znver3", "avx2"),
        (X86, "skylake-avx512", "avx2"),
        (X86, "alderlake", "avxvnni"),
        (X86, "cascadelake", "avx512vnni"),
        (X86, "znver4", "avx512vnni"),
        (ARM, "generic", "neon"),
        (ARM, "cortex-a72", "neon"),
        (ARM, "cortex-a76", "dotprod"),
        ("riscv64-unknown-linux-gnu", "generic", "generic"),
    ],
)
def test_the_path_follows_triple_and_cpu(triple: str, name: str, path: str) -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    assert cpu._best(triple, name, "") == path


def test_the_features_llvm_finds_on_a_pi_do_not_mislead() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    features = "+aes,+crc,+fp-armv8,+lse,+neon,-rand,+sha2,-sve"
    assert cpu._best(ARM, "cortex-a76", features) == "dotprod"


def test_the_override_asks_for_less_and_refuses_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cpu.OVERRIDE, "generic")
    chosen = cpu.target.__wrapped__()
    assert (chosen.path, chosen.best) == ("generic", cpu.target().best)
    monkeypatch.setenv(cpu.OVERRIDE, "sse9")
    with pytest.raises(InputError, match=r"EDGEGEMMA_SIMD: got 'sse9'; want one of .*generic"):
        cpu.target.__wrapped__()


def test_describe_names_path_and_target() -> None:
    told = simd.describe()
    assert told["path"] == cpu.target().path
    assert told["vector_bytes"] == 4 * LANES
    assert {"best", "triple", "cpu", "features"} <= told.keys()


def test_kept_kernels_lie_in_a_folder_of_their_path() -> None:
    kept: Any = KERNELS["integers2"].dispatcher
    locator = kept._cache._impl.locator
    assert isinstance(locator, cache.KernelLocator)
    assert Path(locator.get_cache_path()).name == cpu.target().path
    assert cache.KernelLocator.from_function(_sum.py_func, __file__) is None


def test_the_stamp_follows_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "HERE", tmp_path)
    stamp = cache.stamp.__wrapped__
    (tmp_path / "top.py").write_text("from edgegemma.kernels.middle import f\n")
    (tmp_path / "middle.py").write_text("from edgegemma.kernels import low, other\n")
    (tmp_path / "low.py").write_text("X = 1\n")
    (tmp_path / "apart.py").write_text("X = 1\n")
    before = stamp("top")
    (tmp_path / "apart.py").write_text("X = 2\n")
    assert stamp("top") == before
    (tmp_path / "low.py").write_text("X = 2\n")
    assert stamp("top") != before


def test_a_cache_that_cannot_be_written_is_said_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(blocked))
    with caplog.at_level(logging.WARNING):
        folder = cache.root.__wrapped__()
    assert folder.is_dir()
    assert "compiled for this process only" in caplog.text


def test_installing_the_cache_twice_changes_nothing() -> None:
    before = vars(numba.config)["CACHE_LOCATOR_CLASSES"]
    cache.install()
    assert vars(numba.config)["CACHE_LOCATOR_CLASSES"] == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_kernel_that_cannot_be_compiled_raises() -> None:
    def broken(x):  # type: ignore[no-untyped-def]
        return x.no_such_attribute

    Kernel("broken", numba.int64(numba.int64), broken)

    @njit
    def caller():  # type: ignore[no-untyped-def]
        return ready("broken")

    with pytest.raises(RuntimeError, match="broken could not be compiled"):
        caller()
    del KERNELS["broken"]


def test_what_a_kernel_raises_reaches_its_caller() -> None:
    def refusing(x):  # type: ignore[no-untyped-def]
        if x[0] > 0:
            raise ValueError("too much")
        x[0] = 1

    Kernel("refusing", numba.void(numba.float64[::1]), refusing)

    @njit
    def caller(x):  # type: ignore[no-untyped-def]
        call("refusing", ready("refusing"), (x,))

    x = np.zeros(1)
    caller(x)
    assert x[0] == 1
    with pytest.raises(ValueError, match="too much"):
        caller(x)
    del KERNELS["refusing"]


def test_importing_linear_names_its_kernels() -> None:
    assert linear.__name__ in sys.modules
    assert {"codes", "rows_float32", "rows_bfloat16", "quantize_rows"} <= KERNELS.keys()
