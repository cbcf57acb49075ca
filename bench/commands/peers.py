"""``bench peers``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.commands.options import (
    EqualThreadsOption,
    JsonOption,
    PackageArgument,
    RoundsOption,
    check,
    check_context,
    shown,
)
from edgegemma import console


def peers(  # noqa: PLR0913  a command line has many options
    package: PackageArgument,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="onnxruntime, llama.cpp-Q2_K, llama.cpp-Q4_0; again for more. All by default."
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(min=0, max=192, help="Tokens to decode; 0: none.")] = 16,
    prompt: Annotated[int, typer.Option(min=0, help="Tokens to read; 0: none.")] = 128,
    context: Annotated[int, typer.Option(min=0, help="Positions before the decoded ones.")] = 128,
    rounds: RoundsOption = 5,
    threads: EqualThreadsOption = None,
    gguf: Annotated[
        Path | None,
        typer.Option(help="Folder of GGUF files, made if they are not there: gigabytes, kept."),
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write a report.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it, .png or .svg.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write JSON, beside the table.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a package beside onnxruntime on the same files and llama.cpp on the same shape, in turns.

    llama.cpp wants the extra `peers`; a peer that is not there is said and left out. Its weights are
    random, in its own formats, Q2_K or Q4_0 on every tensor. Each runtime is a process of its own.

    For example: edgegemma bench peers E2B --threads 2 --markdown peers.md --plot peers.png
    """
    check(threads=threads)
    from bench import peers as race
    from bench import report
    from bench.limits import Limits
    from edgegemma.engine.memory import physical_cores
    from edgegemma.kernels import threads as pool
    from edgegemma.models import find, model_folder
    from edgegemma.package import Package

    names = race.check_names(peer or [])
    if plot is not None:
        report.pyplot()  # it is told now if it is missing
    path = find(package)
    check_context(path, [context], max(256, prompt))
    pool.calm()
    count = threads or physical_cores()
    plan = race.Race(count, rounds, tokens, prompt, context)
    with console.progress("bench") as told:
        made = gguf or model_folder().parent / "peers"
        workers, missing = race.start(Package.open(path), names, made, plan, told)
        try:
            found = race.run(workers, plan, Limits(count), told)
        finally:
            for worker in workers.values():
                worker.close()
    found |= {
        "package": path.name, "threads": count, "rounds": rounds, "machine": report.machine(),
        "missing": missing,
    }  # fmt: skip
    if not shown(found, as_json):
        console.table(*report.peer_rows(found))
    _write(found, markdown, plot, output)


def _write(
    found: dict[str, Any], markdown: Path | None, plot: Path | None, output: Path | None
) -> None:
    from bench import report

    if output:
        output.write_text(json.dumps(found, indent=2))
    if markdown:
        markdown.write_text(report.markdown(found))
    if plot:
        report.plot(found, plot)
