"""`edgegemma listen` with an invented listener: what is shown where, what is kept in files, how it is told to end."""

from __future__ import annotations

import io
import json
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile

from edgegemma.audio.blocks import Block
from edgegemma.cli import listening
from edgegemma.cli.sounds import Saver
from edgegemma.cli.speech_options import Form
from edgegemma.cli.terminal import CLEAR, View
from edgegemma.errors import DeviceError, InputError
from edgegemma.listen.events import Commit, Event, Final, Word
from edgegemma.listen.stats import Stats

SAID: list[Event] = [
    Commit("one", 0.0, 1.0, (Word("one", 0.0, 1.0),)),
    Final("one", 0.0, 1.0, "end of input", "stop", 3, 0.1),
]
FULL = Path("/dev/full")


class Sound:
    """A tenth of a second. Closing it takes a lock."""

    name, live, seconds, backlog_s, overflows, lost = "a.wav", False, 0.1, 0.0, 0, None

    def __init__(self) -> None:
        self.lock, self.closed = threading.Lock(), threading.Event()

    def close(self) -> None:
        with self.lock:
            self.closed.set()

    def __iter__(self) -> Iterator[Block]:
        yield Block(0, np.full(1600, 0.5, np.float32))


class Screen(io.StringIO):
    """A stream that is a terminal, or not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[Event | Exception]:
    """Replace the model and the sound: what is heard; an exception is raised instead."""
    events: list[Event | Exception] = [*SAID]

    class Heard:
        lag_s, levels_db = 0.0, (-20.0, -60.0)

        def __init__(self, _model: object, source: Any, _task: object, **_: Any) -> None:
            self.source, self.stats = source, Stats()

        def __iter__(self) -> Iterator[Event]:
            list(self.source)
            for event in events:
                if isinstance(event, Exception):
                    raise event
                yield event

    package = SimpleNamespace(prompts={})
    monkeypatch.setattr(listening, "load", lambda *_: SimpleNamespace(package=package))
    monkeypatch.setattr(listening, "source_of", lambda *_: Sound())
    monkeypatch.setattr("edgegemma.listen.listener.Listener", Heard)
    return events


@pytest.mark.usefixtures("said")
@pytest.mark.parametrize(
    ("terminals", "form", "written", "drawn"),
    [
        ((True, True), Form.TEXT, False, True),
        ((True, False), Form.TEXT, True, False),  # listen 2>log
        ((False, True), Form.TEXT, True, False),
        ((False, False), Form.TEXT, True, False),
        ((True, True), Form.JSONL, True, False),
    ],
)
def test_what_is_said_is_written_or_drawn_and_never_both(
    monkeypatch: pytest.MonkeyPatch,
    terminals: tuple[bool, bool],
    form: Form,
    written: bool,
    drawn: bool,
) -> None:
    out, err = map(Screen, terminals)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    listening.listen(file="a.wav", form=form)
    assert ("one" in out.getvalue(), f"{CLEAR}one\n" in err.getvalue()) == (written, drawn)


@pytest.mark.usefixtures("said")
def test_what_is_written_into_a_file_is_drawn_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stderr", err := Screen(True))
    listening.listen(file="a.wav", form=Form.JSONL, output=tmp_path / "out")
    assert f"{CLEAR}one\n" in err.getvalue()


def test_json_of_sound_that_broke_off_says_so(
    said: list[Event | Exception], tmp_path: Path
) -> None:
    said.append(InputError("a.wav: is damaged"))
    with pytest.raises(InputError):
        listening.listen(file="a.wav", form=Form.JSON, output=tmp_path / "out")
    record = json.loads((tmp_path / "out").read_text())
    assert (record["text"], record["complete"]) == ("one", False)


@pytest.mark.usefixtures("said")
@pytest.mark.parametrize("broken", ["source_of", "load"])
def test_files_keep_what_is_in_them_if_it_cannot_listen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str
) -> None:
    def fail(*_: object) -> None:
        raise InputError("not there")

    monkeypatch.setattr(listening, broken, fail)
    text, sound = tmp_path / "out.txt", tmp_path / "out.wav"
    for path in (text, sound):
        path.write_text("before")
    with pytest.raises(InputError, match="not there"):
        listening.listen(file="a.wav", output=text, save_audio=sound)
    assert [path.read_text() for path in (text, sound)] == ["before", "before"]


@pytest.mark.usefixtures("said")
def test_files_are_written_anew(tmp_path: Path) -> None:
    text, sound = tmp_path / "out.txt", tmp_path / "out.wav"
    for path in (text, sound):
        path.write_text("before" * 1000)
    listening.listen(file="a.wav", output=text, save_audio=sound)
    assert text.read_text() == "one\n"
    assert soundfile.info(sound).frames == 1600


@pytest.mark.usefixtures("said")
def test_no_model_is_opened_where_there_is_no_microphone(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []

    def nothing(*_: object) -> None:
        raise DeviceError("sound: no device")

    monkeypatch.setattr(listening, "source_of", nothing)
    monkeypatch.setattr(listening, "load", lambda *_: opened.append(_))
    with pytest.raises(DeviceError):
        listening.listen()
    assert opened == []


@pytest.mark.usefixtures("said")
@pytest.mark.parametrize("option", ["output", "save_audio"])
def test_a_recording_is_not_written_over(tmp_path: Path, option: str) -> None:
    file = tmp_path / "a.wav"
    file.write_text("sound")
    with pytest.raises(InputError, match=r"a\.wav: is the recording itself"):
        listening.listen(file=str(file), **{option: file})  # type: ignore[arg-type]
    assert file.read_text() == "sound"


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")
def test_a_full_disk_is_told_with_the_name_of_the_sound_file() -> None:
    with pytest.raises(InputError, match="--save-audio /dev/full: cannot be written"):  # noqa: SIM117
        with Saver(FULL) as save:
            save(Block(0, np.zeros(16_000, np.float32)))


@pytest.mark.parametrize("number", listening.ENDING)
def test_who_is_asked_to_end_finishes_the_sentence(number: signal.Signals) -> None:
    source, notes, fallen = Sound(), list[str](), list[int]()
    before = signal.signal(number, lambda number, _: fallen.append(number))
    try:
        with listening._finishing(source, notes.append):
            with source.lock:  # where it may be interrupted
                signal.raise_signal(number)
            assert source.closed.wait(10)
        assert (len(notes), fallen) == (1, [])
    finally:
        signal.signal(number, before)


def test_a_second_signal_is_not_held_back() -> None:
    fallen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: fallen.append(number))
    try:
        with listening._finishing(Sound(), lambda _: None):
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
        assert fallen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_terminal_that_was_closed_stops_nothing() -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(5, "Input/output error")

    view = View(Gone())
    for event in SAID:
        view.write(event)
    view.finish()
