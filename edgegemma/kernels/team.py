"""Threads that wait for work, awake, while one of them goes through the layers of a token.

Asking Numba's pool for help costs one or two microseconds, and a token asks some 200 times. So the pool is asked once: its threads
`serve` until the team is closed, and a job is handed to each through a line of the cache. The one who leads never
counts on a thread that has not come yet: work goes to those who are there, and what nobody takes it does itself.

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
from edgegemma.kernels.late import Kernel

_LINE = 128  # bytes: two lines of most caches, which are often fetched together
_SPINS = 1000  # looks, some tens of microseconds, before a waiting thread offers its core to others
_WORD = ir.IntType(64)
_SYMBOL = "edgegemma_team"
_YIELD = "llvm.aarch64.hint", [1]
_PAUSES = {"x86_64": ("llvm.x86.sse2.pause", []), "aarch64": _YIELD, "arm64": _YIELD}

# Bytes from the place of the team, or of a thread in it.
_OPEN, _TICKETS = 0, 8
_TICKET, _FUNCTION, _DATA, _PART, _PARTS, _JOINED = 0, 8, 16, 24, 32, 40  # the leader writes
_PRESENT, _DONE = _LINE, _LINE + 8  # the thread writes

_size = (2 * int(vars(numba.config)["NUMBA_NUM_THREADS"]) - 1) * _LINE
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


def _run(_context, function, data, part, parts):  # type: ignore[no-untyped-def]
    """Call a function that `fork` made."""

    def codegen(context: Any, b: Any, _signature: Any, args: Any) -> Any:
        function, data, part, parts = args
        kind = ir.FunctionType(ir.VoidType(), [_WORD] * 4)
        b.call(b.inttoptr(function, kind.as_pointer()), [data, part, b.add(part, _WORD(1)), parts])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


def _pause(_context):  # type: ignore[no-untyped-def]
    """Let another thread of this core go first for a moment, where the CPU knows how."""

    def codegen(context: Any, b: Any, _signature: Any, _args: Any) -> Any:
        architecture = b.module.triple.split("-")[0]
        if architecture in _PAUSES:
            name, numbers = _PAUSES[architecture]
            args = [ir.IntType(32)(number) for number in numbers]
            kind = ir.FunctionType(ir.VoidType(), [argument.type for argument in args])
            b.call(cgutils.get_or_insert_function(b.module, kind, name), args)
        return context.get_dummy_value()

    return types.void(), codegen


def _give_way(_context):  # type: ignore[no-untyped-def]
    """Offer the core to other threads."""

    def codegen(context: Any, b: Any, _signature: Any, _args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        b.call(cgutils.get_or_insert_function(b.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), codegen


team: Any = intrinsic(_team)
read: Any = intrinsic(_read)
write: Any = intrinsic(_write)
run: Any = intrinsic(_run)
pause: Any = intrinsic(_pause)
give_way: Any = intrinsic(_give_way)


@njit(cache=True)
def _wait(looks):  # type: ignore[no-untyped-def]
    """Wait a moment; give the count of looks so far."""
    pause()
    if looks % _SPINS == _SPINS - 1:
        give_way()
    return looks + 1


@njit(cache=True)
def _of(thread):  # type: ignore[no-untyped-def]
    """Give the place of a thread, 1 or more, in the team."""
    return team() + (2 * thread - 1) * _LINE


@njit(cache=True)
def open_team():  # type: ignore[no-untyped-def]
    """Open the team, for those who come to `serve`."""
    ticket = read(team() + _TICKETS) + 1
    write(team() + _TICKETS, ticket)
    write(team() + _OPEN, ticket)


@njit(cache=True)
def close_team():  # type: ignore[no-untyped-def]
    """Send those who serve away."""
    write(team() + _OPEN, 0)


def _serve(thread):  # type: ignore[no-untyped-def]
    """Do what is handed to a thread until the team is closed."""
    place, opened = _of(thread), read(team() + _OPEN)
    seen, looks = read(place + _TICKET), 0
    write(place + _PRESENT, opened)
    while opened != 0 and read(team() + _OPEN) == opened:
        ticket = read(place + _TICKET)
        if ticket == seen:
            looks = _wait(looks)
            continue
        seen, looks = ticket, 0
        function, data = read(place + _FUNCTION), read(place + _DATA)
        run(function, data, read(place + _PART), read(place + _PARTS))
        write(place + _DONE, ticket)


def _hand_out(function, data):  # type: ignore[no-untyped-def]
    """Have those who are there do a job together with this thread."""
    opened, count, parts = read(team() + _OPEN), threads.count(), 1
    for thread in range(1, count):
        place = _of(thread)
        joined = read(place + _PRESENT) == opened
        write(place + _JOINED, parts if joined else 0)
        parts += joined
    ticket = read(team() + _TICKETS) + 1
    write(team() + _TICKETS, ticket)
    for thread in range(1, count):
        place = _of(thread)
        if read(place + _JOINED) > 0:
            write(place + _FUNCTION, function)
            write(place + _DATA, data)
            write(place + _PART, read(place + _JOINED))
            write(place + _PARTS, parts)
            write(place + _TICKET, ticket)
    run(function, data, 0, parts)
    for thread in range(1, count):
        place, looks = _of(thread), 0
        while read(place + _JOINED) > 0 and read(place + _DONE) != ticket:
            looks = _wait(looks)


Kernel("serve", types.void(types.int64), _serve)
Kernel("hand_out", types.void(types.int64, types.int64), _hand_out)
