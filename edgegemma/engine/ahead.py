"""Kernels compiled ahead in processes of their own, and what is known here of a package afterwards.

Compiling takes LLVM 0.25 GB that a process does not give back, so the one that answers should not do it. A
child runs the package as it is used and lets go of its weights after each call. Text and sound have few kernels in
common: with two cores there are two children.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from edgegemma.engine import memory
from edgegemma.engine.model import CHUNK, FRAMES, Model, open_model
from edgegemma.engine.state import MELS
from edgegemma.errors import EdgeGemmaError
from edgegemma.kernels import cache, cpu
from edgegemma.kernels.compiling import watched
from edgegemma.manifest import MANIFEST
from edgegemma.package import Package

LARGE_BYTES = 256 << 20  # a package from this size on is compiled apart when first used
KINDS = ("float32", "int8")
Told = Callable[[str], None]


@dataclass(frozen=True)
class Record:
    """What this machine knows of a package.

    Attributes
    ----------
    compiled : kinds of K/V whose kernels are all kept
    decode, prefill : the threads that were fastest; 0 before they were measured
    """

    compiled: tuple[str, ...] = ()
    decode: int = 0
    prefill: int = 0


def known(package: Package) -> Record:
    """Give what is known of a package with these kernels on this CPU; nothing if nothing was kept."""
    try:
        found = json.loads(_place(package).read_bytes())
        return Record(tuple(found["compiled"]), int(found["decode"]), int(found["prefill"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Record()


def keep(package: Package, record: Record) -> None:
    """Keep it beside the kernels. Where that is impossible the next start knows nothing."""
    place = _place(package)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(record)))
        partial.replace(place)
    except OSError:
        return


def needed(package: Package, kind: str) -> bool:
    """Say whether a large package's kernels must still be compiled."""
    return package.size >= LARGE_BYTES and kind not in known(package).compiled


def compile_apart(path: Path, kind: str, told: Told) -> int:
    """Compile the kernels of a package for one kind of K/V in child processes, and keep that it was done.

    Parameters
    ----------
    path : Path
        The package.
    kind : str
        "float32" or "int8".
    told : callable
        Called with the name of each function as it is compiled.

    Returns
    -------
    int
        Bytes that the children had resident together, at most.

    Raises
    ------
    EdgeGemmaError
        A child failed; its error is in the message.
    """
    package = Package.open(path)
    names = (
        list(USES)
        if package.config.audio is not None
        else [name for name in USES if name != "sound"]
    )
    parts = [names] if memory.physical_cores() < len(names) else [[name] for name in names]
    reading, writing = os.pipe()
    with ExitStack() as stack:
        lines = stack.enter_context(os.fdopen(reading))
        children = []
        for part in parts:
            wrong = stack.enter_context(tempfile.TemporaryFile("w+"))
            command = [sys.executable, "-P", "-m", "edgegemma.engine.ahead", str(path), kind, *part]
            child = stack.enter_context(subprocess.Popen(command, stdout=writing, stderr=wrong))
            children.append((child, wrong))
            stack.callback(child.kill)
        os.close(writing)
        for line in lines:
            told(line.strip())
        for child, wrong in children:
            if status := child.wait():
                wrong.seek(0)
                last = (wrong.read().strip().splitlines() or [f"status {status}"])[-1]
                raise EdgeGemmaError(f"{path}: kernels could not be compiled: {last}")
    record = known(package)
    keep(package, replace(record, compiled=tuple(sorted({*record.compiled, kind}))))
    return len(parts) * memory.children_peak_bytes()


def compile_here(model: Model, parts: Iterable[str], told: Told) -> None:
    """Run some of `USES` in this process."""
    model.passing.update(model.package.members)
    with watched(told):
        for part in parts:
            USES[part](model)


def _text(model: Model) -> None:
    """Read prompts, then answer."""
    _prompt(model)
    _answer(model)


def _prompt(model: Model) -> None:
    """Few and many positions, first without logits, then with."""
    for count in (2, CHUNK):
        embeds, per_layer = model.embed(np.zeros(count, np.int64))
        for keep_logits in (0, 1):
            model.forward(embeds, per_layer, model.new_cache(CHUNK), num_logits=keep_logits)


def _answer(model: Model) -> None:
    """One position after the other."""
    text = model.new_cache(8)
    for _ in range(2):
        model.decode(0, text)


def _sound(model: Model) -> None:
    """Three steps, of which the last has one soft token."""
    state = model.new_audio_state()
    for count in (8, 8, 1):
        frames = count * FRAMES
        model.encode_audio(np.zeros((frames, MELS), np.float32), np.ones(frames, np.float32), state)


# What together runs every kernel of a package.
USES: dict[str, Callable[[Model], None]] = {"text": _text, "sound": _sound}


def _place(package: Package) -> Path:
    """Name the file for a package, the kernels' sources and the CPU."""
    stamps = [cache.stamp(file.stem) for file in sorted(cache.HERE.glob("*.py"))]
    manifest = (package.path / MANIFEST).read_bytes()
    parts = repr((manifest, stamps, cpu.target())).encode()
    key = hashlib.sha256(parts).hexdigest()[:32]
    return cache.root() / cpu.target().path / "packages" / f"{key}.json"


def main() -> None:
    """Compile in this process: ``PACKAGE KIND PART…``; a line for each function."""
    path, kind, *parts = sys.argv[1:]

    def told(name: str) -> None:
        sys.stdout.write(name + "\n")
        sys.stdout.flush()

    try:
        compile_here(open_model(path, kv=kind), parts, told)
    except EdgeGemmaError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
