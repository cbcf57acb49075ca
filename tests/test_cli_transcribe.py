"""`edgegemma transcribe` with invented listeners: forms, files, and runs that go on after an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edgegemma.cli import transcribing
from edgegemma.errors import InputError
from edgegemma.listen.events import Commit, Event, Final, Silence, Word
from edgegemma.listen.stats import Stats
from tests.test_cli import Call, caller, one_line


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    return caller(monkeypatch, tmp_path)


def finals(*texts: str, stop: str = "stop") -> list[Event]:
    """One utterance of a second and a half every two seconds for each text."""
    events: list[Event] = []
    for i, text in enumerate(texts):
        start, end = 2.0 * i, 2.0 * i + 1.5
        if text:
            events.append(Commit(text, start, end, (Word(text, start, end),)))
        events.append(Final(text, start, end, "silence", stop, 3, 0.1))
    return events


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the model: what each source is heard as; an exception is raised instead."""
    said: dict[str, Any] = {}

    class Heard:
        def __init__(self, _model: object, source: Any, _task: object, **options: Any) -> None:
            self._name, self._done = source.name, options["done"] / 16_000
            self.heard_s, self.stats = 5.5, Stats()

        def __iter__(self) -> Iterator[Event]:
            for event in said.get(self._name, [InputError(f"{self._name}: cannot be read")]):
                if isinstance(event, BaseException):
                    raise event
                if event.start_s >= self._done or isinstance(event, Silence):
                    yield event

    class Sound:
        live, backlog_s, overflows, lost, seconds = False, 0.0, 0, None, 5.5

        def __init__(self, source: Any) -> None:
            self.name = source if isinstance(source, str) else source.read().decode()

        def close(self) -> None:
            pass

    package = SimpleNamespace(prompts={})
    monkeypatch.setattr(transcribing, "load", lambda *_: SimpleNamespace(package=package))
    monkeypatch.setattr("edgegemma.transcribe.recording", Sound)
    monkeypatch.setattr("edgegemma.listen.listener.Listener", Heard)
    return said


def test_transcript_is_a_line_an_utterance_and_alone_on_stdout(
    call: Call, heard: dict[str, Any]
) -> None:
    heard["a.wav"] = finals("one two", "", "three")
    result = call("transcribe", "a.wav", "--stats")
    assert result.exit_code == 0
    assert result.stdout == "one two\nthree\n"
    assert "a.wav: 5.5 s of sound" in result.stderr
    assert "peak memory" in result.stderr


def test_transcript_as_json_is_one_object_a_file(call: Call, heard: dict[str, Any]) -> None:
    heard |= {"a.wav": finals("one"), "b.wav": finals("two", "Größe")}
    result = call("transcribe", "a.wav", "b.wav", "--format", "json")
    first, second = map(json.loads, result.stdout.splitlines())
    assert (first["file"], first["text"]) == ("a.wav", "one")
    assert second["passages"][1] == {"start": 2.0, "end": 3.5, "text": "Größe", "stop": "stop"}


def test_transcript_as_json_lines_is_an_event_a_line(call: Call, heard: dict[str, Any]) -> None:
    heard |= {"a.wav": finals("one"), "b.wav": finals("two", "Größe")}
    result = call("transcribe", "a.wav", "b.wav", "--format", "jsonl")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    texts = [(row["file"], row["text"]) for row in rows if row["type"] == "final"]
    assert texts == [("a.wav", "one"), ("b.wav", "two"), ("b.wav", "Größe")]


def test_transcript_as_subtitles(call: Call, heard: dict[str, Any]) -> None:
    heard["a.wav"] = finals("one")
    assert call("transcribe", "a.wav", "-f", "srt").stdout == (
        "1\n00:00:00,000 --> 00:00:01,500\none\n\n"
    )
    assert call("transcribe", "a.wav", "-f", "vtt").stdout.startswith("WEBVTT\n\n00:00:00.000 -->")


def test_sound_comes_from_stdin(call: Call, heard: dict[str, Any]) -> None:
    heard["RIFF"] = finals("from a pipe")
    assert call("transcribe", "-", stdin=b"RIFF").stdout == "from a pipe\n"


def test_several_files_are_named_and_a_bad_one_does_not_stop_them(
    call: Call, heard: dict[str, Any]
) -> None:
    heard |= {"a.wav": finals("one"), "c.wav": finals("three")}
    result = call("transcribe", "a.wav", "b.wav", "c.wav")
    assert result.stdout.splitlines() == ["a.wav:", "one", "b.wav:", "c.wav:", "three"]
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "edgegemma: b.wav: cannot be read",
        "edgegemma: 1 of 3 files could not be transcribed",
    ]


def test_output_file_appears_when_it_is_complete(
    call: Call, heard: dict[str, Any], tmp_path: Path
) -> None:
    heard["a.wav"] = finals("one")
    assert call("transcribe", "a.wav", "-o", "a.txt").stdout == ""
    assert (tmp_path / "a.txt").read_text() == "one\n"
    heard["b.wav"] = [InputError("b.wav: is damaged after 2.0 s")]
    assert one_line(call("transcribe", "b.wav", "-o", "b.srt", "-f", "srt")).endswith("2.0 s")
    heard["c.wav"] = [*finals("half"), KeyboardInterrupt()]
    assert one_line(call("transcribe", "c.wav", "-o", "a.txt")) == "edgegemma: interrupted"
    assert (tmp_path / "a.txt").read_text() == "one\n"


@pytest.mark.parametrize("form", ["text", "srt", "vtt", "json", "jsonl"])
def test_an_interrupted_run_goes_on_and_gives_what_a_whole_one_gives(
    call: Call, heard: dict[str, Any], tmp_path: Path, form: str
) -> None:
    heard["a.wav"] = finals("one", "two", "three")
    call("transcribe", "a.wav", "-f", form, "-o", "whole")
    heard["a.wav"] = [*finals("one", "two", "three")[:4], InputError("a.wav: the disk is gone")]
    call("transcribe", "a.wav", "-f", form, "-o", "out")
    assert not (tmp_path / "out").exists()
    heard["a.wav"] = finals("ONE", "two", "three")  # what is done is not heard again
    assert call("transcribe", "a.wav", "-f", form, "-o", "out", "--resume").exit_code == 0
    assert (tmp_path / "out").read_text() == (tmp_path / "whole").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.parametrize(
    "other",
    [
        ("-l", "fr"),
        ("-m", "e2b"),
        ("--engine", "onnxruntime"),
        ("--kv", "int8"),
        ("--vad", "silero"),
        ("--endpoint-ms", "900"),
    ],
)
def test_a_run_goes_on_only_with_what_it_began_with(
    call: Call, heard: dict[str, Any], other: tuple[str, str]
) -> None:
    heard["a.wav"] = [*finals("one", "two")[:3], InputError("a.wav: the disk is gone")]
    call("transcribe", "a.wav", "-o", "out")
    line = one_line(call("transcribe", "a.wav", "-o", "out", "--resume", *other))
    assert (
        "of another recording, model, task, --engine, --kv, --vad or --endpoint-ms; remove it"
        in line
    )


def test_going_on_wants_a_file(call: Call) -> None:
    assert "wants --output" in one_line(call("transcribe", "a.wav", "--resume"))


def test_of_several_files_those_that_are_complete_are_not_heard_again(
    call: Call, heard: dict[str, Any], tmp_path: Path
) -> None:
    heard |= {"a.wav": finals("one"), "b.wav": [*finals("two", "")[:3], InputError("b.wav: gone")]}
    call("transcribe", "a.wav", "b.wav", "-o", "out")
    heard |= {"a.wav": finals("ONE"), "b.wav": finals("two", "three")}
    result = call("transcribe", "a.wav", "b.wav", "-o", "out", "--resume")
    assert result.stderr == "edgegemma: a.wav: out/a.txt is complete; it stays as it is\n"
    texts = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert texts == {"a.txt": "one\n", "b.txt": "two\nthree\n"}


def with_silence() -> list[Event]:
    """Two utterances, and the silence around them."""
    _, *said = finals("", "one", "two")
    return [Silence(0.0, 2.0), *said[:2], Silence(3.5, 4.0), *said[2:], Silence(5.5, 7.0)]


def test_json_lines_in_a_file_are_those_of_stdout(
    call: Call, heard: dict[str, Any], tmp_path: Path
) -> None:
    heard["a.wav"] = with_silence()
    shown = call("transcribe", "a.wav", "-f", "jsonl").stdout
    call("transcribe", "a.wav", "-f", "jsonl", "-o", "out")
    assert (tmp_path / "out").read_text() == shown


def test_silence_is_told_once_by_a_run_that_went_on(
    call: Call, heard: dict[str, Any], tmp_path: Path
) -> None:
    heard["a.wav"] = [*with_silence()[:5], InputError("a.wav: the disk is gone")]
    call("transcribe", "a.wav", "-f", "jsonl", "-o", "out")
    heard["a.wav"] = with_silence()
    call("transcribe", "a.wav", "-f", "jsonl", "-o", "out", "--resume")
    rows = list(map(json.loads, (tmp_path / "out").read_text().splitlines()))
    assert [row["start_s"] for row in rows if row["type"] == "silence"] == [0, 3.5, 5.5]


def test_json_of_a_recording_that_broke_off_says_so(call: Call, heard: dict[str, Any]) -> None:
    heard |= {"a.wav": [*finals("half"), InputError("a.wav: is damaged")], "b.wav": finals("all")}
    broken, whole = map(
        json.loads, call("transcribe", "a.wav", "b.wav", "-f", "json").stdout.splitlines()
    )
    assert (broken["text"], broken["complete"]) == ("half", False)
    assert "complete" not in whole


def test_one_file_goes_into_a_folder_that_is_there(
    call: Call, heard: dict[str, Any], tmp_path: Path
) -> None:
    heard["a.wav"] = finals("one")
    (tmp_path / "notes").mkdir()
    assert call("transcribe", "a.wav", "-f", "srt", "-o", "notes").exit_code == 0
    assert "one" in (tmp_path / "notes" / "a.srt").read_text()


def test_a_recording_is_not_written_over(call: Call, heard: dict[str, Any], tmp_path: Path) -> None:
    heard["a.wav"] = finals("one")
    (tmp_path / "a.wav").write_bytes(b"sound")
    (tmp_path / "same.wav").hardlink_to(tmp_path / "a.wav")
    line = one_line(call("transcribe", "a.wav", "-o", "same.wav"))
    assert line == "edgegemma: --output same.wav: is the recording itself; give another name"
    assert (tmp_path / "a.wav").read_bytes() == b"sound"


def test_a_translation_to_an_unknown_language_is_one_line(call: Call) -> None:
    assert "did you mean Spanish" in one_line(call("translate", "a.wav", "--to", "spannish"))


def test_several_subtitles_want_a_folder(call: Call, heard: dict[str, Any], tmp_path: Path) -> None:
    heard |= {"a.wav": finals("one"), "b.wav": finals("two")}
    assert "--output FOLDER" in one_line(call("transcribe", "a.wav", "b.wav", "-f", "srt"))
    assert call("transcribe", "a.wav", "b.wav", "-f", "srt", "-o", "subs").exit_code == 0
    assert sorted(p.name for p in (tmp_path / "subs").iterdir()) == ["a.srt", "b.srt"]


def test_names_that_would_meet_in_the_folder_are_refused(call: Call, heard: dict[str, Any]) -> None:
    heard |= {"x/a.wav": finals("one"), "y/a.mp3": finals("two")}
    line = one_line(call("transcribe", "x/a.wav", "y/a.mp3", "-o", "subs"))
    assert "a.txt" in line


def test_a_runaway_text_is_reported(call: Call, heard: dict[str, Any]) -> None:
    heard["a.wav"] = finals("so so so so", stop="loop")
    result = call("transcribe", "a.wav")
    assert result.stdout == "so so so so\n"
    assert "0.0 to 1.5 s: the model repeated itself" in result.stderr
