"""The first thing a new user sees: three recordings, what was said, and what the embedded model heard."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from edgegemma import console
from edgegemma.errors import InputError
from edgegemma.models import DATA, DEMO, find

SAMPLES = DATA / "samples"


def samples(folder: Path = SAMPLES) -> list[tuple[Path, str]]:
    """Give each recording with its words, as ``samples.json`` lists them.

    Raises
    ------
    InputError
        The installation is not complete.
    """
    try:
        rows = json.loads((folder / "samples.json").read_text("utf-8"))
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; install edgegemma again") from error
    return [(folder / row["file"], row["text"]) for row in rows]


def run(engine: str = "edgegemma") -> list[dict[str, Any]]:
    """Transcribe every sample with the embedded model."""
    recordings = samples()
    path = find(DEMO)
    from edgegemma.engine.model import open_model
    from edgegemma.transcribe import transcribe

    began = time.perf_counter()
    model = open_model(path, executor=engine)
    seconds = time.perf_counter() - began
    size = console.size(model.package.size)
    console.note(f"opened {path}, {size}, in {seconds:.2f} s", "demo")
    rows = []
    for sample, words in recordings:
        began = time.perf_counter()
        passages = list(transcribe(model, sample))
        rows.append(
            {
                "file": sample.name,
                "expected": words,
                "heard": " ".join(passage.text for passage in passages),
                "seconds": time.perf_counter() - began,
            }
        )
    return rows


def words(text: str) -> list[str]:
    """Split a text as a listener compares it: case and punctuation do not count."""
    kept = "".join(c.lower() if c.isalnum() or c in "'." else " " for c in text)
    return [word for word in (w.strip(".") for w in kept.split()) if word]


def show(rows: list[dict[str, Any]], as_json: bool) -> None:
    """Print what was said and heard; raise if a word is wrong."""
    from edgegemma.engine.memory import peak_bytes

    right = [row for row in rows if words(row["expected"]) == words(row["heard"])]
    if as_json:
        console.out(json.dumps({"samples": rows, "peak_bytes": peak_bytes()}, indent=2))
    else:
        for row in rows:
            console.out(f"{row['file']}, {row['seconds']:.2f} s")
            console.out(f"  said:  {row['expected']}")
            console.out(f"  heard: {row['heard']}")
        console.out(
            f"{len(right)} of {len(rows)} heard word for word; peak memory {console.size(peak_bytes())}"
        )
    if len(right) < len(rows):
        raise InputError(f"{len(rows) - len(right)} of {len(rows)} samples were not heard right")
