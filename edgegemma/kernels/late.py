"""Kernels that callers reach through a pointer, compiled when the first call needs them.

Numba links a copy of everything a function calls into that function and optimizes it all again, so
a matrix kernel inside each layer kernel would be compiled dozens of times over. A `Kernel` has one
signature, and one cell holding its address, which LLVM knows by the kernel's name. Compiled code asks
for the address with `ready` and jumps there with `call`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_WORD = ir.IntType(64)
_FILL = "edgegemma_fill"
KERNELS: dict[str, Kernel] = {}
_by_cell: dict[int, Kernel] = {}


class Kernel:
    """A function of one signature, compiled or loaded from the cache at the first `ready`."""

    def __init__(self, name: str, signature: Any, function: Callable[..., Any]) -> None:
        self.symbol = f"edgegemma_cell_{name}"
        self.signature = signature
        self.dispatcher = njit(cache=True)(function)
        keyed(self.dispatcher, name)
        self._cell = ctypes.c_int64(0)
        place = ctypes.addressof(self._cell)
        llvm.add_symbol(self.symbol, place)
        KERNELS[name] = _by_cell[place] = self

    @property
    def address(self) -> int:
        """Where callers find the compiled function; 0 until it is there."""
        return self._cell.value

    @address.setter
    def address(self, address: int) -> None:
        self._cell.value = address

    def fill(self) -> None:
        """Put the address of the compiled function into the cell."""
        if not self.address:
            self.dispatcher.compile(self.signature)
            result: Any = self.dispatcher.overloads[self.signature.args]
            self.address = result.library.get_pointer_to_function(result.fndesc.llvm_func_name)


def keyed(dispatcher: Any, name: str) -> None:
    """Have Numba find a kept kernel by a name instead of what it closes over.

    A function or type among that has another identity in each process, so it would never be found again. The stamp knows the
    sources, and the name the rest.
    """
    dispatcher._cache._index_key = lambda signature, codegen: (
        signature,
        codegen.magic_tuple(),
        name,
    )


def kept_as(function: Any, wrapper: Any) -> None:
    """Have Numba keep a wrapper as the function that it wraps: where that file or one it imports changes, it is compiled anew."""
    code = function.__code__
    wrapper.__code__ = wrapper.__code__.replace(
        co_filename=code.co_filename, co_firstlineno=code.co_firstlineno
    )
    for name in ("__name__", "__qualname__", "__module__"):
        setattr(wrapper, name, getattr(function, name))


@ctypes.CFUNCTYPE(None, ctypes.c_int64)
def _fill(place: int) -> None:
    _by_cell[place].fill()


# Registers the pool's entry points with LLVM. Numba does so when it loads a parallel function, but forgets it for
# a function compiled on top of a parallel one that came from the cache: such a one, loaded, would call address 0.
numba.get_num_threads()
llvm.add_symbol(_FILL, ctypes.cast(_fill, ctypes.c_void_p).value)


def cell_of(module: Any, name: str) -> Any:
    """Give the word that holds a kernel's address, in LLVM's terms."""
    symbol = KERNELS[name].symbol
    return module.globals.get(symbol) or ir.GlobalVariable(module, _WORD, symbol)


def call_at(context: Any, b: Any, signature: Any, address: Any, given: Sequence[Any]) -> Any:
    """Call the kernel of a signature at an address, in LLVM's terms. Gives Numba's status."""
    convention, result, args = context.call_conv, signature.return_type, signature.args
    function = b.inttoptr(address, convention.get_function_type(result, args).as_pointer())
    return convention.call_function(b, function, result, args, given)[0]


def _ready(_context, name):  # type: ignore[no-untyped-def]
    """Give the address of a kernel, filling its cell if it is empty.

    Within a parallel region only where the interpreter's lock is free, as a `leader` leaves it: else it would wait for an
    interpreter that waits for it.
    """

    def codegen(context: Any, b: Any, _signature: Any, _args: Any) -> Any:
        cell = cell_of(b.module, name.literal_value)
        address = cgutils.alloca_once_value(b, b.load(cell))
        empty = b.icmp_unsigned("==", b.load(address), ir.Constant(_WORD, 0))
        with b.if_then(empty, likely=False):
            kind = ir.FunctionType(ir.VoidType(), [_WORD])
            fill = cgutils.get_or_insert_function(b.module, kind, _FILL)
            b.call(fill, [b.ptrtoint(cell, _WORD)])
            b.store(b.load(cell), address)
            failed = b.icmp_unsigned("==", b.load(address), ir.Constant(_WORD, 0))
            with b.if_then(failed, likely=False):  # the reason is on stderr: ctypes prints it
                text = f"{name.literal_value} could not be compiled"
                context.call_conv.return_user_exc(b, RuntimeError, (text,))
        return b.load(address)

    return types.int64(name), codegen


def _call(_context, name, address, args):  # type: ignore[no-untyped-def]
    """Call the kernel at an address with a tuple of arguments, and raise what it raises; ``name`` tells its signature."""
    signature = KERNELS[name.literal_value].signature

    def codegen(context: Any, b: Any, _signature: Any, values: Any) -> Any:
        given = cgutils.unpack_tuple(b, values[2], len(signature.args))
        status = call_at(context, b, signature, values[1], given)
        with cgutils.if_unlikely(b, status.is_error):
            context.call_conv.return_status_propagate(b, status)
        return context.get_dummy_value()

    return types.void(name, types.int64, types.Tuple(signature.args)), codegen


ready: Any = intrinsic(prefer_literal=True)(_ready)
call: Any = intrinsic(prefer_literal=True)(_call)
