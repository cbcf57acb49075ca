"""Single ops on onnxruntime, to compare our kernels with."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

F32 = NDArray[np.float32]


def mat_mul_nbits(codes: NDArray[np.uint8], scale: F32, bits: int, block: int, threads: int) -> Any:
    """Make a function of x float32 [M, K] that runs ``MatMulNBits``, accuracy level 4.

    Parameters
    ----------
    codes : uint8 [N, K*bits/8]
    scale : float32 [N, 1]
        Given to each of the op's blocks.
    """
    rows = codes.shape[0]
    columns = codes.shape[1] * 8 // bits
    blocks = columns // block
    node = helper.make_node(
        "MatMulNBits", ["x", "codes", "scales"], ["y"], domain="com.microsoft",
        K=columns, N=rows, bits=bits, block_size=block, accuracy_level=4,
    )  # fmt: skip
    weights = [
        numpy_helper.from_array(codes.reshape(rows, blocks, -1), "codes"),
        numpy_helper.from_array(np.repeat(scale, blocks, 1).reshape(-1), "scales"),
    ]
    session = _session(node, {"x": ["M", columns]}, ["M", rows], weights, threads)
    return lambda x: session.run(["y"], {"x": x})[0]


def attention(heads: int, kv_heads: int, dim: int, threads: int) -> Any:
    """Make a function of q [1, heads, S, D], k and v [1, kv_heads, T, D] that runs ``Attention``, scale 1."""
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], scale=1.0, is_causal=0)
    shapes: dict[str, list[int | str]] = {
        "q": [1, heads, "S", dim],
        "k": [1, kv_heads, "T", dim],
        "v": [1, kv_heads, "T", dim],
    }
    session = _session(node, shapes, [1, heads, "S", dim], [], threads)
    return lambda q, k, v: session.run(["y"], {"q": q, "k": k, "v": v})[0]


def _session(
    node: onnx.NodeProto,
    inputs: dict[str, list[int | str]],
    output: list[int | str],
    weights: list[onnx.TensorProto],
    threads: int,
) -> onnxruntime.InferenceSession:
    given = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, output)
    graph = helper.make_graph([node], "op", given, [result], weights)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
