"""Round to nearest, with the scale that loses least.

What a caller may rely on, and ``tests/test_quant.py`` checks: every code is the level nearest to its
weight; a group of zeros, or of one value and its negative, is exact; the squared error is never more
than with the plain scale ``max|w| / (2**(bits-1) - 1)``; NaN and infinity are refused by name. Groups
of subnormal numbers alone may become zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgegemma.errors import CheckpointError
from edgegemma.kernels.quantize import quantize_rows
from quant.pack import BITS

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


class Quantized(NamedTuple):
    """``w = (code - zero) * scale``, a scale and a zero for each group of columns."""

    codes: U8
    """uint8 [N, K], one code each"""
    scale: F32
    """float32 [N, G]"""
    zero: U8
    """uint8 [N, G]; 2**(bits-1) everywhere unless asymmetric"""


def quantize(
    w: F32, bits: int, block: int = 0, asymmetric: bool = False, name: str = "weights"
) -> Quantized:
    """Quantize rows of weights.

    Parameters
    ----------
    w : float32 [N, K]
    bits : {2, 4, 8}
    block : int
        Columns that share a scale; 0: the whole row.
    asymmetric : bool
        Search an integer zero point for each group as well.
    name : str
        What to call the weights in an error.

    Raises
    ------
    CheckpointError
        A weight is not finite, or the block does not divide K.
    """
    k = w.shape[1]
    if bits not in BITS or k % (block or k):
        raise CheckpointError(
            f"{name}: {bits} bits in blocks of {block}: want 2, 4 or 8, dividing {k}"
        )
    codes, scale, zero = quantize_rows(np.ascontiguousarray(w), bits, block, asymmetric)
    if np.isnan(scale).any():
        row, column = np.argwhere(~np.isfinite(w))[0]
        raise CheckpointError(f"{name}: {w[row, column]} at row {row}, column {column}")
    if zero is None:
        zero = np.full(scale.shape, 1 << (bits - 1), np.uint8)
    return Quantized(codes, scale, zero)


def dequantize(q: Quantized) -> F32:
    """Give the weights that the codes stand for.

    Returns
    -------
    float32 [N, K]
    """
    n, k = q.codes.shape
    codes = q.codes.reshape(n, q.scale.shape[1], -1).astype(np.float32)
    codes -= q.zero[:, :, None]
    codes *= q.scale[:, :, None]
    return codes.reshape(n, k)
