"""Compile kernels for another CPU and print the assembly: run it in a process of its own.

``python -m tests.crosscompile TRIPLE CPU KERNEL…``. Nothing compiled here may be called.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
ARM, X86 = "aarch64-unknown-linux-gnu", "x86_64-unknown-linux-gnu"


def assembly(triple: str, cpu: str, *kernels: str, simd: str = "") -> str:
    """Give the assembly of kernels (`edgegemma.kernels.late.KERNELS`, or "digit_scores") for a CPU LLVM knows by name."""
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


PRODUCTS = (
    ("sdot", 16),
    ("vpdpbusd", 64),
    ("vpmaddubsw", 32),
    ("smull2?", 8),
    ("smlal2?", 8),
    ("vpmaddwd", 16),
)


class Loop(NamedTuple):
    """Instructions of a loop, and the products of a weight and an activation that one turn makes."""

    instructions: int
    products: int


def loops(text: str) -> dict[str, Loop]:
    """Find in each kernel's assembly the loop that multiplies most.

    Of two, a kernel of single activation rows runs the longer one, the other is what LLVM unrolls of the row's end; a kernel of
    tiles the shorter one, over several vectors, the other is for single ones after them, of which there are none.
    """
    found = {}
    for part in text.split("# kernel: ")[1:]:
        name, _, code = part.partition("\n")
        counts = [Loop(len(turn), _products(turn)) for turn in turns(code)]
        sign = -1 if name.startswith("many") else 1
        found[name] = max(counts, key=lambda turn: (turn.products, sign * turn.instructions))
    return found


def turns(code: str) -> list[list[str]]:
    """Give the instructions of every block that ends by going back to its beginning."""
    blocks = re.split(r"^(\.\w+):", code, flags=re.M)
    found = []
    for label, body in zip(blocks[1::2], blocks[2::2], strict=True):
        lines = re.findall(r"^\s+([a-z].*)", body, re.M)
        back = [i for i, line in enumerate(lines) if line.split()[-1] == label]
        found.append(lines[: back[-1] + 1] if back else [])
    return found


def _products(lines: list[str]) -> int:
    """Add up the products; AVX2 widens sums of bytes by one that multiplies words, which then does not count."""
    counts = {
        name: sum(bool(re.match(rf"{name}\s", line)) for line in lines) for name, _ in PRODUCTS
    }
    if counts["vpmaddubsw"]:
        counts["vpmaddwd"] = 0
    return sum(counts[name] * width for name, width in PRODUCTS)


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


def _digit_scores() -> tuple[Any, Any]:
    """Give a function that no kernel is made of by itself, and its signature."""
    from numba import typeof, types

    from edgegemma.kernels import digits

    def digit_scores(rows, keys, y):  # type: ignore[no-untyped-def]
        digits._digit_scores(rows, 0, keys, 0, 0, len(keys), y, 0)

    empty = digits.Digits(
        np.zeros((4, 2, 64), np.int8), np.zeros(4, np.int32), np.zeros(4, np.float32)
    )
    keys, scores = types.Array(types.int8, 3, "C"), types.Array(types.float32, 1, "C")
    signature: Any = types.void
    kind: Any = typeof
    return digit_scores, signature(kind(empty), keys, scores)


def main() -> None:
    """Print the assembly of the kernels named on the command line."""
    triple, _, *names = sys.argv[1:]
    _pretend(triple)
    from numba import njit

    from edgegemma.kernels import limits, linear, simd  # noqa: F401 - they name their kernels
    from edgegemma.kernels.late import KERNELS

    print("# path:", simd.TARGET.path)
    for name in names:
        if name == "digit_scores":
            function, signature = _digit_scores()
        else:
            function, signature = KERNELS[name].dispatcher.py_func, KERNELS[name].signature
        fresh = njit(function)  # a cached function shows no assembly
        fresh.compile(signature)
        print("# kernel:", name)
        print(fresh.inspect_asm(fresh.signatures[0]))


if __name__ == "__main__":
    main()
