"""Measure a package, its kernels, this machine and its peers; make full-size random models to measure with."""

from __future__ import annotations

import typer

from bench.commands.audio import audio
from bench.commands.kernels import kernels
from bench.commands.making import demo, synth
from bench.commands.memory import memory
from bench.commands.opening import opening
from bench.commands.peers import peers
from bench.commands.speech import speech
from bench.commands.speed import decode, first_token, prefill
from edgegemma import console

app = typer.Typer(
    cls=console.group("bench"),
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _about() -> None:
    pass


for command in (decode, prefill, memory, audio, speech, kernels, peers, synth, demo):
    app.command()(command)
app.command("first-token")(first_token)
app.command("open")(opening)
