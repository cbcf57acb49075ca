"""``bench memory``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bench.commands.options import (
    EngineOption,
    JsonOption,
    KvOption,
    MemoryOption,
    PackageArgument,
    ThreadsOption,
    check,
    check_context,
    numbers,
    shown,
)
from edgegemma import console


def memory(  # noqa: PLR0913  a command line has many options
    package: PackageArgument,
    context: Annotated[
        str,
        typer.Option(
            "--context", "-c", help="Positions before the prompt; several: 0,4K,32K,128K."
        ),
    ] = "0",
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to decode.")] = 32,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 64,
    audio_seconds: Annotated[float, typer.Option(min=0, help="Sound to encode.")] = 10.0,
    engine: EngineOption = "edgegemma",
    kv: KvOption = "float32",
    threads: ThreadsOption = None,
    memory_limit: MemoryOption = None,
    limit: Annotated[
        str | None, typer.Option(help="Fail if a peak is above it, e.g. 1.5G.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure the peak memory of a session in a process of its own, part by part.

    A context's keys and values are allocated and every page of them written, not read token by token. The longest
    context of a model has room for the prompt and the tokens in it.

    For example:

      edgegemma bench memory E2B --context 0,4K,32K,128K --kv int8

      edgegemma bench memory E2B --context 8K --limit 1.2G
    """
    check(engine, threads, kv)
    contexts = numbers(context, "--context")
    most, held = (console.parse_size(size) if size else None for size in (limit, memory_limit))
    from bench import memory as meter
    from edgegemma.models import find

    path = find(package)
    contexts = _fitted(path, contexts, prompt + tokens)
    results = [
        meter.measure(
            meter.Script(
                str(path), tokens, prompt, audio_seconds, engine, kv, threads, held, positions
            )
        )
        for positions in contexts
    ]
    if not shown(results[0] if len(results) == 1 else results, as_json):
        for result in results:
            _print(result)
    if most is not None:
        for result in results:
            meter.check(result, most)


def _fitted(path: Any, contexts: list[int], more: int) -> list[int]:
    """Take the session's own tokens off a context that is the model's longest."""
    from edgegemma.package import Package

    longest = Package.open(path).config.text.max_position_embeddings
    fitted = [longest - more if context == longest else context for context in contexts]
    check_context(path, fitted, more)
    return fitted


def _print(result: dict[str, Any]) -> None:
    rows = [
        (s["name"], s["seconds"], console.size(s["resident"]), console.size(s["peak"]))
        for s in result["steps"]
    ]
    console.table(
        (f"step, context {result['script']['context']}", "seconds", "resident", "peak"), rows
    )
    console.out()
    ledger = [(k.replace("_", " "), console.size(v)) for k, v in result["ledger"].items()]
    console.table(("ledger", ""), ledger)
    console.out()
