"""All but the products and attention: to measure what else a token takes, run it with kernels that read no weights and no cache.

What is left is a little faster than it is between products, whose weights push it out of the caches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from edgegemma.kernels import attention, codes, floats  # noqa: F401 - their kernels are called by name
from edgegemma.kernels.late import KERNELS, Kernel


def _no_codes(packed, scale, out, r, even, y, first, stop):  # type: ignore[no-untyped-def]
    for m in range(y.shape[0]):
        y[m, first:stop] = np.float32(1.0)


def _no_floats(x, rows, out, y, each, first, stop):  # type: ignore[no-untyped-def]
    for m in range(y.shape[0]):
        y[m, first * each : stop * each] = np.float32(1.0)


def _no_attention(q, cache, position, window, out):  # type: ignore[no-untyped-def]
    out[:] = np.float32(1.0)


Kernel("no_codes", KERNELS["integers2"].signature, _no_codes)
_STAND_INS = {
    f"{kind}{bits}": "no_codes" for kind in ("integers", "lanes", "blocks") for bits in (2, 4, 8)
}
for _name, _function in (
    ("float32_chunks", _no_floats),
    ("bfloat16_chunks", _no_floats),
    ("attend_float32", _no_attention),
    ("attend_int8", _no_attention),
):
    Kernel(f"no_{_name}", KERNELS[_name].signature, _function)
    _STAND_INS[_name] = f"no_{_name}"


@contextmanager
def products_left_out() -> Iterator[None]:
    """Have attention, and matrices times a few rows, give ones inside the block: good for nothing but its time."""
    kept = {name: KERNELS[name].address for name in _STAND_INS}
    for name, other in _STAND_INS.items():
        KERNELS[other].fill()
        KERNELS[name].address = KERNELS[other].address
    try:
        yield
    finally:
        for name, address in kept.items():
            KERNELS[name].address = address
