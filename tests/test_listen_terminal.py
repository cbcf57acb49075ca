"""`edgegemma listen` on a terminal: words that change in one line, Ctrl-C once and twice; and what it keeps in files."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from edgegemma import models
from edgegemma.audio.blocks import Block
from edgegemma.audio.features import SAMPLE_RATE
from edgegemma.audio.files import read_audio
from edgegemma.cli.app import app
from edgegemma.cli.sounds import Saver
from edgegemma.cli.terminal import CLEAR, DIM, METER
from tests.conftest import Exporter
from tests.speechlike import join, silence, speech

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = models.DATA / "samples" / "vm-msgsaved.flac"
PATIENCE_S = 240.0
RUN = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
{patch}
from edgegemma.cli.main import main
main()
"""
STUCK = """
import edgegemma.listen.spoken as spoken
def finish(*_):
    print("stuck", flush=True)
    time.sleep(60)
spoken.Spoken.finish = finish
"""


class Terminal:
    """A process on a terminal of its own, and all that it has drawn."""

    def __init__(self, *arguments: str | Path, patch: str = "") -> None:
        self._master, slave = pty.openpty()
        command = [sys.executable, "-c", RUN.format(patch=patch), *map(str, arguments)]
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment, cwd=ROOT
        )
        os.close(slave)
        self._deadline = threading.Timer(PATIENCE_S, self._process.kill)
        self._deadline.start()
        self.drawn = ""

    def until(self, wanted: str, start: int = 0) -> None:
        """Read until this was drawn, after so many characters."""
        while wanted not in self.drawn[start:]:
            assert self._read(), self.drawn

    def until_loud(self, times: int, start: int) -> None:
        """Read until the meter was high so many times, after so many characters."""
        while sum(c in METER[4:] for c in self.drawn[start:]) < times:
            assert self._read(), self.drawn

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Read to the end; give the status."""
        while self._read():
            pass
        status = self._process.wait()
        self._deadline.cancel()
        os.close(self._master)
        return status

    def _read(self) -> bool:
        try:
            piece = os.read(self._master, 4096)
        except OSError:  # nobody is at the other end any more
            return False
        self.drawn += piece.decode(errors="replace").replace("\r\n", "\n")
        return bool(piece)


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    """A sentence, a pause, and so much sound that nobody waits for its end."""
    sample = read_audio(SAMPLE).samples
    path = tmp_path / "talk.wav"
    soundfile.write(path, np.concatenate([sample, silence(1.2), *[sample] * 30]), SAMPLE_RATE)
    return path


def test_words_that_may_change_are_dim_and_committed_lines_stay_above(talk: Path) -> None:
    terminal = Terminal("listen", "--file", talk, "--realtime")
    terminal.until("saved\n")
    terminal.interrupt()
    assert terminal.end() == 0
    drawings = terminal.drawn.split(CLEAR)
    partials = [text for text in drawings if re.search(re.escape(DIM) + r"\w", text)]
    assert len(partials) > 2
    assert any(text[:1] in METER[1:] for text in drawings)
    assert terminal.drawn.count(f"{CLEAR}your message has been saved\n") == 1


def test_ctrl_c_finishes_the_sentence(talk: Path) -> None:
    terminal = Terminal("listen", "--file", talk, "--realtime")
    terminal.until("saved\n")
    before = len(terminal.drawn)
    terminal.until_loud(15, before)  # a second; on a busy machine words come only at the end
    terminal.interrupt()
    assert terminal.end() == 0
    after = terminal.drawn[before:]
    assert f"{CLEAR}edgegemma: finishing the sentence" in after  # a line of its own
    assert re.search(r"\x1b\[Kyour.*\n", after)  # a committed line


def test_a_second_ctrl_c_stops_at_once(talk: Path) -> None:
    terminal = Terminal("listen", "--file", talk, "--realtime", patch=STUCK)
    terminal.until(DIM + "your")
    terminal.interrupt()
    terminal.until("stuck")
    terminal.interrupt()
    assert terminal.end() == 2
    assert "edgegemma: interrupted\n" in terminal.drawn
    assert "Traceback" not in terminal.drawn


def command(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_saved_sound_is_what_was_heard(tmp_path: Path) -> None:
    saved = tmp_path / "saved.wav"
    said = command("listen", "--file", SAMPLE, "--save-audio", saved)
    kept, rate = soundfile.read(saved, dtype="float32")
    assert rate == SAMPLE_RATE
    np.testing.assert_allclose(kept, read_audio(SAMPLE).samples, rtol=0, atol=1 / 32_000)
    assert command("listen", "--file", saved) == said


def test_lost_sound_is_saved_as_silence(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    with Saver(path) as save:
        save(Block(0, np.full(100, 0.5, np.float32)))
        save(Block(250, np.full(50, 0.25, np.float32)))
    kept, _ = soundfile.read(path, dtype="float32")
    np.testing.assert_array_equal(kept, np.repeat([0.5, 0.0, 0.25], [100, 150, 50]))


def test_translation_runs_with_a_model_whatever_it_writes(
    package: Exporter, tmp_path: Path
) -> None:
    model, file = package("e2b", "q8"), tmp_path / "a.wav"
    soundfile.write(file, join(speech(1.5), silence(1.0), speech(1.5)), SAMPLE_RATE)
    direct = command("translate", file, "--to", "es", "-m", model, "-f", "jsonl")
    assert direct.count('"type": "final"') == 2
    both = command("translate", file, "--to", "es", "--both", "-m", model, "-f", "jsonl")
    assert both.count('"type": "translation"') >= 2
    assert '"language": "Spanish"' in both
    energy = ("--vad", "energy", "-m", model)
    live = command("listen", "--file", file, "--translate-to", "es", "--both", *energy)
    assert live.count("Spanish: ") >= 2
