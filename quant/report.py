"""What quantization did to each tensor: bits, error, saturation.

Rows are collected while the weights stream past, kept in a package as ``quantization.json`` and shown
as a table.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table

from quant.rtn import Quantized, dequantize

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One tensor."""

    tensor: str
    shape: tuple[int, int]
    bits: int
    block: int
    """Columns that share a scale; 0 for float."""
    bits_per_weight: float
    """Scales counted."""
    relative_error: float
    """``|w − ŵ| / |w|`` in the Euclidean norm; 0 for weights passed through."""
    saturated: float
    """Share of weights beyond the last level by more than half a step."""


@dataclass
class Meter:
    """Adds up one tensor, chunk by chunk."""

    tensor: str
    bits: int
    block: int
    rows: int = 0
    columns: int = 0
    scale_bits: int = 0
    _error: float = 0.0
    _size: float = 0.0
    _saturated: int = 0

    def passed(self, rows: int, columns: int, scales: int) -> None:
        """Count weights that are kept as they are."""
        self.rows, self.columns = self.rows + rows, columns
        self.scale_bits += 32 * scales

    def quantized(self, w: F32, q: Quantized) -> None:
        """Count weights and what became of them."""
        self.passed(w.shape[0], w.shape[1], q.scale.size)
        off = dequantize(q)
        off -= w
        self._error += _square(off)
        self._size += _square(w)
        n, groups = q.scale.shape
        np.abs(off, out=off)
        # a hair over half a step, so that a tie does not count
        room = np.abs(q.scale)[:, :, None] * np.float32(0.5001)
        self._saturated += int(np.count_nonzero(off.reshape(n, groups, -1) > room))

    def row(self) -> Row:
        """Give the result."""
        count = self.rows * self.columns
        return Row(
            tensor=self.tensor,
            shape=(self.rows, self.columns),
            bits=self.bits,
            block=self.block,
            bits_per_weight=round(self.bits + self.scale_bits / max(1, count), 4),
            relative_error=float(f"{math.sqrt(self._error / (self._size or 1.0)):.6g}"),
            saturated=float(f"{self._saturated / max(1, count):.6g}"),
        )


@dataclass
class Report:
    """All tensors of a package, in the order they were written."""

    preset: str
    method: str
    rows: list[Row] = field(default_factory=list)

    @property
    def bits_per_weight(self) -> float:
        """Average over all weights, scales counted."""
        counts = [row.shape[0] * row.shape[1] for row in self.rows]
        total = sum(row.bits_per_weight * n for row, n in zip(self.rows, counts, strict=True))
        return total / max(1, sum(counts))

    def to_json(self) -> dict[str, Any]:
        """Give plain JSON values."""
        return {
            "preset": self.preset,
            "method": self.method,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "tensors": [dataclasses.asdict(row) for row in self.rows],
        }

    def table(self) -> Table:
        """Give a table for people: tensors that differ only in the layer are one line, worst value shown."""
        table = Table(title=f"preset {self.preset}: {self.bits_per_weight:.2f} bits a weight")
        for name in ("tensors", "weights", "bits", "bits + scales", "worst error", "saturated"):
            table.add_column(name, justify="left" if name == "tensors" else "right")
        for (name, bits), rows in self._groups().items():
            worst = max(row.relative_error for row in rows)
            table.add_row(
                f"{name} × {len(rows)}" if len(rows) > 1 else name,
                f"{sum(row.shape[0] * row.shape[1] for row in rows) / 1e6:,.1f} M",
                str(bits),
                f"{max(row.bits_per_weight for row in rows):.2f}",
                f"{worst:.1%}" if worst else "exact",
                f"{max(row.saturated for row in rows):.2%}",
            )
        return table

    def _groups(self) -> dict[tuple[str, int], list[Row]]:
        groups: dict[tuple[str, int], list[Row]] = {}
        for row in self.rows:
            parts = ["*" if part.isdecimal() else part for part in row.tensor.split(".")]
            groups.setdefault((".".join(parts), row.bits), []).append(row)
        return groups


def _square(x: F32) -> float:
    """Give the sum of squares, in float64 over rows so that long tensors do not lose digits."""
    return float(np.einsum("nk,nk->n", x, x).sum(dtype=np.float64))
