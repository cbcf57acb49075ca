"""The functions a package's graphs call: which there are, and which a graph needs.

The ABI is in ``docs/functions.md``. Two bodies of `Linear` and `GatherRows` exist, for codes and for
floats; a package has one kind. Everything else is written once.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from export import functions_audio, functions_text
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
    queue = [node.op_type for node in nodes if node.domain == ABI]
    while queue:
        name = queue.pop()
        if name not in names:
            names.add(name)
            queue += [node.op_type for node in written[name].node if node.domain == ABI]
    return [function for name, function in written.items() if name in names]
