"""Count what the kernels execute for each product, key or value: run by ``count.sh`` on the emulated CPU, all or one part.

Every figure is the difference of two calls of different size, so that what a call costs once is left out: what a
weight, a product or a cached number costs more, row ends, rounding and scaling included. One thread.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from edgegemma.kernels import simd, threads
from edgegemma.kernels.attention import attend
from edgegemma.kernels.kvcache import KV
from edgegemma.kernels.linear import CodeMatrix, linear

COLUMNS, ROWS = 1536, 256  # E2B's hidden size, and weight rows
BATCH = 128  # rows of a prefill chunk
HEADS, CONTEXT = 8, 1024
COUNTER = 0x5EC0DE  # the system call that `count.c` answers

_libc = ctypes.CDLL(None)
_rng = np.random.default_rng(0)


def _executed() -> int:
    total = ctypes.c_uint64()
    _libc.syscall(ctypes.c_long(COUNTER), ctypes.byref(total))
    return total.value


def instructions(call: Callable[[], object]) -> int:
    """Count the instructions of a call that has been made before."""
    call()
    before = _executed()
    call()
    return _executed() - before


def matrix(rows: int, bits: int, static: bool) -> CodeMatrix:
    codes = _rng.integers(0, 256, (rows, COLUMNS * bits // 8)).astype(np.uint8)
    scale = _rng.uniform(0.5, 1.5, (rows, 1)).astype(np.float32)
    return CodeMatrix(codes, scale, np.array([0.03 * static, 0], np.float32), bits, 128)


def linears() -> Iterator[tuple[str, float, str]]:
    one, many, twice = (
        _rng.standard_normal((m, COLUMNS), np.float32) for m in (1, BATCH, 2 * BATCH)
    )

    def cost(x: NDArray[np.float32], w: CodeMatrix) -> int:
        return instructions(lambda: linear(x, w))

    for bits in (2, 4, 8):
        for static in (True, False):
            small, large = matrix(ROWS, bits, static), matrix(2 * ROWS, bits, static)
            few = (cost(one, large) - cost(one, small)) / (ROWS * COLUMNS)
            more = (cost(twice, small) - cost(many, small)) / (BATCH * ROWS * COLUMNS)
            scales = "static" if static else "dynamic"
            yield f"one row, {bits} bits, {scales}", few, "weight"
            yield f"{BATCH} rows, {bits} bits, {scales}", more, "product"


def attentions() -> Iterator[tuple[str, float, str]]:
    def cost(query: NDArray[np.float32], cache: KV, position: int) -> int:
        return instructions(lambda: attend(query, cache, position, 0))

    for width in (256, 512):
        for kind in (np.int8, np.float32):
            shape = (2 * CONTEXT + 1, 1, width)
            keys, values = (_rng.integers(-99, 99, shape) for _ in range(2))
            steps = np.full(shape[:2] if kind is np.int8 else (0, 0), 0.01, np.float32)
            cache = KV(keys.astype(kind), values.astype(kind), steps, steps)  # type: ignore[arg-type]
            query = _rng.standard_normal((1, HEADS, width), np.float32) / np.float32(width)
            long, short = (cost(query, cache, position) for position in (2 * CONTEXT, CONTEXT))
            name = f"attention, {HEADS} heads of {width}, {np.dtype(kind).name}"
            yield name, (long - short) / (CONTEXT * 2 * width), "cached number"


PARTS = {"linear": linears, "attention": attentions}


def main(*parts: str) -> None:
    threads.use(1)
    told = simd.describe()
    print(
        f"{told['cpu']}, path {told['path']}\n\n| kernel | instructions | for each |\n|---|---|---|"
    )
    for part in parts or PARTS:
        for name, count, unit in PARTS[part]():
            print(f"| {name} | {count:.3f} | {unit} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
