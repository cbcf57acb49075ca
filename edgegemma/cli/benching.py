"""``edgegemma bench``: hands its arguments to the commands of ``bench``, which nothing else loads."""

from __future__ import annotations

import typer

SETTINGS = {
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],  # --help is one of its arguments
}


def bench(ctx: typer.Context) -> None:
    """Measure speed, memory, kernels and peers; make random full-size models. `edgegemma bench --help` lists them."""
    from bench.cli import app

    app(args=ctx.args, prog_name="edgegemma bench")
