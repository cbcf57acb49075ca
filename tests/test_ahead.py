"""Kernels compiled ahead, and the threads that are kept for a package."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgegemma.engine import ahead, tuning
from edgegemma.engine.ahead import Record
from edgegemma.engine.model import open_model
from edgegemma.errors import EdgeGemmaError
from edgegemma.kernels import cache
from edgegemma.package import Package
from tests import packages


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    monkeypatch.setattr(cache, "root", lambda: tmp_path / "kept")
    return Package.open(packages.small(tmp_path / "package"))


def test_what_is_known_of_a_package_is_kept(package: Package) -> None:
    assert ahead.known(package) == Record()
    ahead.keep(package, Record(("int8",), 2, 4))
    assert ahead.known(package) == Record(("int8",), 2, 4)


def test_another_package_or_other_kernels_are_not_known(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead.keep(package, Record(("int8",), 2, 4))
    other = packages.small(tmp_path / "other", "float32")
    assert ahead.known(Package.open(other)) == Record()
    monkeypatch.setattr(cache, "stamp", lambda _: "changed")
    assert ahead.known(package) == Record()


def test_a_damaged_record_is_no_record(package: Package, tmp_path: Path) -> None:
    ahead.keep(package, Record(("int8",), 2, 4))
    (kept,) = tmp_path.glob("kept/*/packages/*.json")
    kept.write_text("[]")
    assert ahead.known(package) == Record()


def test_a_large_package_is_compiled_apart_once(
    package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not ahead.needed(package, "int8")
    monkeypatch.setattr(ahead, "LARGE_BYTES", 1)
    assert ahead.needed(package, "int8")
    ahead.keep(package, Record(("int8",)))
    assert not ahead.needed(package, "int8")
    assert ahead.needed(package, "float32")


def test_compiling_runs_all_uses(package: Package) -> None:
    model = open_model(package.path, kv="int8")
    ahead.compile_here(model, ahead.USES, lambda _: None)
    assert set(model.counters.calls) == {"embed", "prefill", "logits", "audio"}


def test_what_was_compiled_apart_is_remembered(package: Package) -> None:
    ahead.compile_apart(package.path, "int8", lambda _: None)
    assert ahead.known(package).compiled == ("int8",)


def test_a_child_that_fails_says_why(package: Package) -> None:
    (package.path / "decoder.onnx").write_bytes(b"")
    packages.sign(package.path)
    with pytest.raises(EdgeGemmaError, match=r"could not be compiled: decoder\.onnx"):
        ahead.compile_apart(package.path, "int8", lambda _: None)


def test_kept_threads_are_used_unless_others_are_asked_for(package: Package) -> None:
    ahead.keep(package, Record((), 1, 1))
    assert (open_model(package.path).threads, open_model(package.path).prefill_threads) == (1, 1)
    asked = open_model(package.path, threads=2)
    assert asked.prefill_threads == 2


@pytest.mark.parametrize(
    ("seconds", "want"),
    [
        ({1: 1.0, 2: 0.6, 3: 0.5, 4: 0.5}, 3),
        ({1: 1.0, 2: 0.99, 3: 0.98, 4: 0.98}, 1),
        ({1: 0.5, 2: 0.6}, 1),
        ({1: 2.0, 2: 1.0, 3: 0.99, 4: 0.5}, 4),
    ],
)
def test_the_fewest_threads_that_are_about_the_fastest_are_chosen(
    seconds: dict[int, float], want: int
) -> None:
    assert tuning.chosen(seconds) == want


def test_threads_are_measured_on_the_package(package: Package) -> None:
    model = open_model(package.path)
    assert tuning.fastest(model) == (model.threads, model.prefill_threads)
    assert model.threads >= 1


KEYS = """
from edgegemma.kernels import codes, late, matmul
for name, kernel in late.KERNELS.items():
    codegen = kernel.dispatcher.targetctx.codegen()
    print(name, kernel.dispatcher._cache._index_key(kernel.signature, codegen))
"""


def test_another_process_finds_the_kernels_that_are_compiled_late() -> None:
    first, second = (subprocess.check_output([sys.executable, "-c", KEYS]) for _ in range(2))
    assert first == second != b""


FULL_DISK = """
import resource, signal
import numpy as np
from edgegemma.kernels import norms
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
print(norms.rms_norm(np.full((2, 8), 3, np.float32), np.ones(8, np.float32), 1e-6)[0, 0])
"""


def test_a_kernel_that_cannot_be_kept_works_all_the_same(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", FULL_DISK]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(1)
    assert "cannot be kept: File too large" in done.stderr


NORM = """
import sys
import numpy as np
from edgegemma.kernels import norms
rows = norms.rms_norm(np.full((2, 8), 3, np.float32), np.ones(8, np.float32), 1e-6)
print(rows.shape[0], "numba.np.arraymath" in sys.modules)
"""


def test_a_kept_kernel_is_loaded_without_the_compiler() -> None:
    _, kept = (subprocess.check_output([sys.executable, "-c", NORM], text=True) for _ in range(2))
    assert kept.split() == ["2", "False"]
