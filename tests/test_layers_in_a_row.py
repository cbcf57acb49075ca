"""Decoder layers of a package that run as one call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgegemma.engine.graphs import DECODER
from edgegemma.engine.model import open_model
from edgegemma.engine.session import EngineModel
from tests import packages


@pytest.mark.parametrize("count", [1, 3])
def test_layers_in_one_call_have_the_bits_of_layers_one_by_one(tmp_path: Path, count: int) -> None:
    opened = open_model(packages.small(tmp_path / "package", "codes"), threads=1)
    assert isinstance(opened, EngineModel)
    steps = opened.decoder_plan(logits=True)
    assert len(steps.stretches) < len(steps.steps)
    tokens = opened.embed(np.arange(5, 5 + count))
    together = opened.forward(*tokens, opened.new_cache())
    opened.passing.add(DECODER)  # weights are let go after each call, so each is one
    np.testing.assert_array_equal(opened.forward(*tokens, opened.new_cache()), together)
