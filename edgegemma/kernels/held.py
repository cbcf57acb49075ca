"""Tuples of arrays and numbers, kept in memory as compiled code has them.

Taking the forty arrays of a layer's weights apart costs a call from Python some ten microseconds, and several times that
while weights stream through the caches. A tuple that is `Held` was taken apart once: compiled code finds it at its address.
"""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, typeof, types
from numba.core import cgutils
from numba.extending import intrinsic


class Held:
    """A tuple in memory.

    Parameters
    ----------
    values : NamedTuple of arrays, numbers and such tuples
        Kept alive; `opener` gives it back to compiled code.

    Attributes
    ----------
    values : the tuple
    address : int, where it is
    kind : Numba's type of it; values of one kind have the same object here
    """

    def __init__(self, values: NamedTuple) -> None:
        self.values, self.kind = values, typeof(values)

    @cached_property
    def address(self) -> int:
        """Where the tuple is: put there when first asked for, so that opening a model compiles nothing."""
        self._room = np.empty(_hold(self.values, np.empty(0, np.uint8)), np.uint8)
        _hold(self.values, self._room)
        return int(self._room.ctypes.data)


@njit(cache=True)
def _hold(values, room):  # type: ignore[no-untyped-def]
    """Write values to the room, if it is large enough; give the bytes they take."""
    size = _size(values)
    if room.size >= size:
        _write(values, room)
    return size


def _size_intrinsic(_context, values):  # type: ignore[no-untyped-def]
    """Give the bytes of a value in memory."""

    def codegen(context: Any, b: Any, signature: Any, _args: Any) -> Any:
        kind = context.get_value_type(signature.args[0])
        return ir.Constant(ir.IntType(64), context.get_abi_sizeof(kind))

    return types.int64(values), codegen


def _write_intrinsic(_context, values, room):  # type: ignore[no-untyped-def]
    """Write a value to an array of bytes, without the counts of who uses its arrays: `Held` keeps them alive."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        bare = uncounted(context, b, signature.args[0], args[0])
        data = context.make_array(signature.args[1])(context, b, args[1]).data
        b.store(bare, b.bitcast(data, bare.type.as_pointer()))
        return context.get_dummy_value()

    return types.void(values, room), codegen


def uncounted(context: Any, b: Any, kind: Any, value: Any) -> Any:
    """Give a value whose arrays are not counted, for as long as somebody else keeps them alive."""
    parts = kind
    if isinstance(kind, types.Array):
        array = context.make_array(kind)(context, b, value)
        array.meminfo = cgutils.get_null_value(array.meminfo.type)
        array.parent = cgutils.get_null_value(array.parent.type)
        return array._getvalue()
    if isinstance(kind, types.BaseTuple):
        for i, part in enumerate(parts):
            bare = uncounted(context, b, part, b.extract_value(value, i))
            value = b.insert_value(value, bare, i)
    return value


@cache
def opener(kind: Any) -> Any:
    """Give a function for compiled code: from an address to the value of that kind that is held there.

    The kind is a part of the function. To hand a value over for its type's sake alone, Numba would look at every array in it.
    """

    def opened(_context, address):  # type: ignore[no-untyped-def]
        def codegen(context: Any, b: Any, _signature: Any, args: Any) -> Any:
            return b.load(b.inttoptr(args[0], context.get_value_type(kind).as_pointer()))

        return kind(types.int64), codegen

    return intrinsic(opened)


_size: Any = intrinsic(_size_intrinsic)
_write: Any = intrinsic(_write_intrinsic)
