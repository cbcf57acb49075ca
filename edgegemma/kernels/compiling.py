"""Tells when Numba compiles a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numba.core import event


class _Listener(event.Listener):
    def __init__(self, started: Callable[[str], None]) -> None:
        self._started = started

    def on_start(self, event: Any) -> None:
        self._started(event.data["dispatcher"].py_func.__name__)

    def on_end(self, event: Any) -> None:
        del event


@contextmanager
def watched(started: Callable[[str], None]) -> Iterator[None]:
    """Call ``started`` with a function's name before it is compiled; not when it is kept already."""
    with event.install_listener("numba:compile", _Listener(started)):
        yield
