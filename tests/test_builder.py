"""The builder: values in, ONNX and a data file out."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from edgegemma.errors import CheckpointError
from export.builder import ALIGNMENT, Body, Graph, Ref, float_ref
from export.source import F32, Matrix

OFF = np.zeros(2, np.float32)
Chunks = Iterator[tuple[npt.NDArray[np.uint8], F32]]


def chunks(count: int, rows: int, row_bytes: int) -> Chunks:
    for i in range(count):
        codes = np.full((rows, row_bytes), i, np.uint8)
        yield codes, np.full((rows, 1), i, np.float32)


def load(folder: Path) -> dict[str, npt.NDArray[np.generic]]:
    model = onnx.load(folder / "g.onnx")
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def test_a_matrix_streams_chunk_by_chunk(tmp_path: Path) -> None:
    g = Graph("g", tmp_path)
    matrix = Matrix(64 * 128, 2048, 8, 128, 1, chunks(64, 128, 2048), OFF)  # 16 MiB in 256 KiB
    tracemalloc.start()
    g.matrix("m", matrix, (64 * 128, 16, 128))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
    g.save([], {})
    tensors = load(tmp_path)
    assert tensors["m.weight"].shape == (64 * 128, 16, 128)
    np.testing.assert_array_equal(tensors["m.weight"][:, 0, 0], np.repeat(np.arange(64), 128))
    np.testing.assert_array_equal(tensors["m.weight_scale"][:, 0], np.repeat(np.arange(64.0), 128))


def test_small_tensors_stay_in_the_graph(tmp_path: Path) -> None:
    g = Graph("g", tmp_path)
    g.tensor("small", np.arange(1023, dtype=np.float32))
    g.tensor("large", np.arange(1024, dtype=np.float32))
    g.tensor("next", np.arange(1024, dtype=np.float32))
    g.save([], {})
    stored = onnx.load(tmp_path / "g.onnx", load_external_data=False).graph.initializer
    assert [t.data_location == TensorProto.EXTERNAL for t in stored] == [False, True, True]
    assert (tmp_path / "g.bin").stat().st_size == ALIGNMENT + 4096
    np.testing.assert_array_equal(load(tmp_path)["next"], np.arange(1024))


def test_a_source_that_gives_other_bytes_than_it_said_is_refused(tmp_path: Path) -> None:
    g = Graph("g", tmp_path)
    short = Matrix(9, 64, 8, 64, 1, chunks(2, 4, 64), OFF)
    with pytest.raises(CheckpointError, match=r"m\.weight: got 512 bytes; want 576"):
        g.matrix("m", short, (9, 1, 64))


def test_a_tensor_is_added_once(tmp_path: Path) -> None:
    g = Graph("g", tmp_path)
    g.tensor("x", OFF)
    with pytest.raises(ValueError, match="x is added twice"):
        g.tensor("x", OFF)


def test_a_reference_needs_room_of_its_own_size(tmp_path: Path) -> None:
    g = Graph("g", tmp_path)
    g.tensor("x", np.zeros((64, 32), np.float32))
    g.save([], {})
    other = Graph("other", tmp_path)
    other.refer("y", tmp_path / "g.onnx", "x", (64, 4, 8))
    assert other.tensors["y"].external_data[0].value == "g.bin"
    with pytest.raises(CheckpointError, match="want room for"):
        other.refer("z", tmp_path / "g.onnx", "x", (64, 33))


def test_constants_are_written_once() -> None:
    b = Body("F", ["x"], ["y"], ["n", "f"])
    assert b.integers(0, -1) == b.integers(0, -1)
    assert b.number(float_ref("f")) == b.number(float_ref("f"))
    assert b.integer(Ref("n")) != b.integer(1)
    assert b.number(1.0) != b.integer(1)
