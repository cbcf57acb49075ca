"""What an export proves about its package before it says so.

Files against the manifest, graphs against ONNX, bytes against the source, and our engine against
onnxruntime on the same short input: call by call, which is exact and names what differs, and as wholes. Each check
that fails raises; what passed is in the `Report`.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, inliner
from rich.table import Table

from edgegemma.engine.graphs import DECODER
from edgegemma.engine.memory import physical_cores
from edgegemma.engine.model import Model, open_model
from edgegemma.errors import PackageError
from edgegemma.package import Package
from edgegemma.text import template
from edgegemma.text.tokenizer import Tokenizer
from export import witness
from export.readback import compare
from export.recording import Recorder
from export.witness import ROOM, Difference

F32 = npt.NDArray[np.float32]
Results = dict[str, F32]

TOKENS = 12
FIRST_STEP = 9  # the rest comes in a second step, over a cache
SOFT_TOKENS = 6
FRAMES = 4  # mel frames a soft token
MELS = 128
SMALL_BYTES = 1 << 30
"""Checkpoints up to this size are also compared with the float graph."""


@dataclass(frozen=True)
class Agreement:
    """How far two executions of the same input agree."""

    what: str
    correlation: float
    difference: float
    """Relative to the second one's size."""
    same_best: float | None
    """Share of positions with the same best token; None where there are no tokens."""

    def __str__(self) -> str:
        text = f"correlation {self.correlation:.6f}, relative difference {self.difference:.1e}"
        return text if self.same_best is None else f"{text}, same best token {self.same_best:.0%}"


@dataclass
class Report:
    """What passed."""

    checks: list[tuple[str, str]] = field(default_factory=list)
    agreements: list[Agreement] = field(default_factory=list)

    def table(self) -> Table:
        """Give a table for people."""
        table = Table(title="checked")
        table.add_column("check")
        table.add_column("result")
        for name, result in self.checks:
            table.add_row(name, result)
        for agreement in self.agreements:
            table.add_row(agreement.what, str(agreement))
        return table


def verify(package: str | Path, source: str | Path | None = None) -> Report:
    """Check a package as a whole.

    Parameters
    ----------
    package : path
        Its folder.
    source : path, optional
        The checkpoint's folder: what the package took over unchanged is compared with it bit for bit,
        and a small one is also run in float.

    Returns
    -------
    Report

    Raises
    ------
    PackageError
        The first check that fails.
    """
    path, report = Path(package), Report()
    opened = Package.open(path, verify=True)
    report.checks.append(("sha256", f"{len(opened.members)} files, {opened.size:,} bytes"))
    report.checks.append(("text", _check_text(opened)))
    for graph in sorted(path.glob("*.onnx")):
        report.checks.append((f"onnx.checker: {graph.name}", f"{check_graph(graph)} nodes inlined"))
    noise = witness.noise_of(onnx.load(path / DECODER, load_external_data=False))
    ours, moved = _results(path, "edgegemma", 0.0, noise)
    report.checks.append(("engine and onnxruntime, call by call", _calls(path, ours)))
    (theirs,) = _results(path, "onnxruntime", 0.0)
    report.agreements += judge(ours, theirs, moved, "engine and onnxruntime")
    if source is not None:
        _against_source(path, Path(source), str(opened.manifest["preset"]), ours, report)
    return report


def _check_text(package: Package) -> str:
    """Open the tokenizer and the chat template, if there is one, as a session does."""
    tokenizer = Tokenizer(package)
    if template.FILE not in package.members:
        return "tokenizer opens; there is no chat template"
    template.ChatTemplate.of(package, tokenizer)
    return "tokenizer and chat template open"


def check_graph(path: Path) -> int:
    """Check a graph with its functions inlined, types and shapes included; give its number of nodes.

    onnx knows no types for onnxruntime's own ops, so their outputs are declared; external weights
    become inputs, as the checker would otherwise look for their files.
    """
    try:
        model = inliner.inline_local_functions(onnx.load(path, load_external_data=False))
        for node in model.graph.node:
            for output in node.output if node.domain else ():
                kind = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
                model.graph.value_info.append(kind)
        inline = []
        for tensor in model.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                kind = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
                model.graph.input.append(kind)
            else:
                inline.append(tensor)
        kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in inline]
        model.graph.ClearField("initializer")
        model.graph.initializer.extend(kept)
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise PackageError(f"{path.name}: onnx.checker: {error}") from error
    return len(model.graph.node)


def _calls(path: Path, ours: Results) -> str:
    """Compare every call of the engine with onnxruntime; tell how close they were."""
    recorder = Recorder(Package.open(path), physical_cores())
    again = outputs(recorder)
    check_finite(ours, "the engine")
    if different := [key for key in ours if not np.array_equal(ours[key], again[key])]:
        raise PackageError(f"{different[0]}: the engine gives other numbers call by call")
    return check_calls(witness.compare(recorder, path))


def check_calls(differences: Iterable[Difference]) -> str:
    """Refuse the call or linear that is furthest beyond its limit, by name; tell how close all were."""
    found = list(differences)
    worst = max(found, key=lambda difference: difference.share)
    if not np.isfinite(worst.share):
        raise PackageError(
            f"{worst.where}: a number that is not finite, in the engine or in onnxruntime; "
            "want finite results"
        )
    if worst.share > 1:
        raise PackageError(
            f"{worst.where}: engine and onnxruntime are {worst.got:.1e} apart on the same inputs; "
            f"want at most {worst.limit:.1e}"
        )
    return f"{len(found)} results, the worst at {worst.share:.0%} of its limit: {worst.where}"


def _results(path: Path, executor: str, *noises: float) -> list[Results]:
    """Run a package once for each share of noise."""
    model = open_model(path, executor)
    found = [outputs(model, noise) for noise in noises]
    del model
    gc.collect()  # onnxruntime's copy of the weights goes before the next executor comes
    return found


def outputs(model: Model, noise: float = 0.0) -> Results:
    """Run a model on a short input, moved by a share of itself.

    Returns
    -------
    dict of float32 arrays
        "embeddings", "logits" of a prefill and of a step over its cache, and "audio" in two steps if
        the package hears.
    """
    rng, moving = np.random.default_rng(0), np.random.default_rng(1)
    config = model.config
    ids = rng.integers(0, config.text.vocab_size, TOKENS)
    ids[0] = config.tokens.bos
    embeds, per_layer = model.embed(ids)
    found = {"embeddings": np.concatenate([embeds.reshape(-1), per_layer.reshape(-1)])}
    found["logits"] = _logits(model, witness.moved(moving, embeds, noise), per_layer)
    if config.audio is not None:
        # like log mel features: noise around the middle of their range
        features = rng.normal(-2.0, 2.0, (SOFT_TOKENS * FRAMES, MELS)).astype(np.float32)
        found["audio"] = _soft_tokens(model, witness.moved(moving, features, noise))
    return found


def _logits(model: Model, embeds: F32, per_layer: F32) -> F32:
    cache = model.new_cache()
    parts = [
        model.forward(embeds[part], per_layer[part], cache, num_logits=len(embeds[part]))
        for part in (slice(FIRST_STEP), slice(FIRST_STEP, None))
    ]
    return np.concatenate(parts)


def _soft_tokens(model: Model, features: F32) -> F32:
    state = model.new_audio_state()
    half = SOFT_TOKENS // 2 * FRAMES
    ones = np.ones(half, np.float32)
    steps = [model.encode_audio(part, ones, state) for part in (features[:half], features[half:])]
    return np.concatenate(steps)


def agreement(what: str, one: F32, other: F32) -> Agreement:
    """Measure how far two results agree; one that is not finite agrees with nothing.

    Parameters
    ----------
    what : str
        Begins with "logits" where the last axis is tokens.
    """
    a, b = one.astype(np.float64).reshape(-1), other.astype(np.float64).reshape(-1)
    if not (np.isfinite(a).all() and np.isfinite(b).all()) or a.shape != b.shape:
        return Agreement(what, 0.0, float("inf"), None)
    if np.array_equal(a, b):
        correlation = 1.0
    else:
        x, y = a - a.mean(), b - b.mean()
        correlation = float(
            x @ y / max(np.linalg.norm(x) * np.linalg.norm(y), np.finfo(float).tiny)
        )
    tokens = what.startswith("logits")
    best = float(np.mean(one.argmax(-1) == other.argmax(-1))) if tokens else None
    return Agreement(what, correlation, witness.apart(one, other), best)


def check_finite(results: Results, who: str) -> None:
    """Refuse the first result that has a NaN or an infinity."""
    for key, result in results.items():
        if not np.isfinite(result).all():
            raise PackageError(f"{key}: {who}: a number that is not finite; want finite results")


def judge(ours: Results, theirs: Results, moved: Results, who: str) -> list[Agreement]:
    """Compare all results of two executions; refuse the first that are too far apart.

    A model that rounds to int8 makes something of every last bit, so the limit is what the first executor
    makes of inputs ``moved`` a little. It is for what the calls alone cannot show: how they hang together.
    """
    found = []
    for results in (ours, theirs, moved):
        check_finite(results, who)
    for key in ours:
        result = agreement(f"{key}: {who}", ours[key], theirs[key])
        limit = max(witness.FLOAT_LIMIT, ROOM * witness.apart(moved[key], ours[key]))
        if not result.difference <= limit:
            raise PackageError(f"{result.what}: {result}; want a difference of at most {limit:.1e}")
        found.append(result)
    _check_best(ours["logits"], theirs["logits"], moved["logits"], who)
    return found


def _check_best(ours: F32, theirs: F32, moved: F32, who: str) -> None:
    """Refuse different best tokens where one is further ahead than such moves can make up for.

    The largest move of all positions counts: what makes one jump, a key that takes another's place in attention, is rare
    and meets another position in each trial.
    """
    lead = ours.max(axis=1) - ours[np.arange(len(ours)), theirs.argmax(axis=1)]
    doubt = np.abs(moved - ours).max() + witness.FLOAT_LIMIT * np.abs(ours).max(axis=1)
    wrong = np.flatnonzero(lead > 2 * ROOM * doubt)
    if len(wrong):
        raise PackageError(f"logits: {who}: different best token at position {wrong[0]}")


def _against_source(
    path: Path, source: Path, preset_name: str, ours: Results, report: Report
) -> None:
    """Compare with the checkpoint: bytes where nothing was rounded, results where it is small."""
    from export import pipeline

    with pipeline.opened(source, preset_name) as weights:
        if weights.preset.method != "rtn":
            report.checks.append(("equal to the source", f"{compare(path, weights)} tensors"))
        small = weights.source_bytes() <= SMALL_BYTES
    if small and preset_name != "float":
        # Where the package is there is room for this, too; a folder for temporary files may be in memory.
        with tempfile.TemporaryDirectory(prefix=".float-", dir=path.parent) as folder:
            made = pipeline.export(source, Path(folder) / "float", "float")
            (reference,) = _results(made, "onnxruntime", 0.0)
        check_finite(reference, "float")
        # A lossy preset is what the user asked for: the distance is told, not judged.
        found = [agreement(f"{key}: engine and float", ours[key], reference[key]) for key in ours]
        report.agreements += found
