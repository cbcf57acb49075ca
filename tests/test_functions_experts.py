"""The body of MoEFeedForward alone in onnxruntime, against plain numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgegemma.kernels.experts import ExpertFloats, MoEFeedForwardWeights, expert_shape
from edgegemma.kernels.reference_experts import moe_feed_forward
from export.builder import Attribute
from tests.layers import Maker
from tests.test_functions import EPS, OFF, Arrays, call, draw, sizes


def expert_case(
    kind: str, static: bool
) -> tuple[MoEFeedForwardWeights, Arrays, dict[str, Attribute]]:
    """Give 5 experts, their tensors and their attributes."""
    w = Maker(3, kind).experts(64, 32, 5, 2)
    weights: Arrays = {
        name: value for name, value in w._asdict().items() if isinstance(value, np.ndarray)
    }
    weights["router_weight"] = w.router.rows
    attributes: dict[str, Attribute] = {"experts": 5, "top_k": 2, **EPS}
    for name in ("expert_gate_up", "expert_down"):
        stacked = getattr(w, name)
        if not static:
            stacked = stacked._replace(activation=OFF)
            w = w._replace(**{name: stacked})
        count, n, k = expert_shape(stacked)
        weights[f"{name}_activation"] = stacked.activation
        if isinstance(stacked, ExpertFloats):
            weights[f"{name}_weight"] = stacked.rows
            weights[f"{name}_scale"] = np.ones((count, 1, 1), np.float32)
            found = sizes(n, k, 16, 0)
        else:
            weights[f"{name}_weight"] = stacked.codes.reshape(count, n, k // stacked.block, -1)
            weights[f"{name}_scale"] = stacked.scale
            found = sizes(n, k, stacked.bits, stacked.block)
        attributes |= {f"{name}_{key}": value for key, value in found.items()}
    return w, weights, attributes


@pytest.mark.parametrize("kind", ["float", "codes"])
@pytest.mark.parametrize("static", [False, True])
def test_experts_are_those_of_the_definition(tmp_path: Path, kind: str, static: bool) -> None:
    w, weights, attributes = expert_case(kind, static)
    x, inputs = draw(4, 1, 7, 64), "hidden_states"
    (y,) = call(tmp_path, "MoEFeedForward", {inputs: x}, weights, attributes, kind == "codes")
    want = moe_feed_forward(x[0], w)
    assert np.median(np.abs(y[0] - want)) < 1e-6
    assert np.abs(y[0] - want).max() < (0.1 if static else 1e-5)  # a tie falls on either side
