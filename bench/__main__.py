"""``python -m bench``: make full-size random checkpoints, measure memory, run the demo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from edgegemma import console

app = typer.Typer(
    cls=console.group("bench"),
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def _about() -> None:
    """Make full-size random checkpoints, measure memory, run the demo."""


@app.command()
def synth(
    model: Annotated[str, typer.Argument(help="E2B, E4B or the path of a config.json.")],
    out: Annotated[Path, typer.Option(help="Folder to make; must not exist.")],
    form: Annotated[str, typer.Option("--format", help="bf16 or qat-mobile.")] = "bf16",
    seed: Annotated[int, typer.Option(help="Seed of the random values.")] = 0,
    vision: Annotated[bool, typer.Option("--vision", help="With the vision tower.")] = False,
    unused: Annotated[
        bool, typer.Option("--unused-kv", help="With the K/V tensors nobody reads.")
    ] = False,
    shard: Annotated[str, typer.Option(help="Largest file.")] = "4G",
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder whose tokenizer is copied; else a stand-in.")
    ] = None,
) -> None:
    """Write a full-size random checkpoint as published: E2B is 10 GB of BF16."""
    from bench import synth as maker

    config = maker.config_of(model, form, vision)
    limit = console.parse_size(shard)
    with console.progress("bench") as report:
        made = maker.write(
            config,
            out,
            seed=seed,
            unused=unused,
            shard=limit,
            tokenizer=tokenizer,
            report=report,
        )
    console.out(str(made))


@app.command()
def memory(  # noqa: PLR0913  a command line has many options
    package: Annotated[str, typer.Argument(help="A package's name or folder.")],
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to decode.")] = 32,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 64,
    audio_seconds: Annotated[float, typer.Option(min=0, help="Sound to encode.")] = 10.0,
    engine: Annotated[str, typer.Option(help="edgegemma or onnxruntime.")] = "edgegemma",
    kv: Annotated[str, typer.Option(help="float32 or int8.")] = "float32",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads.")] = None,
    limit: Annotated[
        str | None, typer.Option(help="Fail if the peak is above it, e.g. 1.5G.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Measure the peak memory of a session in a process of its own, part by part."""
    from bench import memory as meter
    from edgegemma.models import find

    most = console.parse_size(limit) if limit else None
    script = meter.Script(str(find(package)), tokens, prompt, audio_seconds, engine, kv, threads)
    result = meter.measure(script)
    if as_json:
        console.out(json.dumps(result, indent=2))
    else:
        rows = [
            (s["name"], s["seconds"], console.size(s["resident"]), console.size(s["peak"]))
            for s in result["steps"]
        ]
        console.table(("step", "seconds", "resident", "peak"), rows)
        console.out()
        ledger = [(k.replace("_", " "), console.size(v)) for k, v in result["ledger"].items()]
        console.table(("ledger", ""), ledger)
    if most is not None:
        meter.check(result, most)


@app.command()
def demo(
    engine: Annotated[str, typer.Option(help="edgegemma or onnxruntime.")] = "edgegemma",
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Transcribe the samples with the embedded model, and compare with what was said."""
    from bench import demo as show_piece

    show_piece.show(show_piece.run(engine), as_json)


def main() -> None:
    """Run one of the measurements."""
    console.run(app, "bench")


if __name__ == "__main__":
    main()
