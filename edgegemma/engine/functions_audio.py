"""Function calls of the audio encoder's graph, each bound to one kernel. See `functions`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgegemma.engine.graph import Graph, Node
from edgegemma.engine.plan import Call
from edgegemma.engine.state import MELS
from edgegemma.engine.values import exact, rows
from edgegemma.engine.weights import Weights
from edgegemma.errors import PackageError
from edgegemma.kernels.conformer import (
    AudioLayerWeights,
    audio_head,
    audio_layer,
    audio_subsample,
)
from edgegemma.kernels.held import Held
from edgegemma.package import Package

STRIDE = 4  # mel frames of a soft token; the second convolution leaves a quarter of the mels too
_NORMS = (
    "ffw1_pre_norm",
    "ffw1_post_norm",
    "norm_pre_attn",
    "norm_post_attn",
    "lconv_pre_norm",
    "conv_norm",
    "ffw2_pre_norm",
    "ffw2_post_norm",
    "norm_out",
)


def subsample(package: Package, graph: Graph, node: Node) -> Call:
    """Bind AudioSubsample."""
    w = Weights(package, graph, node)
    (first,), (second,) = w.shape("norm0_weight", 1), w.shape("norm1_weight", 1)
    conv0 = w.vector("conv0_weight", first, 1, 3, 3)
    conv1 = w.vector("conv1_weight", second, first, 3, 3)
    norm0, norm1 = w.vector("norm0_weight", first), w.vector("norm1_weight", second)
    width = w.shape("projection_weight", 2)[0]
    projection = w.floats("projection_weight", width, MELS // STRIDE * second).rows
    eps, where = w.number("eps"), f"{graph.name}: {node.name}"

    def run(values: Sequence[Any], state: Any) -> Sequence[Any]:
        del state
        features = rows(where, values[0], MELS)
        mask = rows(where, values[1], count=len(features))
        past = exact(where, values[2], 1, 1, MELS)[0]
        past_conv = exact(where, values[3], 1, first, 1, MELS // 2)[0]
        if len(features) % STRIDE:
            raise PackageError(f"{where}: got {len(features)} frames; want a multiple of {STRIDE}")
        results = audio_subsample(
            features, mask, past, past_conv, conv0, norm0, conv1, norm1, projection, eps
        )
        return [array[None] for array in results]

    names = w.given("input_features", "mask", "past_features", "past_conv")
    scratch = STRIDE * MELS + 2 * MELS // 2 * first + MELS // STRIDE * second
    return Call(node, names, run, reads=w.reads, width=scratch)


def layer(package: Package, graph: Graph, node: Node) -> Call:
    """Bind AudioLayer."""
    w = Weights(package, graph, node)
    fields, inner = _layer_fields(w)
    held = Held(AudioLayerWeights(**fields))
    width, where = fields["heads"] * fields["head_dim"], f"{graph.name}: {node.name}"
    past, before = fields["window"] - 1, fields["kernel"] - 1

    def run(values: Sequence[Any], state: Any) -> Sequence[Any]:
        del state
        x = rows(where, values[0], width)
        position = int(exact(where, values[1], 1, dtype=np.int64)[0])
        key, value = (exact(where, v, 1, past, width)[0] for v in values[2:4])
        conv = exact(where, values[4], 1, before, width)[0]
        return [y[None] for y in audio_layer(x, position, key, value, conv, held)]

    names = w.given("hidden_states", "position", "past_key", "past_value", "past_conv")
    return Call(node, names, run, reads=w.reads, width=8 * width + inner)


def _layer_fields(w: Weights) -> tuple[dict[str, Any], int]:
    """Take all that a layer is bound to; give the kernel's fields and the feed-forward's width."""
    fields: dict[str, Any] = {n: w.integer(n) for n in ("heads", "head_dim", "window", "kernel")}
    for name in ("key_scale", "logit_cap", "residual_weight", "eps"):
        fields[name] = w.number(name)
    width = fields["heads"] * fields["head_dim"]
    inner = w.integer("ffw1_layer_1_out"), w.integer("ffw2_layer_1_out")
    matrices = {
        "ffw1_layer_1": (inner[0], width),
        "ffw1_layer_2": (width, inner[0]),
        "linear_start": (2 * width, width),
        "ffw2_layer_1": (inner[1], width),
        "ffw2_layer_2": (width, inner[1]),
        **dict.fromkeys(("q_proj", "k_proj", "v_proj", "post", "linear_end"), (width, width)),
    }
    for name, (outputs, inputs) in matrices.items():
        fields[name], fields[f"{name}_clip"] = w.clipped(name, outputs, inputs)
    for name in _NORMS:
        fields[name] = w.vector(name, width)
    fields["query_scale"] = w.vector("query_scale", fields["head_dim"])
    fields["relative_key"] = w.vector("relative_key", fields["window"], width)
    fields["depthwise_weight"] = w.vector("depthwise_weight", width, fields["kernel"])
    return fields, max(inner)


def head(package: Package, graph: Graph, node: Node) -> Call:
    """Bind AudioHead."""
    w = Weights(package, graph, node)
    bottleneck, width = w.shape("output_weight", 2)
    output = w.floats("output_weight", bottleneck, width).rows
    bias = w.vector("output_bias", bottleneck)
    hidden = w.shape("embedding_weight", 2)[0]
    embedding = w.floats("embedding_weight", hidden, bottleneck).rows
    eps, where = w.number("eps"), f"{graph.name}: {node.name}"

    def run(values: Sequence[Any], state: Any) -> Sequence[Any]:
        del state
        return [audio_head(rows(where, values[0], width), output, bias, embedding, eps)[None]]

    return Call(node, w.given("hidden_states"), run, reads=w.reads, width=bottleneck + hidden)
