"""``edgegemma inspect``: what a package is made of, from its graphs alone."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from edgegemma import console, models
from edgegemma.cli.options import JsonOption, ModelArgument, VerifyOption
from edgegemma.config import FULL, TextConfig
from edgegemma.errors import PackageError

if TYPE_CHECKING:
    from edgegemma.engine.graph import Graph, Node, Tensor
    from edgegemma.package import Package

FLOAT_BITS = {"float32": 32, "bfloat16": 16}
BITS = (2, 4, 8, 16, 32)


def inspect(
    model: ModelArgument = "demo", verify: VerifyOption = False, as_json: JsonOption = False
) -> None:
    """Show what is in a package: functions, weights and their bits, sizes, who shares whose K/V.

    For example: edgegemma inspect demo --json
    """
    path = models.find(model)
    from edgegemma.engine.graphs import load
    from edgegemma.package import Package

    with console.progress(lines=False) as report:
        package = Package.open(path, verify=verify, progress=report)
    graphs = list(load(package).values())
    found = describe(package, graphs)
    if as_json:
        console.out(json.dumps(found, indent=2))
    else:
        _print(found)


def describe(package: Package, graphs: list[Graph]) -> dict[str, Any]:
    """Everything `inspect` shows, as plain values."""
    weights = list(_weights(graphs))
    return {
        "path": str(package.path),
        "name": package.manifest.get("name"),
        "preset": package.manifest.get("preset"),
        "source": package.manifest.get("source"),
        "bytes": package.size,
        "files": {name: member.size for name, member in package.members.items()},
        "graphs": {graph.name: _graph(graph) for graph in graphs},
        "weights": _grouped(weights),
        "bits_per_weight": _bits(weights),
        "kv": _kv(package.config.text),
        "audio_window": package.config.audio.window if package.config.audio else None,
    }


def _graph(graph: Graph) -> dict[str, Any]:
    calls = Counter(node.op for node in graph.nodes if node.domain)
    glue = Counter(node.op for node in graph.nodes if not node.domain)
    return {
        "nodes": len(graph.nodes),
        "functions": dict(calls.most_common()),
        "glue": dict(glue.most_common()),
        "tensors": len(graph.tensors),
        "inputs": len(graph.inputs),
        "outputs": len(graph.outputs),
    }


def _weights(graphs: list[Graph]) -> Iterator[dict[str, Any]]:
    """Every weight matrix once: a tied head is the table's bytes."""
    seen: set[tuple[str, int]] = set()
    for graph in graphs:
        for node in graph.nodes:
            for tensor, bits in _matrices(graph, node):
                place = (tensor.location or graph.name + tensor.name, tensor.offset)
                if place not in seen:
                    seen.add(place)
                    yield _weight(graph, tensor, bits)


def _matrices(graph: Graph, node: Node) -> Iterator[tuple[Tensor, int]]:
    """Give the matrices of a call and the bits of their weights: attribute ``NAME_bits`` for ``NAME_weight``."""
    function = graph.functions.get(node.op)
    for formal, actual in zip(function.inputs if function else (), node.inputs, strict=False):
        tensor = graph.tensors.get(actual)
        if tensor is None or not formal.endswith(("weight", "table")) or len(tensor.shape) < 2:
            continue
        name = re.sub("(weight|table)$", "bits", formal)
        bits = node.attributes.get(name, FLOAT_BITS.get(tensor.dtype, 8))
        if not isinstance(bits, int) or bits not in BITS:
            raise PackageError(
                f"{graph.name}: {node.name!r}: {name}: got {bits!r}; want one of {BITS}"
            )
        yield tensor, bits


def _weight(graph: Graph, tensor: Tensor, bits: int) -> dict[str, Any]:
    scale = graph.tensors.get(tensor.name + "_scale")
    count = math.prod(tensor.shape)
    if tensor.dtype == "uint8":
        count = count * 8 // bits
    return {
        "name": tensor.name,
        "weights": count,
        "bits": bits,
        "bytes": tensor.length or len(tensor.data or b""),
        "scale_bytes": math.prod(scale.shape) * 4 if scale is not None else 0,
    }


def _grouped(weights: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join what differs only in the layer."""
    groups: dict[tuple[str, int], dict[str, Any]] = {}
    for weight in weights:
        name = re.sub(r"\.\d+\.", ".*.", weight["name"])
        group = groups.setdefault(
            (name, weight["bits"]),
            {"name": name, "count": 0, "weights": 0, "bits": weight["bits"], "bytes": 0},
        )
        group["count"] += 1
        group["weights"] += weight["weights"]
        group["bytes"] += weight["bytes"] + weight["scale_bytes"]
    return list(groups.values())


def _bits(weights: list[dict[str, Any]]) -> float:
    total = sum(int(weight["weights"]) for weight in weights)
    size: int = sum(weight["bytes"] + weight["scale_bytes"] for weight in weights)
    return round(8 * size / max(1, total), 4)


def _kv(text: TextConfig) -> dict[str, Any]:
    """Who owns keys and values, who borrows whose, and what a token of context costs in float32."""
    owners = range(text.first_shared_layer)
    per_token = per_window = 0
    for layer in owners:
        heads, width = text.heads_of(layer)
        if text.layer_types[layer] == FULL:
            per_token += 2 * heads * width * 4
        else:
            per_window += 2 * heads * width * 4 * text.sliding_window
    shared = range(text.first_shared_layer, text.num_hidden_layers)
    return {
        "layers": text.num_hidden_layers,
        "own": len(owners),
        "borrowed": {str(layer): text.kv_source(layer) for layer in shared},
        "window": text.sliding_window,
        "context": text.max_position_embeddings,
        "bytes_per_token_float32": per_token,
        "bytes_of_windows_float32": per_window,
    }


def _print(found: dict[str, Any]) -> None:
    source = found["source"] if isinstance(found["source"], dict) else {}
    console.out(
        f"{console.plain(str(found['name']))}, preset {console.plain(str(found['preset']))}"
    )
    console.out(
        f"from {console.plain(str(source.get('id')))} at {console.plain(str(source.get('revision')))}"
    )
    console.out(f"{found['path']}, {console.size(found['bytes'])}")
    console.out()
    rows: list[tuple[object, ...]] = []
    for name, graph in found["graphs"].items():
        for kind in ("functions", "glue"):
            calls = ", ".join(f"{op} {count}" for op, count in graph[kind].items())
            head = (name, graph["nodes"], graph["tensors"]) if kind == "functions" else ("", "", "")
            rows.append((*head, kind, calls))
    console.table(("graph", "nodes", "tensors", "", "calls"), rows)
    console.out()
    console.table(
        ("weights", "matrices", "count", "bits", "size with scales"),
        [
            (w["name"], w["count"], f"{w['weights']:,}", w["bits"], console.size(w["bytes"]))
            for w in found["weights"]
        ],
    )
    console.out(f"{found['bits_per_weight']:.2f} bits a weight, scales counted")
    console.out()
    _print_kv(found["kv"])
    if found["audio_window"]:
        console.out(f"audio: an attention window of {found['audio_window']} keys")
    console.out()
    console.table(("file", "size"), [(k, console.size(v)) for k, v in found["files"].items()])


def _print_kv(kv: dict[str, Any]) -> None:
    sources = Counter(kv["borrowed"].values())
    borrowed = ", ".join(
        f"{count} read layer {layer}'s" for layer, count in sorted(sources.items())
    )
    console.out(
        f"K/V: {kv['own']} of {kv['layers']} layers own theirs; {borrowed or 'none is shared'}; "
        f"{console.size(kv['bytes_per_token_float32'])} a token of context and "
        f"{console.size(kv['bytes_of_windows_float32'])} for windows of {kv['window']}, in float32"
    )
