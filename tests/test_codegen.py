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


def loop(text: str) -> list[str]:
    """Give the instructions of the longest block that ends with a jump to its own start."""
    parts = re.split(r"^(\.\w+):", text, flags=re.M)
    found: list[str] = []
    for label, body in zip(parts[1::2], parts[2::2], strict=True):
        lines = re.findall(r"^\s+([a-z].*)", body, re.M)
        back = [i for i, line in enumerate(lines) if line.split()[-1] == label]
        found = max(found, lines[: back[-1] + 1] if back else [], key=len)
    return found


# A turn of the loop: four rows by four vectors of codes. What is counted is in docs/kernels.md; more is a step back.
@pytest.mark.parametrize(
    ("triple", "cpu", "bits", "codes", "product", "at_once", "most"),
    [
        (ARM, "cortex-a76", 2, 1024, "sdot", 16, 191),
        (ARM, "cortex-a76", 4, 512, "sdot", 16, 80),
        (ARM, "cortex-a72", 2, 1024, "sm(ul|la)l2?", 8, 256),
        (ARM, "cortex-a72", 4, 512, "sm(ul|la)l2?", 8, 120),
        (X86, "haswell", 2, 2048, "vpmaddubsw", 32, 302),
        (X86, "haswell", 4, 1024, "vpmaddubsw", 32, 152),
    ],
)
def test_a_row_takes_no_more_instructions_a_weight_than_it_did(
    triple: str, cpu: str, bits: int, codes: int, product: str, at_once: int, most: int
) -> None:
    lines = loop(compiled(triple, cpu, f"integers{bits}"))
    products = sum(re.match(rf"{product}\s", line) is not None for line in lines)
    assert products * at_once == codes  # each code once: this is that loop
    assert len(lines) <= most
