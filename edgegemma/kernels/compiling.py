"""Tells when Numba compiles a kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numba.core import event


class _Listener(event.Listener):
    def __init__(self, started: Callable[[str], None], ended: Callable[[], None]) -> None:
        self._started, self._ended = started, ended

    def on_start(self, event: Any) -> None:
        self._started(event.data["dispatcher"].py_func.__name__)

    def on_end(self, event: Any) -> None:
        del event
        self._ended()


@contextmanager
def watched(started: Callable[[str], None], ended: Callable[[], None]) -> Iterator[None]:
    """Call ``started`` with a function's name before it is compiled, ``ended`` after; not when it is kept already."""
    with event.install_listener("numba:compile", _Listener(started, ended)):
        yield
