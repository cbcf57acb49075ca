"""The commands, put together. Each lives in a file of its own and imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from edgegemma import __version__, console
from edgegemma.cli.benching import SETTINGS, bench
from edgegemma.cli.doctor import doctor
from edgegemma.cli.exporting import export
from edgegemma.cli.inspecting import inspect
from edgegemma.cli.listening import listen
from edgegemma.cli.listing import models
from edgegemma.cli.running import run
from edgegemma.cli.transcribing import transcribe, translate
from edgegemma.cli.warming import warmup

EPILOG = "Everything but results goes to stderr. Exit status 2: something to put right, said in one line (a wrong option also shows its usage)."

app = typer.Typer(
    cls=console.group(),
    help="Gemma 4 on a phone or a Raspberry Pi 5: 2-bit ONNX packages, Numba kernels, speech.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        console.out(f"edgegemma {__version__}")
        raise typer.Exit


@app.callback()
def _about(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print it and leave."),
    ] = False,
) -> None:
    pass


for command in (listen, transcribe, translate, run, export, inspect, models, warmup, doctor):
    app.command()(command)
app.command(context_settings=SETTINGS)(bench)
