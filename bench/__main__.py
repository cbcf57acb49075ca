"""``python -m bench``: make full-size random checkpoints, measure memory, run the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgegemma import console

app = typer.Typer(
    help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False
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
    with console.guard("bench"):
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


def main() -> None:
    """Run one of the measurements."""
    with console.guard("bench"):
        app()


if __name__ == "__main__":
    main()
