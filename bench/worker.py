"""One runtime in a process of its own, doing what it is told over stdin: so that several can take turns.

Each waits without working while another runs, and each has its own peak memory. A line of JSON in, one out.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from edgegemma.errors import EdgeGemmaError

LLAMA = "llama.cpp"


class Subject(Protocol):
    """A runtime with a model."""

    version: str

    def read(self, count: int) -> float:
        """Read so many tokens from nothing; give the seconds until the last one's logits."""

    def decode(self, count: int) -> float:
        """Decode so many tokens after the context, greedily; give the seconds."""


class Ours:
    """A package on either executor."""

    def __init__(self, executor: str, path: str, threads: int, context: int) -> None:
        from importlib import metadata

        from bench import filling
        from edgegemma import __version__
        from edgegemma.engine.model import open_model

        self.version = __version__ if executor == "edgegemma" else metadata.version(executor)
        self._model = open_model(path, executor=executor, threads=threads)
        self._context = context
        self._cache = filling.filled(self._model, context, 256)

    def read(self, count: int) -> float:
        """Read so many tokens from nothing."""
        import numpy as np

        ids = np.random.default_rng(1).integers(0, self._model.config.text.vocab_size, count)
        cache = self._model.new_cache(count)
        began = time.perf_counter()
        self._model.forward(*self._model.embed(ids), cache)
        return time.perf_counter() - began

    def decode(self, count: int) -> float:
        """Decode so many tokens after the context."""
        from bench.speed import _decode

        seconds = _decode(self._model, self._cache, count)
        self._cache.truncate(self._context)
        return seconds


class Theirs:
    """A GGUF file on llama.cpp."""

    def __init__(self, path: str, threads: int, context: int, longest: int) -> None:
        from bench.llama import Llama

        self._llama = Llama(Path(path), threads, max(longest, context) + 256)
        self.version = self._llama.version
        self._context = context
        if context:
            self._llama.read(context)

    def read(self, count: int) -> float:
        """Read so many tokens from nothing."""
        self._llama.swap()
        self._llama.truncate(0)
        seconds = self._llama.read(count)
        self._llama.swap()
        return seconds

    def decode(self, count: int) -> float:
        """Decode so many tokens after the context."""
        seconds = self._llama.decode(count)
        self._llama.truncate(self._context)
        return seconds


def serve(subject: Subject, lines: Any, answer: Callable[[dict[str, Any]], None]) -> None:
    """Do what each line asks, until there is none."""
    from edgegemma.engine.memory import peak_bytes

    answer({"version": subject.version})
    for line in lines:
        asked = json.loads(line)
        work = {"read": subject.read, "decode": subject.decode}[asked["do"]]
        answer({"seconds": work(asked["tokens"]), "peak_bytes": peak_bytes()})


class Worker:
    """A runtime in a child process.

    Parameters
    ----------
    given : dict
        ``runtime`` (an executor or `LLAMA`), ``path``, ``threads``, ``context``, ``longest``.

    Raises
    ------
    EdgeGemmaError
        It cannot start; the message is its own line.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "bench.worker", json.dumps(given)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.peak_bytes = 0
        self.version = str(self._answer()["version"])

    def ask(self, do: str, tokens: int) -> float:
        """Have it read or decode; give the seconds."""
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps({"do": do, "tokens": tokens}) + "\n")
        self._child.stdin.flush()
        told = self._answer()
        self.peak_bytes = int(told["peak_bytes"])
        return float(told["seconds"])

    def close(self) -> None:
        """End the process, whatever it is at."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        self._child.terminate()
        self._child.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise EdgeGemmaError(f"a peer ended with status {self._child.wait()}")
        told: dict[str, Any] = json.loads(line)
        if "error" in told:
            self.close()
            raise EdgeGemmaError(told["error"])
        return told


def _make(given: dict[str, Any]) -> Subject:
    where = given["path"], given["threads"], given["context"]
    if given["runtime"] == LLAMA:
        return Theirs(*where, given["longest"])
    return Ours(given["runtime"], *where)


def main() -> None:
    """Serve `Worker`. Libraries may write to stdout: the answers go to a copy of it, all else to stderr."""
    import os
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends us
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(told: dict[str, Any]) -> None:
        answers.write(json.dumps(told) + "\n")
        answers.flush()

    try:
        serve(_make(json.loads(sys.argv[1])), sys.stdin, answer)
    except EdgeGemmaError as error:
        answer({"error": str(error)})


if __name__ == "__main__":
    main()
