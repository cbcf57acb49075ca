"""Whatever is in a package's files, opening and running it works or is an `EdgeGemmaError`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgegemma.cli import inspecting
from edgegemma.engine import graphs, memory
from edgegemma.engine.model import open_model
from edgegemma.errors import EdgeGemmaError
from edgegemma.package import Package
from tests import packages

CPU_SECONDS = 20.0  # of one example; an honest package takes 0.1, its first run a compilation
GROWTH_BYTES = 400 << 20  # of the process over all examples, kernels included

quick = settings(
    deadline=None,
    max_examples=40,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
long = settings(quick, max_examples=3000, derandomize=False)
GRAPHS = ("embed_tokens", "decoder", "audio_encoder")
HOSTILE_INTEGERS = [-(2**63), -(2**31), -1, 0, 1, 2, 3, 4, 7, 8, 16, 63, 64, 4096, 2**31, 2**62]
HOSTILE_TEXTS = [
    "", "x", "..", "../decoder.bin", "/etc/passwd", "decoder.bin", "embed_tokens.bin", "logits", "4096", "-1",
    "8192", "1e3", "9" * 400, "present.0.key", "past_key_values.1.key", "Slice", "Reshape", "Split", "Head",
    "GatherRows", "DecoderLayer", "edgegemma", "com.microsoft", "model.language_model.layers.0.layer_scalar",
    "inputs_embeds", "num_logits_to_keep", "position_ids", "\x1b[2J",
]  # fmt: skip
HOSTILE_VALUES: list[Any] = [
    None, True, -1, 0, 0.5, 3, 2**31, 10**30, 10**400, "x", "", [], [[]], {}, ["sliding_attention"], [1, "x"],
    {"size": 1}, {"size": 0, "sha256": "0" * 64},
]  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packages.small(tmp_path_factory.mktemp("packages") / "small")


@pytest.fixture(scope="module", autouse=True)
def _memory_is_bounded(original: Path) -> Iterator[None]:
    attempt(original)
    with contextlib.suppress(OSError):  # not on this system
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of the tests before
    before = memory.peak_bytes()
    yield
    assert memory.peak_bytes() - before < GROWTH_BYTES


def attempt(folder: Path) -> None:
    """Describe a package, open it, read a little and listen a little."""
    package = Package.open(folder)
    inspecting.describe(package, list(graphs.load(package).values()))
    opened = open_model(folder, threads=1)
    cache = opened.new_cache(32)
    for keep in (0, 1):
        opened.forward(*opened.embed(np.array([1, 2, 3])), cache, keep)
    for _ in range(2):  # a token is prepared once, then repeated
        opened.forward(*opened.embed(np.array([4])), cache)
    cache.truncate(1)
    features = np.ones((8, 128), np.float32)
    opened.encode_audio(features, features[:, 0], opened.new_audio_state())


def survives(original: Path, damage: Callable[[Path], object]) -> None:
    """Damage a copy of a package and see that it works or is refused."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(shutil.copytree(original, Path(place) / "package", copy_function=os.link))
        damage(folder)
        start = time.process_time()
        with contextlib.suppress(EdgeGemmaError):
            attempt(folder)
        assert time.process_time() - start < CPU_SECONDS


def replace(path: Path, data: bytes) -> None:
    """Write a file anew: the old one is linked to the original."""
    path.unlink()
    path.write_bytes(data)


# Wild bytes


@st.composite
def wild_bytes(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    kind = draw(st.sampled_from(["flip", "cut", "insert", "repeat", "overwrite"]))
    at = draw(st.floats(0, 1))
    junk = draw(st.binary(min_size=1, max_size=8))
    size = draw(st.integers(1, 200))

    def change(data: bytes) -> bytes:
        i = int(at * (len(data) - 1))
        changed = {
            "flip": data[:i] + bytes([data[i] ^ (junk[0] or 1)]) + data[i + 1 :],
            "cut": data[:i],
            "insert": data[:i] + junk + data[i:],
            "repeat": data[:i] + data[i : i + size] * 3 + data[i + size :],
            "overwrite": data[:i] + junk + data[i + len(junk) :],
        }
        return changed[kind]

    return change


def check_wild_bytes(original: Path, name: str, changes: list[Any], signed: bool) -> None:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        for change in changes:
            data = change(data) if data else data
        replace(folder / name, data)
        if signed and name != "manifest.json":
            replace(folder / "manifest.json", (original / "manifest.json").read_bytes())
            packages.sign(folder)

    survives(original, damage)


names = st.sampled_from(
    ["manifest.json", *(f"{g}.{end}" for g in GRAPHS for end in ("onnx", "bin"))]
)
wild = {
    "name": names,
    "changes": st.lists(wild_bytes(), min_size=1, max_size=4),
    "signed": st.sampled_from([True, True, True, False]),
}


@quick
@given(**wild)
def test_wild_bytes_are_no_crash(
    original: Path, name: str, changes: list[Any], signed: bool
) -> None:
    check_wild_bytes(original, name, changes, signed)


@pytest.mark.slow
@long
@given(**wild)
def test_many_wild_bytes_are_no_crash(
    original: Path, name: str, changes: list[Any], signed: bool
) -> None:
    check_wild_bytes(original, name, changes, signed)


# Sound protobuf, hostile words


def fields(message: Any, depth: int = 0) -> list[tuple[Any, Any]]:
    """Every field that is set in a message and in those inside it; function bodies are known by hash."""
    found = []
    for descriptor, value in message.ListFields():
        found.append((message, descriptor))
        if descriptor.message_type and descriptor.name != "functions" and depth < 6:
            for child in [value] if hasattr(value, "ListFields") else value:
                found += fields(child, depth + 1)
    return found


def mutate(model: onnx.ModelProto, choose: Callable[[int], int]) -> None:
    """Change one field that is set: clear it, drop or repeat an item, or say something else."""
    every = fields(model)
    message, descriptor = every[choose(len(every))]
    value = getattr(message, descriptor.name)
    hostile: dict[type, list[Any]] = {
        int: HOSTILE_INTEGERS,
        str: HOSTILE_TEXTS,
        bytes: [b"", b"\xff" * 8, bytes(4), bytes(4096)],
        float: [0.0, -1.0, float("nan"), float("inf"), 1e30],
    }
    several = hasattr(value, "__len__") and not isinstance(value, str | bytes)
    item = value[choose(len(value))] if several else value
    action = choose(4)
    words = hostile.get(type(item))
    if action == 0 or (words is None and not several):
        message.ClearField(descriptor.name)
    elif several and action == 1:
        del value[choose(len(value))]
    elif several and (action == 2 or words is None):
        value.append(item)
    elif words is not None:
        word = words[choose(len(words))]
        try:
            if several:
                value[choose(len(value))] = word
            else:
                setattr(message, descriptor.name, word)
        except (ValueError, TypeError):  # beyond what the field can hold
            message.ClearField(descriptor.name)


def check_hostile_graph(original: Path, name: str, choices: list[int]) -> None:
    picks = iter(choices)

    def choose(count: int) -> int:
        return next(picks, 0) % count

    def damage(folder: Path) -> None:
        path = folder / f"{name}.onnx"
        model = onnx.load(path, load_external_data=False)
        for _ in range(1 + choose(2)):
            mutate(model, choose)
        replace(path, model.SerializeToString())
        replace(folder / "manifest.json", (original / "manifest.json").read_bytes())
        packages.sign(folder)

    survives(original, damage)


hostile_graphs = {
    "name": st.sampled_from(GRAPHS),
    "choices": st.lists(st.integers(0, 1 << 20), min_size=8, max_size=16),
}


@quick
@given(**hostile_graphs)
def test_hostile_graphs_are_no_crash(original: Path, name: str, choices: list[int]) -> None:
    check_hostile_graph(original, name, choices)


@pytest.mark.slow
@long
@given(**hostile_graphs)
def test_many_hostile_graphs_are_no_crash(original: Path, name: str, choices: list[int]) -> None:
    check_hostile_graph(original, name, choices)


# Sound JSON, hostile values


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in decoded JSON."""
    inner: list[Any] = []
    if isinstance(data, dict):
        inner = list(data)
    elif isinstance(data, list):
        inner = list(range(len(data)))
    found = [(*path, key) for key in inner]
    return found + [deep for key in inner for deep in places(data[key], (*path, key))]


def check_hostile_manifest(original: Path, at: float, value: Any, remove: bool) -> None:
    def damage(folder: Path) -> None:
        data = json.loads((folder / "manifest.json").read_text())
        every = places(data)
        *path, last = every[int(at * (len(every) - 1))]
        inside = data
        for key in path:
            inside = inside[key]
        if remove:
            del inside[last]
        else:
            inside[last] = value
        replace(folder / "manifest.json", json.dumps(data).encode())

    survives(original, damage)


hostile_manifests = {
    "at": st.floats(0, 1),
    "value": st.sampled_from(HOSTILE_VALUES),
    "remove": st.sampled_from([False, False, False, True]),
}


@quick
@given(**hostile_manifests)
def test_hostile_manifests_are_no_crash(
    original: Path, at: float, value: Any, remove: bool
) -> None:
    check_hostile_manifest(original, at, value, remove)


@pytest.mark.slow
@long
@given(**hostile_manifests)
def test_many_hostile_manifests_are_no_crash(
    original: Path, at: float, value: Any, remove: bool
) -> None:
    check_hostile_manifest(original, at, value, remove)
