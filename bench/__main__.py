"""``python -m bench``: the same as ``edgegemma bench``."""

from __future__ import annotations

from edgegemma import console


def main() -> None:
    """Run one of the measurements."""
    console.run(_start, "bench")


def _start() -> None:
    from bench.cli import app

    app(prog_name="bench")


if __name__ == "__main__":
    main()
