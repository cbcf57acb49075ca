"""Each call of a package in the engine and in onnxruntime, on the same inputs.

Whole models cannot be compared closely: an activation that one executor rounds to the next int8 code makes
all later roundings of its row independent, and through the layers the difference grows to that of the
rounding itself. So every call is run alone: a `Recorder` writes down what each took and gave in the
engine, and onnxruntime runs a model of that one call, its weights where they are, on what it took.
Rounding still shows inside a decoder layer. How far it can carry is measured, on the layer itself, by moving its
inputs a little; and every linear inside is compared once more by itself, where nothing can grow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, inliner

from edgegemma.engine.abi import DOMAIN
from edgegemma.engine.graph import Graph
from edgegemma.kernels import reference
from edgegemma.kernels.linear import CodeMatrix, FloatMatrix, Matrix, linear
from edgegemma.package import Package
from export.exact import exact_linear_body
from export.recording import Array, Recorder, Seen

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Feeds = Mapping[str, Array]
Kinds = Mapping[str, Any]

NOISE = 1e-5
"""Share by which inputs are moved to see what a call makes of it: 100 float32 roundings."""
CODE_NOISE = 1e-4
"""The same where activations are rounded to int8: so much that what can fall on the other side does in a trial."""
TRIALS = 3
ROOM = 3.0
"""How many times further the engine may be from onnxruntime than that is from itself with its inputs moved."""
FLOAT_LIMIT = 1e-5
"""What sums in another order may make, relative to the values: some tens of float32's last bit."""
LINEAR_LIMIT = 2.0**-20
"""What they may make in one output of a linear, relative to the sum of its terms' sizes: 16 roundings. One code of one
weight makes 1 / (K · 2^bits) on average: 2e-5 in the widest row of 2 bits, 2.5e-6 in that of 8."""
_FOLDER = "session.model_external_initializers_file_folder_path"
_ERRORS_ONLY = 3


@dataclass(frozen=True)
class Difference:
    """How far apart the executors are in one call or one linear, relative; and how far they may be."""

    where: str
    got: float
    limit: float

    @property
    def share(self) -> float:
        """Give the part of the limit that is used; infinite if either is not a finite number."""
        if not (np.isfinite(self.got) and np.isfinite(self.limit)):
            return float("inf")
        return self.got / max(self.limit, np.finfo(float).tiny)


def compare(recorder: Recorder, path: Path) -> Iterator[Difference]:
    """Compare all that a recorder saw with onnxruntime on the package at ``path``, call by call."""
    for name, seen in recorder.seen.items():
        source = onnx.load(path / name, load_external_data=False)
        nodes = {node.output[0]: node for node in source.graph.node}
        for key, entry in seen.items():
            model = _call(source, nodes[key], entry)
            session = _session(model, path, recorder.threads)
            theirs = _run(session, entry.inputs)
            where = f"{name}: {entry.node.name or key}"
            yield from _whole(where, session, entry, theirs, noise_of(source))
            del session  # before the next one packs its weights
            for inner in model.graph.node:
                if inner.op_type == "Linear":
                    runs = [{**f, **t} for f, t in zip(entry.inputs, theirs, strict=True)]
                    yield _linear(inner, runs, recorder.graph(name), recorder.package)


def _call(source: ModelProto, node: NodeProto, seen: Seen) -> ModelProto:
    """Make a model of one node with the weights and constants it names, inlined down to its linears.

    Its outputs are the node's, and what each linear takes and gives.
    """
    weights = [tensor for tensor in source.graph.initializer if tensor.name in node.input]
    kinds = {name: array.dtype for name, array in seen.outputs[0].items()}
    inputs = {name: array.dtype for name, array in seen.inputs[0].items()}
    bound = [one for one in source.graph.node if one.op_type == "Constant"]
    nodes = [*(one for one in bound if one.output[0] in node.input), node]
    graph = helper.make_graph(nodes, "call", _values(inputs), _values(kinds), weights)
    functions = [_spelled_out(function) for function in source.functions]
    model = helper.make_model(
        graph,
        ir_version=source.ir_version,
        opset_imports=source.opset_import,
        functions=functions,
    )
    model = inliner.inline_selected_functions(model, [(DOMAIN, "Linear")], exclude=True)
    linears = [inner for inner in model.graph.node if inner.op_type == "Linear"]
    values = {name for inner in linears for name in (inner.input[0], inner.output[0])}
    floats = dict.fromkeys(sorted(values - set(inputs) - set(kinds)), np.dtype(np.float32))
    model.graph.output.extend(_values(floats))
    return model


def _spelled_out(function: onnx.FunctionProto) -> onnx.FunctionProto:
    return exact_linear_body() if _rounds(function) else function


def _rounds(function: onnx.FunctionProto) -> bool:
    return any(node.op_type == "MatMulNBits" for node in function.node)


def _values(kinds: Kinds) -> list[onnx.ValueInfoProto]:
    types = {name: helper.np_dtype_to_tensor_dtype(kind) for name, kind in kinds.items()}
    return [helper.make_tensor_value_info(name, kind, None) for name, kind in types.items()]


def _session(model: ModelProto, path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry(_FOLDER, str(path))
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def _run(session: onnxruntime.InferenceSession, runs: Sequence[Feeds]) -> list[dict[str, Array]]:
    taken = {value.name for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    results = []
    for feeds in runs:
        given = {name: array for name, array in feeds.items() if name in taken}
        results.append(dict(zip(names, session.run(names, given), strict=True)))
    return results


def noise_of(source: ModelProto) -> float:
    """Give the share by which inputs of this graph's calls are moved."""
    return CODE_NOISE if any(map(_rounds, source.functions)) else NOISE


def _whole(
    where: str,
    session: onnxruntime.InferenceSession,
    seen: Seen,
    theirs: Sequence[Feeds],
    noise: float,
) -> Iterator[Difference]:
    """Compare the outputs of a call. Ops between calls only move values: these are equal."""
    rng = np.random.default_rng(0)
    trials = TRIALS if seen.node.domain else 0
    runs = [_run(session, [_moved(rng, f, noise) for f in seen.inputs]) for _ in range(trials)]
    for key in seen.node.outputs:
        want = _flat(theirs, key)
        limit = max((ROOM * apart(_flat(trial, key), want) for trial in runs), default=0.0)
        limit = max(limit, FLOAT_LIMIT) if trials else 0.0
        several = len(seen.node.outputs) > 1
        yield Difference(
            f"{where}, {key}" if several else where, apart(_flat(seen.outputs, key), want), limit
        )


def _moved(rng: np.random.Generator, feeds: Feeds, noise: float) -> dict[str, Array]:
    floats = {name: array for name, array in feeds.items() if array.dtype == np.float32}
    return {**feeds, **{name: moved(rng, array, noise) for name, array in floats.items()}}


def moved(rng: np.random.Generator, x: F32, noise: float) -> F32:
    """Move every number by a share of itself."""
    factor: F32 = 1 + np.float32(noise) * rng.standard_normal(x.shape, np.float32)
    return x * factor


def _flat(runs: Sequence[Feeds], key: str) -> Array:
    return np.concatenate([feeds[key].reshape(-1) for feeds in runs])


def apart(one: Array, other: Array) -> float:
    """Give the difference of two results relative to the size of the second; infinite if it is not finite."""
    if one.shape != other.shape or not (np.isfinite(one).all() and np.isfinite(other).all()):
        return float("inf")
    if np.array_equal(one, other):
        return 0.0
    a, b = one.astype(np.float64), other.astype(np.float64)
    far = np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), np.finfo(float).tiny)
    return float(far) if np.isfinite(far) else float("inf")


def _linear(node: NodeProto, runs: Sequence[Feeds], graph: Graph, package: Package) -> Difference:
    """Compare one linear, each output at its median position.

    A wrong weight is wrong at every position; a result that a static scale rounds the other way, at one.
    """
    sizes = {attribute.name: int(attribute.i) for attribute in node.attribute}
    x = np.concatenate([feeds[node.input[0]].reshape(-1, sizes["in"]) for feeds in runs])
    theirs = np.concatenate([feeds[node.output[0]].reshape(-1, sizes["out"]) for feeds in runs])
    w = _matrix(node, sizes, graph, package)
    error = np.abs(linear(x, w).astype(np.float64) - theirs) / _terms(x, w)
    worst = float(np.median(error, axis=0).max(initial=0.0))
    where = f"{graph.name}: {node.input[1].removesuffix('.weight')}"
    return Difference(where, worst if np.isfinite(error).all() else float("inf"), LINEAR_LIMIT)


def _matrix(node: NodeProto, sizes: Mapping[str, int], graph: Graph, package: Package) -> Matrix:
    """Give the engine's matrix of a Linear."""
    weight, scale, activation = (graph.tensors[name].array(package) for name in node.input[1:4])
    if not sizes["block"]:
        return FloatMatrix(weight, activation)
    codes = weight.reshape(len(weight), -1)
    return CodeMatrix(codes, scale, activation, sizes["bits"], sizes["block"])


def _terms(x: F32, w: Matrix) -> F64:
    """Bound the sum of the sizes of each output's terms: float64 [M, N].

    For codes without unpacking them: onnxruntime adds up codes from 0 to 2^bits - 1 and takes the offset off.
    """
    tiny = np.finfo(np.float64).tiny
    if isinstance(w, FloatMatrix):
        terms = np.abs(x).astype(np.float64) @ np.abs(reference.widen(w.rows)).T
        return np.asarray(terms + tiny)
    q, step = reference.quantize_activations(x, w.activation[0], w.block)
    sizes = np.abs(q).reshape(len(x), -1, w.block).sum(axis=2) + (127 if w.activation[0] else 0)
    scale = np.broadcast_to(np.abs(w.scale), (len(w.scale), step.shape[1]))
    return np.asarray((sizes * step) @ scale.T.astype(np.float64) * 2.0**w.bits + tiny)
