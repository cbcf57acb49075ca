"""Keys and values of a decoder, one slot for each layer that owns them.

A full layer keeps every position, in arrays as long as the text may become; the system gives them memory page by
page as positions are written, so nothing is ever copied to grow. A sliding layer keeps a ring of its window and
some slack: a chunk of prefill writes before it reads, and a rollback may go back as far as the slack.
Layers that share K/V read the slot of their source and have none of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edgegemma.engine.memory import zeros
from edgegemma.engine.state import check_room
from edgegemma.errors import InputError
from edgegemma.kernels.kvcache import KV
from edgegemma.kernels.stack import HeldCache

SLACK = 256  # positions; a chunk of prefill must fit, and a live hypothesis rolls back within it
PAGE = 256  # positions of a full layer that are counted as one
Kind = Literal["float32", "int8"]
KINDS = ("float32", "int8")


@dataclass(frozen=True)
class Layout:
    """What one layer's keys and values look like. ``window`` 0 keeps every position."""

    kv_heads: int
    head_dim: int
    window: int

    def position_bytes(self, kind: Kind) -> int:
        """Bytes of one position's keys and values, scales included."""
        return 2 * self.kv_heads * (self.head_dim + 4 if kind == "int8" else 4 * self.head_dim)


class KVCache:
    """The state of a text: what has been read so far.

    Parameters
    ----------
    layouts : sequence of Layout
        One for each layer that owns K/V.
    limit : int
        Positions it may ever hold.
    kind : str
        "float32", or "int8": with the scales that the layer has, or one for each position and head.
    slack : int
        Extra positions of a ring: how far `truncate` can go back.
    """

    def __init__(
        self, layouts: Sequence[Layout], limit: int, kind: Kind = "float32", slack: int = SLACK
    ) -> None:
        self.kind, self.limit, self.slack = kind, limit, slack
        self._layouts = tuple(layouts)
        self._length = 0
        self._written = 0  # one past the highest position whose row was overwritten
        self._touched = 0  # the highest that ``_written`` ever was
        self._held = [HeldCache(_zeros(layout, self._rows(layout), kind)) for layout in layouts]

    @property
    def length(self) -> int:
        """Positions read so far; the next one has this number."""
        return self._length

    @property
    def nbytes(self) -> int:
        """Bytes in use: rings, and the pages of full layers that positions were written to."""
        return self.planned(self._touched)

    def planned(self, positions: int) -> int:
        """Bytes in use once so many positions have been written."""
        pages = min(max(1, -(-positions // PAGE)) * PAGE, self.limit)
        rows = (self._rows(x) if x.window else pages for x in self._layouts)
        return sum(
            n * x.position_bytes(self.kind) for n, x in zip(rows, self._layouts, strict=True)
        )

    @property
    def bytes_per_token(self) -> int:
        """Bytes that each further position takes: those of the full layers."""
        return sum(x.position_bytes(self.kind) for x in self._layouts if not x.window)

    def slot(self, index: int) -> KV:
        """Give the arrays of an owning layer. Position p is in row ``p % capacity``."""
        return self._held[index].values

    def held(self, index: int) -> HeldCache:
        """Give the same, held for compiled code."""
        return self._held[index]

    def reserve(self, count: int) -> None:
        """Make room for the next positions, before they are written.

        Raises
        ------
        InputError
            The text would be longer than the cache may hold.
        """
        check_room(self, count)
        end = self._length + count
        assert count <= self.slack
        self._written = max(self._written, end)
        self._touched = max(self._touched, end)

    def advance(self, count: int) -> None:
        """Count positions whose keys and values are written."""
        assert self._length + count <= self._written
        self._length += count

    def truncate(self, length: int) -> None:
        """Go back to an earlier length: what came after it is forgotten.

        Raises
        ------
        InputError
            The length is in the future, or a sliding layer no longer has the keys before it.
        """
        if not 0 <= length <= self._length:
            raise InputError(f"truncate: got length {length}; want 0 to {self._length}")
        if length == 0:
            self._written = 0
        elif length < (lowest := self._lowest()):
            raise InputError(
                f"truncate: got length {length}; want 0 or at least {lowest}, as sliding layers keep "
                f"only {self.slack} positions beside their window; read the text again"
            )
        self._length = length

    def _lowest(self) -> int:
        """Give the shortest length, other than 0, before which every ring has its whole window."""
        lowest = 0
        for layout, held in zip(self._layouts, self._held, strict=True):
            oldest = self._written - held.capacity
            if layout.window and oldest > 0:
                lowest = max(lowest, oldest + layout.window - 1)
        return lowest

    def _rows(self, layout: Layout) -> int:
        return layout.window + self.slack if layout.window else self.limit


def _zeros(layout: Layout, capacity: int, kind: Kind) -> KV:
    # Zeros: a row not yet written holds no NaN, and takes no memory.
    shape = (capacity, layout.kv_heads, layout.head_dim)
    dtype: Any = np.int8 if kind == "int8" else np.float32
    scales = (capacity, layout.kv_heads) if kind == "int8" else (0, 0)
    return KV(
        zeros("cache", shape, dtype),
        zeros("cache", shape, dtype),
        zeros("cache", scales, np.float32),
        zeros("cache", scales, np.float32),
    )
