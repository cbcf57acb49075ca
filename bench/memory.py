"""Peak memory of a scripted session in a process of its own, split by the ledger.

open → compile apart what is not kept → fill a context → prefill → decode → encode sound: after each step the resident size and the high-water mark, and at
the end where it is: what Python and its libraries took before anything was opened (*interpreter*), mapped weights
that were touched, small inline ones, keys and values, the audio encoder's state, the planned scratch, and what is
left, which is compiled kernels, LLVM's own and the allocator's (*kernels*). *compiling* is what this process and those
that compiled for it had together, at most.

A long context is not read, which would take hours: its cache is allocated and every page of it written with random
numbers (`bench.filling`), as a real one would be.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgegemma.errors import BudgetError, EdgeGemmaError

PROMPT_TOKENS = 64
CONTEXTS = (0, 4096, 32768, 131072)


@dataclass(frozen=True)
class Script:
    """What the session does."""

    package: str
    tokens: int = 32
    prompt: int = PROMPT_TOKENS
    audio_seconds: float = 10.0
    engine: str = "edgegemma"
    kv: str = "float32"
    threads: int | None = None
    memory_limit: int | None = None
    context: int = 0  # positions before the prompt, filled and not read


def measure(script: Script) -> dict[str, Any]:
    """Run the session in a child process and return what it measured.

    Returns
    -------
    dict
        ``steps``: name, seconds, resident and peak bytes after it; ``ledger``: bytes by part.
    """
    command = [sys.executable, "-P", "-m", "bench.memory", json.dumps(asdict(script))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise EdgeGemmaError(f"{script.package}: the session ended with status {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def check(result: dict[str, Any], limit: int) -> None:
    """Raise `BudgetError` if the session's peak is over ``limit`` bytes, or what compiling for it took."""
    peak = max(result["ledger"]["peak"], result["ledger"].get("compiling", 0))
    if peak > limit:
        where = result.get("script", {}).get("context", 0)
        raise BudgetError(
            f"peak memory at {where} positions: got {peak:,} bytes; want at most {limit:,}"
        )


def session(script: Script) -> dict[str, Any]:
    """Do what the script says, in this process."""
    from edgegemma.engine.memory import peak_bytes, resident_bytes

    steps: list[dict[str, Any]] = []
    began = time.perf_counter()

    def mark(name: str) -> None:
        nonlocal began
        now = time.perf_counter()
        sizes = {"resident": resident_bytes(), "peak": peak_bytes()}
        steps.append({"name": name, "seconds": round(now - began, 3)} | sizes)
        began = now

    mark("start")
    from bench import filling
    from edgegemma.engine import ahead
    from edgegemma.engine.model import open_model
    from edgegemma.engine.session import EngineModel  # noqa: F401 - Numba, counted as imported

    mark("import")
    model = open_model(
        script.package,
        executor=script.engine,
        threads=script.threads,
        kv=script.kv,
        memory_limit=script.memory_limit,
    )
    mark("open")
    compiling = 0
    if script.engine == "edgegemma" and ahead.needed(model.package, script.kv):
        children = ahead.compile_apart(model.package.path, script.kv, lambda _: None)
        compiling = steps[-1]["resident"] + children
        mark("compile apart")
    rng = np.random.default_rng(0)
    cache = filling.filled(model, script.context, script.prompt + script.tokens)
    if script.context:
        mark(f"fill {script.context}")
    ids = rng.integers(0, model.config.text.vocab_size, script.prompt)
    (logits,) = model.forward(*model.embed(ids), cache)
    mark(f"prefill {script.prompt}")
    for _ in range(script.tokens):
        logits = model.decode(int(np.argmax(logits)), cache)
    mark(f"decode {script.tokens}")
    if script.audio_seconds and model.config.audio is not None:
        _encode(model, script.audio_seconds, rng)
        mark(f"encode {script.audio_seconds:g} s")
    ledger = asdict(model.ledger())
    imported = steps[1]["resident"]
    split = _split(ledger, imported, model.package.path)
    return {"script": asdict(script), "steps": steps, "ledger": split | {"compiling": compiling}}


def _encode(model: Any, seconds: float, rng: np.random.Generator) -> None:
    frames = int(seconds * 25) * 4
    features = rng.standard_normal((frames, 128), np.float32)
    model.encode_audio(features, np.ones(frames, np.float32), model.new_audio_state())


def _split(ledger: dict[str, int], interpreter: int, package: Path) -> dict[str, int]:
    """Say of what is resident how much is whose."""
    weights = resident_of(package, Path("/proc/self/smaps").read_text())
    parts = ("inline", "scratch", "cache", "audio_state")
    named = interpreter + weights + sum(ledger.get(part, 0) for part in parts)
    found = {"mapped": ledger.pop("mapped"), "mapped_resident": weights}
    kernels = max(0, ledger["resident"] - named)
    return found | {"interpreter": interpreter, "kernels": kernels} | ledger


def resident_of(folder: Path, smaps: str) -> int:
    """Add up the resident bytes of the files under a folder, from the text of ``/proc/PID/smaps``."""
    total, inside = 0, False
    for line in smaps.splitlines():
        key, _, rest = line.partition(" ")
        if not key.endswith(":"):  # the head of a mapping: addresses … path
            name = line.split(maxsplit=5)[5:]
            inside = bool(name) and Path(name[0]).is_relative_to(folder)
        elif inside and key == "Rss:":
            total += int(rest.split()[0]) * 1024
    return total


def main() -> None:
    """Run one session for `measure`; its result is a line of JSON on stdout."""
    from edgegemma import console

    with console.guard("bench"):
        result = session(Script(**json.loads(sys.argv[1])))
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
