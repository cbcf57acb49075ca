"""Finding packages: a folder, the name ``demo``, or a name in the user's model folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from edgegemma.errors import InputError

DEMO = "demo"
DATA = Path(__file__).parent / "data"
MANIFEST = "manifest.json"  # a folder with it is a package


class Found(NamedTuple):
    """A package by the name it can be asked for."""

    name: str
    path: Path


def model_folder() -> Path:
    """Where `export` puts packages and names are looked up: ``$EDGEGEMMA_MODELS``, or the cache."""
    if chosen := os.environ.get("EDGEGEMMA_MODELS"):
        return _expanded(chosen)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(cache) / "edgegemma" / "models"


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: no such home folder; give the path in full") from error


def installed() -> list[Found]:
    """Every package that has a name, the built-in one first."""
    folder = model_folder()
    named = sorted(folder.iterdir()) if folder.is_dir() else []
    candidates = [Found(DEMO, DATA / DEMO), *(Found(p.name, p) for p in named)]
    return [found for found in candidates if (found.path / MANIFEST).is_file()]


def find(model: str) -> Path:
    """Return the folder of a package.

    Parameters
    ----------
    model : str
        ``demo``, the name of a package in `model_folder`, or a path. What could be both is a path if there
        is a package, except for ``demo``.

    Raises
    ------
    InputError
        If there is none; the message lists the names there are.
    """
    names = {found.name: found.path for found in installed()}
    if model == DEMO and DEMO in names:
        return names[DEMO]
    path = _expanded(model)
    if (path / MANIFEST).is_file():
        return path
    if model in names:
        return names[model]
    if path.is_dir():
        raise InputError(f"{path}: got a folder without {MANIFEST}; want a package made by export")
    known = ", ".join(names) or "none"
    raise InputError(f"model {model!r}: no such package; found by name: {known}; or give its path")
