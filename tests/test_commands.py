"""Commands on a real package: what they find is what is in it."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from edgegemma.cli import app, doctor
from edgegemma.engine import ahead, tuning
from edgegemma.errors import DeviceError
from edgegemma.kernels import cpu
from edgegemma.package import Package
from tests import tiny
from tests.conftest import Exporter


def answer(*arguments: str | Path) -> str:
    """Run a command that succeeds; return its stdout."""
    result = CliRunner().invoke(app.app, list(map(str, arguments)), env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    ("variant", "preset"), [("e2b", "float"), ("e2b-qat-mobile", "qat-mobile"), ("e4b", "q4")]
)
def test_inspect_counts_every_weight_once(package: Exporter, variant: str, preset: str) -> None:
    found = json.loads(answer("inspect", package(variant, preset), "--json"))
    shapes = dict(tiny.shapes(tiny.config(variant)))
    kept = {n: s for n, s in shapes.items() if len(s) > 1 and "relative_k" not in n}
    kept.pop("lm_head.weight", None)  # the table's codes
    got = sum(row["weights"] for row in found["weights"])
    assert got == sum(math.prod(shape) for shape in kept.values())
    assert Counter(row["bits"] for row in found["weights"]).keys() <= {2, 4, 8, 16, 32}


def test_inspect_tells_bits_and_sharing(package: Exporter) -> None:
    found = json.loads(answer("inspect", package("e2b-qat-mobile", "qat-mobile"), "--json"))
    bits = {(row["name"], row["bits"]): row["count"] for row in found["weights"]}
    layers = "model.language_model.layers.*."
    assert bits[layers + "mlp.up_proj.weight", 4] == bits[layers + "mlp.up_proj.weight", 2] == 5
    assert bits[layers + "per_layer_projection.weight", 8] == 10
    assert found["kv"]["own"] == 5
    assert found["kv"]["borrowed"] == {"5": 3, "6": 3, "7": 3, "8": 3, "9": 4}
    calls = found["graphs"]["decoder.onnx"]["functions"]
    assert (calls["DecoderLayer"], calls["DecoderLayerShared"]) == (5, 5)


def test_inspect_is_readable(package: Exporter) -> None:
    text = answer("inspect", package("e2b", "float"))
    assert "K/V: 5 of 10 layers own theirs; 4 read layer 3's, 1 read layer 4's" in text
    assert "16.0" in text
    assert "decoder.bin" in text


def test_export_prints_bits_checks_and_place(checkpoint: Any, tmp_path: Path) -> None:
    text = answer("export", checkpoint("e2b"), "--preset", "mobile", "-o", tmp_path / "made")
    assert "preset mobile" in text
    assert "engine and onnxruntime" in text
    assert text.splitlines()[-1] == str(tmp_path / "made")
    assert (tmp_path / "made" / "manifest.json").is_file()


def test_export_goes_to_the_model_folder(
    checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEGEMMA_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr("export.verify.verify", lambda *_: SimpleNamespace(table=lambda: "checked"))
    answer("export", checkpoint("e2b"), "--preset", "float")
    (row,) = (r for r in json.loads(answer("models", "--json")) if r["name"] != "demo")
    assert (row["name"], row["preset"], row["audio"]) == ("e2b", "float", True)


def test_doctor_finds_this_machine_well(
    package: Exporter, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(answer("doctor", package("e2b", "float"), "--json"))
    assert found["problems"] == []
    assert len(found["self_test"]) > 20
    assert found["model"]["ledger"]["peak"] > found["model"]["ledger"]["mapped"] > 0
    assert found["kernels"]["path"] == cpu.target().path
    doctor._print(found)
    assert f"self-test: {len(found['self_test'])} agree, 0 do not" in capsys.readouterr().out


def test_doctor_reports_what_is_wrong(package: Exporter, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise DeviceError("sound: PortAudio was not found")

    off = SimpleNamespace(name="linear, 2 bits", error=3.0, fine=False)
    monkeypatch.setattr("edgegemma.cli.selftest.checks", lambda: [off])
    monkeypatch.setattr("edgegemma.audio.mic.list_devices", broken)
    result = CliRunner().invoke(app.app, ["doctor", "no-such-model"])
    assert result.exit_code == 2
    assert "sound: PortAudio was not found" in result.stdout
    (line,) = result.stderr.splitlines()
    assert "disagree: linear, 2 bits" in line
    assert "no-such-model" in line


def test_doctor_knows_a_machine_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_fields", lambda _: [])
    found = doctor._machine()
    assert found["memory_bytes"] is None
    assert found["processor"]


def test_warmup_compiles_for_both_kinds_of_keys_and_keeps_the_threads(
    package: Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(ahead, "compile_apart", lambda _path, kind, _told: compiled.append(kind))
    monkeypatch.setattr(tuning, "fastest", lambda _: (1, 2))
    folder = package("e2b", "float")
    result = CliRunner().invoke(app.app, ["warmup", str(folder)])
    assert result.exit_code == 0
    assert compiled == ["float32", "int8"]
    assert "threads: 1 to answer, 2 to read" in result.stderr
    known = ahead.known(Package.open(folder))
    assert (known.decode, known.prefill) == (1, 2)
