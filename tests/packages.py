"""Small packages of random weights for tests, and ways to damage them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto

from edgegemma.config import FULL, SLIDING, ModelConfig
from export.audio import build_audio_encoder
from export.decoder import build_decoder
from export.embed import build_embed
from export.source import Matrix
from tests.fake_source import CONFIG, FakeSource, Kind

TEXT = CONFIG.text
# E2B with every width divided by 16: shares of weights are those of the real one.
E2B = dataclasses.replace(
    CONFIG,
    text=dataclasses.replace(
        TEXT,
        vocab_size=512,
        hidden_size=96,
        num_hidden_layers=35,
        layer_types=((SLIDING,) * 4 + (FULL,)) * 7,
        num_attention_heads=8,
        num_global_key_value_heads=1,
        head_dim=16,
        global_head_dim=32,
        intermediate_size=384,
        num_kv_shared_layers=20,
        hidden_size_per_layer_input=16,
        sliding_window=8,
    ),
)


class TwoBit(FakeSource):
    """All linears in 2-bit codes."""

    def linear(self, module: str) -> Matrix:
        if module == "lm_head":
            return super().linear(module)
        rows, columns = self.shape(module)
        block = next(b for b in (128, 64, 32, 16) if columns % b == 0)
        codes = np.zeros((rows, columns // 4), np.uint8)
        chunks = [(codes, np.ones((rows, 1), np.float32))]
        clip = self.clip(module) if "audio_tower" in module else None
        return Matrix(rows, columns, 2, block, 1, chunks, np.zeros(2, np.float32), clip)


def write(folder: Path, source: FakeSource, config: ModelConfig = CONFIG) -> Path:
    """Write a package of these weights."""
    folder.mkdir(parents=True)
    build_embed(config, source, folder)
    build_decoder(config, source, folder)
    if config.audio:
        build_audio_encoder(config, source, folder)
    sign(folder, {"config": config.to_json(), "prompts": {"transcribe": "Transcribe."}})
    return folder


def small(folder: Path, kind: Kind = "codes", tied: bool = True) -> Path:
    """Write the usual small package."""
    return write(folder, FakeSource(CONFIG, kind, tied))


def sign(folder: Path, fields: dict[str, Any] | None = None) -> None:
    """Write the manifest for the files as they are now; keep its other fields."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text()) if path.exists() else {}
    data |= {"format": "edgegemma", "format_version": 1, "function_version": 1, "name": "small"}
    data |= {"preset": "test", "source": {"id": "random", "revision": "0"}} | (fields or {})
    data["files"] = {
        file.name: {
            "size": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in sorted(folder.iterdir())
        if file.name != path.name
    }
    path.write_text(json.dumps(data))


def edit_manifest(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest by hand."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def edit_graph(folder: Path, name: str, edit: Callable[[onnx.ModelProto], object]) -> None:
    """Change a graph by hand and sign the package again."""
    path = folder / f"{name}.onnx"
    model = onnx.load(path, load_external_data=False)
    edit(model)
    path.write_bytes(model.SerializeToString(deterministic=True))
    sign(folder)


def tensor(model: onnx.ModelProto, name: str) -> TensorProto:
    (found,) = (t for t in model.graph.initializer if t.name == name)
    assert isinstance(found, TensorProto)
    return found


def external(model: onnx.ModelProto) -> TensorProto:
    """Give the first tensor in a data file."""
    found = next(t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL)
    assert isinstance(found, TensorProto)
    return found


def entry(proto: TensorProto, key: str) -> onnx.StringStringEntryProto:
    (found,) = (e for e in proto.external_data if e.key == key)
    assert isinstance(found, onnx.StringStringEntryProto)
    return found


def node(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    """Give the first call of an op or function."""
    found = next(n for n in model.graph.node if n.op_type == op)
    assert isinstance(found, onnx.NodeProto)
    return found


def attribute(model: onnx.ModelProto, op: str, name: str) -> AttributeProto:
    (found,) = (a for a in node(model, op).attribute if a.name == name)
    assert isinstance(found, AttributeProto)
    return found
