"""Time by function call: which of the graph's calls a token's time goes to."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgegemma.engine.model import Model


@dataclass
class Profile:
    """Seconds and calls by function or op.

    Attributes
    ----------
    seconds, calls : dict by function
    total : float
        Seconds of the whole, with what lies between the calls.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    total: float = 0.0

    def add(self, name: str, seconds: float, calls: int = 1) -> None:
        """Count calls that ran as one."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.calls[name] = self.calls.get(name, 0) + calls

    def rows(self, units: int) -> list[dict[str, Any]]:
        """Give seconds, calls and share of each function for one of ``units`` tokens, the longest first."""
        named = dict(self.seconds)
        named["between the calls"] = self.total - sum(named.values())
        return [
            {
                "function": name,
                "calls": self.calls.get(name, 0) / units,
                "seconds": seconds / units,
                "share": seconds / self.total if self.total else 0.0,
            }
            for name, seconds in sorted(named.items(), key=lambda item: -item[1])
        ]


@contextmanager
def watched(model: Model) -> Iterator[Profile]:
    """Time every call of our engine's programs inside the block.

    Ops of ONNX that only look at values or move them count together, as "glue".
    """
    profile = Profile()
    programs = list(vars(model).get("_programs", {}).values())
    kept = [(program, program.calls, dict(program._plans)) for program in programs]
    for program in programs:
        program.calls = [_timed(call, profile) for call in program.calls]
        program._plans.clear()
    began = time.perf_counter()
    try:
        yield profile
    finally:
        profile.total = time.perf_counter() - began
        for program, calls, plans in kept:
            program.calls = calls
            program._plans.clear()
            program._plans.update(plans)


def _timed(call: Any, profile: Profile) -> Any:
    name = call.node.op if call.node.domain else "glue"
    narrow: Callable[..., Any] | None = call.narrow
    join: Callable[..., Any] | None = call.join

    def narrowed(needed: Any) -> Any:
        return _timed(narrow(needed), profile) if narrow else None

    def joined(parts: Any, pieces: Any) -> Any:
        assert join is not None
        prepare, names = join(parts, pieces)
        return _timed_parts(prepare, name, len(parts), profile), names

    return dataclasses.replace(
        call,
        run=_timed_run(call.run, name, 1, profile),
        prepare=_timed_parts(call.prepare, name, 1, profile) if call.prepare else None,
        narrow=narrowed if narrow else None,
        join=joined if join else None,
    )


def _timed_run(inner: Callable[..., Any], name: str, calls: int, profile: Profile) -> Any:
    def run(*arguments: Any) -> Any:
        began = time.perf_counter()
        result = inner(*arguments)
        profile.add(name, time.perf_counter() - began, calls)
        return result

    return run


def _timed_parts(inner: Callable[..., Any], name: str, calls: int, profile: Profile) -> Any:
    """Time what prepares a call, and the work that it gives: a call is counted where its work is done."""
    prepare = _timed_run(inner, name, 0, profile)

    def timed(*arguments: Any) -> Any:
        results, work = prepare(*arguments)
        return results, _timed_run(work, name, calls, profile)

    return timed
