"""How a command speaks: results on stdout, all else on stderr, and one clear line when it fails.

Shared by ``edgegemma`` and ``python -m bench``. Imports nothing heavy: ``--help`` passes through here.
"""

from __future__ import annotations

import atexit
import errno
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgegemma.errors import EdgeGemmaError, InputError

if TYPE_CHECKING:
    from typer.core import TyperGroup

FAILED = 2  # exit status of everything the user can put right, and of Ctrl-C
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
Report = Callable[[str, int, int], None]  # (what, done, of how much)


def out(text: str = "") -> None:
    """Write one line of result to stdout."""
    sys.stdout.write(text + "\n")


def note(text: str, program: str = "edgegemma") -> None:
    """Write one line about the work to stderr."""
    sys.stderr.write(f"{program}: {plain(text)}\n")
    sys.stderr.flush()


def plain(text: str) -> str:
    """One line without control characters: names come from files that others made."""
    line = "; ".join(text.splitlines())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


class Interrupted(SystemExit):
    """Ctrl-C, after its line has been written."""


def run(start: Callable[[], object], program: str = "edgegemma") -> None:
    """Run a program under `guard` to the end of the process."""
    try:
        with guard(program):
            start()
    except Interrupted:
        # If Ctrl-C fell into an exec() of some library, Python would forget our status and end by the
        # signal. So: what it does at the end, then out.
        atexit._run_exitfuncs()
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(FAILED)


@contextmanager
def guard(program: str = "edgegemma") -> Iterator[None]:
    """Turn what a user can put right, and Ctrl-C, into one line on stderr and exit status 2."""
    try:
        yield
        sys.stdout.flush()
    except EdgeGemmaError as error:
        _fail(str(error), program)
    except KeyboardInterrupt:
        note("interrupted", program)
        raise Interrupted(FAILED) from None
    except SystemExit as end:
        if (
            end.code != 130
        ):  # typer's status for Ctrl-C while it reads the arguments; it says nothing
            raise
        note("interrupted", program)
        raise Interrupted(FAILED) from None
    except BrokenPipeError:
        # The reader of our stdout has gone (`| head`). Python would complain at exit when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:  # a full disk, a folder one may not write to
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", program)
    except MemoryError as error:
        _fail(f"out of memory ({error})" if str(error) else "out of memory", program)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Have a full or broken disk told with the name of the file; the system gives none for a file that is open."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _DISK:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _fail(message: str, program: str) -> None:
    note(message, program)
    raise SystemExit(FAILED) from None


def group(program: str = "edgegemma") -> type[TyperGroup]:
    """Return the class for a typer app whose commands run under `guard`.

    Typer itself would turn Ctrl-C into "Aborted!" and status 1.
    """
    from typer.core import TyperGroup

    class Guarded(TyperGroup):
        def invoke(self, ctx: Any) -> Any:
            with guard(program):
                return super().invoke(ctx)

    return Guarded


@contextmanager
def progress(program: str = "edgegemma", bar: bool = True, lines: bool = True) -> Iterator[Report]:
    """Show the work on stderr.

    Parameters
    ----------
    program : str
        For lines.
    bar : bool
        A bar, if stderr is a terminal.
    lines : bool
        Without a bar: one line for each new thing being done.
    """
    if not (bar and sys.stderr.isatty()):
        yield _lines(program) if lines else lambda _what, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    text = TextColumn("{task.description}", markup=False)
    columns = (text, BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    # Results go to stdout untouched: rich would send them to its own console.
    shown = Progress(
        *columns,
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    with shown:
        task = shown.add_task("", total=None)

        def report(what: str, done: int, total: int) -> None:
            shown.update(task, description=plain(what), completed=done, total=total or None)

        yield report


def _lines(program: str) -> Report:
    said = ""

    def report(what: str, _done: int, _total: int) -> None:
        nonlocal said
        if what != said:
            said = what
            note(what, program)

    return report


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> None:
    """Print a table on stdout; columns of numbers to the right."""
    from rich.table import Table
    from rich.text import Text

    cells = [[plain(str(cell)) for cell in row] for row in rows]
    drawn = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for column, name in enumerate(headers):
        numeric = all(re.match(r"[\d.,]+( |$)|$", row[column]) for row in cells)
        drawn.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in cells:
        drawn.add_row(*map(Text, row))
    show(drawn)


def show(drawn: object) -> None:
    """Print what rich can draw on stdout; as wide as it likes where stdout is no terminal."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(drawn)


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
