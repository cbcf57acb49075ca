"""The error rates of the training recipe, by transformers and by the runtime's own engine, and the card that tells them."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("hibari")

import soundfile

from bench.demo import samples
from edgegemma.engine.model import open_model
from edgegemma.models import find
from train import card, compare, engine, recordings
from train.scores import measured, summaries


def line(reference: str, hypothesis: str) -> dict[str, Any]:
    return {"reference": reference, "hypothesis": hypothesis}


def test_the_engine_writes_down_what_the_samples_say() -> None:
    clips = [
        (soundfile.read(path, dtype="float32")[0], said, "sample", path.name)
        for path, said in samples()
    ]
    lines = engine.heard(open_model(find("demo")), iter(clips))
    assert [one["hypothesis"] for one in lines] == [said for _, said, _, _ in clips]
    assert measured(lines)["clips_right"] == len(clips)


def test_an_error_rate_is_of_all_words_of_a_set() -> None:
    found = measured([line("one two three", "one too three four"), line("five", "five")])
    assert (found["errors"], found["words"], found["wer"]) == (2, 4, 0.5)
    assert (found["clips"], found["clips_right"]) == (2, 1)


def test_of_clips_without_speech_those_with_words_are_counted() -> None:
    assert measured([line("", ""), line("", "yes"), line("", "thank you")]) == {
        "clips": 3,
        "clips_with_words": 2,
    }


def test_the_held_out_prompts_are_summarised_by_scope_too() -> None:
    lines = [
        line("hold please", "hold please") | {"seconds": 1.0},
        line("a frog", "") | {"seconds": 1.0},
    ]
    assert summaries("held-out", lines, {"hold", "please"}) == {
        "held-out": measured(lines),
        "held-out, in scope": measured(lines[:1]),
        "held-out, out of scope": measured(lines[1:]),
    }
    assert summaries("librivox", lines, {"hold", "please"}) == {"librivox": measured(lines)}


def test_the_card_has_the_rates_of_the_engine_beside_those_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(card, "training_scope", lambda work: {"please", "hold"})
    said = [line("please hold the line", "please hold a line")] * card.EXAMPLES
    whole = measured(said)
    sets: dict[str, Any] = dict.fromkeys(card.SETS, whole)
    sets["unseen-voice-known-texts"] = whole | {"said_in_training": 3}
    sets["translation"] = whole | {"chrf": 91.2, "direct_chrf": 90.1}
    sets["no-speech"] = {"clips": 120, "clips_with_words": 1}
    spanish = {"translation": "a", "direct translation": "b", "translation reference": "c"}
    twins = {row: {"held-out": whole, "unseen-voice": whole} for row in compare.ROWS}
    found = {
        "sets": sets,
        "transcripts": {"held-out": said, "translation": [one | spanish for one in said]},
        "by precision": twins,
    }
    heard = {"held-out": whole | {"wer": 0.375}, "no-speech": {"clips": 120, "clips_with_words": 2}}
    (tmp_path / "eval.json").write_text(json.dumps(found))
    strange = {"librivox": [line("a frog", "")] * 2, "tux-paint": [line("a frog", "from")]}
    (tmp_path / "engine.json").write_text(json.dumps({"sets": heard, "transcripts": strange}))
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    (tmp_path / "run").mkdir()
    log = {"step": 10, "minutes": 2.0, "hours": {"real": 1.5}}
    (tmp_path / "run" / "log.jsonl").write_text(json.dumps(log) + "\n")
    written = card.card(tmp_path, tmp_path)
    rows = [row.split(" | ") for row in written.splitlines() if row.startswith("| real prompts")]
    assert [(row[3], row[-1]) for row in rows] == [("**25.0 %**", "37.5 % |")]
    assert "1 of 120 clips without speech got words, by our engine 2." in written
    assert "the 3 clips of the last two rows" in written
    assert "writes nothing for 2," in written
    assert not re.search(r"\$\w", written)


def test_packages_are_fetched_once_and_again_when_more_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched: list[list[str]] = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: fetched.append(command))
    for packages in (("prompts",), ("prompts",), ("prompts", "stamps")):
        monkeypatch.setattr(recordings, "PACKAGES", packages)
        recordings.fetch(tmp_path)
    assert [command[2:] for command in fetched] == [["prompts"], ["prompts", "stamps"]]
