"""embed_tokens.onnx: ids to embeddings and, where layers have such inputs, to each layer's own rows."""

from __future__ import annotations

import math
from pathlib import Path

from onnx import TensorProto

from edgegemma.config import ModelConfig
from export.builder import Attribute, Graph
from export.functions import needed
from export.source import WeightSource

NAME = "embed_tokens"
TABLE = "model.language_model.embed_tokens"
PER_LAYER_TABLE = "model.language_model.embed_tokens_per_layer"


def build_embed(config: ModelConfig, source: WeightSource, folder: Path) -> None:
    """Write ``embed_tokens.onnx`` and its data into a folder.

    The rows are multiplied by the exact roots of their widths (the bfloat16 reference rounds them).
    """
    text = config.text
    layers, width = text.num_hidden_layers, text.hidden_size_per_layer_input
    g = Graph(NAME, folder)
    ids = g.input("input_ids", [1, "sequence_length"], TensorProto.INT64)
    _gather(g, source, TABLE, ids, text.hidden_size, "inputs_embeds")
    g.output("inputs_embeds", [1, "sequence_length", text.hidden_size])
    if width:
        rows = _gather(g, source, PER_LAYER_TABLE, ids, width, f"{PER_LAYER_TABLE}.rows")
        g.op("Reshape", [rows, g.integers(0, 0, layers, width)], "per_layer_inputs", allowzero=0)
        g.output("per_layer_inputs", [1, "sequence_length", layers, width])
    g.save(needed(g.nodes, source.quantized), config.to_json())


def _gather(
    g: Graph, source: WeightSource, module: str, ids: str, scaled_width: int, result: str
) -> str:
    table = source.table(module)
    packed = table.row_bytes if table.block else table.columns
    weight, scale = g.matrix(module, table, (table.rows, packed))
    attributes: dict[str, Attribute] = {
        "width": table.columns,
        "bits": table.bits,
        "multiplier": math.sqrt(scaled_width),
    }
    return g.call("GatherRows", [ids, weight, scale], attributes, [result], module)[0]
