"""What cannot flicker and may only get better: bytes, steps and planned memory of E2B, instructions of the hot loops.

Each figure is what it was when it was last improved. Smaller passes: then write the smaller one here. Larger fails.
"""

from __future__ import annotations

import functools
from collections import Counter

import pytest

from bench import synth
from bench.shapes import published
from edgegemma.engine import budget
from edgegemma.engine.cache import KVCache, Layout
from edgegemma.engine.graphs import AUDIO, EMBED
from edgegemma.engine.model import open_model
from edgegemma.engine.session import EngineModel
from export.configuration import parse
from tests import packages
from tests.crosscompile import ARM, X86, assembly, loops

SCRATCH = 21_800_000  # a chunk of 128 positions of E2B
LAYER = 9_181_696  # weights of an audio layer, and the encoder's state

# A token of E2B, from its graphs.
CALLS = 39  # 35 layers, two tables of angles, per-layer inputs, head: the graph has no call that does less
STEPS = 20  # of Python's, with the look-up's 3; layers in a row are one
PREFILL_STEPS = 5  # 15 layers are one; the rest of the graph is for logits
AUDIO_EXTRA = 2  # calls of the encoder beside its layers

# Instructions for 1024 products in the loop that multiplies most: `integers` for one activation row, `many` for blocks.
INSTRUCTIONS = {
    ("cortex-a76", "integers2"): 148,  # 128 of them a mask or shift, and sdot
    ("cortex-a76", "integers4"): 160,
    ("cortex-a76", "integers8"): 204,
    ("cortex-a76", "many_integers2"): 112,  # 64 sdot
    ("cortex-a76", "many_integers4"): 90.5,
    ("cortex-a76", "many_integers8"): 90.5,
    ("cortex-a76", "digit_scores"): 115,  # of a digit with a key; two digits a query
    ("cortex-a72", "integers2"): 256,  # plain NEON: 128 of them multiply, 8 lanes each
    ("cortex-a72", "integers4"): 240,
    ("cortex-a72", "integers8"): 524,  # no room in int16: every product is widened
    ("cortex-a72", "many_integers2"): 176,
    ("cortex-a72", "many_integers4"): 176,
    ("cortex-a72", "many_integers8"): 176,
    ("haswell", "integers2"): 126,
    ("haswell", "integers4"): 143,
    ("haswell", "integers8"): 264,
    ("sapphirerapids", "integers2"): 41,
    ("sapphirerapids", "integers4"): 46,
    ("sapphirerapids", "integers8"): 52,
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> EngineModel:
    """E2B's graphs with widths divided by 16, all linears in two bits."""
    source = packages.TwoBit(packages.E2B, "codes")
    folder = packages.write(tmp_path_factory.mktemp("package") / "e2b", source, packages.E2B)
    opened = open_model(folder, threads=1)
    assert isinstance(opened, EngineModel)
    return opened


def test_a_token_takes_no_more_calls_and_steps_than_it_did(engine: EngineModel) -> None:
    token = engine.decoder_plan(logits=True)
    lookup = engine._programs[EMBED]
    steps = lookup.plan(list(lookup.graph.outputs)).stretches
    assert sum(bool(step.call.node.domain) for step in token.steps) <= CALLS
    assert len(token.stretches) + len(steps) <= STEPS


def test_a_chunk_without_logits_takes_no_more_steps_than_it_did(engine: EngineModel) -> None:
    assert len(engine.decoder_plan(logits=False).stretches) <= PREFILL_STEPS


def test_sound_takes_one_call_a_layer(engine: EngineModel) -> None:
    assert engine.config.audio is not None
    ops = Counter(call.node.op for call in engine._programs[AUDIO].calls)
    assert ops["AudioLayer"] == engine.config.audio.num_hidden_layers
    assert ops.total() <= ops["AudioLayer"] + AUDIO_EXTRA


def test_a_token_reads_every_weight_once(engine: EngineModel) -> None:
    reads = engine.decoder_plan(logits=True).reads
    tensors = engine.decoder_graph.tensors.values()
    stored = sum(len(t.data) if t.data is not None else t.length for t in tensors)
    assert sum(reads.values()) <= stored


def test_a_token_of_e2b_reads_no_more_than_its_format_holds() -> None:
    assert weights("E2B")[0] <= 795_800_000  # 666 in layers, 102 head, 28 per-layer inputs


@functools.cache
def weights(model: str) -> tuple[int, int]:
    """Bytes of the QAT-mobile mix from its shapes alone, of text and of sound; the head in the place of the tied table."""
    text = sound = 0
    for entry in synth.entries(synth.config_of(model, "qat-mobile")):
        if "audio" in entry.name:
            sound += entry.nbytes
        elif "embed_tokens" not in entry.name:
            text += entry.nbytes
    return text, sound


def planned(context: int, sound: int) -> int:
    """Give the planned peak of E2B in bytes, K/V in int8."""
    text = parse(published("E2B")).text
    layouts = [Layout(*text.heads_of(i), text.window_of(i)) for i in range(text.first_shared_layer)]
    cache = KVCache(layouts, context, "int8").planned(context)
    return budget.Plan(weights("E2B")[0], sound, 200_000, SCRATCH, cache).total


@pytest.mark.parametrize(
    ("context", "sound", "most"),
    [
        (8192, "whole", 1_180_000_000),  # text and sound of everyday: promised under 1.2 GB
        (131_072, "none", 1_445_000_000),  # the longest context: promised under 1.5 GB
        (131_072, "passing", 1_455_000_000),  # … with sound, a layer of the encoder at a time
    ],
)
def test_e2bs_planned_peak_is_under_its_promise(context: int, sound: str, most: int) -> None:
    size = {"whole": weights("E2B")[1], "none": 0, "passing": LAYER}[sound]
    assert planned(context, size) <= most


@functools.cache
def cross_compiled(cpu: str) -> str:
    triple = ARM if cpu.startswith("cortex") else X86
    return assembly(triple, cpu, *(kernel for name, kernel in INSTRUCTIONS if name == cpu))


@pytest.mark.parametrize(("cpu", "kernel"), INSTRUCTIONS)
def test_a_product_takes_no_more_instructions_than_it_did(cpu: str, kernel: str) -> None:
    loop = loops(cross_compiled(cpu))[kernel]
    assert loop.products >= 256  # this is that loop
    assert loop.instructions * 1024 <= INSTRUCTIONS[cpu, kernel] * loop.products
