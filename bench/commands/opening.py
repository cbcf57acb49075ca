"""``bench open``."""

from __future__ import annotations

from typing import Annotated

import typer

from bench.commands.options import (
    EngineOption,
    JsonOption,
    PackageArgument,
    RoundsOption,
    ThreadsOption,
    check,
    shown,
)
from edgegemma import console


def opening(
    package: PackageArgument,
    rounds: RoundsOption = 5,
    cold: Annotated[
        int, typer.Option(min=0, help="Times with an empty kernel cache: everything is compiled.")
    ] = 1,
    engine: EngineOption = "edgegemma",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the seconds from starting Python to the first token, with kept kernels (warm) and with none (cold).

    Each is a process of its own. The package's files are in the page cache.

    For example: edgegemma bench open E2B --rounds 5 --cold 1
    """
    check(engine, threads)
    from bench import opening as meter
    from bench.report import spread
    from edgegemma.models import find

    found = meter.measure(str(find(package)), engine, threads, rounds, cold)
    if shown(found, as_json):
        return
    kinds = [kind for kind in ("warm", "cold") if kind in found]
    rows = [
        (step, *(spread(found[kind][step], digits=2) for kind in kinds))
        for step in (*meter.STEPS, "total")
    ]
    rows.append(("peak memory", *(console.size(found[k]["peak_bytes"]["median"]) for k in kinds)))
    console.table(("seconds", *kinds), rows)
