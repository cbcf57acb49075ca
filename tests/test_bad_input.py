"""What users get wrong, through the command line: one clear line, exit status 2, nothing half-written.

Each floor tests its own refusals in detail; here is what a user sees of them.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from edgegemma.cli.app import app
from tests.conftest import Exporter
from tests.packages import edit_manifest
from tests.speechlike import speech
from tests.tiny import save_bf16, tensors

ROOT = Path(__file__).resolve().parent.parent
Folder = Callable[[str], Path]


def refused(*arguments: str | Path) -> str:
    """Run a command that must fail; return its one line."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 2, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("edgegemma: ")
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return line


@pytest.fixture
def source(checkpoint: Folder, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return shutil.copytree(checkpoint("e2b"), tmp_path / "source")


def exported(source: Path) -> str:
    """Export what cannot be exported; nothing may be left."""
    before = sorted(source.parent.iterdir())
    line = refused("export", source, "--out", source.parent / "out")
    assert sorted(source.parent.iterdir()) == before
    return line


def test_missing_shard(source: Path) -> None:
    index = {"weight_map": dict.fromkeys(tensors("e2b"), "model-00002-of-00002.safetensors")}
    (source / "model.safetensors").unlink()
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors" in exported(source)


def test_truncated_shard(source: Path) -> None:
    file = source / "model.safetensors"
    os.truncate(file, file.stat().st_size - 1000)
    assert "model.safetensors" in exported(source)


def test_wrong_shape(source: Path) -> None:
    found = tensors("e2b")
    name = "model.language_model.layers.3.mlp.up_proj.weight"
    found[name] = found[name][:-1]
    save_bf16(found, source / "model.safetensors")
    assert name in exported(source)


def test_weights_that_are_no_numbers(source: Path) -> None:
    found = tensors("e2b")
    name = "model.language_model.layers.3.mlp.up_proj.weight"
    found[name][7, 7] = 0x7FC0  # NaN in bfloat16
    save_bf16(found, source / "model.safetensors")
    assert name in exported(source)


def test_unknown_architecture(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    (source / "config.json").write_text(json.dumps(config))
    assert "llama" in exported(source).lower()


def test_unknown_preset(source: Path) -> None:
    line = refused("export", source, "-o", source.parent / "out", "-p", "q3")
    assert "qat-mobile, mobile, q4, q8, float" in line


def test_nothing_to_export(tmp_path: Path) -> None:
    line = refused("export", tmp_path / "nowhere", "-o", tmp_path / "out")
    assert "nowhere" in line
    assert not (tmp_path / "out").exists()


@pytest.fixture
def damaged(package: Exporter, tmp_path: Path) -> Path:
    """A package to damage."""
    return shutil.copytree(package("e2b", "float"), tmp_path / "package")


@pytest.mark.parametrize("name", ["../secret.bin", "/etc/passwd", "a/../../b", "decoder.onnx\0"])
def test_package_with_a_path_outside_its_folder(damaged: Path, name: str) -> None:
    entry = {"size": 1, "sha256": "0" * 64}
    edit_manifest(damaged, lambda data: data["files"].update({name: entry}))
    assert "not a safe relative path" in refused("inspect", damaged)


def test_package_of_a_later_version(damaged: Path) -> None:
    edit_manifest(damaged, lambda data: data.update(function_version=2))
    assert "function_version: got 2; want 1" in refused("inspect", damaged)


def test_inspect_refuses_a_config_that_contradicts_itself(damaged: Path) -> None:
    edit_manifest(damaged, lambda data: data["config"]["text"].update(num_hidden_layers=10**9))
    assert "config.text" in refused("inspect", damaged)


def test_package_without_a_token_that_stops(damaged: Path) -> None:
    edit_manifest(damaged, lambda data: data["config"]["tokens"].update(eos=[]))
    assert "tokens.eos: got none" in refused("run", damaged, "hello")


def test_inspect_shows_a_package_whose_source_is_a_plain_text(damaged: Path) -> None:
    edit_manifest(damaged, lambda data: data.update(source="somewhere"))
    result = CliRunner().invoke(app, ["inspect", str(damaged)])
    assert result.exit_code == 0
    assert "from None at None" in result.stdout


def test_flipped_bit(damaged: Path) -> None:
    file = damaged / "decoder.bin"
    data = bytearray(file.read_bytes())
    data[4321] ^= 16
    file.write_bytes(data)
    assert "decoder.bin: got sha256" in refused("inspect", damaged, "--verify")
    assert "decoder.bin: got sha256" in refused("run", damaged, "hello", "--verify")


def test_prompt_longer_than_the_context(package: Exporter) -> None:
    line = refused("run", package("e2b", "float"), "x " * 3000)
    assert "want fewer than 4096" in line


def test_sampling_out_of_range(package: Exporter) -> None:
    assert "top_p: got 1.5" in refused("run", package("e2b", "float"), "x", "--top-p", "1.5")


SOUND: dict[str, tuple[str, bytes]] = {
    "empty": ("a.wav", b""),
    "noise": ("a.wav", bytes(range(256)) * 20),
    "text": ("a.txt", b"no sound at all\n"),
    "cut in its header": ("a.flac", b"fLaC\x00\x00"),
}


@pytest.mark.parametrize(("name", "content"), SOUND.values(), ids=SOUND)
def test_file_that_is_no_sound(
    package: Exporter, tmp_path: Path, name: str, content: bytes
) -> None:
    (tmp_path / name).write_bytes(content)
    model = package("e2b", "float")
    assert name in refused("transcribe", tmp_path / name, "-m", model)
    assert name in refused("run", model, "What?", "--audio", tmp_path / name)


def test_sound_without_samples_and_with_bad_ones(package: Exporter, tmp_path: Path) -> None:
    model = package("e2b", "float")
    file = tmp_path / "a.wav"
    soundfile.write(file, np.zeros(0, np.float32), 16000)
    assert "holds no samples" in refused("transcribe", file, "-m", model)
    soundfile.write(file, np.full(9000, np.nan, np.float32), 16000, subtype="FLOAT")
    assert "NaN" in refused("transcribe", file, "-m", model)


def test_output_into_a_folder_that_is_not_there(package: Exporter, tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    soundfile.write(file, np.zeros(1600, np.float32), 16000)
    out = tmp_path / "none" / "a.srt"
    line = refused("transcribe", file, "-m", package("e2b", "float"), "-o", out, "-f", "srt")
    assert "No such file" in line


# A parent that ignores Ctrl-C, such as a job in the background, hands that on to its children.
STOP = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
def wait(*_arguments, **_options):
    print("ready", flush=True)
    time.sleep(60)
{patch}
sys.argv = ["edgegemma", *sys.argv[1:]]
from edgegemma.cli.main import main
main()
"""
PATCHES = {
    "export": "import export.pipeline; export.pipeline._seal = wait",
    "transcribe": "import edgegemma.listen.recognizer as r; r.Recognizer.hear = wait",
    "run": "import edgegemma.generate; edgegemma.generate.generate = wait",
}


@pytest.mark.parametrize("command", PATCHES)
def test_ctrl_c(command: str, checkpoint: Folder, package: Exporter, tmp_path: Path) -> None:
    file, out = tmp_path / "a.wav", tmp_path / "out"
    soundfile.write(file, speech(1.0), 16000)
    model = str(package("e2b", "float"))
    arguments: dict[str, list[Any]] = {
        "export": [checkpoint("e2b"), "-p", "float", "-o", out],
        "transcribe": [file, "-m", model, "-o", out],
        "run": [model, "hello"],
    }
    code = STOP.format(patch=PATCHES[command])
    line = [sys.executable, "-c", code, command, *map(str, arguments[command])]
    pipe, environment = subprocess.PIPE, os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(line, stdout=pipe, stderr=pipe, text=True, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=30)
    assert child.returncode == 2
    assert said.splitlines()[-1] == "edgegemma: interrupted"
    assert "Traceback" not in said
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]
