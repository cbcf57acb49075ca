"""Options that several commands share, and the one way they open a model."""

from __future__ import annotations

import itertools
import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from edgegemma import console, models
from edgegemma.errors import InputError

if TYPE_CHECKING:
    from edgegemma.engine.model import Model


class Executor(StrEnum):
    """What runs the graphs."""

    EDGEGEMMA = "edgegemma"
    ONNXRUNTIME = "onnxruntime"


class CacheKind(StrEnum):
    """How keys and values are kept."""

    FLOAT32 = "float32"
    INT8 = "int8"


ModelArgument = Annotated[
    str, typer.Argument(help="demo, a name that `edgegemma models` lists, or a package's folder.")
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="demo, a name that `edgegemma models` lists, or a package's folder."
    ),
]
EngineOption = Annotated[
    Executor, typer.Option("--engine", "-e", help="What runs the package's graphs.")
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        "-t",
        min=1,
        help="Threads; by default what `warmup` found fastest, or one a core.",
    ),
]
KvOption = Annotated[CacheKind, typer.Option("--kv", help="Entries of the K/V cache.")]
MemoryOption = Annotated[
    str | None,
    typer.Option("--memory-limit", help="Hold the whole process to this, e.g. 1.2G, or refuse."),
]
VerifyOption = Annotated[
    bool, typer.Option("--verify", help="Check every file's sha256 before use.")
]
StatsOption = Annotated[bool, typer.Option("--stats", help="Time and peak memory, on stderr.")]
JsonOption = Annotated[bool, typer.Option("--json", help="For machines.")]


def load(
    model: str,
    engine: Executor = Executor.EDGEGEMMA,
    threads: int | None = None,
    kv: CacheKind = CacheKind.FLOAT32,
    verify: bool = False,
    memory_limit: str | None = None,
) -> Model:
    """Open a model by name or path with what the options say; compile a large one's kernels apart, once."""
    limit = console.parse_size(memory_limit) if memory_limit else None
    path = models.find(model)
    _check_threads(threads)
    from edgegemma.engine.model import open_model

    with console.progress(lines=False) as report:
        report("opening", 0, 0)
        opened = open_model(
            path,
            executor=engine.value,
            threads=threads,
            kv=kv.value,
            verify=verify,
            progress=report,
            memory_limit=limit,
        )
    if engine is Executor.EDGEGEMMA:
        _compile_once(opened, kv)
        _note_cold()
    return opened


def _check_threads(threads: int | None) -> None:
    cores = os.cpu_count() or 1
    if threads is not None and threads > cores:
        raise InputError(f"--threads: got {threads}; want 1 to {cores}, the cores of this machine")


def _compile_once(model: Model, kv: CacheKind) -> None:
    """Compile in processes of their own what a large package needs and this machine has not compiled yet."""
    from edgegemma.engine import ahead

    path = model.package.path
    if not ahead.needed(model.package, kv.value):
        return
    console.note("compiling the kernels for this machine: once, a minute or two")
    with console.progress(lines=False) as report:
        done = itertools.count(1)
        ahead.compile_apart(path, kv.value, lambda name: report(f"compiling {name}", next(done), 0))


def _note_cold() -> None:
    """Say why the first answer takes so long, if no kernel has been compiled here before."""
    from edgegemma.kernels import cache, cpu

    if not any((cache.root() / cpu.target().path).glob("*.nbi")):
        console.note("compiling the kernels for this machine: once, a minute or two")
