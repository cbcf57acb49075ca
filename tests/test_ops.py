"""The glue ops against ONNX's own reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from edgegemma.engine import abi
from edgegemma.engine.ops import FAILURES, OPS, VIEWS, reshape_view

X = np.arange(24, dtype=np.float32).reshape(1, 6, 4)
Array = NDArray[Any]


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


CASES: list[tuple[str, dict[str, Any], list[Array], int]] = [
    ("Cast", {"to": TensorProto.INT64}, [X], 1),
    ("Cast", {"to": TensorProto.FLOAT}, [ints(1, 2)], 1),
    ("Constant", {"value_int": 7}, [], 1),
    ("Constant", {"value_ints": [1, 2]}, [], 1),
    ("Constant", {"value_float": 0.5}, [], 1),
    ("Constant", {"value_floats": [0.5]}, [], 1),
    ("Identity", {}, [X], 1),
    ("Neg", {}, [X], 1),
    ("Neg", {}, [np.array(3, np.int64)], 1),
    ("Reshape", {"allowzero": 0}, [X, ints(0, 0, 2, 2)], 1),
    ("Reshape", {}, [X, ints(-1)], 1),
    ("Slice", {}, [X, ints(-2), ints(2**63 - 1), ints(1)], 1),
    ("Slice", {}, [X, ints(0, 1), ints(1, 3)], 1),
    ("Slice", {}, [X, ints(1), ints(-1), ints(-1), ints(1)], 1),
    ("Split", {"axis": 1}, [X, ints(1, 2, 3)], 3),
    ("Split", {}, [X, ints(1)], 1),
    ("Squeeze", {}, [X, ints(0)], 1),
    ("Unsqueeze", {}, [X, ints(0, -1)], 1),
]


@pytest.mark.parametrize(("op", "attributes", "inputs", "count"), CASES)
def test_an_op_gives_what_onnx_says(
    op: str, attributes: dict[str, Any], inputs: list[Array], count: int
) -> None:
    names = [f"i{i}" for i in range(len(inputs))]
    outputs = [f"o{i}" for i in range(count)]
    node = helper.make_node(op, names, outputs, **attributes)
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for n, x in zip(names, inputs, strict=True)
    ]
    results = [helper.make_tensor_value_info(n, TensorProto.UNDEFINED, None) for n in outputs]
    model = helper.make_model(
        helper.make_graph([node], "g", infos, results),
        opset_imports=[helper.make_opsetid("", abi.OPSETS[""])],
    )
    want = ReferenceEvaluator(model).run(None, dict(zip(names, inputs, strict=True)))
    got = OPS[op](attributes, inputs)
    for a, b in zip(got, want, strict=True):
        assert a is not None
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_every_glue_op_is_there_and_tested() -> None:
    assert set(OPS) == abi.GLUE == {case[0] for case in CASES}


@pytest.mark.parametrize(
    ("op", "attributes", "inputs"),
    [
        ("Cast", {"to": TensorProto.BFLOAT16}, [X]),
        ("Cast", {}, [X]),
        ("Cast", {"to": 99}, [X]),
        ("Constant", {"value_string": b"x"}, []),
        ("Constant", {"value_int": 1, "value_float": 1.0}, []),
        ("Constant", {}, []),
        ("Neg", {}, []),
        ("Reshape", {}, [X, ints(5, 5)]),
        ("Reshape", {}, [X, ints(1, 1, 1, 1, 0)]),
        ("Reshape", {}, [X, ints(2**62, 2**62)]),
        ("Reshape", {}, [X, X]),
        ("Slice", {}, [X, ints(0), ints(9), ints(0), ints(2)]),
        ("Slice", {}, [X, ints(0), ints(9), ints(7)]),
        ("Slice", {}, [X, ints(0), ints(9, 9)]),
        ("Split", {"axis": 1}, [X, ints(1, 2)]),
        ("Split", {"axis": 1}, [X, ints(7, -1)]),
        ("Split", {"axis": 9}, [X, ints(1)]),
        ("Split", {}, [X]),
        ("Squeeze", {}, [X, ints(1)]),
        ("Squeeze", {}, [X, ints(-9)]),
        ("Unsqueeze", {}, [X, ints(0, 0)]),
    ],
)
def test_values_that_do_not_fit_fail_as_expected(
    op: str, attributes: dict[str, Any], inputs: list[Array]
) -> None:
    with pytest.raises(FAILURES):
        OPS[op](attributes, inputs)


def test_a_reshape_that_would_copy_is_refused_where_a_view_is_wanted() -> None:
    x = np.arange(24.0).reshape(4, 6)
    (view,) = reshape_view({}, [x, ints(2, -1)])
    assert view is not None
    assert np.shares_memory(view, x)
    with pytest.raises(ValueError, match="copy"):
        reshape_view({}, [x[:, 1:], ints(-1)])


@pytest.mark.parametrize("op", sorted(VIEWS))
def test_ops_that_need_not_wait_give_views(op: str) -> None:
    x = np.arange(24.0).reshape(4, 1, 6)[::2, :, 1:]  # not in a row
    others = {
        "Identity": [],
        "Slice": [ints(1), ints(9), ints(0)],
        "Split": [ints(1, 1)],
        "Squeeze": [ints(1)],
        "Unsqueeze": [ints(1)],
    }
    for part in OPS[op]({}, [x, *others[op]]):
        assert part is not None
        assert np.shares_memory(part, x)


def test_a_cast_of_nothing_real_is_silent() -> None:
    (got,) = OPS["Cast"]({"to": TensorProto.INT64}, [np.array([np.nan, np.inf], np.float32)])
    assert got is not None
    assert got.dtype == np.int64


def test_opset_23_is_known_to_this_onnx() -> None:
    assert onnx.defs.onnx_opset_version() >= abi.OPSETS[""]
