"""Rows of a table, as read from disk, to float32."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from edgegemma.errors import InputError

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


def gather_rows(rows: U8, scale: F32, bits: int, multiplier: float, out: F32 | None = None) -> F32:
    """Decode rows of a quantized or float table; see ``reference_layers.gather_rows``.

    Parameters
    ----------
    rows : uint8 [S, width*bits/8], C-contiguous: packed codes, or the bytes of bfloat16 or float32
    scale : float32 [S, G], one for each ``width / G`` values; unused where bits are 16 or 32
    bits : 2, 4, 8 (codes), 16 (bfloat16), 32 (float32)
    multiplier : factor of all values
    out : float32 [S, width], C-contiguous, to write to; a new array if left out

    Returns
    -------
    float32 [S, width], the same bits as the reference
    """
    if bits not in (2, 4, 8, 16, 32) or rows.ndim != 2 or rows.dtype != np.uint8:
        raise InputError(
            f"gather_rows: got {rows.dtype} {rows.shape} of {bits} bits; want uint8 [S, bytes]"
        )
    width = rows.shape[1] * 8 // bits
    if width * bits != rows.shape[1] * 8 or not rows.flags.c_contiguous:
        raise InputError(f"gather_rows: got rows {rows.shape}; want whole values of {bits} bits")
    shape = rows.shape[0], width
    y = np.empty(shape, np.float32) if out is None else out
    if y.shape != shape or y.dtype != np.float32 or not y.flags.c_contiguous:
        raise InputError(f"gather_rows: got out {y.dtype} {y.shape}; want float32 {shape}")
    if bits == 32:
        np.multiply(rows.view(np.float32), np.float32(multiplier), out=y)
    elif bits == 16:
        wide = (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        np.multiply(wide, np.float32(multiplier), out=y)
    else:
        if (
            scale.ndim != 2
            or len(scale) != len(rows)
            or scale.shape[1] < 1
            or width % scale.shape[1]
        ):
            raise InputError(
                f"gather_rows: got scale {scale.shape}; want [{len(rows)}, G], G dividing {width}"
            )
        _decode(rows, np.ascontiguousarray(scale, np.float32), bits, multiplier, y)
    return y


@njit(cache=True)
def _decode(rows, scale, bits, multiplier, y):  # type: ignore[no-untyped-def]
    per_byte = 8 // bits
    byte_shift, in_byte = (
        per_byte >> 1,
        per_byte - 1,
    )  # 4, 2 or 1 codes a byte: 2, 1 or 0 bits of an index
    mask, middle = (1 << bits) - 1, 1 << (bits - 1)
    size = y.shape[1] // scale.shape[1]
    factor = np.float32(multiplier)
    for s in range(rows.shape[0]):
        for group in range(scale.shape[1]):
            step = scale[s, group]
            for i in range(group * size, group * size + size):
                byte = np.int32(rows[s, i >> byte_shift])
                code = ((byte >> (bits * (i & in_byte))) & mask) - middle
                y[s, i] = np.float32(code) * step * factor
