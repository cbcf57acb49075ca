"""Random layers for the kernel tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegemma.kernels.conformer import AudioLayerWeights
from edgegemma.kernels.decoder import DecoderLayerSharedWeights, DecoderLayerWeights
from edgegemma.kernels.experts import ExpertCodes, ExpertFloats, Experts, MoEFeedForwardWeights
from edgegemma.kernels.kvcache import KV
from edgegemma.kernels.linear import CodeMatrix, FloatMatrix, Matrix
from edgegemma.kernels.plainlayers import PlainWeights

F32 = NDArray[np.float32]
AUDIO_SHAPES = {
    "ffw1_layer_1": (4, 1), "ffw1_layer_2": (1, 4), "q_proj": (1, 1), "k_proj": (1, 1), "v_proj": (1, 1),
    "post": (1, 1), "linear_start": (2, 1), "linear_end": (1, 1), "ffw2_layer_1": (4, 1),
    "ffw2_layer_2": (1, 4),
}  # fmt: skip


def frozen(array: NDArray[np.generic]) -> NDArray[np.generic]:
    """Make an array read-only, as mapped weights are."""
    array.flags.writeable = False
    return array


class Maker:
    """Draws weights; ``kind`` is "codes" or "float"."""

    def __init__(self, seed: int, kind: str) -> None:
        self.rng, self.kind = np.random.default_rng(seed), kind

    def rows(self, *shape: int, scale: float = 1.0) -> F32:
        return np.asarray(self.rng.normal(0, scale, shape), np.float32)

    def vector(self, *shape: int) -> F32:
        return np.asarray(frozen(self.rng.normal(1, 0.3, shape).astype(np.float32)))

    def bfloat16(self, n: int, k: int) -> NDArray[np.uint16]:
        bits = self.rows(n, k, scale=k**-0.5).view(np.uint32) >> 16
        return np.asarray(frozen(bits.astype(np.uint16)))

    def matrix(self, n: int, k: int, static: bool = False) -> Matrix:
        steps = (self.rng.uniform(0.02, 0.05, 2) * static).astype(np.float32)
        frozen(steps)
        if self.kind == "float":
            return FloatMatrix(self.bfloat16(n, k), steps)
        bits = int(self.rng.choice([2, 4, 8]))
        codes = self.rng.integers(0, 256, (n, k * bits // 8)).astype(np.uint8)
        scale = self.rng.uniform(0.5, 1.5, (n, 1)) * 2.0 ** (2 - bits) * k**-0.5
        block = next(b for b in (128, 64, 32, 16) if k % b == 0)
        return CodeMatrix(frozen(codes), frozen(scale.astype(np.float32)), steps, bits, block)  # type: ignore[arg-type]

    def stacked(self, experts: int, n: int, k: int, static: bool = False) -> Experts:
        """Draw a matrix for each expert."""
        w = self.matrix(experts * n, k, static)
        if isinstance(w, FloatMatrix):
            return ExpertFloats(w.rows.reshape(experts, n, k), w.activation)
        codes, scale = w.codes.reshape(experts, n, -1), w.scale.reshape(experts, n, -1)
        return ExpertCodes(codes, scale, w.activation, w.bits, w.block)

    def experts(self, hidden: int, inner: int, experts: int, top_k: int) -> MoEFeedForwardWeights:
        router = FloatMatrix(self.bfloat16(experts, hidden), np.zeros(2, np.float32))
        frozen(router.activation)
        return MoEFeedForwardWeights(
            self.vector(hidden) * 3,
            router,
            self.vector(experts),
            self.vector(hidden),
            self.stacked(experts, 2 * inner, hidden, static=True),
            self.stacked(experts, hidden, inner),
            self.vector(hidden),
            top_k,
            1e-6,
        )

    def plain_layer(
        self,
        kind: type[PlainWeights],
        hidden: int,
        heads: tuple[int, int],
        head_dim: int,
        window: int,
    ) -> PlainWeights:
        """Draw a layer without per-layer inputs; one with experts has 6, of which each position takes 2."""
        layer = self.decoder_layer(hidden, 16, *heads, head_dim, window)
        experts = self.experts(hidden, 32, 6, 2)._asdict()
        more = {"post_feedforward_layernorm_1": self.vector(hidden)}
        values: dict[str, Any] = layer._asdict() | experts | more
        return kind(*(values[name] for name in kind._fields))

    def cache(self, capacity: int, kv_heads: int, width: int, dtype: str) -> KV:
        shape, scales = (capacity, kv_heads, width), (capacity, kv_heads)
        if dtype == "float32":
            scales = (0, 0)
        keys, values = (np.full(shape, 77, dtype) for _ in range(2))  # stale rows are not zero
        return KV(keys, values, np.full(scales, 7, np.float32), np.full(scales, 7, np.float32))

    def decoder_layer(
        self, hidden: int, width: int, heads: int, kv_heads: int, head_dim: int, window: int
    ) -> DecoderLayerWeights:
        inner, q = 2 * hidden, heads * head_dim
        shapes = {
            "q_proj": (q, hidden), "k_proj": (kv_heads * head_dim, hidden),
            "v_proj": (kv_heads * head_dim, hidden), "o_proj": (hidden, q), "gate_proj": (inner, hidden),
            "up_proj": (inner, hidden), "down_proj": (hidden, inner),
            "per_layer_input_gate": (width, hidden), "per_layer_projection": (hidden, width),
        }  # fmt: skip
        sizes = {"q_norm": head_dim, "k_norm": head_dim, "layer_scalar": 1}
        values: dict[str, Any] = {
            name: self.matrix(*shapes[name], static=name == "o_proj")
            if name in shapes
            else self.vector(sizes.get(name, hidden))
            for name in DecoderLayerWeights._fields[:17]
        }
        return DecoderLayerWeights(
            **values, heads=heads, kv_heads=kv_heads, head_dim=head_dim, window=window, eps=1e-6,
            k_cache_scale=0.0, v_cache_scale=0.05,
        )  # fmt: skip

    def audio_layer(self, heads: int, head_dim: int, window: int, kernel: int) -> AudioLayerWeights:
        c = heads * head_dim
        shapes = {
            "query_scale": (head_dim,),
            "relative_key": (window, c),
            "depthwise_weight": (c, kernel),
        }
        values: dict[str, Any] = {}
        for name in AudioLayerWeights._fields[:32]:
            if name in AUDIO_SHAPES:
                n, k = AUDIO_SHAPES[name]
                values[name] = self.matrix(n * c, k * c, static=name == "post")
            elif name.endswith("_clip"):
                values[name] = frozen(np.array([-2.5, 2.5, -3, 3], np.float32))
            else:
                values[name] = self.vector(*shapes.get(name, (c,)))
        return AudioLayerWeights(
            **values, heads=heads, head_dim=head_dim, window=window, kernel=kernel, key_scale=1.9, logit_cap=50.0,
            residual_weight=0.5, eps=1e-6,
        )  # fmt: skip


def shared(layer: DecoderLayerWeights) -> DecoderLayerSharedWeights:
    """The same layer without keys and values of its own."""
    values = layer._asdict()
    return DecoderLayerSharedWeights(*(values[name] for name in DecoderLayerSharedWeights._fields))


def distance(got: F32, want: F32) -> float:
    """Largest difference relative to the largest value."""
    return float(np.abs(got - want).max(initial=0) / np.abs(want).max(initial=1e-30))
