"""Kernels shared among the threads: by the team, where one is open, or by Numba's pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, overload

from edgegemma.kernels.held import opener, uncounted
from edgegemma.kernels.late import KERNELS, Kernel, call_at, cell_of, kept_as, ready
from edgegemma.kernels.team import JOBS, call_shared, run, team_word
from edgegemma.kernels.threads import count_of

_BYTE, _WORD = ir.IntType(8).as_pointer(), ir.IntType(64)
_WORDS = _WORD.as_pointer()
_POOLED = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), _WORDS, _WORDS, _BYTE])
_POOL = ir.FunctionType(ir.VoidType(), [_BYTE] * 5 + [_WORD] * 3)
_FIELDS = ir.ArrayType(_WORD, 4)  # that the pool hands over


class Shared(Kernel):
    """A kernel that does the jobs ``first`` to ``stop`` of some, with arguments that all its calls have in common.

    They are read from memory, where it uses them: handed over one by one, those of a product are 80 words for every few rows.

    Parameters
    ----------
    name : str
    kinds : sequence of Numba's types
        Those of the arguments.
    function : callable
        Takes a tuple of the arguments, and ``first`` and ``stop``. It shares nothing itself: the team has one job at a time.
    """

    def __init__(self, name: str, kinds: Sequence[Any], function: Callable[..., Any]) -> None:
        self.kinds = types.Tuple((types.int64, *kinds))  # whether a call failed, and the arguments
        taken, work = opener(self.kinds), njit(inline="always")(function)

        def shared(place, first, stop):  # type: ignore[no-untyped-def]
            work(taken(place)[1:], first, stop)

        kept_as(function, shared)
        super().__init__(name, JOBS, shared)


def _fork(_context, name, address, args, jobs):  # type: ignore[no-untyped-def]
    """Have the shared kernel at an address do jobs 0 to ``jobs - 1`` on all threads, each once.

    ``name`` tells what its arguments are. Where a call raises, so does this.
    """

    def codegen(context: Any, b: Any, _signature: Any, values: Any) -> Any:
        _, address, args, jobs = values
        _share(context, b, name, address, _lay(context, b, name, args), jobs)
        return context.get_dummy_value()

    return types.void(name, types.int64, _given(name), types.int64), codegen


def _fork_both(_context, both, name, address, args, jobs, other, other_args, other_jobs):  # type: ignore[no-untyped-def]
    """Have two shared kernels, whose arguments are of one kind, do their jobs on all threads together.

    ``both`` is the address of the kernel of that name.
    """

    def codegen(context: Any, b: Any, _signature: Any, values: Any) -> Any:
        both, _, address, args, jobs, other, other_args, other_jobs = values
        places = [_lay(context, b, name, given) for given in (args, other_args)]
        kinds, name_of_both = types.UniTuple(types.int64, 5), types.literal("both")
        given = context.make_tuple(b, kinds, [address, places[0], jobs, other, places[1]])
        place = _lay(context, b, name_of_both, given)
        _share(context, b, name_of_both, both, place, b.add(jobs, other_jobs))
        for place in places:
            _raise_failed(context, b, name, place)
        return context.get_dummy_value()

    int64, given = types.int64, _given(name)
    return types.void(int64, name, int64, given, int64, int64, given, int64), codegen


def _alone(_context, name, address, args, jobs):  # type: ignore[no-untyped-def]
    """Do what `fork` does, on this thread."""

    def codegen(context: Any, b: Any, _signature: Any, values: Any) -> Any:
        _, address, args, jobs = values
        place = _lay(context, b, name, args)
        call_shared(context, b, address, place, _WORD(0), jobs)
        _raise_failed(context, b, name, place)
        return context.get_dummy_value()

    return types.void(name, types.int64, _given(name), types.int64), codegen


def _gather(_context, name, address, args, serve):  # type: ignore[no-untyped-def]
    """Have the shared kernel at an address do its one job, while the team that was opened for it serves; then close the team.

    ``serve`` is the address of the kernel of that name. Both it and "hand_out" must be `ready`.
    """

    def codegen(context: Any, b: Any, _signature: Any, values: Any) -> Any:
        _, address, args, serve = values
        place = _lay(context, b, name, args)
        team = _pooled_team(context, b.module)
        _ask_pool(b, team, [count_of(b), address, place, serve])
        _raise_failed(context, b, name, place)
        return context.get_dummy_value()

    return types.void(name, types.int64, _given(name), types.int64), codegen


def _given(name: Any) -> Any:
    """Give the type of a shared kernel's arguments."""
    kernel = KERNELS[name.literal_value]
    assert isinstance(kernel, Shared)
    return types.Tuple(tuple(kernel.kinds)[1:])


def _lay(context: Any, b: Any, name: Any, args: Any) -> Any:
    """Lay arguments in memory that all threads read; give its address.

    The arrays are not counted: two threads that count the same one take a cache's line from each other, for longer than the
    rest of a fork takes.
    """
    given = _given(name)
    bare = cgutils.unpack_tuple(b, uncounted(context, b, given, args), len(given))
    kinds = types.Tuple((types.int64, *given))
    fields = context.make_tuple(b, kinds, [_WORD(0), *bare])
    return b.ptrtoint(cgutils.alloca_once_value(b, fields), _WORD)


def _share(context: Any, b: Any, name: Any, address: Any, place: Any, jobs: Any) -> None:
    """Have a shared kernel do jobs with the arguments at a place, by the team if it is open, by the pool if not."""
    count = count_of(b)
    none = b.icmp_signed("==", count, _WORD(1)), b.icmp_signed("<=", jobs, _WORD(1))
    opened = b.load_atomic(team_word(b.module), "acquire", 8)
    with b.if_else(b.or_(*none)) as (alone, together):
        with alone:
            call_shared(context, b, address, place, _WORD(0), jobs)
        with together, b.if_else(cgutils.is_not_null(b, opened)) as (by_team, by_pool):
            with by_team:
                hand_out = b.load(cell_of(b.module, "hand_out"))
                call_at(context, b, JOBS, hand_out, [address, place, jobs])
            with by_pool:
                _ask_pool(b, _pooled_jobs(context, b.module), [count, address, place, jobs])
    _raise_failed(context, b, name, place)


def _raise_failed(context: Any, b: Any, name: Any, place: Any) -> None:
    """Raise if a call that read its arguments there failed."""
    failed = b.load(b.inttoptr(place, _WORDS))
    with cgutils.if_unlikely(b, cgutils.is_not_null(b, failed)):
        context.call_conv.return_user_exc(b, RuntimeError, (f"{name.literal_value} failed",))


def _pooled_jobs(context: Any, module: Any) -> Any:
    """Give the function that the pool calls: each thread has its part of the jobs."""
    pooled, p = _internal(module, "edgegemma_pooled_jobs")
    if p is not None:
        fields, first, last = _handed_over(p, pooled)
        count, address, place, jobs = fields
        start, stop = (p.sdiv(p.mul(jobs, part), count) for part in (first, last))
        with p.if_then(p.icmp_signed("<", start, stop)):
            call_shared(context, p, address, place, start, stop)
        p.ret_void()
    return pooled


def _pooled_team(context: Any, module: Any) -> Any:
    """Give the function that the pool calls: the first thread leads, the others serve."""
    pooled, p = _internal(module, "edgegemma_pooled_team")
    if p is not None:
        fields, first, last = _handed_over(p, pooled)
        _, address, place, serve = fields
        with p.if_then(p.icmp_signed("==", first, _WORD(0))):
            call_shared(context, p, address, place, _WORD(0), _WORD(1))
            p.store_atomic(_WORD(0), team_word(p.module), "release", 8)
        with p.if_then(p.icmp_signed(">", last, _WORD(1))):
            thread = p.select(p.icmp_signed(">", first, _WORD(1)), first, _WORD(1))
            call_at(context, p, KERNELS["serve"].signature, serve, [thread])
        p.ret_void()
    return pooled


def _internal(module: Any, name: str) -> tuple[Any, Any]:
    """Give a function for the pool that only this module knows, and the builder of what it does; None if it is there."""
    if name in module.globals:
        return module.globals[name], None
    function = ir.Function(module, _POOLED, name)
    function.linkage = "internal"
    return function, ir.IRBuilder(function.append_basic_block())


def _handed_over(p: Any, pooled: Any) -> tuple[list[Any], Any, Any]:
    """Give what the pool hands over: the fields of `_ask_pool`, a thread's number, and the next one's."""
    pointers, counts, _, data = pooled.args
    first = p.ptrtoint(p.load(pointers), _WORD)
    fields = cgutils.unpack_tuple(p, p.load(p.bitcast(data, _FIELDS.as_pointer())), 4)
    return fields, first, p.add(first, p.load(counts))


def _ask_pool(b: Any, pooled: Any, fields: Sequence[Any]) -> None:
    """Have the pool call a function on each thread, with four numbers, the first of them the count of threads."""
    data = cgutils.alloca_once_value(b, cgutils.pack_array(b, fields))
    none = cgutils.alloca_once_value(b, ir.Constant(_BYTE, None))  # a pointer counts the threads
    step, dimension = cgutils.alloca_once_value(b, _WORD(1)), cgutils.alloca_once(b, _WORD)
    b.store(fields[0], dimension)
    pool = cgutils.get_or_insert_function(b.module, _POOL, "numba_parallel_for")
    given = [b.bitcast(pointer, _BYTE) for pointer in (pooled, none, dimension, step, data)]
    b.call(pool, [*given, _WORD(0), _WORD(1), fields[0]])


fork: Any = intrinsic(prefer_literal=True)(_fork)
gather: Any = intrinsic(prefer_literal=True)(_gather)
alone: Any = intrinsic(prefer_literal=True)(_alone)
fork_both: Any = intrinsic(prefer_literal=True)(_fork_both)


def forker(name_of: Callable[[Any], str]) -> Any:
    """Make a function for compiled code, of arguments and jobs: it forks the kernel that the arguments' type tells."""

    def forked(args: Any, jobs: int) -> None:
        raise NotImplementedError

    @overload(forked)
    def choose(args, jobs):  # type: ignore[no-untyped-def]
        name = name_of(args)
        return lambda args, jobs: fork(name, ready(name), args, jobs)

    return forked


def _both(given, first, stop):  # type: ignore[no-untyped-def]
    """Do jobs of two shared kernels: those of the first come before those of the other."""
    kernel, place, before, other, other_place = given
    if first < before:
        run(kernel, place, first, min(stop, before))
    if stop > before:
        run(other, other_place, max(first - before, 0), stop - before)


Shared("both", [types.int64] * 5, _both)
