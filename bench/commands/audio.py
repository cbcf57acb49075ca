"""``bench audio``."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.commands.options import (
    EngineOption,
    JsonOption,
    MemoryOption,
    PackageArgument,
    ThreadsOption,
    about,
    check,
    numbers,
    opened,
    shown,
)
from edgegemma import console


def audio(
    package: PackageArgument,
    block: Annotated[
        str, typer.Option(help="Milliseconds of sound that come at once, multiples of 40.")
    ] = "40,80,160,320,640,1280",
    seconds: Annotated[float, typer.Option(min=1, help="Sound for each size.")] = 8.0,
    engine: EngineOption = "edgegemma",
    threads: ThreadsOption = None,
    memory_limit: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the streaming audio encoder by size of block: real-time factor and delay.

    From samples to soft tokens, mel frames included. A factor of 0.1 is a tenth of a second of work for a second of sound.

    For example: edgegemma bench audio E2B --block 320 --threads 1
    """
    check(engine, threads)
    blocks = numbers(block, "--block")
    from bench import audio as meter
    from bench.report import spread
    from edgegemma.models import find

    model = opened(find(package), engine, threads, memory_limit=memory_limit)
    runs = [meter.measure(model, size, seconds) for size in blocks]
    if shown(about(model) | {"runs": runs}, as_json):
        return
    rows = [
        (
            run["block_ms"],
            spread(run["real_time_factor"], digits=3),
            f"{run['mean_factor']:.3f}",
            spread(run["work_ms"]),
            spread(run["delay_ms"], digits=0),
        )
        for run in runs
    ]
    console.table(("block, ms", "real-time factor", "mean", "work, ms", "delay, ms"), rows)
