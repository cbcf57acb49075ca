"""Codes and bytes: 2, 4 or 8 bits a code, low bits first along K.

This is the layout of ONNX Runtime's ``MatMulNBits`` and of Google's mobile checkpoints; a block of it is
``block * bits / 8`` consecutive bytes, so that per-row and per-block matrices have the same bytes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgegemma.errors import CheckpointError

U8 = npt.NDArray[np.uint8]
BITS = (2, 4, 8)


def pack(codes: U8, bits: int) -> U8:
    """Pack codes into bytes.

    Parameters
    ----------
    codes : uint8 [N, K]
        Each below ``2**bits``; K a multiple of ``8 / bits``.

    Returns
    -------
    uint8 [N, K*bits/8]
    """
    per = _per_byte(bits)
    if codes.shape[1] % per:
        raise CheckpointError(
            f"pack: {codes.shape[1]} columns of {bits} bits do not fill whole bytes"
        )
    if per == 1:
        return codes
    packed = codes[:, ::per].copy()
    for i in range(1, per):
        packed |= codes[:, i::per] << np.uint8(i * bits)
    return packed


def unpack(packed: U8, bits: int) -> U8:
    """Undo `pack`.

    Parameters
    ----------
    packed : uint8 [N, B]

    Returns
    -------
    uint8 [N, B*8/bits]
    """
    per = _per_byte(bits)
    if per == 1:
        return packed
    n, width = packed.shape
    codes = np.empty((n, width, per), np.uint8)
    mask = np.uint8((1 << bits) - 1)
    for i in range(per):
        np.bitwise_and(packed >> np.uint8(i * bits), mask, out=codes[:, :, i])
    return codes.reshape(n, width * per)


def _per_byte(bits: int) -> int:
    if bits not in BITS:
        raise CheckpointError(f"pack: got {bits} bits; want 2, 4 or 8")
    return 8 // bits
