"""What the graph builders need of a checkpoint: the boundary between reading weights and writing graphs.

Names are canonical Hugging Face ones. A *module* is a path without the tensor's last part
(``model.language_model.layers.0.self_attn.q_proj``, ``lm_head``); a *tensor* is the whole name
(``model.language_model.layers.0.layer_scalar``, ``model.audio_tower.output_proj.bias``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
FLOAT_BITS = (16, 32)


@dataclass(frozen=True)
class Matrix:
    """One weight matrix or table on its way into a file, in chunks of rows so that memory is bounded.

    Attributes
    ----------
    rows, columns : int
        N and K of the weights, not of their packed form.
    bits : int
        2, 4 or 8: codes; 16: bfloat16 bit patterns; 32: float32.
    block : int
        Inputs that share a scale, as the kernels read them; 0 for float.
    scale_columns : int
        1 (a scale a row), K/block, or G for a table; 1 for float.
    chunks : iterable of (uint8 [n, K*bits/8] | uint16 [n, K] | float32 [n, K], float32 [n, scale_columns])
        Consecutive rows and their scales. Walked once; the scales of a float matrix are not read.
    activation : float32 [2]
        Static int8 scales of input and output, 0 = off.
    clip : float32 [4] or None
        Input min, max and output min, max of a clipped linear.
    stacked : int
        Matrices of equal size one after the other, one for each expert; ``rows`` counts those of all. 0: one matrix.
    """

    rows: int
    columns: int
    bits: int
    block: int
    scale_columns: int
    chunks: Iterable[tuple[npt.NDArray[Any], F32]]
    activation: F32
    clip: F32 | None = None
    stacked: int = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of one packed row."""
        return self.columns * self.bits // 8

    @property
    def leading(self) -> tuple[int, ...]:
        """Dimensions of its tensors before that of the inputs."""
        return (self.stacked, self.rows // self.stacked) if self.stacked else (self.rows,)


class WeightSource(Protocol):
    """Gives every weight a graph asks for, one at a time."""

    quantized: bool
    """False for the float preset; chooses the bodies of Linear and GatherRows."""
    tied_head: bool
    """The head's codes are those of embed_tokens: decoder.onnx then points into embed_tokens.bin."""

    def linear(self, module: str) -> Matrix:
        """Give the matrix [N, K] of a linear, or the stacked ones of experts. Where the head is tied its chunks are not walked."""
        ...

    def table(self, module: str) -> Matrix:
        """Give a table that is gathered by row: embed_tokens, embed_tokens_per_layer."""
        ...

    def rows(self, module: str) -> Matrix:
        """Give a matrix that stays float (bits 16 or 32) in every preset.

        These are per_layer_model_projection, router.proj and, of the audio tower, input_proj_linear,
        relative_k_proj, output_proj and embed_audio.embedding_projection.
        """
        ...

    def vector(self, tensor: str) -> F32:
        """Give a small tensor as float32 in the checkpoint's shape: norms, scalars, conv kernels, biases."""
        ...

    def cache_scales(self, layer: int) -> tuple[float, float]:
        """Give the static int8 scales of a layer's keys and values; 0, 0 where there are none."""
        ...


def dense(matrix: Matrix) -> F32:
    """Read a float matrix whole.

    Returns
    -------
    float32 [N, K]
    """
    assert matrix.bits in FLOAT_BITS
    rows = np.concatenate([chunk for chunk, _ in matrix.chunks])
    if matrix.bits == 16:
        return (rows.astype(np.uint32) << 16).view(np.float32)
    return rows.astype(np.float32)
