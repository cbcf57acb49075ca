"""Choose the vector instructions: what LLVM itself would use for a dot product of bytes here.

The feature list LLVM reports is not enough (a Cortex-A76's says nothing of ``dotprod``), and an
instruction the target lacks aborts the process. So a byte dot product in plain LLVM IR is compiled
for the very triple, CPU and features Numba compiles for, and its assembly is read.
"""

from __future__ import annotations

import functools
import os
from typing import NamedTuple

import llvmlite.binding as llvm
from numba.core.registry import cpu_target

from edgegemma.errors import InputError

OVERRIDE = "EDGEGEMMA_SIMD"
# Every path, with the bytes of its vector and the paths a CPU that has it can also run.
WIDTH = {"avx512vnni": 64, "avxvnni": 32, "avx2": 32, "dotprod": 16, "neon": 16, "generic": 16}
_RUNS = {
    "avx512vnni": ("avx512vnni", "avxvnni", "avx2", "generic"),
    "avxvnni": ("avxvnni", "avx2", "generic"),
    "avx2": ("avx2", "generic"),
    "dotprod": ("dotprod", "neon", "generic"),
    "neon": ("neon", "generic"),
    "generic": ("generic",),
}

_PROBE = """
target triple = "{triple}"
declare i32 @llvm.vector.reduce.add.v64i32(<64 x i32>)
define i32 @probe(<64 x i8>* %a, <64 x i8>* %b) {{
  %x = load <64 x i8>, <64 x i8>* %a, align 1
  %y = load <64 x i8>, <64 x i8>* %b, align 1
  %wide_x = {extend} <64 x i8> %x to <64 x i32>
  %wide_y = sext <64 x i8> %y to <64 x i32>
  %product = mul <64 x i32> %wide_x, %wide_y
  %sum = call i32 @llvm.vector.reduce.add.v64i32(<64 x i32> %product)
  ret i32 %sum
}}
"""


class Target(NamedTuple):
    """What the kernels are compiled for.

    Attributes
    ----------
    path : a key of `WIDTH`
    best : the path chosen without the override
    triple, cpu, features : as Numba gives them to LLVM
    """

    path: str
    best: str
    triple: str
    cpu: str
    features: str


@functools.cache
def target() -> Target:
    """Choose the path for this process; ``EDGEGEMMA_SIMD`` asks for a lesser one.

    Raises
    ------
    InputError
        When the override names no path, or one this CPU cannot run.
    """
    triple, cpu, features = cpu_target.target_context.codegen().magic_tuple()
    best = _best(triple, cpu, features)
    path = os.environ.get(OVERRIDE) or best
    if path not in _RUNS[best]:
        raise InputError(f"{OVERRIDE}: got {path!r}; want one of {', '.join(_RUNS[best])} on {cpu}")
    return Target(path, best, triple, cpu, features)


def _best(triple: str, cpu: str, features: str) -> str:
    """Name the fastest path of a target."""
    arm = triple.startswith(("aarch64", "arm64"))
    if not arm and not triple.startswith("x86_64"):
        return "generic"
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu=cpu, features=features, opt=3
    )
    probe = _PROBE.format(triple=triple, extend="sext" if arm else "zext")
    assembly = machine.emit_assembly(llvm.parse_assembly(probe))
    if arm:
        return "dotprod" if "sdot" in assembly else "neon"
    if "vpdpbusd" in assembly:
        return "avx512vnni" if "zmm" in assembly else "avxvnni"
    return "avx2" if "vpmaddwd" in assembly and "ymm" in assembly else "generic"
