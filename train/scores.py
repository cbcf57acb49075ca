"""Word error rates of transcripts, with their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jiwer
import numpy as np

from train.scope import within

RESAMPLES = 2_000
Lines = list[dict[str, Any]]
"""Transcripts of a set."""


def errors_and_words(reference: str, hypothesis: str) -> tuple[int, int]:
    """Count the word errors of one transcript and the words of its reference."""
    if not reference:
        return len(hypothesis.split()), 0
    out = jiwer.process_words(reference, hypothesis)
    return out.substitutions + out.deletions + out.insertions, len(reference.split())


def error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Give the word error rate of a set."""
    counts = [errors_and_words(r, h) for r, h in zip(references, hypotheses, strict=True)]
    return sum(errors for errors, _ in counts) / max(1, sum(words for _, words in counts))


def interval(counts: Sequence[tuple[int, int]], seed: int = 0) -> tuple[float, float]:
    """Give the 95 % interval of an error rate by resampling the clips.

    Parameters
    ----------
    counts : sequence of (errors, words)
        One pair per clip.
    """
    table = np.array(counts)
    drawn = np.random.default_rng(seed).integers(0, len(table), (RESAMPLES, len(table)))
    errors, words = table[drawn].sum(axis=1).T
    low, high = np.percentile(errors / np.maximum(words, 1), (2.5, 97.5))
    return float(low), float(high)


def measured(lines: Sequence[dict[str, str]]) -> dict[str, Any]:
    """Summarise the transcripts of a set: the error rate, or where nobody speaks how many clips got words."""
    counts = [errors_and_words(line["reference"], line["hypothesis"]) for line in lines]
    errors, words = np.array(counts).sum(axis=0).tolist()
    if not words:
        return {"clips": len(lines), "clips_with_words": sum(wrong > 0 for wrong, _ in counts)}
    return {
        "wer": round(errors / words, 4),
        "interval_95": [round(bound, 4) for bound in interval(counts)],
        "errors": errors,
        "words": words,
        "clips": len(lines),
        "clips_right": sum(wrong == 0 for wrong, _ in counts),
    }


def summaries(name: str, lines: Lines, words: set[str]) -> dict[str, dict[str, Any]]:
    """Summarise a set by its name; the held-out prompts also by whether they are in the scope of these words."""
    parts = {name: lines}
    if name == "held-out":
        parts["held-out, in scope"], parts["held-out, out of scope"] = in_scope(lines, words)
    return {part: measured(chosen) for part, chosen in parts.items()}


def in_scope(lines: Lines, words: set[str]) -> tuple[Lines, Lines]:
    """Divide transcripts into those of the scope and others."""
    inside, outside = [], []
    for line in lines:
        place = inside if within(line["reference"], words, line["seconds"]) else outside
        place.append(line)
    return inside, outside
