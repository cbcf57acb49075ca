"""Checks of the values that flow between calls, before compiled code reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgegemma.errors import PackageError


def rows(
    where: str, value: Any, *tail: int, dtype: Any = np.float32, count: int | None = None
) -> NDArray[Any]:
    """Give a value without its batch of 1, contiguous. See `view`."""
    return np.ascontiguousarray(view(where, value, *tail, dtype=dtype, count=count))


def view(
    where: str, value: Any, *tail: int, dtype: Any = np.float32, count: int | None = None
) -> NDArray[Any]:
    """Give a value without its batch of 1 as it lies in memory, not read.

    Parameters
    ----------
    where : str
        The call, for the error.
    value : array [1, S, *tail]
    tail : int
        The dimensions it must have after S.
    dtype : type
        The type it must have.
    count : int, optional
        The S it must have.

    Returns
    -------
    array [S, *tail]

    Raises
    ------
    PackageError
        The graph hands on something else.
    """
    if not isinstance(value, np.ndarray):
        raise PackageError(f"{where}: got no array; want [1, S, {', '.join(map(str, tail))}]")
    length = value.shape[1] if count is None and value.ndim > 1 else count
    if value.shape != (1, length, *tail) or value.dtype != dtype:
        want = f"{np.dtype(dtype)} {[1, 'S' if count is None else count, *tail]}"
        raise PackageError(f"{where}: got {value.dtype} {list(value.shape)}; want {want}")
    inside: NDArray[Any] = value[0]
    return inside


def exact(where: str, value: Any, *shape: int, dtype: Any = np.float32) -> NDArray[Any]:
    """Give a value of exactly this shape and type, contiguous; raise `PackageError` otherwise."""
    if not isinstance(value, np.ndarray) or value.shape != shape or value.dtype != dtype:
        got = f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else "no array"
        raise PackageError(f"{where}: got {got}; want {np.dtype(dtype)} {list(shape)}")
    return np.ascontiguousarray(value)
