"""The decoder: one compiled call for each layer, for the per-layer inputs and for the head."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit, types
from numba.extending import overload
from numpy.typing import NDArray

from edgegemma.errors import InputError
from edgegemma.kernels.attention import _attend
from edgegemma.kernels.fork import Shared, fork
from edgegemma.kernels.kvcache import _append
from edgegemma.kernels.late import ready
from edgegemma.kernels.linear import FloatMatrix, Matrix, _linear, _linear_pair
from edgegemma.kernels.norms import _add_rms, _copy, _gelu_gate, _rms, _rms_plain, _scale, _softcap
from edgegemma.kernels.prepared import Prepared
from edgegemma.kernels.rotary import _rotate
from edgegemma.kernels.simd import plain

F32 = NDArray[np.float32]
U16 = NDArray[np.uint16]

DYNAMIC = np.zeros(2, np.float32)  # activation scales of a matrix that has none
DYNAMIC.flags.writeable = False


class DecoderLayerWeights(NamedTuple):
    """Weights and attributes of DecoderLayer, named and ordered as in docs/functions.md.

    Vectors are float32 [H], or [D] for ``q_norm`` and ``k_norm``, or [1] for ``layer_scalar``. All arrays should be
    read-only: one kind of array is one compilation.
    """

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
    per_layer_input_gate: Matrix
    per_layer_projection: Matrix
    post_per_layer_input_norm: F32
    layer_scalar: F32
    heads: int
    kv_heads: int
    head_dim: int
    window: int
    eps: float
    k_cache_scale: float
    v_cache_scale: float


class DecoderLayerSharedWeights(NamedTuple):
    """Weights and attributes of DecoderLayerShared: `DecoderLayerWeights` without those of keys and values."""

    input_layernorm: F32
    q_proj: Matrix
    q_norm: F32
    o_proj: Matrix
    post_attention_layernorm: F32
    pre_feedforward_layernorm: F32
    gate_proj: Matrix
    up_proj: Matrix
    down_proj: Matrix
    post_feedforward_layernorm: F32
    per_layer_input_gate: Matrix
    per_layer_projection: Matrix
    post_per_layer_input_norm: F32
    layer_scalar: F32
    heads: int
    kv_heads: int
    head_dim: int
    window: int
    eps: float
    k_cache_scale: float
    v_cache_scale: float


def head(x: F32, norm: F32, w: Matrix, softcap: float, eps: float) -> F32:
    """Compute capped logits; see ``reference_layers.head``.

    Parameters
    ----------
    x : float32 [S, H]
    norm : float32 [H]
    w : Matrix of [V, H]

    Returns
    -------
    float32 [S, V]
    """
    return prepare_head(x, norm, w, softcap, eps).now()


def prepare_head(x: F32, norm: F32, w: Matrix, softcap: float, eps: float) -> Prepared:
    """Check what `head` takes, not what is in it."""
    if x.ndim != 2 or norm.shape != (x.shape[1],) or matrix_shape(w)[1] != x.shape[1]:
        raise InputError(f"head: got x {x.shape}, norm {norm.shape}, matrix {matrix_shape(w)}")
    y = np.empty((x.shape[0], matrix_shape(w)[0]), np.float32)
    return Prepared(y, lambda: _head(np.ascontiguousarray(x), norm, w, softcap, eps, y))


def per_layer_inputs(x: F32, tokens: F32, projection: F32 | U16, norm: F32, eps: float) -> F32:
    """Average tokens' own per-layer rows with a projection of their embeddings.

    Parameters
    ----------
    x : float32 [S, H], embeddings
    tokens : float32 [S, L, P], the tokens' rows, times √P
    projection : float32, or uint16 with the bits of bfloat16 [n*P, H], of the first n layers
    norm : float32 [P]

    Returns
    -------
    float32 [S, L, P], zeros beyond the first n layers
    """
    return prepare_per_layer_inputs(x, tokens, projection, norm, eps).now()


def prepare_per_layer_inputs(
    x: F32, tokens: F32, projection: F32 | U16, norm: F32, eps: float
) -> Prepared:
    """Check what `per_layer_inputs` takes, not what is in it."""
    layers, width = tokens.shape[1:]
    given = projection.shape[0] // width
    if (
        len(tokens) != len(x)
        or given > layers
        or projection.shape != (given * width, x.shape[1])
        or norm.shape != (width,)
    ):
        raise InputError(
            f"per_layer_inputs: got x {x.shape}, tokens {tokens.shape}, projection {projection.shape}, "
            f"norm {norm.shape}; want [S, H], [S, L, P], [n*P, H], [P]"
        )
    y = (np.empty if given == layers else np.zeros)(tokens.shape, np.float32)
    matrix = FloatMatrix(projection, DYNAMIC)

    def run() -> None:
        rows, own = np.ascontiguousarray(x), np.ascontiguousarray(tokens)
        _per_layer_inputs(rows, own, matrix, norm, eps, y)

    return Prepared(y, run)


def matrix_shape(w: Matrix) -> tuple[int, int]:
    """Give [N, K] of a weight matrix."""
    if isinstance(w, FloatMatrix):
        return w.rows.shape[0], w.rows.shape[1]
    return w.codes.shape[0], w.codes.shape[1] * 8 // w.bits


@njit(inline="always")
def _decoder_layer(x, ple, cos, sin, position, cache, w):  # type: ignore[no-untyped-def]
    """Run a layer on x in place: write the chunk's keys and values if it owns some, attend, feed forward."""
    n, y = np.empty_like(x), np.empty_like(x)
    _rms(x, w.input_layernorm, w.eps, n)
    _own(n, cos, sin, position, cache, w)
    _attention(x, n, cos, sin, position, cache, w, y)
    _feed_forward(x, n, y, w)
    _per_layer_block(x, ple, y, w)


def _own(n: Any, cos: Any, sin: Any, position: Any, cache: Any, w: Any) -> None:
    """Do `_write_own` where a layer owns keys and values."""
    raise NotImplementedError


@overload(_own)
def _overload_own(n, cos, sin, position, cache, w):  # type: ignore[no-untyped-def]
    if "k_proj" not in w.instance_class._fields:
        return lambda n, cos, sin, position, cache, w: None

    def own(n, cos, sin, position, cache, w):  # type: ignore[no-untyped-def]
        _write_own(n, cos, sin, position, cache, w)

    return own


@njit(inline="always")
def _write_own(n, cos, sin, position, cache, w):  # type: ignore[no-untyped-def]
    """Write the keys and values of normalized rows n into the cache."""
    count, d = n.shape[0], w.head_dim
    raw = np.empty((count, w.kv_heads * d), np.float32)
    key, value = np.empty_like(raw), np.empty_like(raw)
    shape = (count * w.kv_heads, d)
    _keys_values(n, w, raw, value)
    _rms(raw.reshape(shape), w.k_norm, w.eps, key.reshape(shape))
    _rms_plain(value.reshape(shape), w.eps, value.reshape(shape))
    keys = key.reshape((count, w.kv_heads, d))
    _rotate(keys, cos, sin)
    values = value.reshape((count, w.kv_heads, d))
    _append(keys, values, position, cache, w.k_cache_scale, w.v_cache_scale)


def _keys_values(n: Any, w: Any, key: Any, value: Any) -> None:
    """Write the products of k_proj and v_proj; a layer without v_proj takes those of k_proj for both."""
    raise NotImplementedError


@overload(_keys_values)
def _overload_keys_values(n, w, key, value):  # type: ignore[no-untyped-def]
    if "v_proj" in w.instance_class._fields:
        return lambda n, w, key, value: _linear_pair(n, w.k_proj, w.v_proj, key, value)

    def keys_twice(n, w, key, value):  # type: ignore[no-untyped-def]
        _linear(n, w.k_proj, key)
        _copy(key, value)

    return keys_twice


@njit(inline="always")
def _attention(x, n, cos, sin, position, cache, w, y):  # type: ignore[no-untyped-def]
    """Add to x what its normalized rows n see in the cache; y is scratch."""
    count, d = x.shape[0], w.head_dim
    raw = np.empty((count, w.heads * d), np.float32)
    query = np.empty_like(raw)
    _linear(n, w.q_proj, raw)
    _rms(raw.reshape((count * w.heads, d)), w.q_norm, w.eps, query.reshape((count * w.heads, d)))
    queries = query.reshape((count, w.heads, d))
    _rotate(queries, cos, sin)
    _attend(queries, cache, position, w.window, raw.reshape((count, w.heads, d)))
    _linear(raw, w.o_proj, y)
    _add_rms(x, y, w.post_attention_layernorm, w.eps, 1.0)


@njit(inline="always")
def _feed_forward(x, n, y, w):  # type: ignore[no-untyped-def]
    """Add the gated feed-forward block to x; n and y are scratch."""
    _gated(x, n, y, w)
    _add_rms(x, y, w.post_feedforward_layernorm, w.eps, 1.0)


@njit(inline="always")
def _gated(x, n, y, w):  # type: ignore[no-untyped-def]
    """Write what the gated feed-forward block makes of x to y; n is scratch."""
    _rms(x, w.pre_feedforward_layernorm, w.eps, n)
    inner = _rows_of(w.gate_proj)
    gate = np.empty((x.shape[0], inner), np.float32)
    up = np.empty_like(gate)
    _linear_pair(n, w.gate_proj, w.up_proj, gate, up)
    _gelu_gate(gate, up)
    _linear(gate, w.down_proj, y)


@njit(inline="always")
def _per_layer_block(x, ple, y, w):  # type: ignore[no-untyped-def]
    """Add the per-layer input's block to x and scale the stream; y is scratch."""
    gate = np.empty_like(ple)
    _linear(x, w.per_layer_input_gate, gate)
    _gelu_gate(gate, ple)
    _linear(gate, w.per_layer_projection, y)
    _add_rms(x, y, w.post_per_layer_input_norm, w.eps, 1.0)
    _scale(x, w.layer_scalar[0])


@njit(inline="always")
def _rows_of(w):  # type: ignore[no-untyped-def]
    """Give N of a CodeMatrix or FloatMatrix: rows of its first array."""
    return w[0].shape[0]


@njit(cache=True)
def _head(x, norm, w, softcap, eps, y):  # type: ignore[no-untyped-def]
    n = np.empty_like(x)
    _rms(x, norm, eps, n)
    _linear(n, w, y)
    _softcap(y, softcap)


@njit(cache=True)
def _per_layer_inputs(x, tokens, w, norm, eps, y):  # type: ignore[no-untyped-def]
    count, width = tokens.shape[0], tokens.shape[2]
    layers = _rows_of(w) // width
    context = np.empty((count, layers * width), np.float32)
    _linear(x, w, context)
    factor = np.float32(1.0) / np.sqrt(np.float32(x.shape[1]))
    wide = context.reshape((count, layers, width))
    args = wide, plain(tokens), plain(norm), eps, factor, y
    fork("join_tokens", ready("join_tokens"), args, count)


def _join_tokens(given, first, stop):  # type: ignore[no-untyped-def]
    """Average the normalized context, changed in place, with the tokens' own rows."""
    context, tokens, norm, eps, factor, y = given
    half = np.float32(2.0**-0.5)
    for s in range(first, stop):
        _scale(context[s], factor)
        _rms(context[s], norm, eps, y[s])
        for i in range(context.shape[1]):
            for j in range(context.shape[2]):
                y[s, i, j] = (y[s, i, j] + tokens[s, i, j]) * half


_ROWS = types.Array(types.float32, 3, "C")
_NORM, _NUMBERS = types.Array(types.float32, 1, "C"), (types.float64, types.float32)
Shared("join_tokens", (_ROWS, _ROWS, _NORM, *_NUMBERS, _ROWS), _join_tokens)
