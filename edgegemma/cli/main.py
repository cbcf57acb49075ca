"""The entry point ``edgegemma``."""

from __future__ import annotations

from edgegemma import console


def main() -> None:
    """Run a command; what the user can put right becomes one line and exit status 2."""
    console.run(_start)


def _start() -> None:
    # Imported here, under the guard: Ctrl-C while Python is still importing is one line too.
    from edgegemma.cli.app import app

    app()


if __name__ == "__main__":
    main()
