"""Planned memory: a limit holds or is refused before anything is allocated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bench.memory import resident_of
from edgegemma.cli import app
from edgegemma.engine import budget
from edgegemma.engine.graphs import load
from edgegemma.engine.model import open_model
from edgegemma.errors import BudgetError, UnsupportedError
from edgegemma.models import DATA
from edgegemma.package import Package
from tests import packages


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packages.small(tmp_path_factory.mktemp("package") / "codes", "codes")


def test_a_limit_below_the_plan_is_refused_with_every_part() -> None:
    plan = budget.Plan(796_000_000, 91_000_000, 0, 22_000_000, 30_000_000)
    plan.check(plan.total)
    with pytest.raises(BudgetError, match=r"got 1000 MB; want 1154 MB: weights 796, audio 91, .*"):
        plan.check(1_000_000_000)


def test_weights_are_the_files_less_the_tables_read_by_row(folder: Path) -> None:
    graphs = load(Package.open(folder))
    decoder, everything = (
        budget.external_bytes(x) for x in ([graphs["decoder.onnx"]], graphs.values())
    )
    size = sum(file.stat().st_size for file in folder.glob("*.bin"))
    assert 0 < decoder < everything < size


def test_a_text_beyond_the_limit_is_refused_and_a_shorter_one_is_not(folder: Path) -> None:
    model = open_model(folder, kv="int8")
    limit = model.plan(256).total
    model = open_model(folder, kv="int8", memory_limit=limit)
    with pytest.raises(BudgetError, match="ask for a shorter context"):
        model.new_cache(1024)
    first = model.new_cache(256)
    with pytest.raises(BudgetError):
        model.new_cache(256)
    del first
    model.new_cache(256)


def test_sound_counts_until_it_is_released(folder: Path) -> None:
    model = open_model(folder)
    assert model.plan(1).audio == 0
    state = model.new_audio_state()
    features, mask = np.ones((16, 128), np.float32), np.ones(16, np.float32)
    soft = model.encode_audio(features, mask, state)
    assert model.plan(1).audio > 0
    model.release_audio()
    assert model.plan(1).audio == 0
    again = model.encode_audio(features, mask, model.new_audio_state())
    assert np.array_equal(soft, again)


def test_sound_passes_through_where_its_weights_have_no_room(tmp_path: Path) -> None:
    folder = packages.small(tmp_path / "float", "float32")  # few weights of it are inline
    free = open_model(folder)
    free.new_audio_state()
    whole = free.plan(1).total
    features, mask = np.ones((16, 128), np.float32), np.ones(16, np.float32)
    want = free.encode_audio(features, mask, free.new_audio_state())
    held = open_model(folder, memory_limit=whole - 1)
    text = held.new_cache(1)
    soft = held.encode_audio(features, mask, held.new_audio_state())
    assert np.array_equal(soft, want)
    assert held.plan(0).total < whole - 1
    free.release_audio()
    smaps = Path("/proc/self/smaps").read_text()
    assert resident_of(held.package.file("audio_encoder.bin"), smaps) == 0
    del text


def test_sound_beyond_the_limit_is_refused(folder: Path) -> None:
    limit = open_model(folder).plan(1).total
    model = open_model(folder, memory_limit=limit)
    text = model.new_cache(1)
    with pytest.raises(BudgetError, match="audio"):
        model.new_audio_state()
    del text


def test_an_executor_that_cannot_tell_its_memory_is_refused(folder: Path) -> None:
    with pytest.raises(UnsupportedError, match="use executor 'edgegemma'"):
        open_model(folder, "onnxruntime", memory_limit=1 << 40)


@pytest.mark.parametrize(
    ("options", "want"),
    [
        (["--memory-limit", "100M"], "memory limit: got 100 MB; want"),
        (["--memory-limit", "lots"], "size: got 'lots'"),
        (["--threads", "4096"], "--threads: got 4096; want 1 to"),
    ],
)
def test_a_command_says_in_a_line_what_cannot_hold(
    folder: Path, options: list[str], want: str
) -> None:
    result = CliRunner().invoke(app.app, ["run", str(folder), "--raw", "hello", *options])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert want in line


@pytest.mark.parametrize(
    "command",
    [
        ["transcribe", "-m", "PACKAGE", "SOUND"],
        ["translate", "-m", "PACKAGE", "--to", "es", "SOUND"],
        ["listen", "-m", "PACKAGE", "--file", "SOUND"],
        ["warmup", "PACKAGE"],
        ["bench", "decode", "PACKAGE"],
        ["bench", "first-token", "PACKAGE"],
        ["bench", "audio", "PACKAGE"],
    ],
)
def test_every_command_that_opens_a_package_refuses_a_limit_that_cannot_hold(
    folder: Path, command: list[str]
) -> None:
    sound = DATA / "samples" / "confbridge-conf-end.flac"
    words = [{"PACKAGE": str(folder), "SOUND": str(sound)}.get(word, word) for word in command]
    result = CliRunner().invoke(app.app, [*words, "--memory-limit", "200M"])
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "memory limit: got" in line
