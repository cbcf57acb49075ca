"""The three exported graphs in onnxruntime, against the model in plain numpy."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.checker
import onnx.inliner
import onnxruntime as ort
import pytest

from export.audio import build_audio_encoder
from export.builder import ALIGNMENT, INLINE_BYTES
from export.decoder import build_decoder
from export.embed import build_embed
from tests import naive
from tests.fake_source import CONFIG, LM, FakeSource

GRAPHS = ("embed_tokens", "decoder", "audio_encoder")
GLUE = {"Split", "Slice", "Neg", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Constant", "Cast"}
TEXT = CONFIG.text
S = 13
Arrays = dict[str, npt.NDArray[Any]]


def build(folder: Path, source: FakeSource) -> Path:
    folder.mkdir()
    build_embed(CONFIG, source, folder)
    build_decoder(CONFIG, source, folder)
    build_audio_encoder(CONFIG, source, folder)
    return folder


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FakeSource]:
    source = FakeSource(CONFIG, "float32")
    return build(tmp_path_factory.mktemp("float") / "package", source), source


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FakeSource]:
    source = FakeSource(CONFIG, "codes")
    return build(tmp_path_factory.mktemp("codes") / "package", source), source


@pytest.fixture(params=["floats", "codes"])
def either(request: pytest.FixtureRequest) -> tuple[Path, FakeSource]:
    built: tuple[Path, FakeSource] = request.getfixturevalue(request.param)
    return built


@functools.cache
def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path: Path, feeds: Arrays) -> Arrays:
    names = [output.name for output in session(path).get_outputs()]
    return dict(zip(names, session(path).run(None, feeds), strict=True))


def load(path: Path) -> onnx.ModelProto:
    return onnx.load(path, load_external_data=False)


def draw(seed: int, *shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def decode(
    folder: Path,
    start: int,
    stop: int,
    keep: int,
    past: Arrays | None = None,
    graph: str = "decoder.onnx",
) -> Arrays:
    """Run positions start … stop of one fixed prompt."""
    embeds = draw(1, 1, S, TEXT.hidden_size)
    rows = draw(2, 1, S, TEXT.num_hidden_layers, TEXT.hidden_size_per_layer_input)
    if past is None:
        past = {}
        for i in range(TEXT.first_shared_layer):
            heads, width = TEXT.heads_of(i)
            for part in ("key", "value"):
                past[f"present.{i}.{part}"] = np.zeros((1, heads, 0, width), np.float32)
    feeds: Arrays = {
        "inputs_embeds": embeds[:, start:stop],
        "per_layer_inputs": rows[:, start:stop],
        "position_ids": np.arange(start, stop)[None],
        "num_logits_to_keep": np.array(keep),
    }
    feeds |= {
        name.replace("present", "past_key_values"): value
        for name, value in past.items()
        if name != "logits"
    }
    return run(folder / graph, feeds)


def test_embeddings_are_rows_times_the_root_of_their_width(either: tuple[Path, FakeSource]) -> None:
    folder, source = either
    ids = np.array([[3, 0, 191, 3]])
    out = run(folder / "embed_tokens.onnx", {"input_ids": ids})
    want = source.dense(f"{LM}.embed_tokens")[ids] * np.sqrt(TEXT.hidden_size)
    rows = source.dense(f"{LM}.embed_tokens_per_layer")[ids] * np.sqrt(32)
    np.testing.assert_allclose(out["inputs_embeds"], want, rtol=1e-6)
    shape = (1, 4, TEXT.num_hidden_layers, TEXT.hidden_size_per_layer_input)
    np.testing.assert_allclose(out["per_layer_inputs"], rows.reshape(shape), rtol=1e-6)


def decoder_errors(folder: Path, source: FakeSource) -> npt.NDArray[np.float64]:
    """Distances of all logits, keys and values from the model in numpy."""
    embeds = draw(1, 1, S, TEXT.hidden_size)[0].astype(np.float64)
    rows = draw(2, 1, S, TEXT.num_hidden_layers, TEXT.hidden_size_per_layer_input)[0]
    logits, kv = naive.decoder(CONFIG, source, embeds, rows.astype(np.float64))
    out = decode(folder, 0, S, 0)
    errors = [out["logits"][0] - logits]
    for i, (key, value) in kv.items():
        for part, want in (("key", key), ("value", value)):
            errors.append(out[f"present.{i}.{part}"][0].transpose(1, 0, 2) - want)
    return np.asarray(np.abs(np.concatenate([error.ravel() for error in errors])))


def test_float_decoder_is_the_model(floats: tuple[Path, FakeSource]) -> None:
    assert decoder_errors(*floats).max() < 1e-4


def test_quantized_decoder_is_the_model_with_rounded_activations(
    codes: tuple[Path, FakeSource],
) -> None:
    assert np.median(decoder_errors(*codes)) < 0.02


def test_static_activations_are_rounded_in_the_float_decoder(tmp_path: Path) -> None:
    source = FakeSource(CONFIG, "bfloat16", static=True)
    errors = decoder_errors(build(tmp_path / "package", source), source)
    assert np.median(errors) < 0.02  # a sum near a tie falls on either side, and the rest follows


def test_any_chunks_give_the_logits_of_one_pass(floats: tuple[Path, FakeSource]) -> None:
    folder, _ = floats
    whole = decode(folder, 0, S, 0)
    past, heard = None, []
    for start, stop in itertools.pairwise((0, 1, 2, 7, 8, S)):
        past = decode(folder, start, stop, 0, past)
        heard.append(past["logits"])
    np.testing.assert_allclose(np.concatenate(heard, 1), whole["logits"], atol=1e-4)


@pytest.mark.parametrize("keep", [1, 3, S])
def test_kept_logits_are_the_last_ones(floats: tuple[Path, FakeSource], keep: int) -> None:
    folder, _ = floats
    whole, kept = decode(folder, 0, S, 0), decode(folder, 0, S, keep)
    assert kept["logits"].shape == (1, keep, TEXT.vocab_size)
    np.testing.assert_allclose(kept["logits"], whole["logits"][:, -keep:], atol=1e-4)
    np.testing.assert_array_equal(kept["present.0.key"], whole["present.0.key"])


def test_a_head_of_its_own_is_not_the_table(tmp_path: Path) -> None:
    source = FakeSource(CONFIG, "float32", tied=False)
    assert decoder_errors(build(tmp_path / "package", source), source).max() < 1e-4


def test_a_decoder_without_shared_layers_keeps_the_last_logits(tmp_path: Path) -> None:
    text = TEXT.__class__(**{**vars(TEXT), "num_kv_shared_layers": 0})
    config = CONFIG.__class__(text, CONFIG.tokens, CONFIG.audio)
    source = FakeSource(config, "float32", tied=False)
    build_decoder(config, source, tmp_path)
    model = load(tmp_path / "decoder.onnx")
    assert [node.op_type for node in model.graph.node].count("DecoderLayerShared") == 0
    assert model.graph.node[-1].input[0].startswith("tail.")


# Audio


def listen(folder: Path, cuts: list[int], frames: int = 52) -> npt.NDArray[np.float32]:
    """Encode one fixed clip in steps of whole soft tokens; the last frames are masked."""
    audio = CONFIG.audio
    assert audio is not None
    features, mask = clip(frames)
    graph = folder / "audio_encoder.onnx"
    state: Arrays = {
        i.name: np.zeros(i.shape, np.float32)
        for i in session(graph).get_inputs()
        if i.name.startswith("past")
    }
    heard = []
    for start, stop in itertools.pairwise([0, *cuts, frames // 4]):
        feeds: Arrays = {
            "input_features": features[None, 4 * start : 4 * stop],
            "input_features_mask": mask[None, 4 * start : 4 * stop],
            "position": np.array([start]),
        }
        out = run(graph, feeds | state)
        heard.append(out.pop("audio_features")[0])
        state = {name.replace("present", "past"): value for name, value in out.items()}
    return np.concatenate(heard)


def clip(frames: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    features = draw(3, frames, 128)
    mask = (np.arange(frames) < frames - 2).astype(np.float32)
    return features, mask


@pytest.mark.parametrize(("built", "tolerance"), [("floats", 1e-4), ("codes", 0.1)])
def test_audio_encoder_is_the_tower(
    built: str, tolerance: float, request: pytest.FixtureRequest
) -> None:
    folder, source = request.getfixturevalue(built)
    features, mask = (x.astype(np.float64) for x in clip(52))
    want = naive.audio(CONFIG, source, features, mask)
    assert np.abs(listen(folder, []) - want).max() < tolerance


@pytest.mark.parametrize("cuts", [[1], [12], [3, 4, 9], list(range(1, 13))])
def test_streamed_audio_is_one_pass(floats: tuple[Path, FakeSource], cuts: list[int]) -> None:
    folder, _ = floats
    np.testing.assert_allclose(listen(folder, cuts), listen(folder, []), rtol=0, atol=1e-5)


def test_streamed_quantized_audio_is_one_pass_but_for_rounding(
    codes: tuple[Path, FakeSource],
) -> None:
    folder, _ = codes  # onnxruntime's float sums may differ by the number of rows: a code may flip
    np.testing.assert_allclose(listen(folder, [3, 4]), listen(folder, []), rtol=0, atol=0.05)


# What the files are


def externals(model: onnx.ModelProto) -> Iterator[tuple[str, str, int, int]]:
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {item.key: item.value for item in tensor.external_data}
            yield tensor.name, entry["location"], int(entry["offset"]), int(entry["length"])


@pytest.mark.parametrize("name", GRAPHS)
def test_checker_accepts_the_graph_and_its_inlined_form(
    either: tuple[Path, FakeSource], name: str
) -> None:
    folder, _ = either
    onnx.checker.check_model(str(folder / f"{name}.onnx"))
    inlined = onnx.inliner.inline_local_functions(load(folder / f"{name}.onnx"))
    assert not inlined.functions
    path = folder / f"{name}.inlined.onnx"
    onnx.save(inlined, path)
    onnx.checker.check_model(str(path))


def test_the_inlined_decoder_gives_the_same_logits(either: tuple[Path, FakeSource]) -> None:
    folder, _ = either
    model = onnx.inliner.inline_local_functions(load(folder / "decoder.onnx"))
    onnx.save(model, folder / "flat.onnx")
    flat = decode(folder, 0, S, 1, graph="flat.onnx")
    np.testing.assert_allclose(flat["logits"], decode(folder, 0, S, 1)["logits"], atol=1e-5)


@pytest.mark.parametrize("name", GRAPHS)
def test_large_tensors_are_external_aligned_and_apart(
    either: tuple[Path, FakeSource], name: str
) -> None:
    folder, _ = either
    model = load(folder / f"{name}.onnx")
    end: dict[str, int] = {}
    for _, location, offset, length in externals(model):
        assert length >= INLINE_BYTES
        assert offset % ALIGNMENT == 0
        assert offset >= end.get(location, 0) or location != f"{name}.bin"
        end[location] = offset + length
    assert all(len(tensor.raw_data) < INLINE_BYTES for tensor in model.graph.initializer)
    assert end[f"{name}.bin"] == (folder / f"{name}.bin").stat().st_size


def test_a_tied_head_is_stored_once(either: tuple[Path, FakeSource]) -> None:
    folder, _ = either
    table = {name: rest for name, *rest in externals(load(folder / "embed_tokens.onnx"))}
    head = {name: rest for name, *rest in externals(load(folder / "decoder.onnx"))}
    assert head["lm_head.weight"] == table[f"{LM}.embed_tokens.weight"]
    assert head["lm_head.weight"][0] == "embed_tokens.bin"


@pytest.mark.parametrize("name", GRAPHS)
def test_every_call_writes_every_attribute(either: tuple[Path, FakeSource], name: str) -> None:
    folder, _ = either
    model = load(folder / f"{name}.onnx")
    known = {function.name: function for function in model.functions}
    for node in itertools.chain(model.graph.node, *(f.node for f in model.functions)):
        if node.domain == "edgegemma":
            written = [attribute.name for attribute in node.attribute]
            assert written == list(known[node.op_type].attribute)
            assert len(node.input) == len(known[node.op_type].input)


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_hold_calls_and_glue_only(either: tuple[Path, FakeSource], name: str) -> None:
    folder, _ = either
    for node in load(folder / f"{name}.onnx").graph.node:
        assert node.domain == "edgegemma" or node.op_type in GLUE
        assert node.name if node.domain == "edgegemma" else True


@pytest.mark.parametrize("name", GRAPHS)
def test_metadata_holds_the_hash_of_each_body(either: tuple[Path, FakeSource], name: str) -> None:
    folder, _ = either
    model = load(folder / f"{name}.onnx")
    properties = {item.key: item.value for item in model.metadata_props}
    assert "edgegemma.config" in properties
    for function in model.functions:
        digest = hashlib.sha256(function.SerializeToString(deterministic=True)).hexdigest()
        assert properties[f"edgegemma.function.{function.name}"] == digest
    assert len(properties) == len(model.functions) + 1


def test_layers_are_named_by_module_and_read_the_right_cache(
    floats: tuple[Path, FakeSource],
) -> None:
    model = load(floats[0] / "decoder.onnx")
    nodes = {node.name: node for node in model.graph.node}
    shared = nodes[f"{LM}.layers.5"]
    assert shared.op_type == "DecoderLayerShared"
    assert list(shared.input[5:7]) == ["present.2.key", "present.2.value"]
    assert list(nodes[f"{LM}.layers.6"].input[5:7]) == ["present.3.key", "present.3.value"]
    assert f"{LM}.layers.5.self_attn.q_proj.weight" in shared.input
