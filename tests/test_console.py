"""How commands speak and end, and how packages are found by name."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgegemma import console, models
from edgegemma.errors import InputError

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("a\nb\x1b[31m"), "edgegemma: a; b\N{REPLACEMENT CHARACTER}[31m"),
        (OSError(28, "No space left on device", "out.bin"),
         "edgegemma: out.bin: No space left on device"),
        (MemoryError(), "edgegemma: out of memory"),
        (KeyboardInterrupt(), "edgegemma: interrupted"),
        (SystemExit(130), "edgegemma: interrupted"),
    ],
)  # fmt: skip
def test_guard_makes_one_line(
    error: BaseException, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, console.guard():
        raise error
    assert ended.value.code == 2
    assert capsys.readouterr().err == line + "\n"


def test_a_full_disk_is_told_with_the_name_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    full = Path("/dev/full")
    with (
        pytest.raises(SystemExit),
        console.guard(),
        console.writing(full),
        full.open("w") as stream,
    ):
        stream.write("heard")
    assert capsys.readouterr().err == "edgegemma: /dev/full: No space left on device\n"


def test_guard_leaves_bugs_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError), console.guard():
        raise ZeroDivisionError


def test_a_reader_that_leaves_is_no_error() -> None:
    code = (
        "from edgegemma import console\n"
        "with console.guard():\n"
        "    for _ in range(100_000): console.out('x' * 80)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environment) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait() == 1


def test_lines_without_a_terminal_are_one_for_each_stage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with console.progress() as report:
        for done in range(3):
            report("weights", done, 3)
        report("checksums", 0, 1)
    assert capsys.readouterr().err == "edgegemma: weights\nedgegemma: checksums\n"


@pytest.mark.parametrize(
    ("text", "size"), [("10", 10), ("1.5G", 1_500_000_000), ("800m", 800_000_000), ("2 kB", 2000)]
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert console.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "1.5T", "1e9", "nan"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="size"):
        console.parse_size(text)


def package(folder: Path, manifest: str = "{}") -> Path:
    """A folder that looks like a package from outside."""
    folder.mkdir(parents=True)
    (folder / models.MANIFEST).write_text(manifest)
    return folder


def test_a_home_that_is_nobodys_is_named() -> None:
    with pytest.raises(InputError, match="~nosuchuser/x: no such home folder"):
        models.find("~nosuchuser/x")


def test_models_are_found_by_path_and_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEGEMMA_MODELS", str(tmp_path / "models"))
    named = package(tmp_path / "models" / "mine")
    (tmp_path / "models" / "no-package").mkdir()
    lying = package(tmp_path / "lying")
    builtin = package(tmp_path / "data" / "demo")
    monkeypatch.setattr(models, "DATA", tmp_path / "data")
    assert models.find("mine") == named
    assert models.find(str(named)) == named
    assert models.find("lying").resolve() == lying
    assert [found.name for found in models.installed()] == ["demo", "mine"]
    package(tmp_path / "demo")  # in the working folder: it must not hide the built-in one
    assert models.find("demo") == builtin
    assert models.find("./demo").resolve() == tmp_path / "demo"
    with pytest.raises(InputError, match="demo, mine"):
        models.find("no-package")


def test_table_cells_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    console.table(("name", "size"), [("[red]x\x1b]0;y\x07", "1 B"), ("b", "20 MB")])
    assert "\x1b" not in screen.getvalue()
    assert "[red]x" in screen.getvalue()
