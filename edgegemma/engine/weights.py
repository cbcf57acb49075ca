"""The weights and attributes of one function call, by the function's own names, each checked before use.

Nothing is copied: a matrix is a view of the memory map, a small vector one of the graph's own bytes. Both
are read-only, so that a kernel compiles once for either.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegemma.engine.graph import Graph, Node, Tensor
from edgegemma.errors import PackageError, UnsupportedError
from edgegemma.kernels.experts import ExpertCodes, ExpertFloats, Experts
from edgegemma.kernels.linear import EXACT, CodeMatrix, FloatMatrix, Matrix
from edgegemma.package import Package

F32 = NDArray[np.float32]
CODE_BITS = (2, 4, 8)
FLOATS = {16: "bfloat16", 32: "float32"}
SIZE_LIMIT = 1 << 24  # of any attribute that counts something


class Weights:
    """What a function call is bound to.

    Attributes
    ----------
    node : Node
    reads : dict
        Bytes of the weights taken so far that every run reads, by kind.
    expert_bytes : int
        Bytes of one expert's weights taken so far: how many are read is known after the run.
    """

    def __init__(self, package: Package, graph: Graph, node: Node) -> None:
        function = graph.functions[node.op]
        names, results = function.inputs, function.outputs
        if (len(names), len(results)) != (len(node.inputs), len(node.outputs)) or "" in node.inputs:
            raise PackageError(
                f"{graph.name}: {node.name!r}: got {len(node.inputs)} inputs and "
                f"{len(node.outputs)} outputs; want {len(names)} and {len(results)}"
            )
        self.node, self.reads, self.expert_bytes = node, dict[str, int](), 0
        self.values = dict(zip(names, node.inputs, strict=True))
        self._package, self._graph = package, graph
        self._taken: set[str] = set()

    def integer(self, name: str, lowest: int = 1) -> int:
        """Give an attribute that counts something."""
        value = self._attribute(name, int)
        if not lowest <= value <= SIZE_LIMIT:
            raise self.wrong(name, value, f"{lowest} to {SIZE_LIMIT}")
        return int(value)

    def number(self, name: str) -> float:
        """Give a float attribute."""
        value = self._attribute(name, float)
        if not np.isfinite(value) or value < 0:
            raise self.wrong(name, value, "a finite number from 0 on")
        return float(value)

    def vector(self, name: str, *shape: int) -> F32:
        """Give small weights: norms, kernels of convolutions, scales.

        Returns
        -------
        float32, of the shape
        """
        array: F32 = self._array(name, "float32", *shape)
        self._count("vector", array.nbytes)
        return array

    def linear(self, name: str, outputs: int, inputs: int, kind: str = "linear") -> Matrix:
        """Give the matrix of linear ``NAME``, after its three inputs and four attributes agree.

        Parameters
        ----------
        name : str
        outputs, inputs : int
            N and K that the other weights want.
        kind : str
            Under which it counts in `reads`.
        """
        w = self._matrix(name, (outputs,), inputs)
        self._count(kind, _size(w))
        return w

    def experts(self, name: str, count: int, outputs: int, inputs: int) -> Experts:
        """Give the matrices of linear ``NAME`` of all experts; each one's bytes count in `expert_bytes`."""
        w = self._matrix(name, (count, outputs), inputs)
        self.expert_bytes += _size(w) // count
        return ExpertCodes(*w) if isinstance(w, CodeMatrix) else ExpertFloats(*w)

    def clipped(self, name: str, outputs: int, inputs: int) -> tuple[Matrix, F32]:
        """Give the matrix of clipped linear ``NAME`` and its four bounds."""
        return self.linear(name, outputs, inputs), self._array(f"{name}_clip", "float32", 4)

    def floats(self, name: str, outputs: int, inputs: int) -> FloatMatrix:
        """Give a matrix that is float in every package."""
        if (dtype := self.tensor(name).dtype) not in FLOATS.values():
            raise self.wrong(name, dtype, "bfloat16 or float32")
        rows = self._array(name, dtype, outputs, inputs)
        self._count("float", rows.nbytes)
        return FloatMatrix(rows, _OFF)

    def tensor(self, name: str) -> Tensor:
        """Give the constant behind an input of the function."""
        self._taken.add(name)
        value = self.values[name]
        if value not in self._graph.tensors:
            raise PackageError(f"{self._where}: {name}: got a computed value; want a weight")
        return self._graph.tensors[value]

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """Give the shape of a weight that no attribute tells."""
        shape = self.tensor(name).shape
        if len(shape) != rank:
            raise self.wrong(name, list(shape), f"{rank} dimensions")
        return shape

    def given(self, *names: str) -> tuple[str, ...]:
        """Give the graph's names of inputs that are values, not weights.

        Raises
        ------
        UnsupportedError
            One of the function's inputs or attributes was not asked for: this engine misreads the ABI.
        """
        attributes = self.node.attributes.keys()
        unused = (self.values.keys() | attributes) - self._taken - set(names)
        if unused:
            raise UnsupportedError(f"{self._where}: unknown input or attribute {min(unused)!r}")
        for name in names:
            if self.values[name] in self._graph.tensors:
                raise PackageError(f"{self._where}: {name}: got a weight; want a computed value")
        return tuple(self.values[name] for name in names)

    def wrong(self, name: str, got: object, want: object) -> PackageError:
        """Make the error of a part that is not as it should be; names its tensor if it has one."""
        tensor = self.values.get(name, name)
        return PackageError(f"{self._where}: {tensor}: got {got}; want {want}")

    def _matrix(self, name: str, leading: tuple[int, ...], inputs: int) -> Matrix:
        """Check the inputs and attributes of linear ``NAME``, whose tensors are [*leading, K] or in blocks of K."""
        for field, want in (("in", inputs), ("out", leading[-1])):
            if (got := self.integer(f"{name}_{field}")) != want:
                raise self.wrong(f"{name}_{field}", got, want)
        bits, block = self.integer(f"{name}_bits"), self.integer(f"{name}_block", 0)
        activation = self._array(f"{name}_activation", "float32", 2)
        if bits in CODE_BITS:
            codes, scale = self._codes(name, leading, inputs, bits, block)
            return CodeMatrix(codes, scale, activation, bits, block)
        if bits not in FLOATS or block:
            raise self.wrong(f"{name}_bits", bits, f"one of {CODE_BITS}, or 16 or 32 in block 0")
        self._array(f"{name}_scale", "float32", *leading[:-1], 1, 1)
        return FloatMatrix(
            self._array(f"{name}_weight", FLOATS[bits], *leading, inputs), activation
        )

    def _codes(
        self, name: str, leading: tuple[int, ...], inputs: int, bits: int, block: int
    ) -> tuple[NDArray[np.uint8], F32]:
        if inputs >= EXACT:
            raise self.wrong(f"{name}_in", inputs, f"less than {EXACT}: sums are whole numbers")
        if not block or block % 16 or inputs % block:
            raise self.wrong(f"{name}_block", block, f"a multiple of 16 that divides {inputs}")
        blocks, width = inputs // block, block * bits // 8
        codes = self._array(f"{name}_weight", "uint8", *leading, blocks, width)
        columns = self.tensor(f"{name}_scale").shape[-1:]
        if columns not in ((1,), (blocks,)):
            raise self.wrong(f"{name}_scale", columns, f"1 or {blocks} columns")
        scale = self._array(f"{name}_scale", "float32", *leading, *columns)
        return codes.reshape(*leading, blocks * width), scale

    def _array(self, name: str, dtype: str, *shape: int) -> NDArray[Any]:
        tensor = self.tensor(name)
        if (tensor.dtype, tensor.shape) != (dtype, shape):
            got = f"{tensor.dtype} {list(tensor.shape)}"
            raise self.wrong(name, got, f"{dtype} {list(shape)}")
        return tensor.array(self._package)

    def _attribute(self, name: str, kind: type) -> Any:
        self._taken.add(name)
        value = self.node.attributes.get(name)
        if not isinstance(value, kind):
            raise self.wrong(name, type(value).__name__, f"{kind.__name__}")
        return value

    def _count(self, kind: str, size: int) -> None:
        self.reads[kind] = self.reads.get(kind, 0) + size

    @property
    def _where(self) -> str:
        return f"{self._graph.name}: {self.node.name}"


_OFF: F32 = np.frombuffer(bytes(8), np.float32)  # no static activation scales


def _size(w: Matrix) -> int:
    """Bytes of a matrix and its scales."""
    return w.codes.nbytes + w.scale.nbytes if isinstance(w, CodeMatrix) else w.rows.nbytes
