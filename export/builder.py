"""ONNX graphs and function bodies, written as functions over values.

A value is its name. `Nodes` appends nodes and gives their outputs; `Body` makes a local function of
them, `Graph` a model with its weights. Large weights go to the data file beside the graph, chunk by
chunk as they are read, so that memory is bounded by a chunk.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import AttributeProto, TensorProto, helper

from edgegemma.errors import CheckpointError
from export.source import F32, FLOAT_BITS, Matrix

ABI = "edgegemma"
CONTRIB = "com.microsoft"
OPSETS = {"": 23, CONTRIB: 1, ABI: 1}
IR_VERSION = 10
INLINE_BYTES = 4096  # smaller tensors live in the graph
ALIGNMENT = 4096  # a page, so that a tensor is mapped and dropped on its own
UNUSED_SCALE = np.ones((1, 1), np.float32)  # beside a float matrix
LAST = 2**63 - 1  # "to the end" for Slice

_TYPES = {
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.uint16): TensorProto.BFLOAT16,  # bit patterns: numpy has no bfloat16
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.int64): TensorProto.INT64,
}


@dataclass(frozen=True)
class Ref:
    """An attribute of the function being written, handed on by reference."""

    name: str
    type: AttributeProto.AttributeType = AttributeProto.INT


def float_ref(name: str) -> Ref:
    """Refer to a float attribute of the function being written."""
    return Ref(name, AttributeProto.FLOAT)


Attribute = int | float | str | Sequence[int] | Ref | onnx.GraphProto


def _attribute(name: str, value: Attribute) -> AttributeProto:
    if isinstance(value, Ref):
        return AttributeProto(name=name, ref_attr_name=value.name, type=value.type)
    return helper.make_attribute(name, value)


class Nodes:
    """Nodes in the order they were added; names that it makes up begin with ``prefix``."""

    def __init__(self, prefix: str = "") -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._prefix = prefix
        self._constants: dict[tuple[str, Attribute], str] = {}

    def add(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        attributes: dict[str, Attribute],
        domain: str = "",
        name: str = "",
    ) -> tuple[str, ...]:
        """Append a node and give its outputs."""
        node = onnx.NodeProto(op_type=kind, domain=domain, name=name, input=inputs, output=outputs)
        node.attribute.extend(_attribute(key, attributes[key]) for key in attributes)
        self.nodes.append(node)
        return tuple(outputs)

    def op(
        self,
        kind: str,
        inputs: Sequence[str],
        result: str = "",
        domain: str = "",
        **attributes: Attribute,
    ) -> str:
        """Append an operator of one output, called ``result`` or numbered, and give that output."""
        return self.add(kind, inputs, [result or self._fresh(kind)], attributes, domain)[0]

    def call(
        self,
        function: str,
        inputs: Sequence[str],
        attributes: dict[str, Attribute],
        outputs: Sequence[str] = (),
        name: str = "",
    ) -> tuple[str, ...]:
        """Append a call of one of our functions and give its outputs."""
        return self.add(function, inputs, outputs or [self._fresh(function)], attributes, ABI, name)

    def integer(self, value: int | Ref) -> str:
        """Give an int64 scalar."""
        return self._constant("value_int", value)

    def number(self, value: float | Ref) -> str:
        """Give a float32 scalar."""
        return self._constant("value_float", value)

    def integers(self, *values: int | Ref) -> str:
        """Give an int64 vector."""
        if not any(isinstance(value, Ref) for value in values):
            return self._constant("value_ints", tuple(v for v in values if isinstance(v, int)))
        parts = [
            self.op("Reshape", [self.integer(v), self.integers(1)], allowzero=0) for v in values
        ]
        return self.op("Concat", parts, axis=0)

    def _constant(self, key: str, value: Attribute) -> str:
        # -0.0 and 0.0, 1 and 1.0 compare equal, but the key tells int from float and no -0.0 is asked for.
        if (key, value) not in self._constants:
            (self._constants[key, value],) = self.add(
                "Constant", [], [self._fresh("Constant")], {key: value}
            )
        return self._constants[key, value]

    def _fresh(self, kind: str) -> str:
        return f"{self._prefix}{kind.lower()}_{len(self.nodes)}"


class Body(Nodes):
    """The body of a local function."""

    def __init__(
        self, name: str, inputs: Sequence[str], outputs: Sequence[str], attributes: Sequence[str]
    ) -> None:
        super().__init__()
        self.name, self.inputs, self.outputs = name, tuple(inputs), tuple(outputs)
        self.attributes = tuple(attributes)

    def function(self) -> onnx.FunctionProto:
        """Give the finished function."""
        opsets = [helper.make_opsetid(domain, version) for domain, version in OPSETS.items()]
        return helper.make_function(
            ABI, self.name, self.inputs, self.outputs, self.nodes, opsets, self.attributes
        )


def body_hash(function: onnx.FunctionProto) -> str:
    """Give the sha256 of a body's deterministic serialisation, in hex."""
    return hashlib.sha256(function.SerializeToString(deterministic=True)).hexdigest()


class DataFile:
    """The file of external tensors beside a graph, each at a multiple of `ALIGNMENT`.

    It is opened for each chunk, so that a source that fails half way leaves no handle behind.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end = 0
        path.write_bytes(b"")

    def reserve(self, size: int) -> int:
        """Give the offset of room for ``size`` bytes."""
        offset = -(-self._end // ALIGNMENT) * ALIGNMENT
        self._end = offset + size
        return offset

    def write(self, offset: int, array: npt.NDArray[Any]) -> int:
        """Write an array at an offset and give the offset after it."""
        with self.path.open("r+b") as file:
            file.seek(offset)
            file.write(np.ascontiguousarray(array).data)
        return offset + array.nbytes


class _Room:
    """Where the bytes of one tensor go, inline or external, as they arrive."""

    def __init__(self, data: DataFile, tensor: TensorProto, size: int) -> None:
        self._data, self._tensor, self._size = data, tensor, size
        self._inline = b""
        self._next = self._start = -1 if size < INLINE_BYTES else data.reserve(size)

    def write(self, array: npt.NDArray[Any]) -> None:
        if self._start < 0:
            self._inline += array.tobytes()
        else:
            self._next = self._data.write(self._next, array)

    def close(self) -> None:
        done = len(self._inline) if self._start < 0 else self._next - self._start
        if done != self._size:
            raise CheckpointError(f"{self._tensor.name}: got {done} bytes; want {self._size}")
        if self._start < 0:
            self._tensor.raw_data = self._inline
        else:
            _point(self._tensor, self._data.path.name, self._start, self._size)


def _point(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Make a tensor external."""
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


class Graph(Nodes):
    """A model under construction, with its weights.

    Parameters
    ----------
    name : str
        ``NAME.onnx`` and ``NAME.bin`` are written into ``folder``.
    """

    def __init__(self, name: str, folder: Path) -> None:
        super().__init__()
        self.name, self.folder = name, folder
        self.data = DataFile(folder / f"{name}.bin")
        self.tensors: dict[str, TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> str:
        """Declare an input of the graph."""
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def output(self, name: str, shape: Sequence[int | str], dtype: int = TensorProto.FLOAT) -> str:
        """Declare an output of the graph."""
        self.outputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def tensor(self, name: str, array: npt.NDArray[Any]) -> str:
        """Add an initializer: uint8, float32, int64, or bfloat16 as uint16."""
        room = self._room(name, _TYPES[array.dtype], array.shape, array.nbytes)
        room.write(array)
        room.close()
        return name

    def floats(self, module: str, matrix: Matrix) -> str:
        """Stream a bfloat16 or float32 matrix [N, K] in; give its name."""
        weight = f"{module}.weight"
        kind = TensorProto.BFLOAT16 if matrix.bits == 16 else TensorProto.FLOAT
        shape = (*matrix.leading, matrix.columns)
        room = self._room(weight, kind, shape, matrix.rows * matrix.row_bytes)
        for chunk, _ in matrix.chunks:
            room.write(chunk)
        room.close()
        return weight

    def matrix(self, module: str, matrix: Matrix, shape: Sequence[int]) -> tuple[str, str]:
        """Stream a matrix and its scales in; give the names of both. ``shape`` is that of the codes."""
        weight, scale = f"{module}.weight", f"{module}.weight_scale"
        if matrix.bits in FLOAT_BITS:
            unused = np.ones((matrix.stacked, 1, 1), np.float32) if matrix.stacked else UNUSED_SCALE
            return self.floats(module, matrix), self.tensor(scale, unused)
        rows = self._room(weight, TensorProto.UINT8, shape, matrix.rows * matrix.row_bytes)
        dims = (*matrix.leading, matrix.scale_columns)
        scales = self._room(scale, TensorProto.FLOAT, dims, 4 * matrix.rows * matrix.scale_columns)
        for chunk, chunk_scale in matrix.chunks:
            rows.write(chunk)
            scales.write(chunk_scale)
        rows.close()
        scales.close()
        return weight, scale

    def refer(self, name: str, other: Path, other_name: str, shape: Sequence[int]) -> str:
        """Add an initializer whose bytes another graph of the folder already keeps."""
        model = onnx.load(other, load_external_data=False)
        (found,) = (t for t in model.graph.initializer if t.name == other_name)
        if math.prod(found.dims) != math.prod(shape):
            raise CheckpointError(
                f"{other_name}: got {list(found.dims)}; want room for {list(shape)}"
            )
        tensor = self.tensors[name] = TensorProto()
        tensor.CopyFrom(found)
        tensor.name = name
        tensor.ClearField("dims")
        tensor.dims.extend(shape)
        return name

    def save(self, functions: Iterable[onnx.FunctionProto], config: dict[str, Any]) -> None:
        """Write the graph; its data is complete before it."""
        graph = helper.make_graph(
            self.nodes, self.name, self.inputs, self.outputs, list(self.tensors.values())
        )
        functions = list(functions)
        model = helper.make_model(
            graph,
            functions=functions,
            ir_version=IR_VERSION,
            opset_imports=[
                helper.make_opsetid(domain, version) for domain, version in OPSETS.items()
            ],
            producer_name=ABI,
        )
        properties = {f"{ABI}.function.{f.name}": body_hash(f) for f in functions}
        helper.set_model_props(model, properties | {f"{ABI}.config": json.dumps(config)})
        (self.folder / f"{self.name}.onnx").write_bytes(model.SerializeToString(deterministic=True))

    def _room(self, name: str, dtype: int, shape: Sequence[int], size: int) -> _Room:
        if name in self.tensors:
            raise ValueError(f"{self.name}: tensor {name} is added twice")
        tensor = self.tensors[name] = TensorProto(name=name, data_type=dtype, dims=shape)
        return _Room(self.data, tensor, size)


def vector(array: F32) -> F32:
    """Flatten to one dimension."""
    return np.ascontiguousarray(array, np.float32).reshape(-1)
