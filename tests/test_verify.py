"""Verification: a good package passes, a flipped bit and a lying executor do not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgegemma.errors import PackageError
from export import pipeline, verify
from export.readback import compare, places
from export.witness import Difference
from tests import packages
from tests.conftest import Exporter
from tests.test_export import CONVERSION, graph

LANGUAGE = "model.language_model"
Checkpoints = Callable[[str], Path]


def flip_a_bit(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize(("variant", "preset"), CONVERSION)
def test_graphs_pass_onnx_checker_when_inlined(
    package: Exporter, variant: str, preset: str
) -> None:
    for path in package(variant, preset).glob("*.onnx"):
        assert verify.check_graph(path) > 5


@pytest.mark.parametrize(
    ("file", "text"),
    [("tokenizer.json", "version https://git-lfs.github.com"), ("chat_template.jinja", "{{ (")],
)
def test_text_files_that_do_not_open_are_refused(
    package: Exporter, tmp_path: Path, file: str, text: str
) -> None:
    path = shutil.copytree(package("e2b-qat-mobile", "qat-mobile"), tmp_path / "p")
    (path / file).write_text(text)
    packages.sign(path)
    with pytest.raises(PackageError, match=file):
        verify.verify(path)


@pytest.mark.parametrize("file", ["embed_tokens.bin", "decoder.bin", "decoder.onnx"])
def test_verification_finds_a_flipped_bit(package: Exporter, tmp_path: Path, file: str) -> None:
    path = shutil.copytree(package("e2b-qat-mobile", "qat-mobile"), tmp_path / "p")
    flip_a_bit(path / file, (path / file).stat().st_size // 2)
    with pytest.raises(PackageError, match=f"{file}: got sha256"):
        verify.verify(path)


def test_comparison_with_the_source_finds_a_flipped_bit(
    package: Exporter, checkpoint: Checkpoints, tmp_path: Path
) -> None:
    path = shutil.copytree(package("e2b-qat-mobile", "qat-mobile"), tmp_path / "p")
    place = places(path)[f"{LANGUAGE}.layers.1.mlp.up_proj.weight"]
    flip_a_bit(path / "decoder.bin", place.offset + 77)
    message = r"layers\.1\.mlp\.up_proj\.weight: byte 77 is not"
    with (
        pipeline.opened(checkpoint("e2b-qat-mobile")) as weights,
        pytest.raises(PackageError, match=message),
    ):
        compare(path, weights)


def test_comparison_with_the_source_counts_what_it_saw(
    package: Exporter, checkpoint: Checkpoints
) -> None:
    with pipeline.opened(checkpoint("e2b-qat-mobile")) as weights:
        assert compare(package("e2b-qat-mobile", "qat-mobile"), weights) > 300


def test_a_graph_that_is_no_graph_is_refused(package: Exporter, tmp_path: Path) -> None:
    model = graph(package("e2b", "mobile"), "decoder.onnx")
    model.graph.node[0].input[0] = "nowhere"
    onnx.save(model, tmp_path / "decoder.onnx")
    with pytest.raises(PackageError, match=r"decoder\.onnx: onnx\.checker"):
        verify.check_graph(tmp_path / "decoder.onnx")


@pytest.mark.parametrize(
    ("variant", "preset"), [("e2b", "mobile"), ("e2b-qat-mobile", "qat-mobile"), ("e4b", "float")]
)
def test_a_good_package_passes_as_a_whole(
    package: Exporter, checkpoint: Checkpoints, variant: str, preset: str
) -> None:
    report = verify.verify(package(variant, preset), checkpoint(variant))
    seen = [a.what for a in report.agreements]
    assert {"logits: engine and onnxruntime", "audio: engine and onnxruntime"} <= set(seen)
    assert report.checks[0][0] == "sha256"
    assert report.table().row_count == len(report.checks) + len(report.agreements)


def test_results_that_are_not_finite_agree_with_nothing() -> None:
    good = np.ones((2, 3), np.float32)
    assert verify.agreement("audio", good, good * np.float32(np.nan)).correlation == 0
    assert verify.agreement("audio", good, good).correlation == 1


@pytest.mark.parametrize(("got", "limit"), [(np.inf, 1.0), (np.nan, 1.0), (0.0, np.inf)])
def test_a_call_whose_result_is_not_finite_is_refused(got: float, limit: float) -> None:
    good, bad = Difference("good", 0.5, 1.0), Difference("bad", got, limit)
    with pytest.raises(PackageError, match=r"^bad: a number that is not finite"):
        verify.check_calls([good, bad, good])


@pytest.mark.parametrize("which", [0, 1, 2])
def test_executors_whose_results_are_not_finite_are_refused(which: int) -> None:
    results = [logits(0), logits(0), logits(0)]
    results[which]["logits"][1, 7] = np.nan
    with pytest.raises(PackageError, match=r"^logits: who: a number that is not finite"):
        verify.judge(results[0], results[1], results[2], "who")


def logits(seed: int) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {"logits": rng.standard_normal((3, 50)).astype(np.float32)}


def test_executors_may_differ_as_much_as_one_does_when_its_input_moves() -> None:
    one, moved = logits(0), logits(0)
    moved["logits"] = one["logits"] * np.float32(1.01)
    other = {"logits": one["logits"] * np.float32(0.98)}
    assert verify.judge(other, one, moved, "who")[0].same_best == 1


def test_executors_that_disagree_are_refused() -> None:
    with pytest.raises(PackageError, match="logits: who: correlation"):
        verify.judge(logits(0), logits(1), logits(0), "who")


def test_executors_choose_the_same_token_where_one_is_clearly_ahead() -> None:
    one, other = np.zeros((2, 2, 50), np.float32)
    one[:, 3] = other[0, 3] = other[1, 7] = 10
    with pytest.raises(PackageError, match="different best token at position 1"):
        verify._check_best(one, other, one * np.float32(1.01), "who")


def test_a_jump_at_one_position_may_meet_another_one_in_the_other_executor() -> None:
    one, other, moved = np.zeros((3, 2, 50), np.float32)
    one[:, 3] = other[0, 3] = other[1, 7] = moved[:, 3] = 10
    moved[0, 7] = 9
    verify._check_best(one, other, moved, "who")
