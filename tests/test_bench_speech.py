"""What `bench speech` counts: errors without regard to dress, lagging by its definition, and words by their delay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from numpy.testing import assert_allclose
from typer.testing import CliRunner

from bench.scores import errors, laal, likeness, plain
from bench.speech import Heard, by_delay, measure, plot, recordings
from edgegemma import models
from edgegemma.cli.app import app
from edgegemma.engine.model import open_model
from edgegemma.errors import InputError
from edgegemma.listen.task import Task


def test_case_punctuation_and_brackets_are_no_errors() -> None:
    assert plain("Don't, [noise] press “5” – NOW! (laughs)") == "don't press 5 now"


def test_errors_are_counted_over_all_words() -> None:
    found = errors(["one two", "three four five six"], ["one", "Three; four, five: six."])
    assert found["wer"] == pytest.approx(1 / 6)
    assert 0 < found["cer"] < 0.25


def test_a_translation_is_like_itself() -> None:
    wanted = ["el gato duerme en la casa", "no hay nadie en la calle"]
    assert_allclose(list(likeness(wanted, wanted).values()), 100)
    assert likeness(wanted, ["un perro", "no hay"])["chrf"] < 40


def test_words_that_come_evenly_with_the_speech_lag_by_their_delay() -> None:
    assert laal([1.0, 2.0, 3.0], 3.0, "a b c") == pytest.approx(1.0)


def test_words_after_the_end_count_once() -> None:
    assert laal([4.0, 4.0], 2.0, "a b") == pytest.approx(4.0)


def test_many_wrong_words_do_not_hide_a_delay() -> None:
    assert laal([2.0] * 4, 2.0, "a b") == pytest.approx(2.0)


def test_no_words_lag_by_nothing_known() -> None:
    assert laal([], 2.0, "a b") is None


def test_errors_fall_as_words_are_committed() -> None:
    one = Heard("x", "a b", 1.0, seen=[(0.5, "", "a"), (1.5, "a", "a b"), (2.5, "a b", "a b")])
    rows = {row["after_s"]: (row["committed"], row["shown"]) for row in by_delay([one])}
    assert (rows[-1.0], rows[0.0], rows[1.0], rows[2.0]) == ((1, 1), (1, 0.5), (0.5, 0), (0, 0))


def test_a_folder_lists_its_recordings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"samples\.json"):
        recordings(tmp_path)
    (tmp_path / "samples.json").write_text(json.dumps([{"file": "a.wav", "text": "a"}]))
    assert recordings(tmp_path) == [(tmp_path / "a.wav", "a", None)]


def test_a_translation_wants_its_words(tmp_path: Path) -> None:
    rows = recordings(models.DATA / "samples")
    with pytest.raises(InputError, match="has no translation"):
        measure(None, rows, Task(translate_to="es"))


def test_the_samples_are_measured_and_drawn(tmp_path: Path) -> None:
    rows = recordings(models.DATA / "samples")[:1]
    found = measure(open_model(models.find("demo")), rows, Task(), pace=50)
    assert found["erased"] == 0
    assert found["errors_by_delay"][-1]["committed"] == found["live"]["wer"]
    assert found["first_commit_s"]["p50"] > 0
    plot(found, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_of_translation_is_refused() -> None:
    line = ["bench", "speech", "demo", "--translate-to", "es", "--plot", "x.png"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 2
    assert "--plot" in result.stderr
