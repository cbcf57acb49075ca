"""Reading safetensors: what comes back, and what is refused in which words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from edgegemma.errors import CheckpointError
from export.checkpoint import Checkpoint, widen
from tests import tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def two_shards(folder: Path) -> dict[str, np.ndarray]:
    """Write a checkpoint of two shards with an index; give its tensors."""
    rng = np.random.default_rng(0)
    found = {name: rng.standard_normal((7, 6)).astype(np.float32) for name in "abc"}
    where = {"a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"}
    where["c"] = "model-00002-of-00002.safetensors"
    for shard in set(where.values()):
        save_file({n: found[n] for n in where if where[n] == shard}, folder / shard)
    index = {"metadata": {"total_size": 3 * 7 * 6 * 4}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return found


def rewrite_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the header of a safetensors file and leave its data."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "U8", "I8"])
@pytest.mark.parametrize("chunk_bytes", [1, 100, 1 << 20])
def test_chunks_of_rows_add_up_to_the_tensor(tmp_path: Path, dtype: str, chunk_bytes: int) -> None:
    rng = np.random.default_rng(0)
    kinds: dict[str, Any] = {"F16": np.float16, "F32": np.float32, "U8": np.uint8, "I8": np.int8}
    w = (rng.standard_normal((13, 3, 5)) * 20).astype(kinds.get(dtype, np.float32))
    stored = tiny.to_bf16(w) if dtype == "BF16" else w
    tiny.save_bf16({"w": stored, "other": np.zeros(3, np.uint8)}, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.info("w").dtype == dtype
        chunks = list(checkpoint.chunks("w", chunk_bytes))
        assert np.array_equal(np.concatenate(chunks), stored)
        assert max(map(len, chunks)) == max(1, min(13, chunk_bytes // stored[0].nbytes))


def test_a_scalar_keeps_its_shape(tmp_path: Path) -> None:
    save_file({"s": np.array(2.5, np.float32)}, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.array("s").shape == ()
        assert checkpoint.array("s") == 2.5


def test_bfloat16_widens_exactly() -> None:
    bits = np.arange(0, 1 << 16, 7).astype(np.uint16)
    bits = bits[(bits & 0x7F80) != 0x7F80]
    assert np.array_equal(widen(bits, "BF16").view(np.uint32), bits.astype(np.uint32) << 16)


def test_shards_read_as_one(tmp_path: Path) -> None:
    found = two_shards(tmp_path)
    with Checkpoint.open(tmp_path) as checkpoint:
        assert checkpoint.tensors.keys() == found.keys()
        for name, array in found.items():
            assert np.array_equal(checkpoint.array(name), array)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    two_shards(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"model-00002-of-00002\.safetensors: missing; .* 1 tens"
    ):
        Checkpoint.open(tmp_path)


def test_a_shard_without_its_index_is_refused(tmp_path: Path) -> None:
    two_shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"00001-of-00002\.safetensors without model\.safetensors.i"
    ):
        Checkpoint.open(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"found no \.safetensors"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("shard", ["../evil.safetensors", "/etc/passwd", "model.bin"])
def test_an_index_cannot_point_elsewhere(tmp_path: Path, shard: str) -> None:
    index = {"weight_map": {"a": shard}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"want the name of a \.safetensors file"):
        Checkpoint.open(tmp_path)


def test_a_tensor_missing_from_its_shard_is_named(tmp_path: Path) -> None:
    two_shards(tmp_path)
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["d"] = "model-00002-of-00002.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors: tensor d is missing"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 8, 60, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": np.ones((4, 4), np.float32)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: "):
        Checkpoint.open(tmp_path)


def test_a_file_cut_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": np.ones((4, 4), np.float32)}, path)
    with Checkpoint.open(tmp_path) as checkpoint:
        path.write_bytes(path.read_bytes()[:-8])
        with pytest.raises(CheckpointError, match="w: the file ends early"):
            checkpoint.array("w")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["b"].update(dtype="Q4"), "b: dtype 'Q4'; want one of BF16"),
        (lambda h: h["b"].update(dtype=["F32"]), "b: dtype .'F32'.; want one of BF16"),
        (lambda h: h["b"].update(shape=[4, 5]), "b: 64 bytes; F32 .4, 5. wants 80"),
        (lambda h: h["b"].update(shape=[-4, -4]), "b: shape .-4, -4.; want a list of sizes"),
        (lambda h: h["b"].update(shape=[True, 16]), "b: shape"),
        (lambda h: h["b"].update(data_offsets=[0, 64]), "starts at byte"),
        (lambda h: h["b"].update(data_offsets=[64, 128, 0]), "data_offsets"),
        (lambda h: h["b"].update(data_offsets=[1 << 63, (1 << 63) + 64]), "data_offsets"),
        (lambda h: h.update(c=[1]), "c: got .1.; want an object"),
        (lambda h: h.pop("b"), "bytes left over"),
        (lambda h: h["b"].update(shape=[4, 8], data_offsets=[64, 192]), "truncated"),
    ],
)
def test_a_lying_header_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({n: np.ones((4, 4), np.float32) for n in "ab"}, path)
    rewrite_header(path, change)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(tmp_path)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=80))
def test_noise_is_refused_in_our_words(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes
) -> None:
    folder = tmp_path_factory.mktemp("noise")
    (folder / "model.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError):
        Checkpoint.open(folder)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_named(tmp_path: Path, dtype: str, bad: float) -> None:
    w = np.zeros((5, 3), np.float32)
    w[3, 1] = bad
    stored: np.ndarray = w.astype(np.float16) if dtype == "F16" else w
    if dtype == "BF16":
        stored = (w.view(np.uint32) >> 16).astype(np.uint16)
    tiny.save_bf16({"layers.0.w": stored}, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        found = r"layers\.0\.w: (nan|inf|-inf) at row 3, column 1"
        with pytest.raises(CheckpointError, match=found):
            list(checkpoint.chunks("layers.0.w", chunk_bytes=2 * w[0].nbytes))
