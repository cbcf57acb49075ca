"""The graphs of a package, loaded together and checked as far as every executor needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegemma.config import ModelConfig, TextConfig
from edgegemma.engine import abi, graph
from edgegemma.engine.dimensions import check_config
from edgegemma.engine.graph import Graph
from edgegemma.engine.values import rows
from edgegemma.errors import PackageError
from edgegemma.package import Package

F32 = NDArray[np.float32]

EMBED, DECODER, AUDIO = "embed_tokens.onnx", "decoder.onnx", "audio_encoder.onnx"
PER_LAYER = "per_layer_inputs"


def load(package: Package) -> dict[str, Graph]:
    """Load the graphs that the config asks for.

    Raises
    ------
    PackageError
        The config contradicts itself; a graph is missing, damaged, or has other inputs and outputs than the config says.
    UnsupportedError
        A graph asks for something that `abi` does not know. No executor gets it then: stock onnxruntime would run any body.
    """
    check_config(package.config)
    graphs = {}
    for name, (inputs, outputs) in interfaces(package.config).items():
        graphs[name] = graph.load(package, name)
        abi.check(graphs[name])
        _check_names(f"{name}: inputs", graphs[name].inputs, inputs)
        _check_names(f"{name}: outputs", graphs[name].outputs, outputs)
    graph.check_ranges(graphs.values())
    return graphs


def interfaces(config: ModelConfig) -> dict[str, tuple[set[str], set[str]]]:
    """Give the names of the inputs and outputs of each graph that a package of this config has."""
    layers = range(config.text.first_shared_layer)
    keys = [f"{i}.{part}" for i in layers for part in ("key", "value")]
    text = {"inputs_embeds"} | ({PER_LAYER} if config.text.hidden_size_per_layer_input else set())
    found = {
        EMBED: ({"input_ids"}, text),
        DECODER: (
            text | {"position_ids", "num_logits_to_keep"} | {f"past_key_values.{k}" for k in keys},
            {"logits"} | {f"present.{k}" for k in keys},
        ),
    }
    if config.audio:
        parts = ("key", "value", "conv")
        layers = range(config.audio.num_hidden_layers)
        carried = ["features", "conv", *(f"layers.{i}.{part}" for i in layers for part in parts)]
        sound = {"input_features", "input_features_mask", "position"}
        found[AUDIO] = (
            sound | {f"past_{name}" for name in carried},
            {"audio_features"} | {f"present_{name}" for name in carried},
        )
    return found


def embedded(text: TextConfig, found: Mapping[str, Any], count: int) -> tuple[F32, F32]:
    """Check what the embedding graph gave for so many tokens; a model without per-layer inputs has them 0 wide.

    Returns
    -------
    embeds : float32 [S, H]
    per_layer : float32 [S, L, P]
    """
    layers, width = text.num_hidden_layers, text.hidden_size_per_layer_input
    per_layer = found.get(PER_LAYER, np.zeros((1, count, layers, 0), np.float32))
    return (
        rows(EMBED, found["inputs_embeds"], text.hidden_size, count=count),
        rows(EMBED, per_layer, layers, width, count=count),
    )


def _check_names(where: str, got: Iterable[str], want: set[str]) -> None:
    if different := set(got) ^ want:
        name = min(different)
        kind = "missing" if name in want else "unknown"
        raise PackageError(f"{where}: {name!r} is {kind}; want those of the config")
