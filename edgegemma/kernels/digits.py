"""Queries as whole numbers of two digits, which meet int8 keys in the CPU's dot product of bytes.

A query's element is ``step * (256 * high + low)``: 16 bits of its largest one, where the keys have 8. The sums of products are
exact, so their order is free, and a score has the same bits in a tile of any shape. A CPU without such an instruction
multiplies the same numbers faster as floats. Meaning: `reference_layers.two_digits`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload
from numpy.typing import NDArray

from edgegemma.errors import InputError
from edgegemma.kernels import dots, fours, simd
from edgegemma.kernels.activation import _absolute
from edgegemma.kernels.floattiles import COLUMNS, ROWS, _number, _plain
from edgegemma.kernels.fork import Shared, fork
from edgegemma.kernels.late import ready

_PATH, _WIDTH = simd.TARGET.path, simd.WIDTH
_OFFSET = dots.BYTE_OFFSET[_PATH]
COUNTS = _PATH in ("avx512vnni", "avxvnni", "dotprod")
"""Whether this path has a dot product of bytes."""
LARGEST = np.float32(127 * 256)
WIDEST = (
    512  # elements of a row whose products with keys, at most 128 each, surely add up to an int32
)
SMALLEST = np.float32(2.0**-126)  # a smaller step is as good as zero, and has no inverse
_INTS = ir.VectorType(simd.I32, ROWS)


class Digits(NamedTuple):
    """The rows of some queries, a row for each head.

    Attributes
    ----------
    planes : int8 [rows, 2, D], the high digits of a row, then the low ones
    sums : int32 [rows], of the whole numbers of each
    step : float32 [rows], NaN for a row that is not finite
    """

    planes: NDArray[np.int8]
    sums: NDArray[np.int32]
    step: NDArray[np.float32]


def two_digits(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round rows to 16 bits of their largest element; see ``reference_layers.two_digits``.

    Parameters
    ----------
    x : float32 [rows, D], C-contiguous

    Returns
    -------
    float32 [rows, D], NaN in a row that is not finite
    """
    if x.ndim != 2 or x.dtype != np.float32 or not x.flags.c_contiguous:
        raise InputError(
            f"two_digits: got x {x.dtype} {x.shape}; want contiguous float32 (rows, D)"
        )
    y = np.empty_like(x)
    _from_digits(_two_digits(x, len(x)), y)
    return y


@njit(cache=True)
def _two_digits(x, count):  # type: ignore[no-untyped-def]
    """Round the first rows of x [rows, D] to two digits."""
    width = x.shape[1]
    planes, sums = np.zeros((count, 2, width), np.int8), np.zeros(count, np.int32)
    step = np.empty(count, np.float32)
    for r in range(count):
        step[r] = _round(x[r], planes[r, 0], planes[r, 1])
        for i in range(width):
            sums[r] += np.int32(256) * planes[r, 0, i] + planes[r, 1, i]
    return Digits(planes, sums, step)


@njit(cache=True)
def _from_digits(digits, y):  # type: ignore[no-untyped-def]
    """Write what digits stand for to y [rows, D]."""
    for r in range(y.shape[0]):
        for i in range(y.shape[1]):
            whole = np.int32(256) * digits.planes[r, 0, i] + digits.planes[r, 1, i]
            y[r, i] = digits.step[r] * np.float32(whole)


@njit(error_model="numpy", cache=True)
def _round(x, high, low):  # type: ignore[no-untyped-def]
    """Round a row; give its step."""
    top = np.int32(_absolute(x, 0, x.size)).view(np.float32)
    if not top < np.float32(np.inf):
        return np.float32(np.nan)
    step = top / LARGEST
    if step < SMALLEST:
        return np.float32(0.0)
    inverse = np.float32(1.0) / step
    for i in range(x.size):
        whole = np.int32(np.rint(x[i] * inverse))
        digit = (whole + np.int32(128)) >> np.int32(8)
        high[i] = digit
        low[i] = whole - np.int32(256) * digit
    return step


def _digit_dots(_context, y, at, planes, sums, step, row, width, keys, j0, j1, j2):  # type: ignore[no-untyped-def]
    """Write the scores of four rows of digits, from ``row`` on, with the keys that begin at ``keys[j0]``, j1 and j2.

    Row r's with key c goes to ``y[at + 4 * c + r]``. The arrays are those of `Digits`; ``width`` is a whole number of vectors,
    at most `WIDEST`.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        y, at, planes, sums, step, row, width, keys, *starts = _plain(context, b, signature, args)
        totals = _totals(b, (planes, row, width), keys, starts)
        steps = simd._load(b, step, row, fours._FLOATS)
        added = b.mul(simd._load(b, sums, row, _INTS), ir.Constant(_INTS, [_OFFSET] * ROWS))
        for c in range(COLUMNS):
            whole = fours._sum_lanes(b, b.add, totals[ROWS * c : ROWS * (c + 1)])
            score = b.fmul(b.sitofp(b.sub(whole, added), fours._FLOATS), steps)
            place = simd._at(b, y, b.add(at, _number(4 * c)), fours._FLOATS)
            b.store(score, place, align=4)
        return context.get_dummy_value()

    return types.void(y, at, planes, sums, step, row, width, keys, j0, j1, j2), codegen


def _totals(b: Any, digits: Any, keys: Any, starts: list[Any]) -> list[Any]:
    """Build the lanes' sums along a row, of key c and row r at ``4 * c + r``; they and their sum count modulo 2^32, which `added` brings back."""
    planes, row, width = digits
    zero = ir.Constant(simd.V32, None)
    places = [cgutils.alloca_once_value(b, zero) for _ in range(2 * ROWS * COLUMNS)]
    first = b.mul(row, b.mul(width, _number(2)))
    high_bit = ir.Constant(simd.V8, [-128] * _WIDTH)
    with cgutils.for_range(b, b.udiv(width, _number(_WIDTH))) as loop:
        k = b.mul(loop.index, _number(_WIDTH))
        codes = [b.xor(simd._load(b, keys, b.add(j, k), simd.V8), high_bit) for j in starts]
        for plane in range(2 * ROWS):
            x = simd._load(b, planes, b.add(b.add(first, b.mul(width, _number(plane))), k), simd.V8)
            for c, code in enumerate(codes):
                place = places[2 * ROWS * c + plane]
                b.store(dots.dot(b, _PATH, b.load(place), code, [x], 8), place)
    eight = ir.Constant(simd.V32, [8] * simd.LANES)
    both = zip(places[::2], places[1::2], strict=True)
    return [b.add(b.shl(b.load(high), eight), b.load(low)) for high, low in both]


digit_dots: Any = intrinsic(_digit_dots)


def _in_digits(keys: Any) -> bool:
    """Tell whether queries meet these keys in digits; call it from compiled code."""
    raise NotImplementedError


@overload(_in_digits)
def _overload_in_digits(keys):  # type: ignore[no-untyped-def]
    if keys.dtype != types.int8 or not COUNTS:
        return lambda keys: False
    return lambda keys: keys.shape[2] % _WIDTH == 0 and keys.shape[2] <= WIDEST


def _rounded(q: Any, keys: Any) -> Any:
    """Give queries [S, heads, D] as they meet these keys; call it from compiled code."""
    raise NotImplementedError


@overload(_rounded)
def _overload_rounded(q, keys):  # type: ignore[no-untyped-def]
    if keys.dtype != types.int8:
        return lambda q, keys: q

    def rounded(q, keys):  # type: ignore[no-untyped-def]
        if _in_digits(keys):  # `_two_digits` will do it
            return q
        y = np.empty_like(q)
        fork("round_queries", ready("round_queries"), (q, y), q.shape[0])
        return y

    return rounded


def _round_queries(given, first, stop):  # type: ignore[no-untyped-def]
    q, y = given
    for s in range(first, stop):
        _from_digits(_two_digits(q[s], q.shape[1]), y[s])


_ROWS = types.Array(types.float32, 3, "C")
Shared("round_queries", (_ROWS, _ROWS), _round_queries)


def _digit_scores(
    digits: Any, row: int, keys: Any, g: int, start: int, stop: int, y: Any, at: int
) -> None:
    """Write the scores of four rows of digits with keys start … stop of K/V head g to y from ``at`` on, four for a key."""
    raise NotImplementedError


@overload(_digit_scores)
def _overload_digit_scores(digits, row, keys, g, start, stop, y, at):  # type: ignore[no-untyped-def]
    if keys.dtype != types.int8 or not COUNTS:
        return lambda digits, row, keys, g, start, stop, y, at: None

    def scores(digits, row, keys, g, start, stop, y, at):  # type: ignore[no-untyped-def]
        capacity, kv_heads, width = keys.shape
        stride, first = kv_heads * width, g * width
        planes, sums, step = digits
        for p in range(start, stop, COLUMNS):
            j0 = p % capacity * stride + first
            j1 = min(p + 1, stop - 1) % capacity * stride + first
            j2 = min(p + 2, stop - 1) % capacity * stride + first
            i = at + 4 * (p - start)
            digit_dots(y, i, planes, sums, step, row, width, keys, j0, j1, j2)

    return scores
