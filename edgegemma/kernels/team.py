"""Threads that wait for work, awake, while one of them goes through layers.

Asking Numba's pool for help costs one or two microseconds where its threads are awake, milliseconds where other programs want the
cores, and a token asks some 200 times. So the pool is asked once: its threads `serve` until the team is closed.

A job is cut into parts, of which each thread has its own. Whoever is done with these takes others': a slow core does fewer, and
a thread that other programs keep from running, or that has not come yet, none. The leader waits for those alone that somebody
else has begun.

Only one thread leads at a time: `threads.lock`.
"""

from __future__ import annotations

import ctypes
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from edgegemma.kernels import threads
from edgegemma.kernels.late import Kernel, call_at
from edgegemma.kernels.simd import _call

_LINE = 128  # bytes: two lines of most caches, which are often fetched together
_SPINS = 1000  # looks, some tens of microseconds, before a waiting thread offers its core to others
_LONG = 100 * _SPINS  # looks, some milliseconds, before it sleeps between them
_DOZE = 200  # microseconds of such a sleep
_WORD = ir.IntType(64)
_SYMBOL = "edgegemma_team"
JOBS = types.void(types.int64, types.int64, types.int64)
"""The signature of a kernel that reads its arguments from a place, and does the jobs from a first one to a stop."""
_YIELD = "llvm.aarch64.hint", [1]
_PAUSES = {"x86_64": ("llvm.x86.sse2.pause", []), "aarch64": _YIELD, "arm64": _YIELD}

_EACH = 64  # parts, at most, of a thread
_SEARCH = 64  # looks at its own parts between two at others'

# Bytes from the team's place, lines that are written at different times by different threads. The state of a thread's parts is
# the job's ticket, the end of them, and the next that nobody has taken: 32, 16 and 16 bits.
_OPEN = 0
_TICKETS, _KERNEL, _PLACE, _JOBS, _PARTS = (_LINE + 8 * i for i in range(5))
_DONE = 2 * _LINE  # parts that those who serve have done
_STATES = 3 * _LINE  # a line each
_HALF = (1 << 16) - 1

_size = _STATES + int(vars(numba.config)["NUMBA_NUM_THREADS"]) * _LINE
_room = ctypes.create_string_buffer(_size + _LINE)
llvm.add_symbol(_SYMBOL, -(-ctypes.addressof(_room) // _LINE) * _LINE)


def team_word(module: Any) -> Any:
    """Give the word of the team that is not 0 while it is open, in LLVM's terms."""
    return module.globals.get(_SYMBOL) or ir.GlobalVariable(module, _WORD, _SYMBOL)


def _team(_context):  # type: ignore[no-untyped-def]
    """Give the place of the team."""

    def codegen(_context: Any, b: Any, _signature: Any, _args: Any) -> Any:
        return b.ptrtoint(team_word(b.module), _WORD)

    return types.int64(), codegen


def _read(_context, place):  # type: ignore[no-untyped-def]
    """Read a word, before anything that comes after it is read."""

    def codegen(_context: Any, b: Any, _signature: Any, args: Any) -> Any:
        return b.load_atomic(b.inttoptr(args[0], _WORD.as_pointer()), "acquire", 8)

    return types.int64(types.int64), codegen


def _write(_context, place, word):  # type: ignore[no-untyped-def]
    """Write a word, after everything that came before it was written."""

    def codegen(context: Any, b: Any, _signature: Any, args: Any) -> Any:
        b.store_atomic(args[1], b.inttoptr(args[0], _WORD.as_pointer()), "release", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def _take(_context, place, word):  # type: ignore[no-untyped-def]
    """Add one to a word if it is still the one given; tell whether it was."""

    def codegen(_context: Any, b: Any, _signature: Any, args: Any) -> Any:
        place, word = b.inttoptr(args[0], _WORD.as_pointer()), args[1]
        found = b.cmpxchg(place, word, b.add(word, _WORD(1)), "acq_rel", "acquire")
        return b.extract_value(found, 1)

    return types.boolean(types.int64, types.int64), codegen


def _add(_context, place, number):  # type: ignore[no-untyped-def]
    """Add to a word, after everything that came before was written."""

    def codegen(context: Any, b: Any, _signature: Any, args: Any) -> Any:
        b.atomic_rmw("add", b.inttoptr(args[0], _WORD.as_pointer()), args[1], "acq_rel")
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


def _run(_context, kernel, place, first, stop):  # type: ignore[no-untyped-def]
    """Have a shared kernel do some jobs."""

    def codegen(context: Any, b: Any, _signature: Any, args: Any) -> Any:
        call_shared(context, b, *args)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


def call_shared(context: Any, b: Any, address: Any, place: Any, first: Any, stop: Any) -> None:
    """Call a kernel that reads its arguments from a place, in LLVM's terms; note there if it fails."""
    status = call_at(context, b, JOBS, address, [place, first, stop])
    with cgutils.if_unlikely(b, status.is_error):
        b.store(_WORD(1), b.inttoptr(place, _WORD.as_pointer()))


def _pause(_context):  # type: ignore[no-untyped-def]
    """Let another thread of this core go first for a moment, where the CPU knows how."""

    def codegen(context: Any, b: Any, _signature: Any, _args: Any) -> Any:
        architecture = b.module.triple.split("-")[0]
        if architecture in _PAUSES:
            name, numbers = _PAUSES[architecture]
            _call(b, name, ir.VoidType(), *map(ir.IntType(32), numbers))
        return context.get_dummy_value()

    return types.void(), codegen


def _give_way(_context):  # type: ignore[no-untyped-def]
    """Offer the core to other threads."""

    def codegen(context: Any, b: Any, _signature: Any, _args: Any) -> Any:
        _call(b, "sched_yield", ir.IntType(32))
        return context.get_dummy_value()

    return types.void(), codegen


def _doze(_context):  # type: ignore[no-untyped-def]
    """Sleep for a moment."""

    def codegen(context: Any, b: Any, _signature: Any, _args: Any) -> Any:
        _call(b, "usleep", ir.IntType(32), ir.IntType(32)(_DOZE))
        return context.get_dummy_value()

    return types.void(), codegen


team: Any = intrinsic(_team)
read: Any = intrinsic(_read)
write: Any = intrinsic(_write)
take: Any = intrinsic(_take)
add: Any = intrinsic(_add)
run: Any = intrinsic(_run)
pause: Any = intrinsic(_pause)
give_way: Any = intrinsic(_give_way)
doze: Any = intrinsic(_doze)


@njit(cache=True)
def _wait(looks):  # type: ignore[no-untyped-def]
    """Wait a moment; give the count of looks so far."""
    if looks >= _LONG:
        doze()
    else:
        pause()
        if looks % _SPINS == _SPINS - 1:
            give_way()
    return looks + 1


@njit(cache=True)
def open_team():  # type: ignore[no-untyped-def]
    """Open the team, for those who come to `serve`."""
    ticket = read(team() + _TICKETS) + 1
    write(team() + _TICKETS, ticket)
    write(team() + _OPEN, ticket)


@njit(cache=True)
def _work(thread):  # type: ignore[no-untyped-def]
    """Take parts of a thread's, and do them, until none is left; give how many."""
    place, done = team() + _STATES + thread * _LINE, 0
    while True:
        state = read(place)
        part = state & _HALF
        if part == state >> 16 & _HALF:
            return done
        kernel, given = read(team() + _KERNEL), read(team() + _PLACE)
        jobs, parts = read(team() + _JOBS), read(team() + _PARTS)
        if take(place, state):  # so the work is still the one that was read
            run(kernel, given, jobs * part // parts, jobs * (part + 1) // parts)
            done += 1


@njit(cache=True)
def _work_for_others(thread):  # type: ignore[no-untyped-def]
    done = 0
    for other in range(threads.count()):
        if other != thread:
            done += _work(other)
    return done


def _serve(thread):  # type: ignore[no-untyped-def]
    """Do what is handed out until the team is closed."""
    opened, looks = read(team() + _OPEN), 0
    while opened != 0 and read(team() + _OPEN) == opened:
        done = _work(thread)
        if done > 0 or looks % _SEARCH == 0:
            done += _work_for_others(thread)
        if done > 0:
            add(team() + _DONE, done)
        looks = 1 if done > 0 else _wait(looks)


def _hand_out(kernel, place, jobs):  # type: ignore[no-untyped-def]
    """Have a shared kernel do jobs, together with those who serve."""
    count = threads.count()
    parts = min(jobs, _EACH * count)
    ticket = read(team() + _TICKETS) + 1
    write(team() + _TICKETS, ticket)
    write(team() + _KERNEL, kernel)
    write(team() + _PLACE, place)
    write(team() + _JOBS, jobs)
    write(team() + _PARTS, parts)
    write(team() + _DONE, 0)
    for thread in range(count - 1, -1, -1):
        first, stop = parts * thread // count, parts * (thread + 1) // count
        write(team() + _STATES + thread * _LINE, ticket << 32 | stop << 16 | first)
    own, looks = _work(0) + _work_for_others(0), 0
    while read(team() + _DONE) != parts - own:
        looks = _wait(looks)


Kernel("serve", types.void(types.int64), _serve)
Kernel("hand_out", JOBS, _hand_out)
