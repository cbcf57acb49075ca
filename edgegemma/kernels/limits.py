"""What this machine can do at most, measured: bytes read from memory, products of bytes from registers, and work shared.

`read_sum` loads every byte of a buffer once, a vector at a time, and adds it up. `product_sum` multiplies and adds
bytes that never leave the registers, with the instructions of the chosen vector path: the dot product where the CPU
has one, else the product of bytes that is added up in int16 (AVX2's vpmaddubsw, NEON's smlal), which is the least work a
matrix product can do there. Both give a checksum, so that nothing can be left out. `share_jobs` shares as good as nothing, in the
way that layers share their work. Meaning: `reference_limits`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from edgegemma.errors import InputError
from edgegemma.kernels import dots, simd
from edgegemma.kernels.fork import Shared, fork
from edgegemma.kernels.late import Kernel, ready
from edgegemma.kernels.leader import leader
from edgegemma.kernels.simd import add_ints, load_ints, sum_ints, zero_ints

_PATH = simd.TARGET.path
_LANES = simd.LANES
PART = 1 << 16  # int32 a thread reads in a row: 256 KiB
_STEP = 8 * _LANES  # eight sums at once: adding never waits for the sum before
_APART = 16  # words between two counts: no line of a cache has both
_WAYS = 12  # sums in flight: a product's and an addition's latency, two of them a cycle, in 16 registers
_TURNS = 4  # times around the sums in a round
MACS = _WAYS * _TURNS * simd.WIDTH  # products of a round


def read_sum(buffer: NDArray[np.int32]) -> int:
    """Add up a buffer, every thread its own run of parts.

    Parameters
    ----------
    buffer : int32 [n], n a multiple of `PART`

    Returns
    -------
    int
        The sum modulo 2^32, as int32.
    """
    if buffer.dtype != np.int32 or buffer.ndim != 1 or buffer.size % PART:
        raise InputError(
            f"read_sum: got {buffer.dtype} {buffer.shape}; want int32, a multiple of {PART}"
        )
    sums = np.zeros(buffer.size // PART, np.int32)
    _read(buffer, sums)
    return int(sums.sum(dtype=np.int32))


@njit(cache=True, parallel=True)
def _read(buffer, sums):  # type: ignore[no-untyped-def]
    for part in prange(sums.size):
        sums[part] = _read_part(buffer, part * PART)


@njit(cache=True)
def _read_part(buffer, first):  # type: ignore[no-untyped-def]
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = zero_ints()
    for i in range(first, first + PART, _STEP):
        a0 = add_ints(a0, load_ints(buffer, i))
        a1 = add_ints(a1, load_ints(buffer, i + _LANES))
        a2 = add_ints(a2, load_ints(buffer, i + 2 * _LANES))
        a3 = add_ints(a3, load_ints(buffer, i + 3 * _LANES))
        a4 = add_ints(a4, load_ints(buffer, i + 4 * _LANES))
        a5 = add_ints(a5, load_ints(buffer, i + 5 * _LANES))
        a6 = add_ints(a6, load_ints(buffer, i + 6 * _LANES))
        a7 = add_ints(a7, load_ints(buffer, i + 7 * _LANES))
    low = add_ints(add_ints(a0, a1), add_ints(a2, a3))
    return sum_ints(add_ints(low, add_ints(add_ints(a4, a5), add_ints(a6, a7))))


def product_sum(rounds: int, factor: int, threads: int) -> list[int]:
    """Multiply bytes in registers, ``rounds * MACS`` products on each thread.

    Parameters
    ----------
    rounds : int
    factor : int
        1 to 63: so small that no product saturates.
    threads : int
        So many do the same work at once.

    Returns
    -------
    list of int
        A checksum of each thread: the same number.
    """
    if not 1 <= factor <= 63:
        raise InputError(f"product_sum: got factor {factor}; want 1 to 63")
    sums = np.zeros(threads, np.int64)
    _products(rounds, factor, sums)
    return [int(value) for value in sums]


@njit(cache=True, parallel=True)
def _products(rounds, factor, sums):  # type: ignore[no-untyped-def]
    for thread in prange(sums.size):
        sums[thread] = _register_sum(rounds, factor)


def share_jobs(rounds: int, threads: int) -> list[int]:
    """Share jobs that only count how often they are done, ``rounds`` times, one for each thread.

    Parameters
    ----------
    rounds : int
    threads : int
        As many as the pool uses.

    Returns
    -------
    list of int
        The count of each job.
    """
    counts = np.zeros(threads * _APART, np.int64)
    _rounds_of_jobs(counts, rounds)
    return [int(count) for count in counts[::_APART]]


def _count_jobs(given, first, stop):  # type: ignore[no-untyped-def]
    (counts,) = given
    for job in range(first, stop):
        counts[job * _APART] += 1


def _share_rounds(given, _first, _stop):  # type: ignore[no-untyped-def]
    counts, rounds = given
    for _ in range(rounds):
        fork("count_limits", ready("count_limits"), (counts,), counts.size // _APART)


_COUNTS = types.Array(types.int64, 1, "C")
Shared("count_limits", [_COUNTS], _count_jobs)
_rounds_of_jobs = leader("limits", [_COUNTS, types.int64], _share_rounds)


def _register_loop(_context, rounds, factor):  # type: ignore[no-untyped-def]
    """Run the rounds. Each sum is also the codes of its next product: nothing can be moved out of the loop."""

    def codegen(_context: Any, b: Any, _signature: Any, args: Any) -> Any:
        count, factor = args
        x = simd._splat(b, b.trunc(factor, simd.V8.element), simd.V8)
        lanes = len(_START)
        sums = []
        for way in range(_WAYS):
            start = ir.Constant(_LANE_VECTOR, [way * lanes + k + 1 for k in range(lanes)])
            sums.append([cgutils.alloca_once_value(b, start) for _ in range(_VECTORS)])
        with cgutils.for_range(b, count):
            for _ in range(_TURNS):
                for places in sums:
                    before = [b.load(place) for place in places]
                    for place, value in zip(places, _ADD(b, before, x), strict=True):
                        b.store(value, place)
        return _total(b, [b.load(place) for places in sums for place in places])

    return types.int64(types.int64, types.int64), codegen


def _add_dot(b: Any, sums: Any, x: Any) -> list[Any]:
    """Four products to an int32 lane, by the path's own instruction."""
    (before,) = sums
    codes = b.bitcast(before, simd.V8)
    return [dots.dot_small(b, _PATH, before, [(codes, x)])]


def _add_pairs(b: Any, sums: Any, x: Any) -> list[Any]:
    """Two products to an int16 lane."""
    (before,) = sums
    codes = b.bitcast(before, simd.V8)
    return [b.add(before, dots._call(b, "llvm.x86.avx2.pmadd.ub.sw", _LANE_VECTOR, codes, x))]


def _add_widened(b: Any, sums: Any, x: Any) -> list[Any]:
    """One product to an int16 lane; a vector of bytes has two vectors of products."""
    codes = b.bitcast(sums[0], simd.V8)
    return [b.add(s, p) for s, p in zip(sums, dots._neon_products(b, codes, x), strict=True)]


def _total(b: Any, vectors: Any) -> Any:
    """Add up the lanes, each widened."""
    wide = ir.VectorType(ir.IntType(64), _LANE_VECTOR.count)
    total = ir.Constant(wide, None)
    for vector in vectors:
        total = b.add(total, b.sext(vector, wide))
    result = ir.Constant(ir.IntType(64), 0)
    for lane in range(wide.count):
        result = b.add(result, b.extract_element(total, ir.Constant(simd.I32, lane)))
    return result


_SHORTS = ir.VectorType(simd.I16, simd.WIDTH // 2)
_FORMS: dict[str, tuple[Any, int, Any]] = {
    "avx2": (_SHORTS, 1, _add_pairs),
    "neon": (_SHORTS, 2, _add_widened),
}
_LANE_VECTOR, _VECTORS, _ADD = _FORMS.get(_PATH, (simd.V32, 1, _add_dot))
_START = range(_LANE_VECTOR.count)

_loop: Any = intrinsic(_register_loop)


def _run_loop(rounds, factor):  # type: ignore[no-untyped-def]
    return _loop(rounds, factor)


_register_sum = Kernel("register_sum", types.int64(types.int64, types.int64), _run_loop).dispatcher
