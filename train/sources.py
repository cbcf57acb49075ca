"""The licences of everything the model learns from."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_TABLE: dict[str, Any] = tomllib.loads(Path(__file__).with_name("sources.toml").read_text())


def may_train(names: Iterable[str]) -> None:
    """Refuse sources whose licence does not allow a model trained on them to be shipped."""
    for name in names:
        licence = _TABLE["licences"].get(name, "not in train/sources.toml")
        if licence not in _TABLE["training"]:
            raise PermissionError(f"{name} may not be trained on: {licence}")
