"""A model on either executor: against plain numpy, in any cut, from any point, and what it costs."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgegemma.config import ModelConfig
from edgegemma.engine import memory
from edgegemma.engine.model import CHUNK, EXECUTORS, Cache, Model, open_model
from edgegemma.engine.session import EngineModel
from edgegemma.errors import EdgeGemmaError, InputError, UnsupportedError
from tests import naive, packages
from tests.fake_source import CONFIG, LM, FakeSource, Kind

TEXT = CONFIG.text
S = 150  # more than a chunk, and many windows
F32 = NDArray[np.float32]
IDS = np.random.default_rng(0).integers(0, TEXT.vocab_size, S)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("packages")
    kinds: tuple[Kind, ...] = ("float32", "codes")
    return {kind: packages.small(root / kind, kind) for kind in kinds}


@pytest.fixture(scope="module", params=EXECUTORS)
def model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Model:
    return open_model(folders["float32"], request.param, threads=1)


@pytest.fixture(scope="module")
def engine(folders: dict[str, Path]) -> EngineModel:
    opened = open_model(folders["codes"], threads=1)
    assert isinstance(opened, EngineModel)
    return opened


def read(model: Model, cache: Cache, start: int, stop: int, keep: int = 1) -> F32:
    embeds, per_layer = model.embed(IDS[start:stop])
    return model.forward(embeds, per_layer, cache, keep)


def clip(tokens: int) -> tuple[F32, F32]:
    features = np.random.default_rng(3).standard_normal((4 * tokens, 128)).astype(np.float32)
    return features, (np.arange(4 * tokens) < 4 * tokens - 2).astype(np.float32)


def listen(model: Model, cuts: list[int], tokens: int = 13) -> F32:
    features, mask = clip(tokens)
    state, heard = model.new_audio_state(), []
    for start, stop in itertools.pairwise([0, *cuts, tokens]):
        part = slice(4 * start, 4 * stop)
        heard.append(model.encode_audio(features[part], mask[part], state))
    return np.concatenate(heard)


# Against the model in plain numpy


def test_embeddings_are_rows_times_the_root_of_their_width(model: Model) -> None:
    source = FakeSource(CONFIG, "float32")
    embeds, per_layer = model.embed(IDS)
    want = source.dense(f"{LM}.embed_tokens")[IDS] * np.sqrt(TEXT.hidden_size)
    rows = source.dense(f"{LM}.embed_tokens_per_layer")[IDS] * np.sqrt(32)
    np.testing.assert_allclose(embeds, want, rtol=1e-6)
    np.testing.assert_allclose(per_layer, rows.reshape(per_layer.shape), rtol=1e-6)


def test_logits_are_those_of_the_model_in_numpy(model: Model) -> None:
    source, count = FakeSource(CONFIG, "float32"), 40
    embeds, per_layer = model.embed(IDS[:count])
    want, _ = naive.decoder(CONFIG, source, *(x.astype(np.float64) for x in (embeds, per_layer)))
    got = model.forward(embeds, per_layer, model.new_cache(), num_logits=count)
    assert np.abs(got - want).max() < 1e-4


def test_quantized_logits_are_those_of_the_model_with_rounded_activations(
    engine: EngineModel,
) -> None:
    embeds, per_layer = engine.embed(IDS[:13])
    wide = (x.astype(np.float64) for x in (embeds, per_layer))
    want, _ = naive.decoder(CONFIG, FakeSource(CONFIG, "codes"), *wide)
    got = engine.forward(embeds, per_layer, engine.new_cache(), num_logits=13)
    assert np.median(np.abs(got - want)) < 0.02


def test_soft_tokens_are_those_of_the_tower_in_numpy(model: Model) -> None:
    features, mask = (x.astype(np.float64) for x in clip(13))
    want = naive.audio(CONFIG, FakeSource(CONFIG, "float32"), features, mask)
    assert np.abs(listen(model, []) - want).max() < 1e-4


def test_a_head_of_its_own_is_used(tmp_path: Path) -> None:
    source = FakeSource(CONFIG, "float32", tied=False)
    opened = open_model(packages.write(tmp_path / "package", source), threads=1)
    embeds, per_layer = opened.embed(IDS[:5])
    want, _ = naive.decoder(CONFIG, source, *(x.astype(np.float64) for x in (embeds, per_layer)))
    got = opened.forward(embeds, per_layer, opened.new_cache(), num_logits=5)
    assert np.abs(got - want).max() < 1e-4


# Any cut, any way back


@pytest.mark.parametrize(("kv", "cuts"), [("float32", [1, 149]), ("int8", [17, 18, 140])])
def test_any_cut_of_a_text_gives_the_same_bits(
    folders: dict[str, Path], kv: str, cuts: list[int]
) -> None:
    opened = open_model(folders["codes"], threads=1, kv=kv)
    whole = read(opened, opened.new_cache(), 0, S, S)
    cache = opened.new_cache()
    edges = itertools.pairwise([0, *cuts, S])
    parts = [read(opened, cache, start, stop, stop - start) for start, stop in edges]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("cuts", [[3, 4, 9], list(range(1, 13))])
def test_any_cut_of_a_sound_gives_the_same_bits(engine: EngineModel, cuts: list[int]) -> None:
    np.testing.assert_array_equal(listen(engine, cuts), listen(engine, []))


@pytest.mark.parametrize("keep", [0, 1, 30, CHUNK + 5])
def test_logits_of_the_last_positions_are_given(model: Model, keep: int) -> None:
    whole = read(model, model.new_cache(), 0, S, S)
    got = read(model, model.new_cache(), 0, S, keep)
    assert got.shape == (keep, TEXT.vocab_size)
    np.testing.assert_allclose(got, whole[S - keep :], atol=1e-4)


def test_going_back_and_reading_again_is_as_if_never_read(model: Model) -> None:
    cache = model.new_cache()
    read(model, cache, 0, 100, 0)
    want = read(model, cache, 100, 130)
    for length in (100, 120):
        cache.truncate(length)
        assert cache.length == length
        np.testing.assert_allclose(read(model, cache, length, 130), want, atol=1e-4)


def test_a_rolled_back_text_has_the_same_bits(engine: EngineModel) -> None:
    cache = engine.new_cache()
    want = read(engine, cache, 0, S)
    cache.truncate(20)
    np.testing.assert_array_equal(read(engine, cache, 20, S), want)


def test_the_number_of_threads_changes_no_bit(folders: dict[str, Path]) -> None:
    one, two = (open_model(folders["codes"], threads=threads) for threads in (1, 2))
    np.testing.assert_array_equal(
        read(one, one.new_cache(), 0, 20, 20), read(two, two.new_cache(), 0, 20, 20)
    )
    np.testing.assert_array_equal(listen(one, [], 3), listen(two, [], 3))


def test_a_copied_audio_state_goes_its_own_way(engine: EngineModel) -> None:
    features, mask = clip(6)
    state = engine.new_audio_state()
    engine.encode_audio(features[:12], mask[:12], state)
    other = state.copy()
    first = engine.encode_audio(features[12:], mask[12:], state)
    np.testing.assert_array_equal(engine.encode_audio(features[12:], mask[12:], other), first)
    assert other.position == state.position == 6


def test_nothing_to_read_changes_nothing(model: Model) -> None:
    cache, state = model.new_cache(), model.new_audio_state()
    assert read(model, cache, 0, 0, 0).shape == (0, TEXT.vocab_size)
    none = np.empty((0, 128), np.float32)
    assert model.encode_audio(none, none[:, 0], state).shape == (0, TEXT.hidden_size)
    assert (cache.length, state.position) == (0, 0)


def test_int8_keys_and_values_come_close_at_a_third_of_the_memory(folders: dict[str, Path]) -> None:
    models = [open_model(folders["float32"], threads=1, kv=kv) for kv in ("float32", "int8")]
    caches = [opened.new_cache() for opened in models]
    floats, codes = (read(m, c, 0, 40, 40) for m, c in zip(models, caches, strict=True))
    assert 0 < np.abs(floats - codes).mean() < 0.05 * floats.std()
    assert caches[1].nbytes < caches[0].nbytes / 3


# What it costs


def test_a_chunk_without_logits_leaves_the_tail_unrun(engine: EngineModel) -> None:
    ran = {step.call.node.op for step in engine.decoder_plan(logits=False).steps}
    assert ran & {"DecoderLayerShared", "Head"} == set()
    assert "DecoderLayer" in ran


def test_a_chunk_without_logits_projects_per_layer_inputs_for_its_own_layers(
    engine: EngineModel,
) -> None:
    part, whole = (engine.decoder_plan(logits).reads["float"] for logits in (False, True))
    assert part * TEXT.num_hidden_layers == whole * TEXT.first_shared_layer


def test_prefill_of_e2b_reads_under_31_percent_of_its_linears(tmp_path: Path) -> None:
    source = packages.TwoBit(packages.E2B, "codes")
    opened = open_model(packages.write(tmp_path / "e2b", source, packages.E2B), threads=1)
    assert isinstance(opened, EngineModel)
    prefill, every = (opened.decoder_plan(logits).reads["linear"] for logits in (False, True))
    assert 0.28 * every < prefill <= 0.31 * every


def test_calls_and_bytes_are_counted(folders: dict[str, Path]) -> None:
    opened = open_model(folders["codes"], threads=1)
    assert isinstance(opened, EngineModel)
    embeds, per_layer = opened.embed(IDS)
    opened.forward(embeds, per_layer, opened.new_cache(), num_logits=1)
    assert opened.counters.calls == {"embed": 1, "prefill": 1, "logits": 1}
    plans = [opened.decoder_plan(logits).reads for logits in (False, True)]
    read_bytes = opened.counters.read_bytes
    assert read_bytes["linear"] == plans[0]["linear"] + plans[1]["linear"]
    assert read_bytes["head"] == plans[1]["head"]
    assert read_bytes["rows"] > 0


def test_the_ledger_counts_live_state_only(folders: dict[str, Path]) -> None:
    opened = open_model(folders["codes"], threads=1)
    cache, state = opened.new_cache(), opened.new_audio_state()
    ledger = opened.ledger()
    assert ledger.cache == cache.nbytes > 0
    assert ledger.audio_state == state.nbytes > 0
    assert ledger.mapped == opened.package.mapped_bytes > 0
    assert ledger.peak >= ledger.resident > ledger.inline > 0
    del cache, state
    assert (opened.ledger().cache, opened.ledger().audio_state) == (0, 0)


def test_cores_are_counted_within_what_the_process_may_use() -> None:
    assert 1 <= memory.physical_cores() <= len(os.sched_getaffinity(0))


def child(code: str, **environment: str) -> None:
    everything = {"PYTHONPATH": str(Path(__file__).parent.parent), **environment}
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    subprocess.run([sys.executable, "-c", code], check=True, env=kept | everything)


@pytest.mark.parametrize(("given", "spins"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_waiting_threads_are_told_to_give_way_before_openmp_listens(
    given: dict[str, str], spins: str
) -> None:
    loaded = "'libgomp' in open('/proc/self/maps').read()"
    code = "import os, edgegemma.kernels; "
    child(code + f"assert os.environ['GOMP_SPINCOUNT'] == '{spins}' and not {loaded}", **given)


def test_the_second_executor_needs_no_numba() -> None:
    child("import sys, edgegemma.engine.ort; assert 'numba' not in sys.modules")


# What is refused


@pytest.mark.parametrize("ids", [[-1], [TEXT.vocab_size]])
def test_ids_beyond_the_vocabulary_are_refused(model: Model, ids: list[int]) -> None:
    with pytest.raises(InputError, match="beyond the vocabulary; want 0 to 191"):
        model.embed(np.array(ids))


def test_a_text_longer_than_the_context_is_refused_before_it_is_read(model: Model) -> None:
    cache = model.new_cache(capacity=20)
    read(model, cache, 0, 15, 0)
    with pytest.raises(InputError, match="got 21 positions; want at most 20; shorten"):
        read(model, cache, 15, 21)
    assert cache.length == 15


def test_a_cache_with_enough_slack_goes_back_to_any_length(model: Model) -> None:
    cache = model.new_cache(capacity=300, slack=300)
    read(model, cache, 0, 2, 0)
    cache.truncate(1)
    want = read(model, model.new_cache(), 0, 3, 1)
    embeds, per_layer = model.embed(np.zeros(298, np.int64))
    model.forward(embeds, per_layer, cache, num_logits=0)
    cache.truncate(1)
    np.testing.assert_array_equal(read(model, cache, 1, 3, 1), want)


@pytest.mark.parametrize("capacity", [0, TEXT.max_position_embeddings + 1])
def test_a_context_has_at_most_the_models_positions(model: Model, capacity: int) -> None:
    with pytest.raises(InputError, match=f"got {capacity} positions; want 1 to 1024"):
        model.new_cache(capacity)


def test_values_of_other_shapes_and_types_are_refused(model: Model) -> None:
    embeds, per_layer = model.embed(IDS[:4])
    cache = model.new_cache()
    wrong = [(embeds[:, 1:], per_layer), (embeds, per_layer[:3]), (embeds.astype(float), per_layer)]
    for pair in wrong:
        with pytest.raises(InputError, match=r"forward: .*; want float32"):
            model.forward(*pair, cache)
    with pytest.raises(InputError, match="got num_logits 5; want 0 to 4"):
        model.forward(embeds, per_layer, cache, num_logits=5)
    assert cache.length == 0


def test_half_a_soft_token_is_refused(model: Model) -> None:
    features, mask = clip(2)
    with pytest.raises(InputError, match="got 7 frames; want a multiple of 4"):
        model.encode_audio(features[:7], mask[:7], model.new_audio_state())


def test_executors_do_not_share_caches(folders: dict[str, Path]) -> None:
    models = [open_model(folders["float32"], executor) for executor in EXECUTORS]
    for reader, other in (models, models[::-1]):
        with pytest.raises(InputError, match="cache of another executor"):
            read(reader, other.new_cache(), 0, 3)


@pytest.mark.parametrize("option", [{"executor": "x"}, {"kv": "x"}, {"threads": 0}])
def test_unknown_options_are_refused(folders: dict[str, Path], option: dict[str, str]) -> None:
    with pytest.raises(InputError, match=f"^{min(option)}: got"):
        open_model(folders["codes"], **option)  # type: ignore[arg-type]


def test_onnxruntime_keeps_floats_only(folders: dict[str, Path]) -> None:
    with pytest.raises(UnsupportedError, match="onnxruntime keeps float32 only"):
        open_model(folders["codes"], "onnxruntime", kv="int8")


def test_a_failure_of_onnxruntime_is_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = packages.small(tmp_path / "package")
    packages.edit_graph(
        folder,
        "embed_tokens",
        lambda m: setattr(packages.attribute(m, "GatherRows", "width"), "i", 7),
    )
    with pytest.raises(EdgeGemmaError, match=r"^embed_tokens\.onnx: onnxruntime: ") as caught:
        open_model(folder, "onnxruntime").embed(IDS)
    assert "\n" not in str(caught.value)


def test_a_model_without_a_tower_hears_nothing(tmp_path: Path) -> None:
    deaf = ModelConfig(CONFIG.text, CONFIG.tokens)
    source = FakeSource(CONFIG, "codes")
    opened = open_model(packages.write(tmp_path / "package", source, deaf))
    with pytest.raises(InputError, match="no audio encoder"):
        opened.new_audio_state()
