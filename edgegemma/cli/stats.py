"""Time and memory for ``--stats``."""

from __future__ import annotations

import time

from edgegemma import console


class Clock:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """How long it has run."""
        return time.perf_counter() - self._began


def note_memory() -> None:
    """Say the most memory this process has had resident."""
    from edgegemma.engine.memory import peak_bytes

    console.note(f"peak memory {console.size(peak_bytes())}")
