"""Calls of functions with their weights, filled from a checkpoint by the function's slots."""

from __future__ import annotations

from collections.abc import Sequence

from export.builder import Attribute, Graph, vector
from export.functions_linear import Slot
from export.source import FLOAT_BITS, Matrix, WeightSource

_SIZES = ("in", "out", "bits", "block")


def weights(
    graph: Graph, source: WeightSource, prefix: str, slots: Sequence[Slot]
) -> tuple[list[str], dict[str, Attribute]]:
    """Add the weights of one call in the order of its slots; give the inputs and the attributes.

    A tensor that the graph already has, as its builder computed or shared it, is taken as it is.
    """
    inputs: list[str] = []
    attributes: dict[str, Attribute] = {}
    for slot in slots:
        name = prefix + slot.path
        if slot.kind == "vector":
            if name not in graph.tensors:
                graph.tensor(name, vector(source.vector(name)))
            inputs.append(name)
            continue
        if slot.kind == "rows":
            inputs.append(graph.floats(name, source.rows(name)))
            continue
        matrix = source.linear(name)
        inputs += _linear(graph, name, matrix)
        if slot.kind == "clipped":
            assert matrix.clip is not None
            inputs.append(graph.tensor(f"{name}.clip", vector(matrix.clip)))
        sizes = (matrix.columns, matrix.leading[-1], matrix.bits, matrix.block)
        attributes |= {f"{slot.name}_{k}": v for k, v in zip(_SIZES, sizes, strict=True)}
    return inputs, attributes


def code_shape(matrix: Matrix) -> tuple[int, ...]:
    """Give the shape of a linear's weight: MatMulNBits layout for codes, [N, K] for floats; stacked with an axis before."""
    if matrix.bits in FLOAT_BITS:
        return *matrix.leading, matrix.columns
    blocks, rest = divmod(matrix.columns, matrix.block)
    assert rest == 0
    return *matrix.leading, blocks, matrix.block * matrix.bits // 8


def _linear(graph: Graph, module: str, matrix: Matrix) -> list[str]:
    names = [f"{module}.weight", f"{module}.weight_scale"]
    if names[0] not in graph.tensors:
        graph.matrix(module, matrix, code_shape(matrix))
    return [*names, graph.tensor(f"{module}.activation_scales", vector(matrix.activation))]
