"""The glue between function calls, in numpy: ONNX opset 23 as far as our graphs use it.

Each op takes the node's attributes and its input values, None for one left out, and gives its outputs.
They look at values and move them; everything that computes is a function. Nothing here can make more
than its inputs hold, so a hostile graph cannot ask for memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegemma.engine.graph import DTYPES, STORAGE

Array = NDArray[Any]
Attributes = Mapping[str, Any]
Op = Callable[[Attributes, Sequence[Any]], Sequence[Array | None]]


def _cast(attributes: Attributes, values: Sequence[Array]) -> Sequence[Array]:
    kind = DTYPES[attributes["to"]]
    if kind == "bfloat16":
        raise ValueError("to: got bfloat16; want float32, int64 or uint8")
    with np.errstate(invalid="ignore"):  # a NaN becomes some integer, as in onnxruntime
        return [values[0].astype(STORAGE[kind], copy=False)]


def _constant(attributes: Attributes, values: Sequence[Array]) -> Sequence[Array]:
    del values
    (kind, value), *rest = attributes.items()
    if rest or kind not in _CONSTANTS:
        raise ValueError(f"got {sorted(attributes)}; want one of {sorted(_CONSTANTS)}")
    return [np.asarray(value, _CONSTANTS[kind])]


_CONSTANTS = {
    "value": None,
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_float": np.float32,
    "value_floats": np.float32,
}


def _identity(attributes: Attributes, values: Sequence[Array]) -> Sequence[Array]:
    del attributes
    return [values[0]]


def _neg(attributes: Attributes, values: Sequence[Array]) -> Sequence[Array]:
    del attributes
    return [np.asarray(np.negative(values[0]))]


def _reshape(attributes: Attributes, values: Sequence[Array]) -> Sequence[Array]:
    return [np.reshape(values[0], _sizes(attributes, *values))]


def reshape_view(attributes: Attributes, values: Sequence[Array]) -> Sequence[Array]:
    """Reshape a value that lies in a row, whatever it holds; ValueError where it does not."""
    return [np.reshape(values[0], _sizes(attributes, *values), copy=False)]


def _sizes(attributes: Attributes, data: Array, shape: Array) -> list[int]:
    sizes: list[int] = shape.tolist()
    if not attributes.get("allowzero", 0):
        sizes = [data.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return sizes


def _slice(attributes: Attributes, values: Sequence[Any]) -> Sequence[Array]:
    del attributes
    data, starts, ends, axes, steps = (*values, None, None)[:5]
    axes = range(len(starts)) if axes is None else axes.tolist()
    steps = [1] * len(starts) if steps is None else steps.tolist()
    cut = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts.tolist(), ends.tolist(), steps, strict=True):
        if step != 1:
            raise ValueError(f"steps: got {step}; want 1")
        cut[axis] = slice(start, end)
    return [data[tuple(cut)]]


def split(
    attributes: Attributes, values: Sequence[Any], wanted: Sequence[bool] | None = None
) -> Sequence[Array | None]:
    """Split a value; None in the place of a part that is not wanted."""
    data, sizes = values
    axis = attributes.get("axis", 0)
    edges = np.cumsum(sizes)
    if sizes.min() < 1 or edges[-1] != data.shape[axis]:
        raise ValueError(f"split: got {sizes.tolist()}; want parts of {data.shape[axis]}")
    before = (slice(None),) * (axis % data.ndim)
    return [
        data[(*before, slice(stop - size, stop))] if taken else None
        for size, stop, taken in zip(
            sizes.tolist(), edges.tolist(), wanted or [True] * len(sizes), strict=True
        )
    ]


def _squeeze(attributes: Attributes, values: Sequence[Array]) -> Sequence[Array]:
    del attributes
    data, axes = values
    return [np.squeeze(data, tuple(axes.tolist()))]


def _unsqueeze(attributes: Attributes, values: Sequence[Array]) -> Sequence[Array]:
    del attributes
    data, axes = values
    return [np.expand_dims(data, tuple(axes.tolist()))]


OPS: dict[str, Op] = {
    "Cast": _cast,
    "Constant": _constant,
    "Identity": _identity,
    "Neg": _neg,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": split,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}

VIEWS = frozenset({"Identity", "Slice", "Split", "Squeeze", "Unsqueeze"})
"""Those whose outputs are views of their first input, whatever it holds."""

# What numpy and the conversions above raise on values that do not fit.
FAILURES = (ValueError, IndexError, TypeError, KeyError, AttributeError, OverflowError)
