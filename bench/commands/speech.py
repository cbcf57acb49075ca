"""``bench speech``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from bench.commands.options import (
    EngineOption,
    JsonOption,
    PackageArgument,
    ThreadsOption,
    about,
    check,
    opened,
    shown,
)
from edgegemma import console

INSIDE = ("texts", "errors_by_delay")  # only for machines, and for the plot


def speech(
    package: PackageArgument,
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Recordings, and samples.json with rows of file, text and perhaps translation; the samples."
        ),
    ] = None,
    most: Annotated[int, typer.Option(min=1, help="Recordings to play, the first ones.")] = 1000,
    translate_to: Annotated[
        str | None, typer.Option(help="Measure translation of the speech into this language.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the errors by delay into this PNG.")
    ] = None,
    engine: EngineOption = "edgegemma",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure live listening at real-time pace: errors, delays, and what was taken back.

    Each recording is played with silence after it, and transcribed as a file for comparison.

    For example: edgegemma bench speech demo recordings --most 20 --plot delay.png
    """
    check(engine, threads)
    from bench import report
    from bench import speech as meter
    from edgegemma.errors import InputError
    from edgegemma.listen.task import Task
    from edgegemma.models import DATA, find

    if plot is not None and translate_to is not None:
        raise InputError("--plot: draws word errors, which a translation has not; leave one out")
    if plot is not None:
        report.pyplot()  # it is told now if it is missing
    rows = meter.recordings(folder or DATA / "samples")[:most]
    model = opened(find(package), engine, threads)
    found = about(model) | meter.measure(model, rows, Task(translate_to=translate_to))
    if not shown(found, as_json):
        lines = [(k.replace("_", " "), _cell(v)) for k, v in found.items() if k not in INSIDE]
        console.table(("", ""), lines)
    if plot is not None:
        meter.plot(found, plot)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(part)}" for name, part in value.items())
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
