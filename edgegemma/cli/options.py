"""Options that several commands share, and the one way they open a model."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from edgegemma import console, models

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
    int | None, typer.Option("--threads", "-t", min=1, help="Threads; all cores by default.")
]
KvOption = Annotated[CacheKind, typer.Option("--kv", help="Entries of the K/V cache.")]
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
) -> Model:
    """Open a model by name or path with what the options say."""
    path = models.find(model)
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
        )
    if engine is Executor.EDGEGEMMA:
        _note_cold()
    return opened


def _note_cold() -> None:
    """Say why the first answer takes so long, if no kernel has been compiled here before."""
    from edgegemma.kernels import cache, cpu

    if not any((cache.root() / cpu.target().path).glob("*.nbi")):
        console.note("compiling the kernels for this machine: once, a minute or two")
