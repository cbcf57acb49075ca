"""The model card: `card.md` with the figures of an evaluation and a run filled in."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from string import Template
from typing import Any

from train.architecture import new_model, parameter_counts
from train.compare import STEPS
from train.engine import REPORT
from train.scope import training_scope

TEMPLATE = Path(__file__).with_suffix(".md")
EXAMPLES, TRANSLATIONS = 8, 6
SETS = {
    "held-out": "real prompts held out (the trained speaker, unseen recordings)",
    "held-out, in scope": "of these, in scope",
    "held-out, out of scope": "of these, out of scope: words alone, other words, more than ten seconds",
    "unseen-voice-known-texts": "made-up phrases in scope, by a synthetic voice never trained on",
    "unseen-voice": "phrases that no voice says in training, either, by the same voice",
    "unseen-voice-further": "further such phrases, each once, looked at when the model was finished",
    "unseen-voice-disorder": "words in no order, the same voice",
    "translation": "sentences with a translation, that voice and a known one by turns",
    "librivox": "read literature (out of scope)",
    "tux-paint": "animals, by another person (out of scope)",
}
STRANGE = ("librivox", "tux-paint")
PARTS = {"language_model": "decoder", "audio_tower": "audio tower", "embed_audio": "audio embedder"}


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}"


def _interval(measured: dict[str, Any]) -> str:
    return " – ".join(map(_percent, measured["interval_95"])) + " %"


def _together(measured: Iterable[dict[str, Any]]) -> tuple[int, int]:
    """Give the errors and words of sets taken together."""
    errors, words = zip(*((one["errors"], one["words"]) for one in measured), strict=True)
    return sum(errors), sum(words)


def _rate(*measured: dict[str, Any]) -> str:
    """Write the error rate of sets taken together, and its counts."""
    errors, words = _together(measured)
    return f"{_percent(errors / words)} % ({errors} of {words:,})"


def _table(rows: Iterable[Iterable[Any]]) -> str:
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _cost(precisions: dict[str, Any], *sets: str) -> str:
    """Write by how many points of the error rate the bits are worse than none."""
    (bits, words), (none, _) = (
        _together(precisions[row][name] for name in sets)
        for row in ("trained with its bits", "float")
    )
    return _percent((bits - none) / words)


def _sets(sets: dict[str, Any], by_engine: dict[str, Any]) -> str:
    """Write the error rates of the sets, and those that the runtime's engine was measured to have."""
    rows = []
    for name, label in SETS.items():
        here, there = sets[name], by_engine.get(name)
        rates = f"**{_percent(here['wer'])} %**", _interval(here)
        engine = f"{_percent(there['wer'])} %" if there else ""
        rows.append((label, here["clips"], here["words"], *rates, here["clips_right"], engine))
    return _table(rows)


def card(work: Path, checkpoint: Path) -> str:
    """Write the card from `eval.json` of a checkpoint, and from `engine.json` and the log of a run."""
    found = json.loads((checkpoint / "eval.json").read_text())
    engine = json.loads((work / REPORT).read_text())
    strange = [line for name in STRANGE for line in engine["transcripts"][name]]
    sets, lines = found["sets"], found["transcripts"]
    log = [json.loads(line) for line in (work / "run" / "log.jsonl").read_text().splitlines()]
    hours = next(line["hours"] for line in reversed(log) if "hours" in line)
    counts = parameter_counts(new_model(0))
    drawn = random.Random(1)
    several = [line for line in lines["held-out"] if len(line["reference"].split()) > 2]
    said = ("reference", "hypothesis")
    both = (*said, "translation", "direct translation", "translation reference")
    return Template(TEMPLATE.read_text()).substitute(
        sets=_sets(sets, engine["sets"]),
        strange=len(strange),
        unwritten=sum(not line["hypothesis"] for line in strange),
        known=sets["unseen-voice-known-texts"]["said_in_training"],
        translated=sets["translation"]["clips"],
        chrf=sets["translation"]["chrf"],
        direct_chrf=sets["translation"]["direct_chrf"],
        translations=_table(
            [line[field] for field in both]
            for line in drawn.sample(lines["translation"], TRANSLATIONS)
        ),
        scope=len(training_scope(work)),
        twin_steps=f"{STEPS:,}",
        made_up=sets["no-speech"]["clips_with_words"],
        silent=sets["no-speech"]["clips"],
        examples=_table(
            [line[field] for field in said] for line in drawn.sample(several, EXAMPLES)
        ),
        made_up_engine=engine["sets"]["no-speech"]["clips_with_words"],
        bits_both=_cost(found["by precision"], "held-out", "unseen-voice"),
        bits_held=_cost(found["by precision"], "held-out"),
        word=f"{100 / sets['held-out, in scope']['words']:.1f}",
        precisions=_table(
            (row, *(_rate(s) for s in measured.values()), _rate(*measured.values()))
            for row, measured in found["by precision"].items()
        ),
        parameters=f"{sum(counts.values()) / 1e6:.1f} million parameters: "
        + ", ".join(f"{label} {counts[part] / 1e6:.2f}" for part, label in PARTS.items()),
        megabytes=f"{(checkpoint / 'model.safetensors').stat().st_size / 1e6:.1f}",
        hours=", ".join(f"{kind} {time:.1f}" for kind, time in hours.items()),
        steps=f"{log[-1]['step']:,}",
        minutes=round(log[-1]["minutes"]),
    )
