"""The definition of the measuring kernels, in numpy."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgegemma.kernels import limits, simd


class Form(NamedTuple):
    """How a vector path adds up: the lane of a sum, the codes it multiplies, products in a lane."""

    lane: Any
    code: Any
    products: int


FORMS = {
    "avx512vnni": Form(np.int32, np.uint8, 4),
    "avxvnni": Form(np.int32, np.uint8, 4),
    "avx2": Form(np.int16, np.uint8, 2),
    "dotprod": Form(np.int32, np.int8, 4),
    "neon": Form(np.int16, np.int8, 1),
    "generic": Form(np.int32, np.uint8, 4),
}


def read_sum(buffer: NDArray[np.int32]) -> int:
    """Add up a buffer modulo 2^32."""
    return int(buffer.sum(dtype=np.int32))


def share_jobs(rounds: int, threads: int) -> list[int]:
    """Do every job once a round."""
    return [rounds] * threads


def product_sum(rounds: int, factor: int, threads: int) -> list[int]:
    """Add ``factor`` times the bytes of each sum to the sum, over and over; the lanes begin at 1 and count up."""
    form = FORMS[simd.TARGET.path]
    lanes = simd.WIDTH // np.dtype(form.lane).itemsize
    total = 0
    for way in range(limits._WAYS):
        start = np.arange(way * lanes + 1, (way + 1) * lanes + 1, dtype=form.lane)
        sums = np.concatenate([start] * limits._VECTORS)  # with one product to a lane: two vectors
        for _ in range(rounds * limits._TURNS):
            codes = sums[:lanes].view(form.code).astype(np.int64)
            products = codes.reshape(-1, form.products).sum(1) * factor
            sums = (sums + products).astype(form.lane)
        total += int(sums.astype(np.int64).sum())
    return [total] * threads
