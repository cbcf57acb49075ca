"""How a command speaks: results on stdout, all else on stderr, and one clear line when it fails.

Shared by ``edgegemma`` and ``python -m bench``. Imports nothing heavy: ``--help`` passes through here.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from edgegemma.errors import EdgeGemmaError, InputError

FAILED = 2  # exit status of everything the user can put right, and of Ctrl-C
Report = Callable[[str, int, int], None]  # (what, done, of how much)


def out(text: str = "") -> None:
    """Write one line of result to stdout."""
    sys.stdout.write(text + "\n")


def note(text: str, program: str = "edgegemma") -> None:
    """Write one line about the work to stderr."""
    sys.stderr.write(f"{program}: {text}\n")
    sys.stderr.flush()


@contextmanager
def guard(program: str = "edgegemma") -> Iterator[None]:
    """Turn what a user can put right, and Ctrl-C, into one line on stderr and exit status 2."""
    try:
        yield
        sys.stdout.flush()
    except EdgeGemmaError as error:
        _fail(str(error), program)
    except KeyboardInterrupt:
        _fail("interrupted", program)
    except BrokenPipeError:
        # The reader of our stdout has gone (`| head`). Python would complain at exit when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:  # a full disk, a folder one may not write to
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", program)
    except MemoryError as error:
        _fail(f"out of memory ({error})" if str(error) else "out of memory", program)


def _fail(message: str, program: str) -> None:
    note("; ".join(message.splitlines()), program)
    raise SystemExit(FAILED) from None


@contextmanager
def progress(program: str = "edgegemma") -> Iterator[Report]:
    """Show a bar on stderr; where stderr is no terminal, one line for each new thing being done."""
    if not sys.stderr.isatty():
        yield _lines(program)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)

        def report(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield report


def _lines(program: str) -> Report:
    said = ""

    def report(what: str, done: int, total: int) -> None:
        nonlocal said
        if what != said:
            said = what
            note(what, program)

    return report


def size(count: float) -> str:
    """Bytes for people: ``1.4 GB``."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def parse_size(text: str) -> int:
    """Bytes from ``1.5G``, ``800M`` or a plain number; `InputError` for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)B?", text.strip(), re.IGNORECASE)
    if found is None:
        raise InputError(f"size: got {text!r}; want a number of bytes, or one with K, M or G")
    factor = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}[found[2].upper()]
    return int(float(found[1]) * factor)
