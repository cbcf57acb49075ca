"""Tuples that are held in memory for compiled code."""

from __future__ import annotations

import gc
import sys

import numpy as np
from numba import njit

from edgegemma.kernels.held import Held, opener
from edgegemma.kernels.linear import CodeMatrix


def total(held: Held) -> float:
    """Add up everything that is held."""
    at = opener(held.kind)

    @njit
    def added(address):  # type: ignore[no-untyped-def]
        w = at(address)
        return w.codes.sum() + w.scale.sum() + w.activation.sum() + w.bits + w.block

    return float(added(held.address))


def example(seed: int) -> CodeMatrix:
    codes = np.random.default_rng(seed).integers(0, 9, (3, 5)).astype(np.uint8)
    codes.flags.writeable = False
    return CodeMatrix(codes, np.full((2, 1), 0.5, np.float32), np.zeros(2, np.float32), seed, 16)


def test_compiled_code_finds_what_is_held_at_its_address() -> None:
    values = example(2)
    assert total(Held(values)) == values.codes.sum() + 1 + 2 + 16


def test_values_of_one_type_are_of_one_kind() -> None:
    first, second = Held(example(1)), Held(example(2))
    assert first.kind is second.kind
    writable = second.values._replace(codes=np.zeros((3, 5), np.uint8))
    assert Held(writable).kind is not first.kind


def test_holding_and_opening_leave_no_reference_behind() -> None:
    values = example(3)
    before = sys.getrefcount(values.codes)
    held = Held(values)
    for _ in range(5):
        total(held)
    del held
    gc.collect()
    after = sys.getrefcount(values.codes)
    assert after == before
