"""Generation: what the model is given, when it stops, and that chunks and caches change nothing."""

from __future__ import annotations

from collections.abc import Callable
from threading import Event

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgegemma import generate as module
from edgegemma.engine.model import open_model
from edgegemma.errors import InputError
from edgegemma.generate import Generation, generate
from edgegemma.text.prompt import Prompt
from edgegemma.text.sampler import Sampling, logprob
from edgegemma.text.tokenizer import Tokenizer
from tests.conftest import Exporter, Golden
from tests.fake_model import HIDDEN, TEXT, TOKENS, FakeModel, FakePackage, fake_package
from tests.tiny_tokenizer import BYTES_AT

EOS = TOKENS.eos[1]
A, B, C = 600, 601, 602


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> FakePackage:
    return fake_package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def tokenizer(files: FakePackage) -> Tokenizer:
    return Tokenizer(files)


def prompt_of(ids: list[int], soft: NDArray[np.float32] | None = None) -> Prompt:
    array = np.array(ids, np.int64)
    places = np.flatnonzero(array == TOKENS.audio)
    if soft is None:
        soft = np.arange(len(places) * HIDDEN, dtype=np.float32).reshape(-1, HIDDEN) + 100
    return Prompt(array, places, soft)


SPEECH = [2, 105, TOKENS.boa or 0, *[TOKENS.audio or 0] * 5, TOKENS.eoa or 0, 106, A]


def test_tokens_come_until_the_stop_token(files: FakePackage, tokenizer: Tokenizer) -> None:
    model = FakeModel(files, [A, B, EOS, C])
    run = generate(model, tokenizer, prompt_of([2, 105]))
    assert [token.id for token in run] == [A, B] == run.ids
    assert run.text == tokenizer.decode([A, B])
    assert (run.summary.stop, run.summary.new_tokens, run.summary.prompt_tokens) == ("stop", 3, 2)
    assert model.forwards == [2, 1, 1]


def test_nothing_runs_before_the_first_token_is_asked_for(
    files: FakePackage, tokenizer: Tokenizer
) -> None:
    model = FakeModel(files, [A, EOS])
    run = generate(model, tokenizer, prompt_of([2]))
    assert (model.forwards, run.summary.stop) == ([], "running")


def test_the_last_token_of_a_limit_is_not_fed_back(
    files: FakePackage, tokenizer: Tokenizer
) -> None:
    model = FakeModel(files, [A, B, C, A])
    run = generate(model, tokenizer, prompt_of([2]), max_tokens=3)
    assert [token.id for token in run] == [A, B, C]
    assert (run.summary.stop, model.forwards) == ("length", [1, 1, 1])


def test_other_stop_tokens_replace_the_packages(files: FakePackage, tokenizer: Tokenizer) -> None:
    run = generate(FakeModel(files, [EOS, A, B]), tokenizer, prompt_of([2]), stop=[B])
    assert [token.id for token in run] == [EOS, A]


def test_soft_tokens_replace_embeddings_and_pad_gives_the_rows(
    files: FakePackage, tokenizer: Tokenizer
) -> None:
    model, prompt = FakeModel(files, [EOS]), prompt_of(SPEECH)
    list(generate(model, tokenizer, prompt))
    plain, rows = model.embed(np.where(prompt.ids == TOKENS.audio, TOKENS.pad, prompt.ids))
    plain[prompt.positions] = prompt.soft
    assert np.array_equal(np.stack(model.last_cache.embeds), plain)
    assert np.array_equal(np.stack(model.last_cache.per_layer), rows)


@settings(deadline=None, max_examples=25)
@given(chunk=st.integers(1, 12), cached=st.integers(0, len(SPEECH) + 2), seed=st.integers(0, 9))
def test_chunks_and_cached_beginnings_change_nothing(
    files: FakePackage, tokenizer: Tokenizer, chunk: int, cached: int, seed: int
) -> None:
    prompt, sampling = prompt_of(SPEECH), Sampling(1.0, seed=seed)
    want = list(generate(FakeModel(files), tokenizer, prompt, sampling, max_tokens=6))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PREFILL_AT_ONCE", chunk)
        model = FakeModel(files)
        cache = model.new_cache(64)
        first = generate(model, tokenizer, prompt_of([*SPEECH, B, C]), max_tokens=1, cache=cache)
        list(first)
        first.cache.truncate(cached)
        run = generate(model, tokenizer, prompt, sampling, max_tokens=6, cache=first.cache)
        got = list(run)
    assert [t.id for t in got] == [t.id for t in want]
    assert run.summary.cached_tokens == min(cached, len(SPEECH) - 1)


def test_a_given_cache_bounds_the_answer(files: FakePackage, tokenizer: Tokenizer) -> None:
    model = FakeModel(files)
    run = generate(model, tokenizer, prompt_of([2, 105]), cache=model.new_cache(5))
    assert len(list(run)) == 3
    assert run.summary.stop == "length"


def test_only_the_last_chunk_asks_for_logits(files: FakePackage, tokenizer: Tokenizer) -> None:
    model = FakeModel(files, [EOS])
    list(generate(model, tokenizer, prompt_of([A] * (2 * module.PREFILL_AT_ONCE + 3))))
    assert model.forwards == [module.PREFILL_AT_ONCE, module.PREFILL_AT_ONCE, 3]


def test_a_character_of_bytes_comes_whole_or_not(files: FakePackage, tokenizer: Tokenizer) -> None:
    spelled = [BYTES_AT + byte for byte in "é".encode()]
    run = generate(FakeModel(files, [*spelled, EOS]), tokenizer, prompt_of([2]))
    assert [token.text for token in run] == ["", "é"]
    run = generate(FakeModel(files, [A, spelled[0], EOS]), tokenizer, prompt_of([2]))
    assert "".join(token.text for token in run) == run.text == tokenizer.decode([A, spelled[0]])


def test_cancelling_stops_between_tokens_and_chunks(
    files: FakePackage, tokenizer: Tokenizer
) -> None:
    stop, model = Event(), FakeModel(files, [A] * 9)
    run = generate(model, tokenizer, prompt_of([2]), cancel=stop)
    next(run)
    stop.set()
    assert list(run) == []
    assert (run.summary.stop, model.forwards) == ("cancelled", [1])
    run = generate(model, tokenizer, prompt_of([2]), cancel=lambda: True)
    assert (list(run), run.summary.stop) == ([], "cancelled")


def test_text_fills_the_context_at_most(files: FakePackage, tokenizer: Tokenizer) -> None:
    limit = TEXT.max_position_embeddings
    run = generate(FakeModel(files, [A] * 9), tokenizer, prompt_of([A] * (limit - 2)))
    assert len(list(run)) == 2
    with pytest.raises(InputError, match=f"got {limit} tokens; want fewer than {limit}"):
        generate(FakeModel(files), tokenizer, prompt_of([A] * limit))


def test_impossible_requests_are_refused(files: FakePackage, tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="is empty"):
        generate(FakeModel(files), tokenizer, prompt_of([]))
    with pytest.raises(InputError, match="max_tokens: got 0"):
        generate(FakeModel(files), tokenizer, prompt_of([2]), max_tokens=0)
    with pytest.raises(InputError, match=f"width 3; want {HIDDEN}"):
        generate(FakeModel(files), tokenizer, prompt_of(SPEECH, np.zeros((5, 3), np.float32)))


def test_times_grow_and_log_probabilities_are_the_models(
    files: FakePackage, tokenizer: Tokenizer
) -> None:
    run: Generation = generate(
        FakeModel(files, [A, B, EOS]), tokenizer, prompt_of([2]), Sampling(logprobs=True)
    )
    first, second = run
    assert 0 <= first.at_s <= second.at_s
    logits = np.zeros(TEXT.vocab_size, np.float32)
    logits[A : A + 2] = 9.0, 8.0
    assert first.logprob == pytest.approx(logprob(logits, A))
    figures = run.summary
    assert figures.prefill_s > 0
    assert figures.tokens_per_s > 0
    assert figures.prefill_per_s > 0


def test_a_penalty_sees_prompt_and_text(files: FakePackage, tokenizer: Tokenizer) -> None:
    model = FakeModel(files, [A, A, A])
    sampling = Sampling(repetition_penalty=2.0)
    ids = [t.id for t in generate(model, tokenizer, prompt_of([2]), sampling, max_tokens=2)]
    assert ids == [A, A + 1]
    (token,) = generate(model, tokenizer, prompt_of([2, A]), sampling, max_tokens=1)
    assert token.id == A + 1


@pytest.mark.parametrize("executor", ["edgegemma", "onnxruntime"])
def test_greedy_text_is_transformers(
    package: Exporter, golden: Callable[[str], Golden], executor: str
) -> None:
    model, want = open_model(package("e2b", "float"), executor), golden("e2b")
    ids = want["input_ids"][: int(want["prompt_length"])].astype(np.int64)
    prompt = Prompt(ids, np.empty(0, np.int64), np.empty((0, 0), np.float32))
    count = len(want["greedy_tokens"])
    run = generate(model, Tokenizer(model.package), prompt, max_tokens=count, stop=())
    assert [token.id for token in run] == want["greedy_tokens"].tolist()
