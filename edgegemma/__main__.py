"""``python -m edgegemma``: the same as ``edgegemma``."""

from __future__ import annotations

from edgegemma.cli.main import main

if __name__ == "__main__":
    main()
