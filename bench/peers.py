"""Ours beside others on the same shape: A B A B, ratios of the same round, and what is not installed is said and left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import gguf_model, samples
from bench.worker import LLAMA, Worker
from edgegemma.console import Report
from edgegemma.errors import EdgeGemmaError, InputError

if TYPE_CHECKING:
    from bench.limits import Limits
    from edgegemma.package import Package

OURS = "edgegemma"
NAMES = ("onnxruntime", "llama.cpp-Q2_K", "llama.cpp-Q4_0")


@dataclass(frozen=True)
class Race:
    """What is run.

    Attributes
    ----------
    rounds : times that everybody runs
    tokens, prompt : decoded and read each time; 0 leaves it out
    context : positions before the decoded ones
    """

    threads: int
    rounds: int = 5
    tokens: int = 16
    prompt: int = 128
    context: int = 128


def check_names(names: list[str]) -> list[str]:
    """Give the peers asked for, all if none.

    Raises
    ------
    InputError
        There is no peer of that name.
    """
    for name in names:
        if name not in NAMES:
            raise InputError(f"peer: got {name!r}; want one of {', '.join(NAMES)}")
    return names or list(NAMES)


def prepare(package: Package, name: str, folder: Path, report: Report) -> tuple[str, Path]:
    """Give the runtime and the file of a peer, making a GGUF file if there is none yet."""
    if not name.startswith(LLAMA):
        return name, package.path
    kind = name.removeprefix(f"{LLAMA}-")
    path = folder / f"{package.path.name}-{kind}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        gguf_model.write(package.config.text, path, kind, report)
    return LLAMA, path


def start(
    package: Package,
    names: list[str],
    folder: Path,
    race: Race,
    report: Report,
    hire: Callable[[dict[str, Any]], Worker] = Worker,
) -> tuple[dict[str, Worker], dict[str, str]]:
    """Start everybody.

    Returns
    -------
    workers : dict by name, ours first
    missing : dict by name
        Why somebody is not there.
    """
    workers: dict[str, Worker] = {}
    missing: dict[str, str] = {}
    for name in (OURS, *names):
        report(f"starting {name}", 0, 0)
        try:
            runtime, path = prepare(package, name, folder, report)
            given = {
                "runtime": runtime, "path": str(path), "threads": race.threads,
                "context": race.context, "longest": race.prompt,
            }  # fmt: skip
            workers[name] = hire(given)
        except EdgeGemmaError as error:
            if name == OURS:
                raise
            missing[name] = str(error)
    return workers, missing


def run(workers: dict[str, Worker], race: Race, limits: Limits, report: Report) -> dict[str, Any]:
    """Let everybody decode and read in turns.

    Returns
    -------
    dict
        ``peers`` by name: version, peak bytes, and of "decode" and "prefill" tokens a second and how many times faster
        ours is; ``read_bandwidth`` and ``dot_peak`` of the same rounds.
    """
    jobs = {"decode": ("decode", race.tokens), "prefill": ("read", race.prompt)}
    jobs = {name: job for name, job in jobs.items() if job[1]}
    peers: dict[str, dict[str, Any]] = {
        name: {"version": worker.version} for name, worker in workers.items()
    }
    found: dict[str, Any] = {"peers": peers}
    for job, (do, tokens) in jobs.items():
        works: dict[str, Callable[[], float]] = {}
        for name, worker in workers.items():
            worker.ask(do, min(tokens, 8))  # compiled, and the weights in memory
            works[name] = _work(worker, do, tokens)
        report(f"measuring {job}", 0, 0)
        works |= {"read": limits.read, "dot": limits.dot}
        rates = samples.in_turns(works, race.rounds)
        for name in workers:
            peers[name][job] = {
                "tokens_per_s": asdict(samples.figure(rates[name])),
                "ratio": asdict(samples.ratio(rates[OURS], rates[name])),
                "samples": rates[name],
            }
        found[job] = {
            "read_bandwidth": asdict(samples.figure(rates["read"])),
            "dot_peak": asdict(samples.figure(rates["dot"])),
        }
    for name, worker in workers.items():
        peers[name]["peak_bytes"] = worker.peak_bytes
    return found


def _work(worker: Worker, do: str, tokens: int) -> Callable[[], float]:
    return lambda: tokens / worker.ask(do, tokens)
