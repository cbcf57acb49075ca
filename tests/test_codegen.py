"""What the compiler makes of the kernels, for CPUs this machine need not have."""

from __future__ import annotations

import functools
import re

import pytest

from tests.crosscompile import ARM, X86, assembly


@functools.cache
def compiled(triple: str, cpu: str, kernel: str) -> str:
    return assembly(triple, cpu, kernel)


def count(instruction: str, text: str) -> int:
    return len(re.findall(rf"^\s+{instruction}\b", text, re.M))


@pytest.mark.parametrize(
    ("triple", "cpu", "path", "instruction"),
    [
        (X86, "sapphirerapids", "avx512vnni", r"vpdpbusd\s.*%zmm\d+"),
        (X86, "alderlake", "avxvnni", r"({vex}\s+)?vpdpbusd\s.*%ymm\d+"),
        (X86, "haswell", "avx2", r"vpmaddubsw\s.*%ymm\d+"),
        (ARM, "cortex-a76", "dotprod", "sdot"),
        (ARM, "cortex-a72", "neon", "smlal2?"),
    ],
)
def test_two_bit_rows_use_the_dot_product_of_the_cpu(
    triple: str, cpu: str, path: str, instruction: str
) -> None:
    text = compiled(triple, cpu, "integers2")
    assert f"# path: {path}" in text
    # Four planes for four results; plain NEON starts each with smull and needs two for 16 bytes.
    assert count(instruction, text) >= (24 if path == "neon" else 16)


@pytest.mark.parametrize(
    ("triple", "cpu", "instruction"),
    [(X86, "sapphirerapids", r"vpdpbusd\s.*%zmm\d+"), (ARM, "cortex-a76", "sdot")],
)
def test_queries_meet_int8_keys_in_the_dot_product_of_the_cpu(
    triple: str, cpu: str, instruction: str
) -> None:
    # Two digits of four rows with three keys.
    assert count(instruction, compiled(triple, cpu, "digit_scores")) == 24


def test_eight_bit_codes_never_meet_a_saturating_instruction() -> None:
    text = compiled(X86, "haswell", "integers8")
    assert count("vpmaddwd", text) >= 8
    assert count("vpmaddubsw", text) == 0


def test_a_cpu_without_dot_products_gets_none() -> None:
    text = compiled(ARM, "cortex-a72", "integers2")
    assert count("sdot", text) == 0
    assert count("smull2?", text) >= 8


def test_codes_are_unpacked_once_for_four_activation_rows() -> None:
    text = compiled(ARM, "cortex-a76", "many_integers2")
    # 3 shifts for one unit met by four activation rows.
    assert count(r"ushr\s+v\d+\.16b", text) <= 3 * count("sdot", text) // 16


def test_an_old_x86_gets_plain_code() -> None:
    text = compiled(X86, "x86-64", "integers2")
    assert "# path: generic" in text
    assert not re.search("%[yz]mm", text)
