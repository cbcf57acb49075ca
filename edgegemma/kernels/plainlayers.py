"""Decoder layers without per-layer inputs: one compiled call for each, dense or with experts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numba.extending import overload
from numpy.typing import NDArray

from edgegemma.errors import InputError
from edgegemma.kernels.decoder import _attention, _gated, _write_own
from edgegemma.kernels.experts import Experts, _moe_feed_forward
from edgegemma.kernels.kvcache import KV, check_cache
from edgegemma.kernels.linear import FloatMatrix, Matrix
from edgegemma.kernels.norms import _add, _add_rms, _rms, _scale

F32 = NDArray[np.float32]


class DecoderLayerPlainWeights(NamedTuple):
    """Weights and attributes of DecoderLayerPlain, named and ordered as in docs/functions.md; see `DecoderLayerWeights`."""

    input_layernorm: F32
    q_proj: Matrix
    k_proj: Matrix
    v_proj: Matrix
    q_norm: F32
    k_norm: F32
    o_proj: Matrix
    post_attention_layernorm: F32
    pre_feedforward_layernorm: F32
    gate_proj: Matrix
    up_proj: Matrix
    down_proj: Matrix
    post_feedforward_layernorm: F32
    layer_scalar: F32
    heads: int
    kv_heads: int
    head_dim: int
    window: int
    eps: float
    k_cache_scale: float
    v_cache_scale: float


class DecoderLayerPlainTiedWeights(NamedTuple):
    """The same without ``v_proj``: values are made of what ``k_proj`` gives."""

    input_layernorm: F32
    q_proj: Matrix
    k_proj: Matrix
    q_norm: F32
    k_norm: F32
    o_proj: Matrix
    post_attention_layernorm: F32
    pre_feedforward_layernorm: F32
    gate_proj: Matrix
    up_proj: Matrix
    down_proj: Matrix
    post_feedforward_layernorm: F32
    layer_scalar: F32
    heads: int
    kv_heads: int
    head_dim: int
    window: int
    eps: float
    k_cache_scale: float
    v_cache_scale: float


class DecoderLayerExpertsWeights(NamedTuple):
    """Weights and attributes of DecoderLayerExperts: `DecoderLayerPlainWeights` and those of experts beside the dense block."""

    input_layernorm: F32
    q_proj: Matrix
    k_proj: Matrix
    v_proj: Matrix
    q_norm: F32
    k_norm: F32
    o_proj: Matrix
    post_attention_layernorm: F32
    pre_feedforward_layernorm: F32
    gate_proj: Matrix
    up_proj: Matrix
    down_proj: Matrix
    post_feedforward_layernorm_1: F32
    router_scale: F32
    router: FloatMatrix
    per_expert_scale: F32
    pre_feedforward_layernorm_2: F32
    expert_gate_up: Experts
    expert_down: Experts
    post_feedforward_layernorm_2: F32
    post_feedforward_layernorm: F32
    layer_scalar: F32
    heads: int
    kv_heads: int
    head_dim: int
    window: int
    eps: float
    k_cache_scale: float
    v_cache_scale: float
    top_k: int


class DecoderLayerExpertsTiedWeights(NamedTuple):
    """The same without ``v_proj``."""

    input_layernorm: F32
    q_proj: Matrix
    k_proj: Matrix
    q_norm: F32
    k_norm: F32
    o_proj: Matrix
    post_attention_layernorm: F32
    pre_feedforward_layernorm: F32
    gate_proj: Matrix
    up_proj: Matrix
    down_proj: Matrix
    post_feedforward_layernorm_1: F32
    router_scale: F32
    router: FloatMatrix
    per_expert_scale: F32
    pre_feedforward_layernorm_2: F32
    expert_gate_up: Experts
    expert_down: Experts
    post_feedforward_layernorm_2: F32
    post_feedforward_layernorm: F32
    layer_scalar: F32
    heads: int
    kv_heads: int
    head_dim: int
    window: int
    eps: float
    k_cache_scale: float
    v_cache_scale: float
    top_k: int


PlainWeights = (
    DecoderLayerPlainWeights
    | DecoderLayerPlainTiedWeights
    | DecoderLayerExpertsWeights
    | DecoderLayerExpertsTiedWeights
)


def decoder_layer_plain(
    x: F32, cos: F32, sin: F32, position: int, cache: KV, layer: PlainWeights
) -> tuple[F32, int]:
    """Run a layer: write the chunk's keys and values into the cache, attend, feed forward.

    Parameters
    ----------
    x : float32 [S, H]
    cos, sin : float32 [S, D/2], of the chunk's positions
    position : that of ``x[0]``
    cache : this layer's; written to
    layer : trusted; whoever binds it has checked its shapes

    Returns
    -------
    float32 [S, H], and the number of experts whose weights were read
    """
    check_cache("decoder layer", cache, position, len(x), layer.window)
    half = (len(x), layer.head_dim // 2)
    if x.ndim != 2 or x.shape[1] != layer.input_layernorm.size:
        raise InputError(f"decoder layer: got x {x.shape}")
    if cos.shape != half or sin.shape != half:
        raise InputError(f"decoder layer: got cos {cos.shape}, sin {sin.shape}; want {half}")
    if cache.keys.shape[1:] != (layer.kv_heads, layer.head_dim):
        raise InputError(f"decoder layer: got a cache of {cache.keys.shape} for this layer's heads")
    if {array.dtype for array in (x, cos, sin)} != {np.dtype(np.float32)}:
        raise InputError("decoder layer: got other numbers than float32")
    cos, sin = np.ascontiguousarray(cos), np.ascontiguousarray(sin)
    out = np.array(x, order="C")
    return out, _decoder_layer_plain(out, cos, sin, position, cache, layer)


@njit(cache=True)
def _decoder_layer_plain(x, cos, sin, position, cache, w):  # type: ignore[no-untyped-def]
    """Run a layer on x in place; give the number of experts whose weights were read."""
    n, y = np.empty_like(x), np.empty_like(x)
    _rms(x, w.input_layernorm, w.eps, n)
    _write_own(n, cos, sin, position, cache, w)
    _attention(x, n, cos, sin, position, cache, w, y)
    _gated(x, n, y, w)
    used = _beside(x, n, y, w)
    _add_rms(x, y, w.post_feedforward_layernorm, w.eps, 1.0)
    _scale(x, w.layer_scalar[0])
    return used


def _beside(x: Any, n: Any, y: Any, w: Any) -> Any:
    """Normalize the dense block's y and add the experts', where a layer has them; n is scratch.

    Gives the number of experts whose weights were read.
    """
    raise NotImplementedError


@overload(_beside)
def _overload_beside(x, n, y, w):  # type: ignore[no-untyped-def]
    if "router" not in w.instance_class._fields:
        return lambda x, n, y, w: 0

    def experts(x, n, y, w):  # type: ignore[no-untyped-def]
        _rms(y, w.post_feedforward_layernorm_1, w.eps, n)
        used = _moe_feed_forward(x, w, y)
        _add(y, n)
        return used

    return experts
