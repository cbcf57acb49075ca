"""The kernels that measure the machine do all the work they are credited with."""

from __future__ import annotations

import numpy as np
import pytest

from edgegemma.errors import InputError
from edgegemma.kernels import limits, reference_limits, threads
from tests.crosscompile import ARM, X86, assembly, turns


@pytest.mark.parametrize("parts", [1, 3])
def test_reading_adds_up_every_number(parts: int) -> None:
    numbers = np.random.default_rng(0).integers(-(2**31), 2**31, parts * limits.PART, np.int32)
    assert limits.read_sum(numbers) == reference_limits.read_sum(numbers)


def test_reading_wants_whole_parts() -> None:
    with pytest.raises(InputError, match="multiple of"):
        limits.read_sum(np.zeros(limits.PART + 1, np.int32))


@pytest.mark.parametrize(("rounds", "factor"), [(0, 1), (1, 1), (7, 63), (50, 5)])
def test_registers_hold_the_sum_of_every_product(rounds: int, factor: int) -> None:
    threads.use(2)
    assert limits.product_sum(rounds, factor, 2) == reference_limits.product_sum(rounds, factor, 2)


@pytest.mark.parametrize("count", [1, 2])
def test_work_is_shared_in_every_round(count: int) -> None:
    threads.use(count)
    assert limits.share_jobs(300, count) == reference_limits.share_jobs(300, count)


def test_a_factor_that_may_saturate_is_refused() -> None:
    with pytest.raises(InputError, match="1 to 63"):
        limits.product_sum(1, 64, 1)


@pytest.mark.parametrize(
    ("triple", "cpu", "instruction"),
    [
        (X86, "sapphirerapids", "vpdpbusd"),
        (X86, "haswell", "vpmaddubsw"),
        (ARM, "cortex-a76", "sdot"),
        (ARM, "cortex-a72", "smlal"),
    ],
)
def test_the_loop_is_the_paths_products_and_touches_no_memory(
    triple: str, cpu: str, instruction: str
) -> None:
    text = assembly(triple, cpu, "register_sum")
    turn = max(turns(text), key=lambda lines: "\n".join(lines).count(instruction))
    products = [line for line in turn if line.startswith(instruction)]
    assert len(products) >= limits._WAYS * limits._TURNS
    assert not [line for line in turn if "(" in line or "[" in line]
