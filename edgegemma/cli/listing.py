"""``edgegemma models``: the packages that have a name."""

from __future__ import annotations

import json
from typing import Any

from edgegemma import console
from edgegemma import models as finder
from edgegemma.cli.options import JsonOption
from edgegemma.errors import PackageError


def models(as_json: JsonOption = False) -> None:
    """List the packages that can be asked for by name.

    `export` puts packages into the model folder: $EDGEGEMMA_MODELS, or edgegemma/models in the cache folder (~/.cache).

    For example: edgegemma models --json
    """
    rows = [_row(found) for found in finder.installed()]
    if as_json:
        console.out(json.dumps(rows, indent=2))
        return
    headers = ("name", "model", "preset", "hears", "size", "folder")
    console.table(headers, [_cells(row) for row in rows])
    console.note(f"model folder: {finder.model_folder()}")


def _row(found: finder.Found) -> dict[str, Any]:
    from edgegemma.package import Package

    row: dict[str, Any] = {"name": found.name, "path": str(found.path)}
    try:
        package = Package.open(found.path)
    except PackageError as error:
        return row | {"error": str(error)}
    return row | {
        "model": str(package.manifest.get("name", "?")),
        "preset": str(package.manifest.get("preset", "?")),
        "audio": package.config.audio is not None,
        "bytes": package.size,
    }


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    if "error" in row:
        return row["name"], f"broken: {row['error']}", "", "", "", row["path"]
    hears = "yes" if row["audio"] else "no"
    return row["name"], row["model"], row["preset"], hears, console.size(row["bytes"]), row["path"]
