"""``edgegemma warmup``: compile every kernel a package needs, and find the threads it runs best on."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING

from edgegemma import console, models
from edgegemma.cli.options import CacheKind, MemoryOption, ModelArgument
from edgegemma.cli.stats import Clock

if TYPE_CHECKING:
    from edgegemma.engine.ahead import Record
    from edgegemma.engine.model import Model


def warmup(model: ModelArgument = "demo", memory_limit: MemoryOption = None) -> None:
    """Compile the kernels ahead, and measure on how many threads this package runs best; both are kept.

    A package runs as it is used: prompt, answer, sound, and K/V in float32 and int8.

    For example: edgegemma warmup gemma-4-E2B
    """
    clock = Clock()
    path = models.find(model)
    limit = console.parse_size(memory_limit) if memory_limit else None
    from edgegemma.engine import ahead
    from edgegemma.engine.model import open_model

    opened = open_model(path, kv="int8", memory_limit=limit)
    with console.progress() as report:
        for kind in CacheKind:
            what, done = f"compiling, K/V in {kind}", count(1)
            report(what, 0, 0)
            ahead.compile_apart(path, kind.value, lambda _, w=what, n=done: report(w, next(n), 0))  # type: ignore[misc]
        report("measuring threads", 0, 0)
        found = measured(opened)
        ahead.keep(opened.package, found)
    console.note(
        f"{model} is warm, after {clock.seconds:.1f} s; "
        f"threads: {found.decode} to answer, {found.prefill} to read"
    )


def measured(model: Model) -> Record:
    """Add to what is known of a package the threads on which a token and a prompt take the least time."""
    from edgegemma.engine import ahead, tuning

    decode, prefill = tuning.fastest(model)
    return replace(ahead.known(model.package), decode=decode, prefill=prefill)
