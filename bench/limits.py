"""The machine's own limits, measured beside the work: bytes read from memory, products of bytes in registers, work shared.

A sample takes some hundredths of a second, so it can be taken between two rounds of timed work: on a machine that
others use, only what was measured in the same minute may be compared. It is not shorter, because such a machine's
bandwidth may differ by half from one hundredth of a second to the next.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegemma.errors import BudgetError

BUFFER = 256 << 20  # bytes: far beyond the caches of machines with a few cores
PASSES = 6  # over the buffer in a sample
PRODUCTS = 10_000_000_000  # of a sample, on each thread
FORKS = 10_000  # of a sample


class Limits:
    """Measure read bandwidth, int8 dot products and what it takes to share work, on as many threads as the work has.

    Parameters
    ----------
    threads : int
    buffer : int
        Bytes to read; rounded up to a whole part.
    products : int
        Products a thread multiplies; rounded up to a whole round.
    """

    def __init__(self, threads: int, buffer: int = BUFFER, products: int = PRODUCTS) -> None:
        from edgegemma.kernels import limits
        from edgegemma.kernels import threads as pool

        self._kernels: Any = limits
        self.threads = pool.use(threads)
        self._rounds = -(-products // limits.MACS)
        count = -(-buffer // 4 // limits.PART) * limits.PART
        try:
            self._buffer = np.ones(count, np.int32)
        except MemoryError as error:
            raise BudgetError(f"bandwidth: no memory for {4 * count:,} bytes to read") from error
        limits.read_sum(self._buffer[: limits.PART])  # compiled before the first sample
        limits.product_sum(1, 1, self.threads)
        limits.share_jobs(1, self.threads)

    def readable(self, buffer: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Cut a buffer, aligned to four bytes, to what `read` takes of it: whole parts, no more than its own buffer has."""
        size = 4 * self._kernels.PART
        return buffer[: min(len(buffer), self._buffer.nbytes) // size * size].view(np.int32)

    def read(self, buffer: NDArray[np.int32] | None = None) -> float:
        """Take a sample of the read bandwidth, in bytes a second: of a `readable` buffer, or of memory in large pages."""
        chosen = self._buffer if buffer is None else buffer
        began = self._start()
        for _ in range(PASSES):
            self._kernels.read_sum(chosen)
        return float(PASSES * chosen.nbytes / (time.perf_counter() - began))

    def dot(self) -> float:
        """Take a sample of the int8 dot products, in products (multiply and add) a second."""
        began = self._start()
        self._kernels.product_sum(self._rounds, 3, self.threads)
        done = self._rounds * self._kernels.MACS * self.threads
        return float(done / (time.perf_counter() - began))

    def fork(self) -> float:
        """Take a sample of the seconds to share work among the threads, and wait for all: with one thread, of a call."""
        from edgegemma.kernels import threads as pool

        began = self._start()
        with pool.lock:
            self._kernels.share_jobs(FORKS, self.threads)
        return (time.perf_counter() - began) / FORKS

    def _start(self) -> float:
        from edgegemma.kernels import threads as pool

        pool.use(self.threads)  # the work between may have asked for another number
        return time.perf_counter()
