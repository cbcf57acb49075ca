"""``edgegemma doctor``: what this machine is, and whether edgegemma is well on it."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgegemma import __version__, console
from edgegemma.cli.options import JsonOption, MemoryOption, ModelArgument, load
from edgegemma.errors import DeviceError, EdgeGemmaError

if TYPE_CHECKING:
    from edgegemma.engine.model import Model

LIBRARIES = (
    "numpy", "numba", "llvmlite", "onnx", "onnxruntime", "tokenizers", "safetensors", "soundfile",
    "soxr", "sounddevice",
)  # fmt: skip


def doctor(
    model: ModelArgument = "demo",
    memory_limit: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Examine versions, CPU, kernels, sound and the memory of a model; exit status 2 if something is wrong.

    For example: edgegemma doctor gemma-4-E2B --json
    """
    found = examine(model, memory_limit)
    if as_json:
        console.out(json.dumps(found, indent=2))
    else:
        _print(found)
    if found["problems"]:
        raise EdgeGemmaError("; ".join(found["problems"]))


def examine(model: str, memory_limit: str | None = None) -> dict[str, Any]:
    """Everything `doctor` shows, as plain values."""
    problems: list[str] = []
    found: dict[str, Any] = {
        "versions": {"edgegemma": __version__, "python": platform.python_version()}
        | {name: _version(name) for name in LIBRARIES},
        "machine": _machine(),
        "kernels": _kernels(),
        "self_test": _self_test(problems),
        "sound": _sound(),
        "model": _model(model, memory_limit, problems),
        "problems": problems,
    }
    return found


def _version(library: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"


def _machine() -> dict[str, Any]:
    from edgegemma.engine.memory import physical_cores

    memory = dict(_fields("/proc/meminfo"))
    cpu = dict(reversed(list(_fields("/proc/cpuinfo"))))  # of several processors the first
    return {
        "system": platform.platform(),
        "processor": cpu.get("model name") or cpu.get("Model") or platform.machine(),
        "physical_cores": physical_cores(),
        "logical_cores": os.cpu_count(),
        "memory_bytes": _kilobytes(memory.get("MemTotal")),
        "free_bytes": _kilobytes(memory.get("MemAvailable")),
    }


def _fields(path: str) -> list[tuple[str, str]]:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return []
    pairs = (line.partition(":") for line in lines)
    return [(key.strip(), value.strip()) for key, colon, value in pairs if colon]


def _kilobytes(text: str | None) -> int | None:
    return int(text.split()[0]) * 1024 if text else None


def _kernels() -> dict[str, Any]:
    from edgegemma.kernels import cache, simd

    return dict(simd.describe()) | {"kept_in": str(cache.root())}


def _self_test(problems: list[str]) -> list[dict[str, Any]]:
    from edgegemma.cli.selftest import checks

    results = []
    with console.progress(lines=False) as report:
        for check in checks():
            report(check.name, 0, 0)
            results.append({"name": check.name, "error": check.error, "fine": check.fine})
            if not check.fine:
                problems.append(f"kernel and reference disagree: {check.name}")
    return results


def _sound() -> dict[str, Any]:
    from edgegemma.audio.mic import list_devices

    try:
        return {"inputs": [dataclasses.asdict(device) for device in list_devices()]}
    except DeviceError as error:  # no fault: files can be transcribed without a sound card
        return {"inputs": [], "error": str(error)}


def _model(model: str, memory_limit: str | None, problems: list[str]) -> dict[str, Any]:
    """Open a model, read one token, and say where the memory is."""
    try:
        opened = load(model, memory_limit=memory_limit)
        opened.decode(0, opened.new_cache(8))
        return {
            "path": str(opened.package.path),
            "ledger": dataclasses.asdict(opened.ledger()),
            "threads": _threads(opened),
        }
    except EdgeGemmaError as error:
        problems.append(str(error))
        return {"error": str(error)}


def _threads(opened: Model) -> dict[str, Any]:
    """Give the threads the model runs on, and whether `warmup` has measured them."""
    from edgegemma.engine import ahead

    measured = ahead.known(opened.package).decode > 0
    return {
        "decode": opened.threads,
        "prefill": opened.prefill_threads,
        "measured": measured,
    }


def _print(found: dict[str, Any]) -> None:
    machine, kernels = found["machine"], found["kernels"]
    console.table(("version", ""), found["versions"].items())
    console.out()
    rows = [(k.replace("_bytes", ""), _shown(k, v)) for k, v in machine.items()]
    console.table(("machine", ""), rows)
    console.out()
    shown = {k: v for k, v in kernels.items() if k != "features"}  # a screenful; --json has it
    console.table(("kernels", ""), shown.items())
    wrong = [t for t in found["self_test"] if not t["fine"]]
    console.out(f"self-test: {len(found['self_test']) - len(wrong)} agree, {len(wrong)} do not")
    for test in wrong:
        console.out(f"  {test['name']}: {test['error']:.3g} times what rounding may do")
    console.out()
    _print_sound(found["sound"])
    console.out()
    _print_model(found["model"])


def _shown(key: str, value: Any) -> str:
    return console.size(value) if key.endswith("_bytes") and value is not None else str(value)


def _print_sound(sound: dict[str, Any]) -> None:
    if "error" in sound:
        console.out(sound["error"])
        return
    rows = [
        (d["index"], d["name"], d["channels"], d["rate"], "default" if d["default"] else "")
        for d in sound["inputs"]
    ]
    console.table(("input", "name", "channels", "Hz", ""), rows)
    if not rows:
        console.out("sound: no device that records")


def _print_model(model: dict[str, Any]) -> None:
    if "error" in model:
        console.out(f"model: {console.plain(model['error'])}")
        return
    console.out(f"model: {model['path']}")
    threads = model["threads"]
    how = "measured" if threads["measured"] else "all cores; `edgegemma warmup` measures"
    console.out(f"threads: {threads['decode']} to answer, {threads['prefill']} to read ({how})")
    ledger = model["ledger"]
    console.table(
        ("memory", ""), [(k.replace("_", " "), console.size(v)) for k, v in ledger.items()]
    )
