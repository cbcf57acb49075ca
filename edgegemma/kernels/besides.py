"""All but the products and attention: to measure what else a token takes, run it with kernels that read no weights and no cache.

What is left is a little faster than it is between products, whose weights push it out of the caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from edgegemma.kernels import attention, codes, floats  # noqa: F401 - their kernels are called by name
from edgegemma.kernels.fork import Shared
from edgegemma.kernels.late import KERNELS, Kernel


def _no_codes(given, first, stop):  # type: ignore[no-untyped-def]
    _, _, _, _, _, y, each = given
    for m in range(y.shape[0]):
        y[m, first * each : stop * each] = np.float32(1.0)


def _no_floats(given, first, stop):  # type: ignore[no-untyped-def]
    _, _, _, y, each = given
    for m in range(y.shape[0]):
        y[m, first * each : stop * each] = np.float32(1.0)


def _no_attention(q, cache, position, window, out):  # type: ignore[no-untyped-def]
    out[:] = np.float32(1.0)


def _stand_in(name: str, function: Callable[..., Any]) -> str:
    """Make a kernel that can be called in the place of another; give its name."""
    kernel = KERNELS[name]
    if isinstance(kernel, Shared):
        Shared(f"no_{name}", tuple(kernel.kinds)[1:], function)
    else:
        Kernel(f"no_{name}", kernel.signature, function)
    return f"no_{name}"


_CODES = [f"{kind}{bits}" for kind in ("integers", "lanes", "blocks") for bits in (2, 4, 8)]
_STAND_INS = dict.fromkeys(_CODES, _stand_in("integers2", _no_codes))
for _name in ("float32_chunks", "bfloat16_chunks"):
    _STAND_INS[_name] = _stand_in(_name, _no_floats)
for _name in ("attend_float32", "attend_int8"):
    _STAND_INS[_name] = _stand_in(_name, _no_attention)


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
