"""``bench synth`` and ``bench demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.options import EngineOption, JsonOption, check
from edgegemma import console
from edgegemma.errors import InputError


def synth(  # noqa: PLR0913  a command line has many options
    model: Annotated[
        str, typer.Argument(help="E2B, E4B, 26B-A4B, 31B or the path of a config.json.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to make; must not exist.")],
    preset: Annotated[
        str | None, typer.Option(help="Make a package: qat-mobile, mobile, q4, q8 or float.")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="Make a checkpoint: bf16 or qat-mobile.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the random values.")] = 0,
    vision: Annotated[
        bool, typer.Option("--vision", help="A checkpoint with the vision tower.")
    ] = False,
    unused: Annotated[
        bool, typer.Option("--unused-kv", help="A checkpoint with the K/V tensors nobody reads.")
    ] = False,
    shard: Annotated[str, typer.Option(help="Largest file of a checkpoint.")] = "4G",
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder whose tokenizer is copied; else a stand-in.")
    ] = None,
) -> None:
    """Make a full-size model of random weights: a package to measure with, or a checkpoint as published.

    Without --preset and --format a package in the format of Google's mobile checkpoints, written in its 2, 4 and 8 bits
    at once: 2 GB for E2B, 7 for 26B-A4B, 15 for 31B, and as much again while it is made. Other presets go through a BF16
    checkpoint beside it, 10 GB for E2B, which is removed.

    For example:

      edgegemma bench synth E2B --preset qat-mobile --out E2B-random

      edgegemma bench synth E2B --format bf16 --out E2B-checkpoint
    """
    if preset and form:
        raise InputError("--preset makes a package, --format a checkpoint: give one of them")
    preset = preset or "qat-mobile"
    from bench import random_package
    from bench import synth as maker
    from edgegemma.console import parse_size

    if out.exists():
        raise InputError(f"{out}: is there already; choose another --out or remove it")
    config = maker.config_of(
        model, form or ("qat-mobile" if preset == "qat-mobile" else "bf16"), vision
    )
    with console.progress("bench") as report:
        if form:
            made = maker.write(
                config, out, seed=seed, unused=unused, shard=parse_size(shard),
                tokenizer=tokenizer, report=report,
            )  # fmt: skip
        else:
            made = random_package.write(config, out, preset, seed, tokenizer, report)
    console.out(str(made))


def demo(engine: EngineOption = "edgegemma", as_json: JsonOption = False) -> None:
    """Transcribe the samples with the embedded model, and compare with what was said.

    For example: edgegemma bench demo
    """
    check(engine)
    from bench import demo as show_piece

    show_piece.show(show_piece.run(engine), as_json)
