"""The report on a checkpoint: error rates by set, samples it gets right, the loss curve."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tokenizers import Tokenizer
from torch.nn.utils import parametrize

from train import compare
from train.checkpoint import load
from train.corpus import TESTS, training_shards
from train.evaluate import transcribe
from train.features import Shard
from train.lean import speed_up
from train.recordings import divided, prompts
from train.scope import training_scope
from train.scores import in_scope, measured, summaries
from train.tokens import ANSWER_TRANSLATED, INSTRUCTION_SPANISH, INSTRUCTION_TRANSLATE
from train.translations import chrf
from train.voices import SAMPLE_RATE

SAMPLES = 8
ATTRIBUTION = """\
The recordings are from Debian's asterisk-core-sounds-en-g722, decoded to 16 kHz and not changed
otherwise. (c) 2003-2010 Allison Smith. Licence: CC-BY-SA-3.0,
https://creativecommons.org/licenses/by-sa/3.0/
"""
SAMPLE_SECONDS = (2.0, 6.5)
Written = Callable[[Any, Tokenizer, np.ndarray], str]
"""What writes down a clip, given its frames."""


def transcribed(
    model: Any, tokenizer: Tokenizer, shard: Shard, written: Written = transcribe
) -> list[dict[str, Any]]:
    """Write down every clip of a shard."""
    return [
        {
            "key": clip.key,
            "seconds": round(clip.frames / 100, 2),
            "reference": clip.text,
            "hypothesis": written(model, tokenizer, shard.frames(clip)),
        }
        for clip in shard.clips
    ]


def translated(model: Any, tokenizer: Tokenizer, shard: Shard) -> list[dict[str, Any]]:
    """Transcribe and translate every clip of a shard, and translate it directly."""
    both, direct = (
        transcribed(model, tokenizer, shard, partial(transcribe, instruction=instruction))
        for instruction in (INSTRUCTION_TRANSLATE, INSTRUCTION_SPANISH)
    )
    for line, alone, clip in zip(both, direct, shard.clips, strict=True):
        said, _, spanish = line["hypothesis"].partition(ANSWER_TRANSLATED.format("", ""))
        line |= {
            "hypothesis": said,
            "translation": spanish,
            "direct translation": alone["hypothesis"],
            "translation reference": clip.translation,
        }
    return both


def by_precision(work: Path, tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """Measure the twins of `compare` in scope: on the held-out prompts and on the unseen voice."""
    words = training_scope(work)
    found: dict[str, dict[str, Any]] = {}
    for row in compare.ROWS:
        model = compare.model(work, row)
        speed_up(model)
        settled(model)
        found[row] = {}
        for name in ("held-out", "unseen-voice"):
            lines = transcribed(model, tokenizer, Shard(work / "shards" / name))
            found[row][name] = measured(in_scope(lines, words)[0])
    return found


def said_in_training(work: Path) -> set[str]:
    """List the texts of the training shards."""
    return {clip.text for path in training_shards(work) for clip in Shard(path).clips}


def settled(model: Any) -> Any:
    """Put the rounded weights in the place of those they are computed from."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return model


def evaluate(work: Path, checkpoint: Path) -> dict[str, Any]:
    """Transcribe every test set with the stored checkpoint; write `eval.json` beside it."""
    model = load(checkpoint)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    words = training_scope(work)
    report: dict[str, Any] = {"decoding": "greedy", "sets": {}, "transcripts": {}}
    for name in TESTS:
        shard = Shard(work / "shards" / name)
        lines = (translated if name == "translation" else transcribed)(model, tokenizer, shard)
        report["sets"] |= summaries(name, lines, words)
        report["transcripts"][name] = lines
    known, said = "unseen-voice-known-texts", said_in_training(work)
    heard = sum(line["reference"] in said for line in report["transcripts"][known])
    report["sets"][known]["said_in_training"] = heard
    lines = report["transcripts"]["translation"]
    wanted = [line["translation reference"] for line in lines]
    for measure, field in (("chrf", "translation"), ("direct_chrf", "direct translation")):
        found = chrf(wanted, [line[field] for line in lines])
        report["sets"]["translation"][measure] = round(found, 1)
    report["by precision"] = by_precision(work, tokenizer)
    (checkpoint / "eval.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def write_samples(work: Path, checkpoint: Path, report: dict[str, Any]) -> None:
    """Copy some held-out recordings that are transcribed without an error to `samples`."""
    folder = checkpoint / "samples"
    folder.mkdir(exist_ok=True)
    recordings = {recording.key: recording for recording in divided(prompts(work))[1]}
    for old in folder.glob("*.flac"):
        old.unlink()
    shortest, longest = SAMPLE_SECONDS
    right = [
        line
        for line in report["transcripts"]["held-out"]
        if line["reference"] == line["hypothesis"] and shortest <= line["seconds"] <= longest
    ]
    right.sort(key=lambda line: -len(set(line["reference"].split())))
    listed, openings = [], set()
    for line in right:
        opening = line["reference"].split()[0:2]
        if len(listed) < SAMPLES and tuple(opening) not in openings:
            openings.add(tuple(opening))
            file = line["key"].replace("/", "_") + ".flac"
            soundfile.write(folder / file, recordings[line["key"]].samples(), SAMPLE_RATE)
            listed.append({"file": file, "key": line["key"], "text": line["reference"]})
    (folder / "samples.json").write_text(json.dumps(listed, indent=1) + "\n")
    (folder / "LICENSE").write_text(ATTRIBUTION)


def draw_losses(work: Path, picture: Path) -> None:
    """Draw the losses, and the error rates of the tower and then of the decoder, over the minutes of training."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    log = (work / "run" / "log.jsonl").read_text().splitlines()
    lines = sorted(map(json.loads, log), key=lambda line: line.get("minutes", 0))
    steps = [line for line in lines if "ctc" in line]
    alone = [line for line in steps if line["ctc"] > 0]
    tests = [line for line in lines if "held_out_wer" in line]
    decoding = [line for line in steps if line.get("guidance", 0) > 0]
    figure, (losses, errors) = pyplot.subplots(
        2, figsize=(7, 5.5), sharex=True, layout="constrained"
    )
    for chosen, field, label in (
        (alone, "ctc", "CTC, phones and words"),
        (decoding, "entropy", "cross entropy, per token"),
        (decoding, "guidance", "attention beside the word"),
    ):
        losses.plot(
            [line["minutes"] for line in chosen], [line[field] for line in chosen], label=label
        )
    losses.set(yscale="log", ylabel="loss")
    for field, label in (("held_out_wer", "held-out prompts"), ("unseen_wer", "unseen voice")):
        minutes = [line["minutes"] for line in tests]
        errors.plot(minutes, [100 * line[field] for line in tests], "o-", label=label)
    errors.set(
        xlabel="minutes of training", ylabel="word error rate of a quarter, %", ylim=(0, None)
    )
    quantised = [line["minutes"] for line in tests if line["quantised"]]
    for axis in (losses, errors):
        if quantised:
            axis.axvspan(quantised[0], steps[-1]["minutes"], alpha=0.1, label="quantised")
        axis.legend(fontsize=8)
    figure.savefig(picture, dpi=100)
    pyplot.close(figure)
