"""Each kernel at the real models' shapes, in turns with onnxruntime's op on the same bytes, and checked in numpy."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bench import samples, shapes

if TYPE_CHECKING:
    from bench.limits import Limits

CHECKED = 1024  # weight rows that are compared with the reference
ATTENTION = ((256, 512, 512), (512, 0, 4096), (512, 0, 32768))  # head width, window, context


class Linear(NamedTuple):
    """A linear of the model: its name, weights [rows, columns], bits of a code."""

    name: str
    rows: int
    columns: int
    bits: int


def linears(model: str) -> Iterator[Linear]:
    """Name each shape of a linear once, in the mix of Google's mobile checkpoints."""
    text = shapes.published(model)["text_config"]
    H, inner, heads = text["hidden_size"], text["intermediate_size"], text["num_attention_heads"]
    kv, dim, full = text["num_key_value_heads"], text["head_dim"], text["global_head_dim"]
    P = text["hidden_size_per_layer_input"]
    yield Linear("q_proj", heads * dim, H, 4)
    yield Linear("q_proj, full", heads * full, H, 4)
    yield Linear("k_proj", kv * dim, H, 4)
    yield Linear("o_proj", H, heads * dim, 4)
    yield Linear("gate_proj", inner, H, 4)
    yield Linear("down_proj", H, inner, 4)
    if text["use_double_wide_mlp"]:
        yield Linear("gate_proj, wide", 2 * inner, H, 2)
        yield Linear("down_proj, wide", H, 2 * inner, 2)
    yield Linear("per_layer_input_gate", P, H, 8)
    yield Linear("per_layer_projection", H, P, 8)
    yield Linear("lm_head", text["vocab_size"], H, 2)


def linear(shape: Linear, rows: int, static: bool, limits: Limits, rounds: int) -> dict[str, Any]:
    """Measure one linear with ``rows`` activation rows.

    Returns
    -------
    dict
        ``seconds``, ``peer_seconds``, ``ratio`` (how many times faster than onnxruntime), ``read_share``, ``dot_share``
        and ``error``, the largest against the reference relative to its largest value.
    """
    from bench import onnx_ops
    from edgegemma.kernels import reference
    from edgegemma.kernels import threads as pool
    from edgegemma.kernels.linear import CodeMatrix
    from edgegemma.kernels.linear import linear as kernel

    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (shape.rows, shape.columns * shape.bits // 8), np.uint8)
    scale = rng.uniform(0.5, 1.5, (shape.rows, 1)).astype(np.float32)
    activation = np.array([0.03 if static else 0.0, 0.0], np.float32)
    block = next(b for b in (128, 64, 32, 16) if shape.columns % b == 0)
    w = CodeMatrix(codes, scale, activation, shape.bits, block)
    x = rng.standard_normal((rows, shape.columns)).astype(np.float32)
    peer = onnx_ops.mat_mul_nbits(codes, scale, shape.bits, block, limits.threads)
    few = CodeMatrix(codes[:CHECKED], scale[:CHECKED], activation, shape.bits, block)
    want = reference.linear(x[:4], few)
    error = np.abs(kernel(x[:4], w)[:, :CHECKED] - want).max() / np.abs(want).max()

    def ours() -> object:
        pool.use(limits.threads)
        return kernel(x, w)

    found = _turns(ours, lambda: peer(x), limits, rounds)
    size, macs = codes.nbytes + scale.nbytes, rows * shape.rows * shape.columns
    return {
        "name": shape.name, "shape": [shape.rows, shape.columns], "bits": shape.bits, "rows": rows,
        "static": static, "error": float(error), **_figures(found, size, macs),
    }  # fmt: skip


def attention(
    model: str, dim: int, window: int, context: int, kind: str, limits: Limits, rounds: int
) -> dict[str, Any]:
    """Measure one query against a cache of ``context`` positions; see `linear`.

    onnxruntime's op gets float32 keys and values, those within the window.
    """
    from bench import onnx_ops
    from edgegemma.kernels import reference_layers
    from edgegemma.kernels import threads as pool
    from edgegemma.kernels.attention import attend
    from edgegemma.kernels.kvcache import KV

    text = shapes.published(model)["text_config"]
    heads, kv_heads = text["num_attention_heads"], text["num_key_value_heads"]
    rng = np.random.default_rng(0)
    size = (context, kv_heads, dim)
    if kind == "int8":
        keys, values = (rng.integers(-127, 128, size, np.int8) for _ in range(2))
        scales = np.full(size[:2], 0.01, np.float32)
    else:
        keys, values = (rng.standard_normal(size, np.float32) for _ in range(2))
        scales = np.zeros((0, 0), np.float32)
    cache = KV(keys, values, scales, scales)
    q = rng.standard_normal((1, heads, dim), np.float32) * np.float32(dim**-0.5)
    want = reference_layers.attend(q, cache, context - 1, window)
    error = np.abs(attend(q, cache, context - 1, window) - want).max() / np.abs(want).max()
    peer = onnx_ops.attention(heads, kv_heads, dim, limits.threads)
    seen = min(window, context) if window else context
    wide = [
        np.ascontiguousarray(np.moveaxis(a[-seen:].astype(np.float32), 0, 1))[None]
        for a in (keys, values)
    ]

    def ours() -> object:
        pool.use(limits.threads)
        return attend(q, cache, context - 1, window)

    found = _turns(ours, lambda: peer(q[0][None, :, None], *wide), limits, rounds)
    read = seen * 2 * kv_heads * (dim + 4 if kind == "int8" else 4 * dim)
    return {
        "name": f"attention, {kind}", "shape": [heads, kv_heads, dim], "window": window,
        "context": context, "error": float(error), **_figures(found, read, 2 * heads * seen * dim),
    }  # fmt: skip


def _turns(
    ours: Callable[[], object], peer: Callable[[], object], limits: Limits, rounds: int
) -> dict[str, list[float]]:
    """Take turns; a short call is repeated for some milliseconds and its mean taken."""
    repeats = {}
    for name, call in (("ours", ours), ("peer", peer)):
        call()
        began = time.perf_counter()
        call()
        repeats[name] = max(1, min(200, int(0.005 / (time.perf_counter() - began))))

    def timed(name: str, call: Callable[[], object]) -> Callable[[], float]:
        def once() -> float:
            began = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            return (time.perf_counter() - began) / repeats[name]

        return once

    works = {"ours": timed("ours", ours), "peer": timed("peer", peer)}
    return samples.in_turns(works | {"read": limits.read, "dot": limits.dot}, rounds)


def _figures(found: dict[str, list[float]], size: int, macs: int) -> dict[str, Any]:
    seconds = found["ours"]
    figures = {
        "seconds": samples.figure(seconds),
        "peer_seconds": samples.figure(found["peer"]),
        "ratio": samples.ratio(found["peer"], seconds),
        "read_share": samples.ratio([size / s for s in seconds], found["read"]),
        "dot_share": samples.ratio([macs / s for s in seconds], found["dot"]),
    }
    return {name: asdict(value) for name, value in figures.items()}
