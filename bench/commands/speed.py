"""``bench decode``, ``prefill`` and ``first-token``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from bench.commands.options import (
    ContextsOption,
    EngineOption,
    JsonOption,
    KvOption,
    MemoryOption,
    PackageArgument,
    RoundsOption,
    ThreadsOption,
    about,
    check,
    check_context,
    numbers,
    opened,
    shown,
)
from edgegemma import console

if TYPE_CHECKING:
    from collections.abc import Callable

Tokens = Annotated[int, typer.Option(min=1, max=192, help="Tokens of a repetition.")]
Breakdown = Annotated[
    bool, typer.Option("--breakdown", help="Also the time by function call, from one more run.")
]


def decode(  # noqa: PLR0913  a command line has many options
    package: PackageArgument,
    context: ContextsOption = "0",
    tokens: Tokens = 16,
    rounds: RoundsOption = 5,
    engine: EngineOption = "edgegemma",
    threads: ThreadsOption = None,
    kv: KvOption = "float32",
    memory_limit: MemoryOption = None,
    breakdown: Breakdown = False,
    as_json: JsonOption = False,
) -> None:
    """Measure decoding: tokens a second, and the share of the machine's read bandwidth they take.

    The bandwidth and the int8 products it is compared with are measured between the repetitions. A long context is
    filled with random keys and values, not read: the work is the same.

    For example:

      edgegemma bench decode E2B --context 0,4K,32K --threads 2

      edgegemma bench decode E2B --engine onnxruntime --json
    """
    from bench import speed

    _run(
        speed.decode,
        package,
        context,
        tokens,
        rounds,
        (engine, threads, kv, memory_limit),
        breakdown,
        as_json,
    )


def prefill(  # noqa: PLR0913  a command line has many options
    package: PackageArgument,
    context: ContextsOption = "0",
    tokens: Annotated[int, typer.Option(min=1, help="Length of the prompt.")] = 512,
    rounds: RoundsOption = 3,
    engine: EngineOption = "edgegemma",
    threads: ThreadsOption = None,
    kv: KvOption = "float32",
    memory_limit: MemoryOption = None,
    breakdown: Breakdown = False,
    as_json: JsonOption = False,
) -> None:
    """Measure reading a prompt: tokens a second, and the share of the machine's int8 products they take.

    For example: edgegemma bench prefill E2B --tokens 1024 --breakdown
    """
    from bench import speed

    _run(
        speed.prefill,
        package,
        context,
        tokens,
        rounds,
        (engine, threads, kv, memory_limit),
        breakdown,
        as_json,
    )


def first_token(
    package: PackageArgument,
    prompt: Annotated[str, typer.Option(help="Lengths of the prompt: 16,128,1K.")] = "16,128,1K",
    rounds: RoundsOption = 3,
    engine: EngineOption = "edgegemma",
    threads: ThreadsOption = None,
    kv: KvOption = "float32",
    memory_limit: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the seconds from a prompt's tokens to the first token of the answer, the model being open.

    For example: edgegemma bench first-token E2B --prompt 128,1K
    """
    check(engine, threads, kv)
    lengths = numbers(prompt, "--prompt")
    from bench import speed
    from bench.limits import BUFFER, Limits
    from edgegemma.models import find

    check_context(find(package), [0], max(lengths))
    model = opened(find(package), engine, threads, kv, memory_limit, BUFFER)
    limits = Limits(model.threads)
    runs = [
        speed.prefill(model, 0, speed.Setting(rounds, count, kv), limits, breakdown=False)
        for count in lengths
    ]
    if shown(about(model) | {"runs": runs}, as_json):
        return
    from bench.report import spread

    rows = [(r["tokens"], spread(r["seconds"], digits=3), spread(r["tokens_per_s"])) for r in runs]
    console.table(("prompt", "seconds to the first token", "tokens/s"), rows)


def _run(
    measure: Callable[..., dict[str, Any]],
    package: str,
    context: str,
    tokens: int,
    rounds: int,
    how: tuple[str, int | None, str, str | None],
    breakdown: bool,
    as_json: bool,
) -> None:
    engine, threads, kv, memory_limit = how
    check(engine, threads, kv)
    contexts = numbers(context, "--context")
    from bench import meters
    from bench.limits import BUFFER, Limits
    from bench.speed import Setting
    from edgegemma.models import find

    check_context(find(package), contexts, 2 * tokens)
    model = opened(find(package), engine, threads, kv, memory_limit, BUFFER)
    meter = meters.find()
    limits = Limits(model.threads)
    setting = Setting(rounds, tokens, kv)
    runs = [measure(model, c, setting, limits, meter, breakdown=breakdown) for c in contexts]
    found = about(model) | {"kv": kv, "meter": meter.name if meter else None, "runs": runs}
    if not shown(found, as_json):
        _print(found)


def _print(found: dict[str, Any]) -> None:
    from bench.report import NOTHING, spread

    console.out(
        f"{found['package']}, {found['engine']}, {found['threads']} threads, {found['machine']}"
    )
    columns = {
        "context": [str(run["context"]) for run in found["runs"]],
        **{
            title: [spread(run[key], scale, digits) for run in found["runs"]]
            for title, key, scale, digits in (
                ("tokens/s", "tokens_per_s", 1, 2),
                ("GB/s read", "bytes_per_s", 1e-9, 1),
                ("of bandwidth, %", "read_share", 100, 1),
                ("of the map's, %", "map_share", 100, 1),
                ("int8 G/s", "macs_per_s", 1e-9, 1),
                ("of peak, %", "dot_share", 100, 1),
                ("J/token", "joules", 1, 3),
            )
        },
    }
    measured = {title: cells for title, cells in columns.items() if set(cells) != {NOTHING}}
    console.table(tuple(measured), list(zip(*measured.values(), strict=True)))
    last = found["runs"][-1]
    mapped = last["map_bandwidth"]
    console.out(
        f"this machine, in the same rounds: {spread(last['read_bandwidth'], 1e-9)} GB/s read, "
        + (f"{spread(mapped, 1e-9)} from the weights' map, " if mapped else "")
        + f"{spread(last['dot_peak'], 1e-9, 0)} G int8 products/s, "
        + f"{spread(last['fork'], 1e6, 2)} µs to share work"
        + (f"; joules by {found['meter']}" if found["meter"] else "; no meter of energy here")
    )
    for run in found["runs"]:
        if run["breakdown"]:
            console.out()
            _print_breakdown(run)


def _print_breakdown(run: dict[str, Any]) -> None:
    from bench.report import spread

    rows = [
        (r["function"], f"{r['calls']:.2f}", f"{1e3 * r['seconds']:.3f}", f"{100 * r['share']:.1f}")
        for r in run["breakdown"]
    ]
    console.table((f"function, context {run['context']}", "calls a token", "ms a token", "%"), rows)
    if "besides" in run:
        seconds, share = run["besides"]["seconds"], run["besides"]["share"]
        console.out(
            f"with products and attention left out, a token takes {spread(seconds, 1e3, 2)} ms, {spread(share, 100)} % of a whole one"
        )
