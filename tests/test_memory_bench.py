"""The memory meter: what it adds up, and its limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import memory
from edgegemma.errors import BudgetError

SMAPS = """\
7f00-7f10 r--s 00000000 fe:00 123        /p/model/decoder.bin
Size:               1000 kB
Rss:                 600 kB
VmFlags: rd sh mr
7f10-7f20 r--s 00000000 fe:00 124        /p/model/with space.bin
Rss:                  40 kB
7f20-7f30 rw-p 00000000 00:00 0
Rss:                 999 kB
7f30-7f40 r-xp 00000000 fe:00 125        /p/model-other/lib.so
Rss:                 999 kB
7f40-7f50 rw-p 00000000 00:00 0          [heap]
Rss:                 999 kB
"""


def test_resident_weights_are_the_packages_files() -> None:
    assert memory.resident_of(Path("/p/model"), SMAPS) == 640 * 1024


def test_limit_is_kept_or_broken_with_both_numbers() -> None:
    result = {"ledger": {"peak": 1_500_000_000}}
    memory.check(result, 1_500_000_000)
    with pytest.raises(BudgetError, match=r"got 1,500,000,000 bytes; want at most 1,499,999,999"):
        memory.check(result, 1_499_999_999)
