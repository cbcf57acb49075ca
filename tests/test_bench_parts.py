"""The parts of the measurements: what is counted, added up and filled. No time is asserted."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import numpy as np
import pytest

from bench import breakdown, filling, gguf_model, meters, ops, samples, work
from edgegemma.engine.model import open_model
from edgegemma.errors import InputError
from edgegemma.kernels.besides import products_left_out
from edgegemma.package import Package
from export.configuration import parse
from export.names import wanted
from tests import tiny
from tests.conftest import Exporter


def test_a_figure_is_the_median_and_the_middle_half() -> None:
    assert samples.figure([5.0, 1.0, 3.0, 2.0, 4.0]) == samples.Figure(3.0, 2.0, 4.0, 5)
    assert samples.figure([7.0]) == samples.Figure(7.0, 7.0, 7.0, 1)


def test_works_take_turns_and_ratios_pair_the_rounds() -> None:
    said: list[str] = []

    def work(name: str, value: float) -> float:
        said.append(name)
        return value * len(said)

    found = samples.in_turns({"a": lambda: work("a", 1.0), "b": lambda: work("b", 2.0)}, 3)
    assert "".join(said) == "ababab"
    assert found == {"a": [1.0, 3.0, 5.0], "b": [4.0, 8.0, 12.0]}
    assert samples.ratio(found["b"], found["a"]).median == 8.0 / 3.0


def test_rapl_counts_across_the_end_of_its_range(tmp_path: Path) -> None:
    folder = tmp_path / "intel-rapl:0"
    folder.mkdir()
    (folder / "max_energy_range_uj").write_text("9999999\n")
    (folder / "energy_uj").write_text("9000000\n")
    meter = meters.find(tmp_path)
    assert meter is not None
    meter.start()
    (folder / "energy_uj").write_text("2000000\n")
    assert meter.stop() == 3.0


def test_a_machine_without_a_meter_has_none(tmp_path: Path) -> None:
    assert meters.find(tmp_path) is None


def test_the_power_chip_adds_up_rails_that_have_both_numbers() -> None:
    text = """
         3V7_WL_SW_A current(0)=0.10000000A
         VDD_CORE_A current(7)=2.00000000A
         3V7_WL_SW_V volt(8)=3.70000000V
         VDD_CORE_V volt(15)=0.90000000V
         BATT_V volt(25)=3.00000000V
    """
    assert meters.watts_of(text) == pytest.approx(0.37 + 1.8)


def test_power_is_added_up_over_time() -> None:
    looked = threading.Event()
    powers = iter([4.0, 4.0])

    def watts() -> float:
        power = next(powers, 4.0)
        looked.set()
        return power

    meter = meters.Pmic(watts, period=0.001)
    meter.start()
    looked.wait()
    assert meter.stop() > 0.0


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_a_filled_cache_goes_on_as_if_it_had_been_read(package: Exporter, kind: str) -> None:
    model = open_model(package("e2b-qat-mobile", "qat-mobile"), kv=kind)
    cache = filling.filled(model, 70, 8)
    assert cache.length == 70
    logits = model.forward(*model.embed(np.array([5, 6])), cache)
    assert cache.length == 72
    assert np.isfinite(logits).all()
    assert filling.rewind(model, cache, 70, 8) is cache


def test_a_cache_that_cannot_go_back_is_filled_anew(package: Exporter) -> None:
    model = open_model(package("e2b-qat-mobile", "qat-mobile"))
    cache = filling.filled(model, 600, 8)
    again = filling.rewind(model, cache, 100, 8)
    assert again is not cache
    assert again.length == 100


def test_filling_onnxruntimes_cache_gives_every_layer_the_whole_context(package: Exporter) -> None:
    model = open_model(package("e2b-qat-mobile", "qat-mobile"), executor="onnxruntime")
    cache = filling.filled(model, 20, 8)
    assert np.isfinite(model.forward(*model.embed(np.array([5])), cache)).all()
    assert cache.length == 21


def test_a_context_beyond_the_models_is_refused(package: Exporter) -> None:
    model = open_model(package("e2b-qat-mobile", "qat-mobile"))
    longest = model.config.text.max_position_embeddings
    with pytest.raises(InputError, match=f"want 1 to {longest}"):
        filling.filled(model, longest, 1)


def test_products_are_those_of_the_graphs_linears(package: Exporter) -> None:
    model = open_model(package("e2b-qat-mobile", "qat-mobile"))

    def counted(logits: bool) -> int:
        total = 0
        for step in model.decoder_plan(logits).steps:  # type: ignore[attr-defined]
            given = step.call.node.attributes
            total += sum(
                given[name] * given[f"{name[:-3]}_out"] for name in given if name.endswith("_in")
            )
        return total

    assert work.products(model.config.text, 1, 0) == counted(logits=False)
    assert work.products(model.config.text, 1, 1) == counted(logits=True)


def test_cache_bytes_are_those_a_window_leaves(package: Exporter) -> None:
    text = Package.open(package("e2b", "float")).config.text
    short, long = (filling.cache_bytes(text, context, "float32") for context in (999, 1999))
    full = sum(text.window_of(layer) == 0 for layer in range(text.num_hidden_layers))
    heads, dim = text.num_global_key_value_heads, text.global_head_dim
    assert long - short == 1000 * full * heads * dim * 2 * 4


def test_the_breakdown_names_functions_and_leaves_the_model_as_it_was(package: Exporter) -> None:
    model = open_model(package("e2b-qat-mobile", "qat-mobile"))
    token = model.embed(np.array([5]))
    before = model.forward(*token, model.new_cache(4))
    with breakdown.watched(model) as seen:
        during = model.forward(*token, model.new_cache(4))
    rows = {row["function"]: row["calls"] for row in seen.rows(1)}
    assert rows["DecoderLayer"] == rows["DecoderLayerShared"] == 5
    assert rows["Head"] == 1
    calls = dict(seen.calls)
    np.testing.assert_array_equal(model.forward(*token, model.new_cache(4)), before)
    np.testing.assert_array_equal(during, before)
    assert seen.calls == calls


def test_products_are_left_out_inside_the_block_only(package: Exporter) -> None:
    model = open_model(package("e2b-qat-mobile", "qat-mobile"))
    token = model.embed(np.array([5]))
    before = model.forward(*token, model.new_cache(4))
    with products_left_out():
        during = model.forward(*token, model.new_cache(4))
    assert len(np.unique(during)) == 1
    np.testing.assert_array_equal(model.forward(*token, model.new_cache(4)), before)


def test_every_weight_of_the_text_part_is_in_the_gguf_file(package: Exporter) -> None:
    text = Package.open(package("e2b", "float")).config.text
    found = list(gguf_model.entries(text))
    assert len({entry.name for entry in found}) == len(found)
    in_linears = sum(
        math.prod(e.shape) for e in found if e.name.startswith("blk.") and len(e.shape) == 2
    )
    head = text.vocab_size * text.hidden_size
    assert in_linears + head == work.products(text, 1, 1)


@pytest.mark.parametrize("variant", ["moe", "dense"])
def test_products_of_a_larger_model_are_those_of_what_a_token_passes(variant: str) -> None:
    config = parse(tiny.config(variant))
    text, every = config.text, wanted(config).values()
    linears = sum(math.prod(what.shape) for what in every if what.kind == "linear")
    experts = sum(math.prod(what.shape) for what in every if what.kind == "experts")
    share = text.top_k_experts / max(1, text.num_experts)
    assert work.products(text, 1, 1) == linears + experts * share


def test_no_gguf_file_is_written_of_a_larger_model(tmp_path: Path) -> None:
    text = parse(tiny.config("moe")).text
    with pytest.raises(InputError, match="on E2B's and E4B's shapes only"):
        gguf_model.write(text, tmp_path / "x.gguf", gguf_model.Q4_0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [gguf_model.Q4_0, gguf_model.Q2_K])
def test_random_blocks_have_the_variance_of_weights(kind: str) -> None:
    made = gguf_model.blocks(kind, 100)
    if kind == gguf_model.Q4_0:
        d = made[:, :2].copy().view(np.float16).astype(np.float32)
        codes = np.concatenate([made[:, 2:] & 15, made[:, 2:] >> 4], 1)
        weights = d * (codes.astype(np.float32) - 8)
    else:
        d, low = (made[:, i : i + 2].copy().view(np.float16).astype(np.float32) for i in (80, 82))
        codes = (made[:, 16:80, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
        scale, minimum = made[:, :1] & 15, made[:, :1] >> 4
        weights = (d * scale)[:, :, None] * codes - (low * minimum)[:, :, None]
    assert abs(float(weights.mean())) < 0.02
    assert 0.08 < float(weights.std()) < 0.12


def test_kernels_are_measured_at_every_shape_of_the_model() -> None:
    shapes = {(s.rows, s.columns, s.bits) for s in ops.linears("E2B")}
    assert {(12288, 1536, 2), (1536, 12288, 2), (6144, 1536, 4), (262144, 1536, 2)} <= shapes
    assert {s.bits for s in ops.linears("E4B") if "proj" in s.name} == {4, 8}
