"""``edgegemma warmup``: compile every kernel a package needs, before the first real use."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgegemma import console
from edgegemma.cli.options import CacheKind, Executor, ModelArgument, load
from edgegemma.cli.stats import Clock

if TYPE_CHECKING:
    from edgegemma.engine.model import Model


def warmup(model: ModelArgument = "demo") -> None:
    """Compile the kernels ahead; they are kept for the next start.

    A package runs as it is used: prompt, answer, sound, and K/V in float32 and int8.

    For example: edgegemma warmup gemma-4-E2B
    """
    clock = Clock()
    with console.progress() as report:
        steps = [
            (f"{name} ({kind})", kind, step)
            for kind in CacheKind
            for name, step in _steps(kind).items()
        ]
        opened: dict[CacheKind, Model] = {}
        for number, (name, kind, step) in enumerate(steps):
            report(f"compiling: {name}", number, len(steps))
            if kind not in opened:
                opened[kind] = load(model, Executor.EDGEGEMMA, kv=kind)
            step(opened[kind])
        report("done", len(steps), len(steps))
    console.note(f"{model} is warm, after {clock.seconds:.1f} s")


def _steps(kind: CacheKind) -> dict[str, Callable[[Model], None]]:
    text: dict[str, Callable[[Model], None]] = {"prompt": _prompt, "answer": _answer}
    return text if kind is CacheKind.INT8 else text | {"sound": _sound}


def _prompt(model: Model) -> None:
    """Several positions, first without logits, then with."""
    import numpy as np

    embeds, per_layer = model.embed(np.zeros(4, np.int64))
    for keep in (0, 1):
        model.forward(embeds, per_layer, model.new_cache(8), num_logits=keep)


def _answer(model: Model) -> None:
    """One position after the other."""
    import numpy as np

    cache = model.new_cache(8)
    for _ in range(2):
        model.forward(*model.embed(np.zeros(1, np.int64)), cache)


def _sound(model: Model) -> None:
    if model.config.audio is None:
        return
    import numpy as np

    from edgegemma.audio.encoder import encode

    encode(model, np.zeros(8000, np.float32))
