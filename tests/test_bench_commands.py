"""``edgegemma bench`` on tiny packages: every command runs, and every mistake is one line and status 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench import cli, limits, memory, opening, peers, report
from bench.commands import options
from edgegemma.cli import app
from edgegemma.errors import EdgeGemmaError, InputError, MissingExtraError
from edgegemma.package import Package
from tests.conftest import Exporter


@pytest.fixture
def tiny(package: Exporter) -> Path:
    return package("e2b-qat-mobile", "qat-mobile")


@pytest.fixture(autouse=True)
def _small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the machine with a thousandth of the work."""
    real = limits.Limits
    monkeypatch.setattr(limits, "Limits", lambda threads: real(threads, 1 << 18, 1 << 18))


def run(*arguments: str | Path | int) -> Any:
    """Run a command of bench."""
    return CliRunner().invoke(cli.app, list(map(str, arguments)), env={"COLUMNS": "200"})


def answer(*arguments: str | Path | int) -> Any:
    """Run a command that succeeds; return its JSON."""
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_bench_is_a_command_of_edgegemma() -> None:
    result = CliRunner().invoke(app.app, ["bench", "--help"], env={"COLUMNS": "200"})
    for name in ("decode", "prefill", "first-token", "open", "memory", "audio", "kernels", "peers"):
        assert f" {name} " in result.stdout


@pytest.mark.parametrize("engine", options.ENGINES)
def test_decode_tells_speed_and_shares(tiny: Path, engine: str) -> None:
    found = answer("decode", tiny, "-c", "0,9", "--tokens", 2, "--rounds", 2, "--engine", engine)
    assert [r["context"] for r in found["runs"]] == [0, 9]
    first = found["runs"][0]
    assert first["tokens_per_s"]["count"] == 2
    assert first["dot_share"]["median"] > 0
    assert (first["read_share"] is not None) == (engine == "edgegemma")


def test_decoding_is_compared_with_a_plain_read_of_the_mapped_weights(tiny: Path) -> None:
    package = Package.open(tiny)
    largest = package.map("decoder.bin")
    mapped = limits.Limits(1).readable(largest)
    assert mapped.nbytes == (1 << 18 if len(largest) >= 1 << 18 else 0)
    run = answer("decode", tiny, "--tokens", 2, "--rounds", 2)["runs"][0]
    assert (run["map_share"] is not None) == bool(len(mapped))


def test_decode_breaks_down_by_function(tiny: Path) -> None:
    found = answer("decode", tiny, "--tokens", 2, "--rounds", 1, "--breakdown")
    rows = {r["function"]: r["calls"] for r in found["runs"][0]["breakdown"]}
    assert rows["Head"] == 1.0
    assert "between the calls" in rows
    besides = found["runs"][0]["besides"]
    assert besides["seconds"]["median"] > 0
    assert besides["share"]["count"] == 1


def test_prefill_and_first_token_read_the_prompt(tiny: Path) -> None:
    assert answer("prefill", tiny, "--tokens", 9, "--rounds", 1)["runs"][0]["tokens"] == 9
    runs = answer("first-token", tiny, "--prompt", "3,9", "--rounds", 1)["runs"]
    assert [r["tokens"] for r in runs] == [3, 9]


def test_a_table_is_printed_without_json(tiny: Path) -> None:
    result = run("decode", tiny, "--tokens", 2, "--rounds", 1)
    assert "of bandwidth, %" in result.stdout
    assert "this machine, in the same rounds" in result.stdout


def test_audio_is_measured_by_block(tiny: Path) -> None:
    found = answer("audio", tiny, "--seconds", 1, "--block", "40,80")
    assert [r["block_ms"] for r in found["runs"]] == [40, 80]
    assert found["runs"][1]["delay_ms"]["median"] > 80


def test_opening_tells_every_step(tiny: Path) -> None:
    found = opening.child(str(tiny), "edgegemma", 1, 0.0)
    assert set(opening.STEPS) < found.keys()


def test_memory_fills_a_context(tiny: Path) -> None:
    script = memory.Script(str(tiny), tokens=2, prompt=3, audio_seconds=0.2, context=80)
    found = memory.session(script)
    names = [step["name"] for step in found["steps"]]
    assert names[2:] == ["open", "fill 80", "prefill 3", "decode 2", "encode 0.2 s"]
    assert {"interpreter", "kernels", "mapped_resident", "cache"} <= found["ledger"].keys()


MISTAKES = {
    "threads": (["decode", "P", "--threads", "4096"], "--threads: got 4096; want 1 to"),
    "engine": (
        ["decode", "P", "--engine", "tflite"],
        "--engine: got 'tflite'; want one of edgegemma",
    ),
    "context": (["decode", "P", "-c", "1000K"], "--context: got 1024032 positions"),
    "number": (["prefill", "P", "-c", "4Q"], "--context: got '4Q'; want whole numbers"),
    "cache": (
        ["decode", "P", "-e", "onnxruntime", "--kv", "int8"],
        "onnxruntime keeps float32 only",
    ),
    "block": (["audio", "P", "--block", "50"], "block: got 50 ms; want a multiple of 40"),
    "peer": (["peers", "P", "--peer", "vllm"], "peer: got 'vllm'; want one of onnxruntime"),
    "shapes": (["kernels", "E9B"], "model: got 'E9B'; want E2B or E4B"),
    "model": (["synth", "27B", "--out", "x"], "model '27B': want E2B, E4B, 26B-A4B, 31B or"),
    "both": (
        ["synth", "E2B", "--out", "x", "--preset", "q4", "--format", "bf16"],
        "give one of them",
    ),
    "package": (["memory", "no/such"], "no such package"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(tiny: Path, name: str) -> None:
    arguments, message = MISTAKES[name]
    result = run(*[str(tiny) if a == "P" else a for a in arguments])
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert message in line


def test_a_limit_that_does_not_hold_fails(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = {"peak": 2_000_000}
    made = {"script": {"context": 0}, "steps": [], "ledger": ledger}
    monkeypatch.setattr(memory, "measure", lambda _script: made)
    result = run("memory", tiny, "--limit", "1M")
    assert result.exit_code == 2
    assert "got 2,000,000 bytes; want at most 1,000,000" in result.stderr
    assert run("memory", tiny, "--limit", "2M").exit_code == 0


class FakeWorker:
    """Does everything in the time it is told."""

    version, peak_bytes = "1.0", 1000

    def __init__(self, given: dict[str, Any]) -> None:
        if given["runtime"] == "llama.cpp":
            raise MissingExtraError("llama.cpp: not installed", "peers")
        self.seconds = {"edgegemma": 1.0, "onnxruntime": 2.0}[given["runtime"]]

    def ask(self, _do: str, tokens: int) -> float:
        return tokens * self.seconds


def raced(tiny: Path, folder: Path) -> dict[str, Any]:
    """Measure fakes, of which one is not installed."""
    race = peers.Race(threads=1, rounds=2, tokens=4, prompt=8)
    (folder / f"{tiny.name}-Q2_K.gguf").touch()
    told = lambda *_: None  # noqa: E731
    names = ["onnxruntime", "llama.cpp-Q2_K"]
    hire: Any = FakeWorker
    workers, missing = peers.start(Package.open(tiny), names, folder, race, told, hire)
    found = peers.run(workers, race, limits.Limits(1), told)
    about = {"package": "P", "threads": 1, "rounds": 2, "machine": "M", "missing": missing}
    return found | about


def test_peers_are_compared_and_a_missing_one_is_said(tiny: Path, tmp_path: Path) -> None:
    found = raced(tiny, tmp_path)
    assert found["peers"]["onnxruntime"]["decode"]["ratio"]["median"] == 2.0
    text = report.markdown(found)
    assert "| onnxruntime | 1.0 | 0.50 (0.50–0.50) | 2.00 (2.00–2.00) |" in text
    assert "llama.cpp: not installed; in the folder of the source: " in text


def test_peers_can_be_drawn(tiny: Path, tmp_path: Path) -> None:
    report.plot(raced(tiny, tmp_path), tmp_path / "peers.png")
    assert (tmp_path / "peers.png").stat().st_size > 1000


def test_ours_missing_is_an_error(tiny: Path, tmp_path: Path) -> None:
    def hire(_given: dict[str, Any]) -> Any:
        raise EdgeGemmaError("no")

    with pytest.raises(EdgeGemmaError, match="no"):
        peers.start(Package.open(tiny), [], tmp_path, peers.Race(1), lambda *_: None, hire)


def test_counts_may_be_in_k() -> None:
    assert options.numbers("0,4K,32k,7", "-c") == [0, 4096, 32768, 7]
    with pytest.raises(InputError, match="want whole numbers"):
        options.numbers("", "-c")
