"""The kernels on an emulated Cortex-A76: real wheels, real instructions, no board."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MACHINE = ROOT / ".arm64"

pytestmark = pytest.mark.arm


def guest(*arguments: str) -> str:
    """Run the guest's Python here and return what it printed."""
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(MACHINE / "cache"),
        "NUMBA_NUM_THREADS": "2",
        "PYTHONPATH": str(ROOT),
    }
    command = [str(ROOT / "tests/arm/run.sh"), str(MACHINE), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def machine() -> None:
    """Make the emulated machine, or say why there is none."""
    if platform.machine() != "x86_64" or not shutil.which("apt-get"):
        pytest.skip("the emulated machine is made by apt on x86-64")
    subprocess.run([str(ROOT / "tests/arm/setup.sh"), str(MACHINE)], check=True)


def test_the_guest_is_a_pi_and_has_dot_products() -> None:
    told = guest("-c", "from edgegemma.kernels import simd; print(simd.describe())")
    assert "'path': 'dotprod'" in told
    assert "'cpu': 'cortex-a76'" in told


@pytest.mark.parametrize(
    "part",
    [
        "fork",
        "linear",
        "pair",
        "simd",
        "held",
        "attention",
        "layers",
        "experts",
        "conformer",
        "quantize",
    ],
)
def test_kernels_agree_with_their_definition_there(part: str) -> None:
    # A child process would be an x86 program: the other paths are tested on their own machines.
    guest(
        *("-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "-k", "not every_path"),
        f"tests/test_kernels_{part}.py",
    )
