"""``bench kernels``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bench.commands.options import (
    EqualThreadsOption,
    JsonOption,
    RoundsOption,
    check,
    numbers,
    shown,
)
from edgegemma import console
from edgegemma.errors import InputError


def kernels(
    model: Annotated[str, typer.Argument(help="Whose shapes: E2B or E4B.")] = "E2B",
    rows: Annotated[
        str, typer.Option(help="Activation rows: 1 is a token decoded, more are prefill.")
    ] = "1,128",
    only: Annotated[str, typer.Option(help="Names that contain this, e.g. down_proj.")] = "",
    dynamic: Annotated[
        bool,
        typer.Option("--dynamic", help="Activations quantized at run time; else static scales."),
    ] = False,
    rounds: RoundsOption = 5,
    threads: EqualThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure each kernel at a model's shapes, in turns with onnxruntime's op, and check it against numpy.

    Linears beside MatMulNBits at accuracy level 4, which quantizes activations at run time always; attention of one
    query beside Attention in float32.

    For example: edgegemma bench kernels E4B --rows 1 --only proj
    """
    check(threads=threads)
    counts = numbers(rows, "--rows")
    if model not in ("E2B", "E4B"):
        raise InputError(f"model: got {model!r}; want E2B or E4B")
    from bench import ops
    from bench.limits import Limits
    from edgegemma.engine.memory import physical_cores
    from edgegemma.kernels import threads as pool

    pool.calm()
    limits = Limits(threads or physical_cores())
    found = [
        ops.linear(shape, count, not dynamic, limits, rounds)
        for count in counts
        for shape in ops.linears(model)
        if only in shape.name
    ]
    found += [
        ops.attention(model, *shape, kind, limits, rounds)
        for shape in ops.ATTENTION
        for kind in ("float32", "int8")
        if only in "attention"
    ]
    if not shown({"model": model, "threads": limits.threads, "runs": found}, as_json):
        _print(found)


def _print(found: list[dict[str, Any]]) -> None:
    from bench.report import spread

    rows = [
        (
            run["name"],
            "×".join(map(str, run["shape"])),
            f"{run['bits']} bits, {run['rows']} rows"
            if "bits" in run
            else f"{run['context']} keys",
            spread(run["seconds"], 1e6, 0),
            spread(run["ratio"], digits=2),
            spread(run["read_share"], 100, 0),
            spread(run["dot_share"], 100, 0),
            f"{run['error']:.1e}",
        )
        for run in found
    ]
    header = ("kernel", "shape", "", "µs", "× onnxruntime", "% bandwidth", "% int8 peak", "error")
    console.table(header, rows)
