"""Compile kernels for another CPU and print the assembly: run it in a process of its own.

``python -m tests.crosscompile TRIPLE CPU KERNEL…``. Nothing compiled here may be called.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
ARM, X86 = "aarch64-unknown-linux-gnu", "x86_64-unknown-linux-gnu"


def assembly(triple: str, cpu: str, *kernels: str, simd: str = "") -> str:
    """Give the assembly of kernels (`edgegemma.kernels.late.KERNELS`) for a CPU LLVM knows by name."""
    command = [sys.executable, "-m", "tests.crosscompile", triple, cpu, *kernels]
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            **os.environ,
            "NUMBA_CPU_NAME": cpu,
            "NUMBA_CPU_FEATURES": "",  # those that come with the name
            "NUMBA_CACHE_DIR": cache,
            "EDGEGEMMA_SIMD": simd,
        }
        done = subprocess.run(
            command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True
        )
    return done.stdout


def _pretend(triple: str) -> None:
    """Have Numba, not imported yet, compile for another triple."""
    import llvmlite.binding as llvm
    from llvmlite.binding import targets

    assert "numba" not in sys.modules
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    for module in (llvm, targets):
        for name in ("get_process_triple", "get_default_triple"):
            setattr(module, name, lambda: triple)


def main() -> None:
    """Print the assembly of the kernels named on the command line."""
    triple, _, *names = sys.argv[1:]
    _pretend(triple)
    from numba import njit

    from edgegemma.kernels import limits, linear, simd  # noqa: F401 - they name their kernels
    from edgegemma.kernels.late import KERNELS

    print("# path:", simd.TARGET.path)
    for name in names:
        fresh = njit(KERNELS[name].dispatcher.py_func)  # a cached function shows no assembly
        fresh.compile(KERNELS[name].signature)
        print(fresh.inspect_asm(fresh.signatures[0]))


if __name__ == "__main__":
    main()
