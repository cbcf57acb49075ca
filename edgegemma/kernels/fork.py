"""Kernels shared among the threads: by the team, where one is open, or by Numba's pool."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from edgegemma.kernels.held import uncounted
from edgegemma.kernels.late import KERNELS, call_at, cell_of
from edgegemma.kernels.team import team_word
from edgegemma.kernels.threads import count_of

_BYTE, _WORD = ir.IntType(8).as_pointer(), ir.IntType(64)
_WORDS = _WORD.as_pointer()
_SHARE = ir.FunctionType(ir.VoidType(), [_WORD] * 4)
_POOLED = ir.FunctionType(ir.VoidType(), [_BYTE.as_pointer(), _WORDS, _WORDS, _BYTE])
_POOL = ir.FunctionType(ir.VoidType(), [_BYTE] * 5 + [_WORD] * 3)


def _fork(_context, name, address, args, jobs):  # type: ignore[no-untyped-def]
    """Call the kernel at an address on all threads: with the arguments, and the first and the end of some jobs.

    ``name`` tells its signature. The jobs are 0 to ``jobs - 1``, each in one of the calls. Where a call raises, so does this.
    A kernel that is shared so shares nothing itself: the team has one job at a time.
    """
    signature = KERNELS[name.literal_value].signature

    def codegen(context: Any, b: Any, _signature: Any, values: Any) -> Any:
        work = _Work(context, b, name.literal_value, values[1:])
        share, s = _internal(b.module, _SHARE, "edgegemma_share")
        place, first, last, parts = share.args
        fields = work.fields(s, place)
        start, stop = (s.sdiv(s.mul(fields[2], part), parts) for part in (first, last))
        with s.if_then(s.icmp_signed("<", start, stop)):
            work.call(s, place, [start, stop])
        s.ret_void()
        count, at = count_of(b), b.ptrtoint(work.place, _WORD)
        none = b.icmp_signed("==", count, _WORD(1)), b.icmp_signed("<=", values[3], _WORD(1))
        opened = b.load_atomic(team_word(b.module), "acquire", 8)
        with b.if_else(b.or_(*none)) as (alone, together):
            with alone:
                b.call(share, [at, _WORD(0), _WORD(1), _WORD(1)])
            with together, b.if_else(cgutils.is_not_null(b, opened)) as (by_team, by_pool):
                with by_team:
                    given = [b.ptrtoint(share, _WORD), at, values[3]]
                    address = b.load(cell_of(b.module, "hand_out"))
                    call_at(context, b, "hand_out", address, given)
                with by_pool:
                    _ask_pool(b, share, at, count)
        work.raise_failed(b)
        return context.get_dummy_value()

    return types.void(name, types.int64, types.Tuple(signature.args[:-2]), types.int64), codegen


def _gather(_context, name, address, args, serve):  # type: ignore[no-untyped-def]
    """Call the kernel at an address once, while the team that was opened for it serves; then close the team.

    ``serve`` is the address of the kernel of that name. Both it and "hand_out" must be `ready`.
    """
    signature = KERNELS[name.literal_value].signature

    def codegen(context: Any, b: Any, _signature: Any, values: Any) -> Any:
        work = _Work(context, b, name.literal_value, values[1:])
        share, s = _internal(b.module, _SHARE, "edgegemma_share")
        place, first, last, _ = share.args
        with s.if_then(s.icmp_signed("==", first, _WORD(0))):
            work.call(s, place, [])
            s.store_atomic(_WORD(0), team_word(s.module), "release", 8)
        with s.if_then(s.icmp_signed(">", last, _WORD(1))):
            thread = s.select(s.icmp_signed(">", first, _WORD(1)), first, _WORD(1))
            call_at(context, s, "serve", work.fields(s, place)[2], [thread])
        s.ret_void()
        _ask_pool(b, share, b.ptrtoint(work.place, _WORD), count_of(b))
        work.raise_failed(b)
        return context.get_dummy_value()

    return types.void(name, types.int64, types.Tuple(signature.args), types.int64), codegen


class _Work:
    """Whether a call failed, a kernel's address, a number and its arguments, in memory that all threads read.

    Its arrays are not counted: two threads that count the same one take a cache's line from each other, for longer than
    the rest of a fork takes.
    """

    def __init__(self, context: Any, b: Any, name: str, values: Any) -> None:
        address, args, number = values
        self._context, self._name, self._count = context, name, len(args.type.elements)
        kinds = KERNELS[name].signature.args[: self._count]
        args = uncounted(context, b, types.Tuple(kinds), args)
        fields = cgutils.pack_struct(b, [_WORD(0), address, number, args])
        self._kind = fields.type.as_pointer()
        self.place = cgutils.alloca_once(b, fields.type)
        b.store(fields, self.place)

    def fields(self, b: Any, place: Any) -> Any:
        """Read what is at an address: failed, the kernel's address, the number, the arguments."""
        return cgutils.unpack_tuple(b, b.load(b.inttoptr(place, self._kind)), 4)

    def call(self, b: Any, place: Any, more: list[Any]) -> None:
        """Call the kernel with its arguments and more; note it if that fails."""
        _, address, _, args = self.fields(b, place)
        given = [*cgutils.unpack_tuple(b, args, self._count), *more]
        status = call_at(self._context, b, self._name, address, given)
        with cgutils.if_unlikely(b, status.is_error):
            b.store(_WORD(1), cgutils.gep_inbounds(b, b.inttoptr(place, self._kind), 0, 0))

    def raise_failed(self, b: Any) -> None:
        """Raise if a call failed."""
        failed = b.load(cgutils.gep_inbounds(b, self.place, 0, 0))
        with cgutils.if_unlikely(b, cgutils.is_not_null(b, failed)):
            self._context.call_conv.return_user_exc(b, RuntimeError, (f"{self._name} failed",))


def _internal(module: Any, kind: Any, name: str) -> tuple[Any, Any]:
    """Make a function that only this module knows; give it and the builder of what it does."""
    function = ir.Function(module, kind, module.get_unique_name(name))
    function.linkage = "internal"
    return function, ir.IRBuilder(function.append_basic_block())


def _ask_pool(b: Any, share: Any, place: Any, count: Any) -> None:
    """Have the pool call a function on each thread, with an address, the thread's number, the next, and their count."""
    pooled, p = _internal(b.module, _POOLED, "edgegemma_pooled")
    pointers, counts, _, data = pooled.args
    first = p.ptrtoint(p.load(pointers), _WORD)
    work = p.bitcast(data, _WORDS)
    parts, to = p.load(work), p.load(p.gep(work, [ir.IntType(32)(1)]))
    p.call(share, [to, first, p.add(first, p.load(counts)), parts])
    p.ret_void()
    data = cgutils.alloca_once_value(b, cgutils.pack_array(b, [count, place]))
    none = cgutils.alloca_once_value(b, ir.Constant(_BYTE, None))  # a pointer counts the threads
    step, dimension = cgutils.alloca_once_value(b, _WORD(1)), cgutils.alloca_once(b, _WORD)
    b.store(count, dimension)
    pool = cgutils.get_or_insert_function(b.module, _POOL, "numba_parallel_for")
    given = [b.bitcast(pointer, _BYTE) for pointer in (pooled, none, dimension, step, data)]
    b.call(pool, [*given, _WORD(0), _WORD(1), count])


fork: Any = intrinsic(prefer_literal=True)(_fork)
gather: Any = intrinsic(prefer_literal=True)(_gather)
