"""Options that several measurements share, and the checks that come before anything heavy."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgegemma import console
from edgegemma.errors import BudgetError, InputError

if TYPE_CHECKING:
    from edgegemma.engine.model import Model

ENGINES = ("edgegemma", "onnxruntime")
KINDS = ("float32", "int8")

PackageArgument = Annotated[str, typer.Argument(help="A package's name or folder.")]
EngineOption = Annotated[
    str, typer.Option("--engine", "-e", help="What runs it: edgegemma or onnxruntime.")
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", "-t", help="Threads; by default what `warmup` found fastest, or one a core."
    ),
]
EqualThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", "-t", help="Threads of everybody; by default one a core."),
]
KvOption = Annotated[str, typer.Option("--kv", help="Entries of the K/V cache: float32 or int8.")]
MemoryOption = Annotated[
    str | None,
    typer.Option("--memory-limit", help="Hold the whole process to this, e.g. 1.2G, or refuse."),
]
ContextsOption = Annotated[
    str,
    typer.Option("--context", "-c", help="Positions before the measured ones; several: 0,4K,32K."),
]
RoundsOption = Annotated[int, typer.Option(min=1, help="Repetitions; a figure is their median.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For machines.")]


def processors() -> int:
    """Count the processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check(engine: str = "edgegemma", threads: int | None = None, kv: str = "float32") -> None:
    """Refuse what cannot be measured.

    Raises
    ------
    InputError
    """
    if engine not in ENGINES:
        raise InputError(f"--engine: got {engine!r}; want one of {', '.join(ENGINES)}")
    if kv not in KINDS:
        raise InputError(f"--kv: got {kv!r}; want one of {', '.join(KINDS)}")
    if engine == "onnxruntime" and kv != "float32":
        raise InputError("--kv: onnxruntime keeps float32 only; use --engine edgegemma")
    if threads is not None and not 1 <= threads <= processors():
        raise InputError(f"--threads: got {threads}; want 1 to {processors()}, the cores there are")


def numbers(text: str, name: str) -> list[int]:
    """Read ``0,4K,32K``: counts, K for 1024.

    Raises
    ------
    InputError
    """
    found = []
    for part in text.split(","):
        digits, factor = (part[:-1], 1024) if part[-1:] in ("k", "K") else (part, 1)
        if not digits.strip().isdecimal():
            raise InputError(f"{name}: got {text!r}; want whole numbers like 0,4K,32K")
        found.append(int(digits) * factor)
    return found


def check_context(package: Path, contexts: list[int], more: int) -> None:
    """Refuse a context beyond the model's, before anything is opened.

    Raises
    ------
    InputError
    """
    from edgegemma.package import Package

    longest = Package.open(package).config.text.max_position_embeddings
    if (most := max(contexts) + more) > longest:
        raise InputError(
            f"--context: got {most} positions, the measured ones too; want at most {longest}"
        )


def opened(
    package: Path,
    engine: str,
    threads: int | None,
    kv: str = "float32",
    memory_limit: str | None = None,
    beside: int = 0,
) -> Model:
    """Open a package as it is used: threads that wait give way, kernels of a large one are compiled apart.

    Of a limit, ``beside`` bytes are the measurement's own.
    """
    from edgegemma.kernels import threads as pool

    pool.calm()
    from edgegemma.engine import ahead
    from edgegemma.engine.model import open_model

    limit = console.parse_size(memory_limit) if memory_limit else None
    if limit is not None:
        if limit < beside:
            raise BudgetError(
                f"memory limit: got {limit / 1e6:.0f} MB; the measurement alone takes {beside / 1e6:.0f} MB"
            )
        limit -= beside
    model = open_model(package, executor=engine, threads=threads, kv=kv, memory_limit=limit)
    if engine == "edgegemma" and ahead.needed(model.package, kv):
        with console.progress("bench") as report:
            ahead.compile_apart(package, kv, lambda name: report(f"compiling {name}", 0, 0))
    return model


def shown(found: object, as_json: bool) -> bool:
    """Print JSON if that is wanted; say whether it was."""
    if as_json:
        console.out(json.dumps(found, indent=2))
    return as_json


def about(model: Any) -> dict[str, Any]:
    """Say what a measurement was made with."""
    from bench.report import machine

    return {
        "package": model.package.path.name, "engine": model.executor, "threads": model.threads,
        "machine": machine(),
    }  # fmt: skip
