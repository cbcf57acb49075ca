"""Kernels compiled ahead in a process of their own, and what is known here of a package afterwards.

Compiling takes LLVM 0.25 GB that a process does not give back, so the one that answers should not do it. The
child runs the package as it is used and lets go of its weights whenever a kernel is compiled.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from edgegemma.engine.model import CHUNK, FRAMES, MELS, Model, open_model
from edgegemma.errors import EdgeGemmaError
from edgegemma.kernels import cache, cpu
from edgegemma.kernels.compiling import watched
from edgegemma.package import MANIFEST, Package

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
    size = sum(member.size for member in package.members.values())
    return size >= LARGE_BYTES and kind not in known(package).compiled


def compile_apart(path: Path, kind: str, told: Told) -> None:
    """Compile the kernels of a package for one kind of K/V in a child process.

    Parameters
    ----------
    path : Path
        The package.
    kind : str
        "float32" or "int8".
    told : callable
        Called with the name of each function as it is compiled.

    Raises
    ------
    EdgeGemmaError
        The child failed; its error is in the message.
    """
    command = [sys.executable, "-m", "edgegemma.engine.ahead", str(path), kind]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        for line in child.stdout:
            told(line.strip())
        wrong = child.stderr.read()
    if child.returncode:
        last = (wrong.strip().splitlines() or [f"status {child.returncode}"])[-1]
        raise EdgeGemmaError(f"{path}: kernels could not be compiled: {last}")


def uses(model: Model) -> Iterator[tuple[str, Callable[[], None]]]:
    """Give what together runs every kernel of a package: a name, and how to do it."""
    yield "prompt", lambda: _prompt(model)
    yield "answer", lambda: _answer(model)
    if model.config.audio is not None:
        yield "sound", lambda: _sound(model)


def compile_here(model: Model, kind: str, told: Told) -> None:
    """Run the uses in this process, and keep that it was done."""

    def let_go() -> None:
        model.package.release()

    def started(name: str) -> None:
        let_go()
        told(name)

    with watched(started, let_go):
        for _, use in uses(model):
            use()
    record = known(model.package)
    keep(model.package, replace(record, compiled=tuple(sorted({*record.compiled, kind}))))


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
        model.forward(*model.embed(np.zeros(1, np.int64)), text)


def _sound(model: Model) -> None:
    """Three steps, of which the last has one soft token."""
    state = model.new_audio_state()
    for count in (8, 8, 1):
        frames = count * FRAMES
        model.encode_audio(np.zeros((frames, MELS), np.float32), np.ones(frames, np.float32), state)


def _place(package: Package) -> Path:
    """Name the file for a package, the kernels' sources and the CPU."""
    stamps = [cache.stamp(file.stem) for file in sorted(cache.HERE.glob("*.py"))]
    manifest = (package.path / MANIFEST).read_bytes()
    parts = repr((manifest, stamps, cpu.target())).encode()
    key = hashlib.sha256(parts).hexdigest()[:32]
    return cache.root() / cpu.target().path / "packages" / f"{key}.json"


def main() -> None:
    """Compile in this process: ``PACKAGE KIND``; a line for each function."""
    path, kind = sys.argv[1:]

    def told(name: str) -> None:
        sys.stdout.write(name + "\n")
        sys.stdout.flush()

    try:
        compile_here(open_model(path, kv=kind), kind, told)
    except EdgeGemmaError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
