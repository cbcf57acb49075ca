"""The functions a package's graphs call: which there are, and which a graph needs.

The ABI is in ``docs/functions.md``. Two bodies of `Linear`, `GatherRows` and `ExpertLinear` exist, for codes and for
floats; a package has one kind. Everything else is written once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from export import functions_audio, functions_experts, functions_text
from export.builder import ABI, body_hash
from export.functions_linear import clipped_linear_body, gather_rows_body, linear_body


def bodies(quantized: bool) -> dict[str, onnx.FunctionProto]:
    """Write all functions of a quantized or a float package, by name."""
    functions = (
        linear_body(quantized),
        clipped_linear_body(),
        gather_rows_body(quantized),
        functions_text.rotary_table_body(),
        functions_text.per_layer_inputs_body(),
        functions_text.decoder_layer_body(),
        functions_text.decoder_layer_shared_body(),
        functions_experts.expert_linear_body(quantized),
        functions_experts.moe_feed_forward_body(),
        *map(functions_text.plain_layer_body, functions_text.PLAIN_LAYERS),
        functions_text.head_body(),
        functions_audio.audio_subsample_body(),
        functions_audio.audio_layer_body(),
        functions_audio.audio_head_body(),
    )
    return {function.name: function for function in functions}


def hashes() -> dict[str, tuple[str, ...]]:
    """Give the sha256 of every body, by function: (quantized, float), or the one there is."""
    found: dict[str, tuple[str, ...]] = {}
    for quantized in (True, False):
        for name, function in bodies(quantized).items():
            known = found.get(name, ())
            digest = body_hash(function)
            found[name] = known if digest in known else (*known, digest)
    return found


def needed(nodes: Iterable[onnx.NodeProto], quantized: bool) -> list[onnx.FunctionProto]:
    """Give the functions that nodes call, directly or through bodies, in the order of `bodies`."""
    written = bodies(quantized)
    names: set[str] = set()
    queue = list(_called(nodes))
    while queue:
        name = queue.pop()
        if name not in names:
            names.add(name)
            queue += _called(written[name].node)
    return [function for name, function in written.items() if name in names]


def _called(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Name the functions that nodes call, and those in the loops among them."""
    for node in nodes:
        if node.domain == ABI:
            yield node.op_type
        for attribute in node.attribute:
            yield from _called(attribute.g.node)
