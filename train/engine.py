"""What the runtime's own engine hears of the test sets: the error rates of a package.

It rounds activations to int8, finds where somebody speaks, and doubts what may be made up, none of which `report` has: that
measures the checkpoint in transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgegemma.engine.model import open_model
from edgegemma.models import find
from edgegemma.transcribe import transcribe
from train.corpus import TESTS, clips_for_testing
from train.scope import training_scope
from train.scores import Lines, summaries
from train.voices import SAMPLE_RATE

REPORT = "engine.json"
SETS = tuple(name for name in TESTS if name != "translation")
"""Half of that one is by a voice that never says a text twice in the same way."""


def heard(model: Any, clips: Iterator[tuple[Any, ...]]) -> Lines:
    """Transcribe clips that are given as samples, transcript, source and key."""
    return [
        {
            "key": key,
            "seconds": round(len(samples) / SAMPLE_RATE, 2),
            "reference": said,
            "hypothesis": " ".join(f.text for f in transcribe(model, samples) if f.text),
        }
        for samples, said, _, key in clips
    ]


def measure(work: Path, package: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Transcribe the test sets with a package; write `engine.json` to the work folder.

    Yields
    ------
    name, summary
        of each set, when it is heard
    """
    model, words = open_model(find(package)), training_scope(work)
    sets: dict[str, dict[str, Any]] = {}
    transcripts: dict[str, Lines] = {}
    for name in SETS:
        lines = transcripts[name] = heard(model, clips_for_testing(work, name))
        found = summaries(name, lines, words)
        sets |= found
        yield from found.items()
    report = {"sets": sets, "transcripts": transcripts}
    (work / REPORT).write_text(json.dumps(report, indent=1) + "\n")
