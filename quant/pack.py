"""Codes and bytes: 2, 4 or 8 bits a code, low bits first along K.

This is the layout of ONNX Runtime's ``MatMulNBits`` and of Google's mobile checkpoints; a block of it is
``block * bits / 8`` consecutive bytes, so that per-row and per-block matrices have the same bytes.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgegemma.errors import CheckpointError
from edgegemma.kernels.quantize import pack_codes, unpack_codes

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
    if bits not in BITS or codes.shape[1] * bits % 8:
        raise CheckpointError(
            f"pack: {codes.shape[1]} columns of {bits} bits; want 2, 4 or 8, in whole bytes"
        )
    return pack_codes(codes, bits)


def unpack(packed: U8, bits: int) -> U8:
    """Undo `pack`.

    Parameters
    ----------
    packed : uint8 [N, B]

    Returns
    -------
    uint8 [N, B*8/bits]
    """
    if bits not in BITS:
        raise CheckpointError(f"unpack: got {bits} bits; want 2, 4 or 8")
    return unpack_codes(packed, bits)
