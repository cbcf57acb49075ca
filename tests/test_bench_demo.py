"""`python -m bench demo`: what was said beside what was heard, and no success that is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import demo
from edgegemma.errors import InputError

ROW = {"file": "a.flac", "expected": "Press 1.", "heard": "press 1", "seconds": 0.5}


def test_case_and_punctuation_do_not_count() -> None:
    assert demo.words("Press 1, then don't.") == ["press", "1", "then", "don't"]
    assert demo.words("1.7 o'clock") == ["1.7", "o'clock"]


def test_samples_come_with_their_words(tmp_path: Path) -> None:
    rows = [{"key": "k", "file": "a.flac", "text": "one"}]
    (tmp_path / "samples.json").write_text(json.dumps(rows))
    assert demo.samples(tmp_path) == [(tmp_path / "a.flac", "one")]


def test_an_incomplete_installation_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"samples\.json: No such file.*install edgegemma again"):
        demo.samples(tmp_path)


def test_right_words_are_shown_with_time_and_memory(capsys: pytest.CaptureFixture[str]) -> None:
    demo.show([ROW], as_json=False)
    text = capsys.readouterr().out
    assert "said:  Press 1." in text
    assert "heard: press 1" in text
    assert "1 of 1 heard word for word; peak memory" in text


def test_a_wrong_word_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="1 of 2 samples"):
        demo.show([ROW, ROW | {"heard": "press 2"}], as_json=True)
    assert json.loads(capsys.readouterr().out)["samples"][1]["heard"] == "press 2"
