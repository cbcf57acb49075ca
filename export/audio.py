"""audio_encoder.onnx: one step over any whole number of soft tokens, state in and out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from onnx import TensorProto

from edgegemma.config import AudioConfig, ModelConfig
from edgegemma.errors import CheckpointError
from export.builder import Attribute, Graph, vector
from export.calls import weights
from export.functions import needed
from export.functions_audio import LAYER
from export.source import F32, WeightSource, dense

NAME = "audio_encoder"
MODULE = "model.audio_tower"
MELS = 128
STRIDE = 4  # mel frames a soft token
TIMESCALE = 10_000.0
KEY_SCALE = math.log(1.0 + math.e) / math.log(2.0)


def build_audio_encoder(config: ModelConfig, source: WeightSource, folder: Path) -> None:
    """Write ``audio_encoder.onnx`` and its data into a folder."""
    audio = config.audio
    if audio is None:
        raise CheckpointError("audio encoder: the checkpoint has no audio tower")
    g = Graph(NAME, folder)
    features = g.input("input_features", [1, "frames", MELS])
    mask = g.input("input_features_mask", [1, "frames"])
    position = g.input("position", [1], TensorProto.INT64)
    g.output("audio_features", [1, "tokens", config.text.hidden_size])
    hidden = _subsample(g, source, audio, [features, mask])
    for layer in range(audio.num_hidden_layers):
        hidden = _layer(g, source, audio, layer, [hidden, position])
    _head(g, source, audio, hidden)
    g.save(needed(g.nodes, source.quantized), config.to_json())


def relative_keys(projection: F32, window: int) -> F32:
    """Give the key that each distance adds: sinusoids of the distance, projected.

    They depend on weights alone, so they are computed once, in float64.

    Parameters
    ----------
    projection : float32 [heads·D, C]

    Returns
    -------
    float32 [window, heads·D], distance 0 first
    """
    half = projection.shape[1] // 2
    rates = np.exp(-np.arange(half) * (math.log(TIMESCALE) / max(half - 1, 1)))
    angles = np.arange(window)[:, None] * rates
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    return (table @ projection.T.astype(np.float64)).astype(np.float32)


def query_scale(per_dim_scale: F32) -> F32:
    """Give the factor of each query dimension, softplus included.

    Returns
    -------
    float32 [D]
    """
    soft = np.logaddexp(0.0, per_dim_scale.astype(np.float64))
    return (soft / (math.log(2.0) * math.sqrt(per_dim_scale.size))).astype(np.float32)


def _subsample(g: Graph, source: WeightSource, audio: AudioConfig, inputs: list[str]) -> str:
    module = f"{MODULE}.subsample_conv_projection"
    channels = audio.subsampling_conv_channels[0]
    shapes: dict[str, list[int | str]] = {
        "features": [1, 1, MELS],
        "conv": [1, channels, 1, MELS // 2],
    }
    past = [g.input(f"past_{name}", shape) for name, shape in shapes.items()]
    present = [g.output(f"present_{name}", shape) for name, shape in shapes.items()]
    tensors = [f"{module}.layer{i}.{part}.weight" for i in range(2) for part in ("conv", "norm")]
    small = [g.tensor(name, source.vector(name)) for name in tensors]
    projection = f"{module}.input_proj_linear"
    weight = g.floats(projection, source.rows(projection))
    outputs = [f"{module}.hidden_states", *present]
    eps: dict[str, Attribute] = {"eps": audio.rms_norm_eps}
    every = [*inputs, *past, *small, weight]
    return g.call("AudioSubsample", every, eps, outputs, module)[0]


def _layer(
    g: Graph, source: WeightSource, audio: AudioConfig, layer: int, inputs: list[str]
) -> str:
    module = f"{MODULE}.layers.{layer}"
    width = audio.hidden_size
    shapes: dict[str, list[int | str]] = {
        "key": [1, audio.window - 1, width],
        "value": [1, audio.window - 1, width],
        "conv": [1, audio.conv_kernel_size - 1, width],
    }
    past = [g.input(f"past_layers.{layer}.{name}", shape) for name, shape in shapes.items()]
    present = [g.output(f"present_layers.{layer}.{name}", shape) for name, shape in shapes.items()]
    _computed(g, source, audio, module)
    linear_inputs, linears = weights(g, source, f"{module}.", LAYER)
    attributes: dict[str, Attribute] = {
        "heads": audio.num_attention_heads,
        "head_dim": audio.head_dim,
        "window": audio.window,
        "kernel": audio.conv_kernel_size,
        "key_scale": KEY_SCALE,
        "logit_cap": audio.attention_logit_cap,
        "residual_weight": audio.residual_weight,
        "eps": audio.rms_norm_eps,
    }
    outputs = [f"{module}.hidden_states", *present]
    every = [*inputs, *past, *linear_inputs]
    return g.call("AudioLayer", every, attributes | linears, outputs, module)[0]


def _computed(g: Graph, source: WeightSource, audio: AudioConfig, module: str) -> None:
    """Add the tensors of a layer that are not the checkpoint's own."""
    attention = f"{module}.self_attn"
    projection = dense(source.rows(f"{attention}.relative_k_proj"))
    g.tensor(f"{attention}.relative_key", relative_keys(projection, audio.window))
    per_dim = vector(source.vector(f"{attention}.per_dim_scale"))
    g.tensor(f"{attention}.query_scale", query_scale(per_dim))
    taps = f"{module}.lconv1d.depthwise_conv1d.weight"
    shape = (audio.hidden_size, audio.conv_kernel_size)
    g.tensor(taps, np.ascontiguousarray(source.vector(taps)).reshape(shape))


def _head(g: Graph, source: WeightSource, audio: AudioConfig, hidden: str) -> None:
    output, embedding = f"{MODULE}.output_proj", "model.embed_audio.embedding_projection"
    inputs = [
        hidden,
        g.floats(output, source.rows(output)),
        g.tensor(f"{output}.bias", vector(source.vector(f"{output}.bias"))),
        g.floats(embedding, source.rows(embedding)),
    ]
    eps: dict[str, Attribute] = {"eps": audio.rms_norm_eps}
    g.call("AudioHead", inputs, eps, ["audio_features"], "model.embed_audio")
