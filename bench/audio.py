"""The streaming audio encoder by size of block: how much of real time it takes, and how late it is."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import samples
from edgegemma.errors import InputError

if TYPE_CHECKING:
    from edgegemma.engine.model import Model

RATE = 16_000
BLOCKS = (40, 80, 160, 320, 640, 1280)  # milliseconds
TOKEN = 40  # milliseconds of a soft token


def measure(model: Model, block: int, seconds: float) -> dict[str, Any]:
    """Stream noise through the encoder in blocks, from samples to soft tokens.

    Parameters
    ----------
    block : int
        Milliseconds, a multiple of 40.
    seconds : float
        Of sound.

    Returns
    -------
    dict
        ``real_time_factor``: seconds of work for a second of sound; ``work_ms`` of a block; ``delay_ms``: a sound at
        the start of a block is in a soft token when the block is full and has been worked on.
    """
    if block < TOKEN or block % TOKEN:
        raise InputError(f"block: got {block} ms; want a multiple of {TOKEN}")
    from edgegemma.audio.encoder import AudioStream

    size = RATE * block // 1000
    count = max(4, int(seconds * 1000 / block))
    noise = np.random.default_rng(0).standard_normal((count, size)).astype(np.float32) * 0.1
    stream = AudioStream(model)
    spent = []
    for piece in noise:
        began = time.perf_counter()
        stream.feed(piece)
        spent.append(time.perf_counter() - began)
    spent = spent[2:]  # the first ones compile and fault pages in
    work = samples.figure([1000 * s for s in spent])
    factor = samples.figure([1000 * s / block for s in spent])
    return {
        "block_ms": block,
        "real_time_factor": asdict(factor),
        "mean_factor": sum(spent) * 1000 / (block * len(spent)),
        "work_ms": asdict(work),
        "delay_ms": asdict(samples.figure([block + 1000 * s for s in spent])),
    }
