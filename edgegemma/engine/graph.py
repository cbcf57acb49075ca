"""The one ONNX loader of the runtime: a file of an untrusted package to plain values.

After `load` nothing refers to protobuf. Whatever can be said about the bytes has been said: every tensor
lies inside a file of the package, as long as its shape wants, over no other tensor; every name is given
once and before it is used. What the graph *means* is checked by `abi` and where calls are bound.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto

from edgegemma.errors import PackageError, UnsupportedError
from edgegemma.package import Package

FILE_LIMIT_BYTES = 32 << 20  # E2B's decoder has 1.2 MB; parsing takes a few times this
NODE_LIMIT = 1 << 14  # the largest decoder has some 900
RANK_LIMIT = 8
DIMENSION_LIMIT = 1 << 40
ALIGNMENT = 4096

DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.UINT8: "uint8",
    TensorProto.INT64: "int64",
    TensorProto.BFLOAT16: "bfloat16",
}
STORAGE: dict[str, np.dtype[Any]] = {  # numpy has no bfloat16: its bits
    "float32": np.dtype("<f4"),
    "uint8": np.dtype("u1"),
    "int64": np.dtype("<i8"),
    "bfloat16": np.dtype("<u2"),
}
_KINDS: dict[int, str] = {
    AttributeProto.INT: "i",
    AttributeProto.FLOAT: "f",
    AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t",
    AttributeProto.INTS: "ints",
    AttributeProto.FLOATS: "floats",
}


@dataclass(frozen=True)
class Tensor:
    """A constant. Its bytes are ``data``, or a range of the package's file ``location``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes | None
    location: str = ""
    offset: int = 0
    length: int = 0

    def array(self, package: Package) -> NDArray[Any]:
        """Give the values without a copy: a read-only view of the map or of the graph's own bytes.

        Returns
        -------
        float32, uint8, int64, or uint16 for bfloat16, of the tensor's shape
        """
        if self.data is not None:
            flat = np.frombuffer(self.data, STORAGE[self.dtype])
        else:
            mapped = package.map(self.location)[self.offset : self.offset + self.length]
            flat = mapped.view(STORAGE[self.dtype])
        return flat.reshape(self.shape)


@dataclass(frozen=True)
class Value:
    """An input or output of the graph; a dimension is a number or the name of one."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Node:
    """A call of an op or function."""

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Function:
    """A local function: its body is known by its sha256 only."""

    name: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class Graph:
    """A graph file. Nodes are in an order in which they can run."""

    name: str
    ir_version: int
    opsets: Mapping[str, int]
    inputs: Mapping[str, Value]
    outputs: Mapping[str, Value]
    nodes: tuple[Node, ...]
    functions: Mapping[str, Function]
    tensors: Mapping[str, Tensor]

    @property
    def files(self) -> set[str]:
        """Names of the files that its tensors are in, those inside the graph left out."""
        return {tensor.location for tensor in self.tensors.values() if tensor.data is None}

    @cached_property
    def constants(self) -> Mapping[str, Node]:
        """The nodes that are constants, by the names they give."""
        own = (node for node in self.nodes if node.op == "Constant" and not node.domain)
        return {name: node for node in own if not node.inputs for name in node.outputs}


_Named = TypeVar("_Named", Value, Function, Tensor)


def load(package: Package, name: str) -> Graph:
    """Read a graph file of a package.

    Raises
    ------
    PackageError
        The file is not a graph, or what it says about its tensors or names does not hold.
    UnsupportedError
        It has parts no package has: subgraphs, sparse tensors, other types.
    """
    data = package.read(name, FILE_LIMIT_BYTES)
    try:
        graph = _graph(package, name, onnx.ModelProto.FromString(data))
    except PackageError:
        raise
    except Exception as error:  # what protobuf raises on wild bytes differs by its version
        raise PackageError(f"{name}: not an ONNX file: {error}; copy the package again") from error
    _check_names(graph)
    check_ranges([graph])
    return graph


def check_ranges(graphs: Iterable[Graph]) -> None:
    """Refuse tensors that overlap. Two may be exactly the same bytes: a tied head is its table."""
    external = {
        (tensor.location, tensor.offset, tensor.length): tensor.name
        for graph in graphs
        for tensor in graph.tensors.values()
        if tensor.data is None and tensor.length
    }
    before, end, before_name = "", 0, ""
    for (location, offset, length), name in sorted(external.items()):
        if location == before and offset < end:
            raise PackageError(f"{location}: {name}: got bytes that {before_name} has too")
        before, end, before_name = location, offset + length, name


def _graph(package: Package, name: str, model: onnx.ModelProto) -> Graph:
    proto = model.graph
    for part in (proto.sparse_initializer, proto.quantization_annotation, model.training_info):
        if len(part):
            raise UnsupportedError(f"{name}: got {part[0].DESCRIPTOR.name}; want none")
    if len(proto.node) > NODE_LIMIT:
        raise PackageError(f"{name}: got {len(proto.node):,} nodes; want at most {NODE_LIMIT:,}")
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    functions = [_function(function) for function in model.functions]
    return Graph(
        name,
        model.ir_version,
        opsets,
        _unique(name, "input", (_value(name, value) for value in proto.input)),
        _unique(name, "output", (_value(name, value) for value in proto.output)),
        tuple(_node(name, node) for node in proto.node),
        _unique(name, "function", functions),
        _unique(name, "tensor", (_tensor(package, name, t) for t in proto.initializer)),
    )


def _unique(where: str, kind: str, items: Iterable[_Named]) -> dict[str, _Named]:
    found: dict[str, _Named] = {}
    for item in items:
        if item.name in found or not item.name:
            raise PackageError(f"{where}: got {kind} {item.name!r} twice or without a name")
        found[item.name] = item
    return found


def _function(proto: onnx.FunctionProto) -> Function:
    digest = hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
    return Function(proto.name, proto.domain, tuple(proto.input), tuple(proto.output), digest)


def _value(where: str, proto: onnx.ValueInfoProto) -> Value:
    kind = proto.type.tensor_type
    if proto.type.WhichOneof("value") != "tensor_type" or kind.elem_type not in DTYPES:
        raise UnsupportedError(f"{where}: {proto.name!r}: not a tensor of a known type")
    shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim)
    return Value(proto.name, DTYPES[kind.elem_type], shape)


def _node(where: str, proto: onnx.NodeProto) -> Node:
    name = proto.name or proto.op_type
    attributes = {}
    for attribute in proto.attribute:
        field = _KINDS.get(attribute.type)
        if field is None or attribute.ref_attr_name or attribute.name in attributes:
            raise UnsupportedError(
                f"{where}: {name!r}: attribute {attribute.name!r}: got a subgraph, a reference or "
                "another unknown kind; want one number, text or tensor"
            )
        attributes[attribute.name] = _attribute(where, name, field, attribute)
    inputs, outputs = tuple(proto.input), tuple(proto.output)
    return Node(proto.op_type, proto.domain, name, inputs, outputs, attributes)


def _attribute(where: str, node: str, field: str, proto: AttributeProto) -> Any:
    value = getattr(proto, field)
    if field == "t":
        tensor = _inline(f"{where}: {node!r}: {proto.name}", value)
        return np.frombuffer(tensor.data or b"", STORAGE[tensor.dtype]).reshape(tensor.shape)
    if field == "s":
        return bytes(value).decode()
    return tuple(value) if field in ("ints", "floats") else value


def _tensor(package: Package, where: str, proto: TensorProto) -> Tensor:
    if proto.data_location != TensorProto.EXTERNAL:
        return _inline(f"{where}: {proto.name}", proto)
    place = f"{where}: {proto.name}"
    dtype, shape, size = _layout(place, proto)
    entries = {entry.key: entry.value for entry in proto.external_data}
    location = entries.get("location", "")
    if location not in package.members:
        raise PackageError(f"{place}: got data in {location!r}; want a file of the manifest")
    offset, length = (_count(place, key, entries.get(key, "")) for key in ("offset", "length"))
    if length != size:
        raise PackageError(f"{place}: got {length} bytes; want {size} for {dtype} {list(shape)}")
    if offset % ALIGNMENT:
        raise PackageError(f"{place}: got offset {offset}; want a multiple of {ALIGNMENT}")
    have = package.members[location].size
    if offset + length > have:
        raise PackageError(
            f"{place}: got bytes {offset} to {offset + length} of {location}; want at most {have}"
        )
    return Tensor(proto.name, dtype, shape, None, location, offset, length)


def _inline(place: str, proto: TensorProto) -> Tensor:
    dtype, shape, size = _layout(place, proto)
    if proto.data_location == TensorProto.EXTERNAL or len(proto.raw_data) != size:
        raise PackageError(
            f"{place}: got {len(proto.raw_data)} raw bytes; want {size} for {dtype} {list(shape)}"
        )
    return Tensor(proto.name, dtype, shape, bytes(proto.raw_data))


def _layout(place: str, proto: TensorProto) -> tuple[str, tuple[int, ...], int]:
    """Type, shape and bytes of a tensor. Python's integers cannot overflow."""
    dtype, shape = DTYPES.get(proto.data_type), tuple(proto.dims)
    if dtype is None or proto.HasField("segment"):
        raise UnsupportedError(
            f"{place}: got type {proto.data_type}; want one of {sorted(STORAGE)}"
        )
    if len(shape) > RANK_LIMIT or not all(0 < d <= DIMENSION_LIMIT for d in shape):
        raise PackageError(
            f"{place}: got shape {list(shape)}; want sizes of 1 to {DIMENSION_LIMIT}"
        )
    return dtype, shape, math.prod(shape) * STORAGE[dtype].itemsize


def _count(place: str, key: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise PackageError(f"{place}: {key}: got {text[:40]!r}; want a number of bytes")
    return int(text)


def _check_names(graph: Graph) -> None:
    """Every value is given once, before it is used: so there are no cycles either."""
    known = set(graph.tensors)
    given = [list(graph.inputs), *(list(node.outputs) for node in graph.nodes)]
    for i, names in enumerate(given):
        if i and (missing := set(graph.nodes[i - 1].inputs) - known - {""}):
            node = graph.nodes[i - 1].name
            raise PackageError(
                f"{graph.name}: {node!r}: input {min(missing)!r} is not given before it is used"
            )
        for name in names:
            if name in known or not name:
                raise PackageError(f"{graph.name}: value {name!r} is given twice or without a name")
            known.add(name)
    if missing := set(graph.outputs) - known:
        raise PackageError(f"{graph.name}: nothing gives the output {min(missing)!r}")
