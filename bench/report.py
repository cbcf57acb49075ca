"""What was measured as Markdown and as a picture."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

from edgegemma import console
from edgegemma.errors import MissingExtraError

JOBS = ("decode", "prefill")
NOTHING = "–"  # what was not measured


def spread(value: dict[str, Any] | None, factor: float = 1.0, digits: int = 1) -> str:
    """Show a figure: the median, and the middle half of the samples."""
    if value is None:
        return NOTHING
    median, low, high = (f"{value[k] * factor:.{digits}f}" for k in ("median", "low", "high"))
    return median if value["count"] == 1 else f"{median} ({low}–{high})"


def peer_rows(found: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Give the header and the rows of the table of peers."""
    jobs = [job for job in JOBS if job in found]
    header = ["runtime", "version"]
    for job in jobs:
        header += [f"{job}, tokens/s", f"{job}: ours is … times faster"]
    rows = []
    for name, peer in found["peers"].items():
        row = [name, peer["version"]]
        for job in jobs:
            row += [
                spread(peer[job]["tokens_per_s"], digits=2),
                spread(peer[job]["ratio"], digits=2),
            ]
        rows.append([*row, console.size(peer["peak_bytes"])])
    for name, why in found.get("missing", {}).items():
        rows.append([name, "not measured", *[NOTHING] * (2 * len(jobs)), why])
    return [*header, "peak memory"], rows


def markdown(found: dict[str, Any]) -> str:
    """Write the table of peers with what one must know to read it."""
    header, rows = peer_rows(found)
    intro = (
        f"Package `{found['package']}`, {found['threads']} threads, {found['machine']}. Medians of {found['rounds']} "
        "rounds, everybody in turn in each; in brackets the middle half. A ratio is of the same round. Random weights: "
        "speed, not sense."
    )
    lines = [
        intro,
        "",
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]
    for job in (j for j in JOBS if j in found):
        limit = found[job]
        lines.append(
            f"Beside it ({job}): read bandwidth {spread(limit['read_bandwidth'], 1e-9)} GB/s, int8 products "
            f"{spread(limit['dot_peak'], 1e-9, 0)} G/s."
        )
    return "\n".join(lines) + "\n"


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw tokens a second of everybody, with the middle half as a whisker.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    plt = pyplot()
    jobs = [job for job in JOBS if job in found]
    figure, axes = plt.subplots(1, len(jobs), figsize=(5 * len(jobs), 3), squeeze=False)
    for axis, job in zip(axes[0], jobs, strict=True):
        names = list(found["peers"])
        values = [found["peers"][name][job]["tokens_per_s"] for name in names]
        medians = [v["median"] for v in values]
        whiskers = [
            [v["median"] - v["low"] for v in values],
            [v["high"] - v["median"] for v in values],
        ]
        axis.barh(names, medians, xerr=whiskers, color=["tab:green", *["tab:gray"] * len(names)])
        axis.invert_yaxis()
        axis.set_title(f"{job}, tokens/s")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def pyplot() -> Any:
    """Give matplotlib, drawing into files.

    Raises
    ------
    MissingExtraError
        It is not installed.
    """
    try:
        import matplotlib as mpl

        mpl.use("agg")
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise MissingExtraError("plot: needs matplotlib", "bench") from error
    return plt


def machine() -> str:
    """Name the processor, how many may be used, and the vector path."""
    from edgegemma.engine.memory import physical_cores
    from edgegemma.kernels import cpu

    names = [
        line.partition(":")[2].strip()
        for line in _cpuinfo().splitlines()
        if line.startswith(("model name", "Model"))
    ]
    name = names[0] if names else platform.machine()
    return f"{physical_cores()} cores of {name}, path {cpu.target().path}"


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
