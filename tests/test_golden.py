"""Both executors against transformers, on tiny checkpoints with every feature of the real ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from edgegemma.audio.encoder import AudioStream
from edgegemma.engine.model import Model, open_model
from tests.conftest import Exporter, Golden

EXECUTORS = ("edgegemma", "onnxruntime")
FLOAT_TOLERANCE = 5e-4
PCM_SCALE = 32767


@pytest.fixture(scope="module", params=EXECUTORS)
def executor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=("e2b", "e4b", "moe", "dense"))
def variant(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=("e2b", "e4b"))
def hearing(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(package: Exporter, variant: str, executor: str) -> Model:
    return open_model(package(variant, "float"), executor)


@pytest.fixture(scope="module")
def hearing_model(package: Exporter, hearing: str, executor: str) -> Model:
    return open_model(package(hearing, "float"), executor)


def forward(model: Model, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits of every position of a text prompt."""
    return model.forward(*model.embed(ids), model.new_cache(), num_logits=len(ids))


def soft_tokens(model: Model, wave: NDArray[np.int16]) -> NDArray[np.float32]:
    """Soft tokens of a clip, encoded in one pass."""
    stream = AudioStream(model)
    pcm = wave.astype(np.float32) / np.float32(PCM_SCALE)
    return np.concatenate([stream.feed(pcm), stream.finish()])


def greedy(
    model: Model, ids: NDArray[np.int64], steps: int
) -> tuple[list[int], list[NDArray[np.float32]]]:
    """Prefill, then feed the best token back, keeping the logits after each step."""
    cache = model.new_cache()
    logits = [model.forward(*model.embed(ids), cache, num_logits=1)[0]]
    tokens = []
    for _ in range(steps):
        tokens.append(int(logits[-1].argmax()))
        logits.append(model.forward(*model.embed(np.array(tokens[-1:])), cache, num_logits=1)[0])
    return tokens, logits


def test_text_logits_match_transformers(
    model: Model, variant: str, golden: Callable[[str], Golden]
) -> None:
    want = golden(variant)
    got = forward(model, want["input_ids"].astype(np.int64))
    assert np.abs(got - want["logits"]).max() <= FLOAT_TOLERANCE


def test_greedy_decoding_matches_transformers_past_the_window(
    model: Model, variant: str, golden: Callable[[str], Golden]
) -> None:
    want = golden(variant)
    prompt = want["input_ids"][: int(want["prompt_length"])].astype(np.int64)
    tokens, logits = greedy(model, prompt, len(want["greedy_tokens"]))
    assert tokens == want["greedy_tokens"].tolist()
    assert np.abs(np.stack(logits) - want["step_logits"]).max() <= FLOAT_TOLERANCE


def test_soft_tokens_match_transformers(
    hearing_model: Model, hearing: str, golden: Callable[[str], Golden]
) -> None:
    want, clips = golden(hearing), golden("mel")
    for i in range(2):
        got = soft_tokens(hearing_model, clips[f"wave{i}"].astype(np.int16))
        assert got.shape == want[f"soft_tokens{i}"].shape
        assert np.abs(got - want[f"soft_tokens{i}"]).max() <= FLOAT_TOLERANCE


def mixed_logits(model: Model, want: Golden, clips: Golden) -> NDArray[np.float32]:
    """Logits of the golden prompt that holds both clips between text."""
    ids = want["mixed_ids"].astype(np.int64)
    media = ids == model.config.tokens.audio
    embeds, per_layer = model.embed(np.where(media, model.config.tokens.pad, ids))
    embeds = embeds.copy()
    embeds[media] = np.concatenate(
        [soft_tokens(model, clips[f"wave{i}"].astype(np.int16)) for i in range(2)]
    )
    return model.forward(embeds, per_layer, model.new_cache(), num_logits=len(want["mixed_logits"]))


def test_mixed_prompts_match_transformers(
    hearing_model: Model, hearing: str, golden: Callable[[str], Golden]
) -> None:
    want = golden(hearing)
    got = mixed_logits(hearing_model, want, golden("mel"))
    assert np.abs(got - want["mixed_logits"]).max() <= FLOAT_TOLERANCE


# Static int8 activations make the reference discontinuous, so the tolerance is its own: `sensitivity` (see
# tests/golden/README.md) holds how far transformers' logits move under float noise and the rounding that docs/functions.md
# prescribes. Half as much again as the largest of its 16 trials is what two honest implementations may differ by.
TRIALS_MARGIN = 1.5


@pytest.fixture(scope="module")
def qat_golden(golden: Callable[[str], Golden]) -> Golden:
    return golden("e2b-qat-mobile")


@pytest.fixture(scope="module")
def qat(package: Exporter) -> Model:
    return open_model(package("e2b-qat-mobile", "qat-mobile"))


@pytest.fixture(scope="module")
def tolerance(qat_golden: Golden) -> float:
    return TRIALS_MARGIN * float(qat_golden["sensitivity"].max())


def test_qat_logits_match_as_well_as_the_reference_matches_itself(
    qat: Model, qat_golden: Golden, tolerance: float
) -> None:
    got = forward(qat, qat_golden["input_ids"].astype(np.int64))
    assert np.abs(got - qat_golden["logits"]).max() <= tolerance


def test_qat_the_tolerance_is_small_beside_the_logits(qat_golden: Golden, tolerance: float) -> None:
    assert tolerance <= qat_golden["logits"].std() / 15


def test_qat_greedy_tokens_match_except_where_the_reference_is_tied(
    qat: Model, qat_golden: Golden, tolerance: float
) -> None:
    prompt = qat_golden["input_ids"][: int(qat_golden["prompt_length"])].astype(np.int64)
    tokens, _ = greedy(qat, prompt, len(qat_golden["greedy_tokens"]))
    for token, best, logits in zip(
        tokens, qat_golden["greedy_tokens"], qat_golden["step_logits"], strict=False
    ):
        if token != best:  # only a tie in the reference excuses it, and ends the comparison
            assert logits[best] - logits[token] <= tolerance
            break
