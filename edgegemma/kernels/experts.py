"""A mixture of experts: a router chooses a few for each position, and only their weights are read.

The positions of a chunk are grouped by expert, so that each chosen expert's weights are read once. A position's
experts are added up in the order of their numbers, whatever else is in the chunk: a row's bits do not depend on it.
Meaning: `reference_experts`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numba.extending import overload
from numpy.typing import NDArray

from edgegemma.errors import InputError
from edgegemma.kernels.linear import CodeMatrix, FloatMatrix, Matrix, _check, _linear
from edgegemma.kernels.norms import FASTMATH, _exp, _gelu_row, _rms, _scale

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]


class ExpertCodes(NamedTuple):
    """A `CodeMatrix` for each expert, stacked.

    Attributes
    ----------
    codes : uint8 [E, N, K*bits/8]
    scale : float32 [E, N, 1] or [E, N, K/block]
    activation, bits, block : as in `CodeMatrix`, the same for all
    """

    codes: U8
    scale: F32
    activation: F32
    bits: int
    block: int


class ExpertFloats(NamedTuple):
    """A `FloatMatrix` for each expert, stacked: rows [E, N, K], one activation."""

    rows: F32 | U16
    activation: F32


Experts = ExpertCodes | ExpertFloats


class MoEFeedForwardWeights(NamedTuple):
    """Weights and attributes of MoEFeedForward, named and ordered as in docs/functions.md.

    Vectors are float32 [H], ``per_expert_scale`` [E]; ``router`` is [E, H], ``expert_gate_up`` [E, 2F, H] with the gate
    first, ``expert_down`` [E, H, F].
    """

    router_scale: F32
    router: FloatMatrix
    per_expert_scale: F32
    pre_feedforward_layernorm_2: F32
    expert_gate_up: Experts
    expert_down: Experts
    post_feedforward_layernorm_2: F32
    top_k: int
    eps: float


def moe_feed_forward(x: F32, w: MoEFeedForwardWeights) -> F32:
    """Add up what each position's experts make of it, and normalize; see ``reference_experts``.

    Parameters
    ----------
    x : float32 [S, H]
    w : MoEFeedForwardWeights

    Returns
    -------
    float32 [S, H]
    """
    experts, hidden = w.per_expert_scale.size, w.router_scale.size
    if not 0 < w.top_k <= experts:
        raise InputError(f"moe_feed_forward: got top_k {w.top_k}; want 1 to {experts}")
    if x.ndim != 2 or x.dtype != np.float32 or x.shape[1] != hidden:
        raise InputError(f"moe_feed_forward: got x {x.dtype} {x.shape}; want float32 (S, {hidden})")
    x = np.ascontiguousarray(x)
    gated = np.empty((0, expert_shape(w.expert_gate_up)[1] // 2), np.float32)
    want = ((w.expert_gate_up, x, 2 * gated.shape[1]), (w.expert_down, gated, hidden))
    found = [(expert_shape(m)[0], _check(given, expert(m, 0)), n) for m, given, n in want]
    if any(count != experts or got != n for count, got, n in found) or (
        _check(x, w.router) != experts
    ):
        raise InputError(f"moe_feed_forward: got experts {found} for a router of {experts}")
    y = np.empty_like(x)
    _moe_feed_forward_jit(x, w, y)
    return y


def expert_shape(w: Experts) -> tuple[int, int, int]:
    """Give [E, N, K] of stacked matrices."""
    first = w.rows if isinstance(w, ExpertFloats) else w.codes
    per = 1 if isinstance(w, ExpertFloats) else 8 // w.bits
    return first.shape[0], first.shape[1], first.shape[2] * per


def expert(w: Experts, number: int) -> Matrix:
    """Give one expert's matrix, a view."""
    if isinstance(w, ExpertFloats):
        return FloatMatrix(w.rows[number], w.activation)
    return CodeMatrix(w.codes[number], w.scale[number], w.activation, w.bits, w.block)


def _expert(w: Any, number: Any) -> Any:
    """Do `expert` in compiled code."""
    raise NotImplementedError


@overload(_expert)
def _overload_expert(w, number):  # type: ignore[no-untyped-def]
    if w.instance_class is ExpertFloats:
        return lambda w, number: FloatMatrix(w.rows[number], w.activation)
    return lambda w, number: CodeMatrix(
        w.codes[number], w.scale[number], w.activation, w.bits, w.block
    )


@njit(cache=True)
def _moe_feed_forward_jit(x, w, y):  # type: ignore[no-untyped-def]
    _moe_feed_forward(x, w, y)


@njit(inline="always")
def _moe_feed_forward(x, w, y):  # type: ignore[no-untyped-def]
    """Write what the experts make of x to y; give how many experts' weights that took."""
    chosen = np.empty((x.shape[0], w.top_k), np.int64)
    share = np.empty((x.shape[0], w.top_k), np.float32)
    _route(x, w.router_scale, w.router, w.per_expert_scale, w.eps, chosen, share)
    n = np.empty_like(x)
    _rms(x, w.pre_feedforward_layernorm_2, w.eps, n)
    total = np.empty_like(x)
    used = _experts(n, chosen, share, w.expert_gate_up, w.expert_down, total)
    _rms(total, w.post_feedforward_layernorm_2, w.eps, y)
    return used


@njit(cache=True)
def _route(x, scale, router, per_expert, eps, chosen, share):  # type: ignore[no-untyped-def]
    """Choose experts for each row of x, and say how much of each."""
    seen = np.empty_like(x)
    _rms(x, scale, eps, seen)
    _scale(seen, np.float32(1.0) / np.sqrt(np.float32(x.shape[1])))
    scores = np.empty((x.shape[0], per_expert.size), np.float32)
    _linear(seen, router, scores)
    for s in range(x.shape[0]):
        _best(scores[s], chosen[s], share[s])
        _shares(per_expert, chosen[s], share[s])


@njit(cache=True)
def _best(scores, chosen, best):  # type: ignore[no-untyped-def]
    """Find the highest scores, highest first; of equal ones the first. A row of NaN gives the first experts."""
    for e in range(scores.size):
        j = min(e, chosen.size)
        while j > 0 and scores[e] > best[j - 1]:
            if j < chosen.size:
                chosen[j], best[j] = chosen[j - 1], best[j - 1]
            j -= 1
        if j < chosen.size:
            chosen[j], best[j] = e, scores[e]


@njit(fastmath=FASTMATH, error_model="numpy", cache=True)
def _shares(per_expert, chosen, share):  # type: ignore[no-untyped-def]
    """Turn scores, highest first, into a softmax times each expert's own factor, in place."""
    top, total = share[0], np.float32(0.0)
    for j in range(share.size):
        share[j] = _exp(share[j] - top)
        total += share[j]
    for j in range(share.size):
        share[j] = share[j] / total * per_expert[chosen[j]]


@njit(cache=True)
def _experts(n, chosen, share, gate_up, down, y):  # type: ignore[no-untyped-def]
    """Write the sum of each row's experts to y; give the number of experts that had any."""
    y[:] = np.float32(0.0)
    each = chosen.shape[1]
    starts, places = _grouped(chosen, gate_up[0].shape[0])
    used = 0
    for e in range(starts.size - 1):
        first, stop = starts[e], starts[e + 1]
        if first == stop:
            continue
        used += 1
        rows = np.empty((stop - first, n.shape[1]), np.float32)
        for i in range(stop - first):
            _copy_row(n[places[first + i] // each], rows[i])
        both = np.empty((stop - first, gate_up[0].shape[1]), np.float32)
        _linear(rows, _expert(gate_up, e), both)
        half = both.shape[1] // 2
        gated = np.empty((stop - first, half), np.float32)
        for i in range(stop - first):
            _copy_row(both[i, :half], gated[i])
            _gelu_row(gated[i], both[i, half:])
        _linear(gated, _expert(down, e), rows)
        for i in range(stop - first):
            place = places[first + i]
            _add_share(rows[i], share[place // each, place % each], y[place // each])
    return used


@njit(cache=True)
def _grouped(chosen, count):  # type: ignore[no-untyped-def]
    """Sort the places of ``chosen`` by expert: those of expert e are ``places[starts[e] : starts[e + 1]]``."""
    flat = chosen.reshape(-1)
    starts, places = np.zeros(count + 1, np.int64), np.empty(flat.size, np.int64)
    for e in flat:
        starts[e + 1] += 1
    for e in range(count):
        starts[e + 1] += starts[e]
    free = starts.copy()
    for place in range(flat.size):
        places[free[flat[place]]] = place
        free[flat[place]] += 1
    return starts, places


@njit(cache=True)
def _copy_row(x, y):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        y[i] = x[i]


@njit(fastmath=FASTMATH, error_model="numpy", cache=True)
def _add_share(x, share, y):  # type: ignore[no-untyped-def]
    for i in range(x.size):
        y[i] += x[i] * share
