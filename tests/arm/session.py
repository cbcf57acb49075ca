"""Open a package, hear a second of sound, read a prompt and answer a few tokens; say what it took and fail over a limit.

By hand, on the emulated machine of ``system.sh``: ``session.py PACKAGE [LIMIT_BYTES]``.
"""

from __future__ import annotations

import sys
import time

import numpy as np

from edgegemma.engine.memory import peak_bytes, resident_bytes
from edgegemma.engine.model import open_model

LIMIT_BYTES = 1_500_000_000


def main(path: str, limit: int = LIMIT_BYTES) -> None:
    began = time.perf_counter()

    def mark(name: str) -> None:
        seconds, now, most = time.perf_counter() - began, resident_bytes(), peak_bytes()
        print(
            f"{seconds:7.1f} s  {now / 1e6:7.1f} MB, peak {most / 1e6:7.1f} MB  {name}", flush=True
        )

    mark("start")
    model = open_model(path, kv="int8")
    mark(f"opened, {model.threads} threads")
    rng = np.random.default_rng(0)
    if model.config.audio is not None:
        state = model.new_audio_state()
        sound = rng.standard_normal((100, 128), np.float32)
        model.encode_audio(sound, np.ones(100, np.float32), state)
        mark("encoded a second of sound")
    cache = model.new_cache(8192)
    (logits,) = model.forward(*model.embed(rng.integers(0, 1000, 16)), cache)
    mark("read a prompt of 16 tokens")
    for number in range(4):
        chosen = int(np.argmax(logits))
        logits = model.decode(chosen, cache)
        mark(f"answered {number + 1} tokens, last {chosen}")
    peak = peak_bytes()
    if not np.isfinite(logits).all() or peak > limit:
        sys.exit(f"peak {peak:,} bytes; want at most {limit:,}, and finite logits")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
