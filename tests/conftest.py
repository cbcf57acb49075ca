"""Packages of the tiny checkpoints, exported once for each test session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from tests import tiny

# The same examples in every run, and no opinion on how long one takes.
settings.register_profile("edgegemma", deadline=None, derandomize=True)
settings.load_profile("edgegemma")

Exporter = Callable[[str, str], Path]
Golden = dict[str, NDArray[Any]]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write a tiny checkpoint (`tests.tiny.VARIANTS`) once and return its folder."""
    root = tmp_path_factory.mktemp("checkpoints")

    def write(variant: str) -> Path:
        folder = root / variant
        return folder if folder.exists() else tiny.write_checkpoint(variant, folder)

    return write


@pytest.fixture(scope="session")
def package(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Exporter:
    """Export a tiny checkpoint with a preset once and return the package's folder."""
    from export.pipeline import export

    root = tmp_path_factory.mktemp("packages")

    def make(variant: str, preset: str) -> Path:
        out = root / f"{variant}-{preset}"
        return out if out.exists() else export(checkpoint(variant), out, preset)

    return make


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """Load a golden file by name."""

    def load(name: str) -> Golden:
        with np.load(Path(__file__).parent / "golden" / f"{name}.npz") as arrays:
            return dict(arrays)

    return load
