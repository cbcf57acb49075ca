"""A `WeightSource` of random numbers in memory: the same name gives the same weights."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from edgegemma.config import FULL, SLIDING, AudioConfig, ModelConfig, TextConfig, TokenConfig
from export.source import F32, Matrix

CONFIG = ModelConfig(
    text=TextConfig(
        vocab_size=192,
        hidden_size=64,
        num_hidden_layers=7,
        layer_types=(SLIDING, FULL, SLIDING, FULL, SLIDING, SLIDING, FULL),
        num_attention_heads=4,
        num_key_value_heads=1,
        num_global_key_value_heads=2,
        head_dim=16,
        global_head_dim=32,
        intermediate_size=96,
        use_double_wide_mlp=True,
        num_kv_shared_layers=3,
        hidden_size_per_layer_input=32,
        sliding_window=4,
        max_position_embeddings=1024,
        rms_norm_eps=1e-6,
        final_logit_softcapping=30.0,
        sliding_rope_theta=1e4,
        full_rope_theta=1e6,
        full_partial_rotary_factor=0.25,
    ),
    tokens=TokenConfig(bos=2, pad=0, eos=(1,), audio=5),
    audio=AudioConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        subsampling_conv_channels=(8, 2),
        conv_kernel_size=5,
        residual_weight=0.5,
        window=4,
        attention_logit_cap=50.0,
        rms_norm_eps=1e-6,
        output_proj_dims=48,
    ),
)

LM, TOWER = "model.language_model", "model.audio_tower"
Kind = Literal["codes", "bfloat16", "float32"]
LIMIT = 3.4028235e38


class Weight(NamedTuple):
    """A dense weight [N, K] and how its activations are rounded; block 0: not by block."""

    dense: F32
    activation: tuple[float, float] = (0.0, 0.0)
    block: int = 0
    clip: F32 | None = None


class FakeSource:
    """Weights drawn by name, in codes of 2, 4 and 8 bits or as floats.

    Parameters
    ----------
    static : bool
        Every other linear has static int8 scales of its input and output.
    """

    def __init__(
        self, config: ModelConfig, kind: Kind, tied: bool = True, static: bool = False
    ) -> None:
        self.config, self.kind, self.static = config, kind, static
        self.quantized = kind == "codes"
        self.tied_head = tied

    def linear(self, module: str) -> Matrix:
        if module == "lm_head" and self.tied_head:
            return self._matrix(f"{LM}.embed_tokens", self.shape(module), per_row=True)
        clip = self.clip(module) if module.startswith(TOWER) else None
        return self._matrix(module, self.shape(module), clip=clip)

    def table(self, module: str) -> Matrix:
        text = self.config.text
        if module.endswith("embed_tokens"):
            return self._matrix(module, (text.vocab_size, text.hidden_size), groups=1)
        width = text.num_hidden_layers * text.hidden_size_per_layer_input
        return self._matrix(module, (text.vocab_size, width), groups=text.num_hidden_layers)

    def rows(self, module: str) -> Matrix:
        return _floats(self.draw(module, self.shape(module)), "bfloat16")

    def vector(self, tensor: str) -> F32:
        text, audio = self.config.text, self.config.audio
        assert audio is not None
        first, second = audio.subsampling_conv_channels
        last = tensor.removesuffix(".weight").split(".")[-1]
        special: dict[str, tuple[int, ...]] = {
            "layer_scalar": (1,),
            "per_layer_projection_norm": (text.hidden_size_per_layer_input,),
            "per_dim_scale": (audio.head_dim,),
            "bias": (audio.output_proj_dims,),
            "depthwise_conv1d": (audio.hidden_size, 1, audio.conv_kernel_size),
        }
        if "layer0." in tensor or "layer1." in tensor:
            shape: tuple[int, ...] = (first,) if "layer0." in tensor else (second,)
            if last == "conv":
                shape += (1, 3, 3) if "layer0." in tensor else (first, 3, 3)
        elif last in ("q_norm", "k_norm"):
            shape = (text.heads_of(_layer(tensor))[1],)
        else:
            width = audio.hidden_size if tensor.startswith(TOWER) else text.hidden_size
            shape = special.get(last, (width,))
        return self.draw(tensor, shape) + np.float32("norm" in tensor or last == "layer_scalar")

    def cache_scales(self, layer: int) -> tuple[float, float]:
        return (0.25 + layer, 0.5 + layer) if self.static else (0.0, 0.0)

    def draw(self, name: str, shape: tuple[int, ...]) -> F32:
        """Draw what bfloat16 can hold."""
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        x = rng.standard_normal(shape).astype(np.float32) * np.float32(0.2)
        return (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)

    def dense(self, module: str) -> F32:
        """Give a float matrix, or a table, as numbers [N, K]."""
        known = ("embed_tokens", "embed_tokens_per_layer")
        return unpacked(self.table(module) if module.endswith(known) else self.rows(module))

    def weight(self, module: str) -> Weight:
        """Give a linear as numbers."""
        matrix = self.linear(module)
        static_in, static_out = (float(scale) for scale in matrix.activation)
        return Weight(unpacked(matrix), (static_in, static_out), matrix.block, matrix.clip)

    def activation(self, module: str) -> F32:
        on = self.static and zlib.crc32(module.encode()) % 2
        return np.array([0.03, 0.05] if on else [0, 0], np.float32)

    def clip(self, module: str) -> F32:
        off = zlib.crc32(module.encode()) % 3 == 0
        return np.array([-LIMIT, LIMIT] * 2 if off else [-1.0, 1.5, -2.0, 1.0], np.float32)

    def shape(self, module: str) -> tuple[int, int]:
        """Give N and K of a linear or of a float matrix."""
        text, audio = self.config.text, self.config.audio
        assert audio is not None
        h, p = text.hidden_size, text.hidden_size_per_layer_input
        c, o = audio.hidden_size, audio.output_proj_dims
        last = module.split(".")[-1]
        common = {
            "lm_head": (text.vocab_size, h),
            "per_layer_model_projection": (text.num_hidden_layers * p, h),
            "per_layer_input_gate": (p, h),
            "per_layer_projection": (h, p),
            "ffw_layer_1": (4 * c, c),
            "ffw_layer_2": (c, 4 * c),
            "linear_start": (2 * c, c),
            "input_proj_linear": (c, 32 * audio.subsampling_conv_channels[1]),
            "output_proj": (o, c),
            "embedding_projection": (h, o),
        }
        if last in common or module.startswith(TOWER):
            return common.get(last, (c, c))
        kv_heads, width = text.heads_of(_layer(module))
        inner, heads = text.intermediate_of(_layer(module)), text.num_attention_heads
        if last in ("k_proj", "v_proj"):
            return kv_heads * width, h
        own = {
            "q_proj": (heads * width, h),
            "o_proj": (h, heads * width),
            "down_proj": (h, inner),
        }
        return own.get(last, (inner, h))

    def _matrix(
        self,
        name: str,
        shape: tuple[int, int],
        groups: int = 0,
        per_row: bool = False,
        clip: F32 | None = None,
    ) -> Matrix:
        rows, columns = shape
        activation = self.activation(name) if not groups else np.zeros(2, np.float32)
        if self.kind != "codes":
            floats = _floats(self.draw(name, shape), self.kind)
            return dataclasses.replace(floats, activation=activation, clip=clip)
        seed = zlib.crc32(name.encode())
        bits = (2, 4, 8)[seed % 3]
        block = next(b for b in (128, 64, 32, 16) if columns % b == 0)
        per_row = per_row or seed % 5 < 3
        scale_columns = groups or (1 if per_row else columns // block)
        block = columns // groups if groups else block
        rng = np.random.default_rng(seed)
        codes = rng.integers(0, 256, (rows, columns * bits // 8), dtype=np.uint8)
        spread = np.float32(0.4 / 2 ** (bits - 1))
        scale = rng.uniform(0.5, 1.0, (rows, scale_columns)).astype(np.float32) * spread
        chunks = _Chunks(codes, scale)
        return Matrix(rows, columns, bits, block, scale_columns, chunks, activation, clip)


def unpacked(matrix: Matrix) -> F32:
    """Give the numbers of a matrix, written without regard to the code under test."""
    if matrix.bits in (16, 32):
        rows = np.concatenate([chunk for chunk, _ in matrix.chunks])
        wide = rows.astype(np.uint32) << 16 if matrix.bits == 16 else rows
        return np.asarray(wide.view(np.float32))
    out = np.zeros((matrix.rows, matrix.columns), np.float32)
    codes = np.concatenate([chunk for chunk, _ in matrix.chunks])
    for k in range(matrix.columns):
        byte, shift = divmod(k * matrix.bits, 8)
        out[:, k] = (codes[:, byte] >> shift) & (2**matrix.bits - 1)
    scale = np.concatenate([chunk for _, chunk in matrix.chunks])
    spread = np.repeat(scale, matrix.columns // matrix.scale_columns, axis=1)
    return np.asarray((out - 2.0 ** (matrix.bits - 1)).astype(np.float32) * spread)


def _floats(x: F32, kind: str) -> Matrix:
    bits = 16 if kind == "bfloat16" else 32
    rows: npt.NDArray[Any] = (x.view(np.uint32) >> 16).astype(np.uint16) if bits == 16 else x
    chunks = _Chunks(rows, np.ones((len(x), 1), np.float32))
    return Matrix(x.shape[0], x.shape[1], bits, 0, 1, chunks, np.zeros(2, np.float32))


class _Chunks:
    """Uneven chunks of rows, which can be walked again."""

    def __init__(self, rows: npt.NDArray[Any], scale: F32) -> None:
        self.rows, self.scale = rows, scale

    def __iter__(self) -> Iterator[tuple[npt.NDArray[Any], F32]]:
        for start in range(0, len(self.rows), 37):
            yield self.rows[start : start + 37], self.scale[start : start + 37]


def _layer(name: str) -> int:
    return int(name.removeprefix(f"{LM}.layers.").split(".")[0])
