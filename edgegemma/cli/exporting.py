"""``edgegemma export``: a checkpoint becomes a package."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgegemma import console
from edgegemma.errors import InputError
from edgegemma.models import model_folder

if TYPE_CHECKING:
    from quant.report import Report


def export(
    source: Annotated[str, typer.Argument(help="A checkpoint's folder, or owner/name on the hub.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder to make; by default in the model folder, under the source's name.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            "-p",
            help="qat-mobile, mobile, q4, q8 or float; by default the source's own codes, or mobile.",
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit on the hub; the commit is kept.")
    ] = None,
    audio_window: Annotated[
        int | None,
        typer.Option(min=1, help="Keys an audio query sees: 12, or 13 as in Google's JAX code."),
    ] = None,
) -> None:
    """Export a Gemma 4 checkpoint to a package, and check what came out.

    Memory is bounded by the largest tensor, not by the model. HF_HUB_OFFLINE=1 takes what was downloaded before.

    For example:

      edgegemma export google/gemma-4-E2B-it-qat-mobile-transformers

      edgegemma export ./gemma-4-E2B-it --preset q8 --out ./e2b-q8
    """
    logging.basicConfig(format="edgegemma: %(message)s", level=logging.WARNING)
    _own("export")
    from export.huggingface import fetch, is_repository
    from export.pipeline import export as make
    from export.pipeline import refuse_existing
    from export.verify import verify
    from quant.policy import check_name

    check_name(preset)
    if out or is_repository(source):  # before a download, which is long
        refuse_existing(out or _default_place(source))
    folder = fetch(source, revision)
    target = out or _default_place(folder.id)
    checked = []
    with console.progress() as report:

        def check(made: Path) -> None:
            report("checking the package", 0, 0)
            checked.append(verify(made, folder.path))

        made = make(
            folder.path,
            target,
            preset_name=preset,
            audio_window=audio_window,
            progress=report,
            inspect=check,
        )
    console.show(_quantization(made).table())
    for result in checked:
        console.show(result.table())
    console.out(str(made))


def _own(name: str) -> None:
    """Refuse a top-level package of that name that another distribution has put over ours."""
    import importlib

    module = importlib.import_module(name)
    here = Path(__file__).resolve().parents[2]
    found = Path(module.__file__ or "/").resolve()
    if not found.is_relative_to(here):
        raise InputError(
            f"{name}: got {found}, which is not edgegemma's; install edgegemma in an environment of its own"
        )


def _default_place(source: str) -> Path:
    """Give a place in the model folder, under the name of the repository or folder."""
    folder = model_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder / source.rpartition("/")[2]


def _quantization(package: Path) -> Report:
    from quant.report import Report, Row

    data = json.loads((package / "quantization.json").read_text("utf-8"))
    rows = [Row(**{**row, "shape": tuple(row["shape"])}) for row in data["tensors"]]
    return Report(data["preset"], data["method"], rows)
