"""One utterance: its sound is encoded and read once, and its text is that of one pass, whatever was guessed on the way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgegemma import models
from edgegemma.audio.encoder import encode
from edgegemma.audio.features import SAMPLE_RATE, token_count
from edgegemma.audio.files import read_audio
from edgegemma.engine.model import Model, open_model
from edgegemma.generate import generate
from edgegemma.listen.guards import made_up, token_limit, without_loop
from edgegemma.listen.recognizer import Recognizer, SpeechModel
from edgegemma.text.prompt import around_audio, build
from edgegemma.text.sampler import Sampling
from edgegemma.text.template import ChatTemplate
from edgegemma.text.tokenizer import Tokenizer
from tests.fake_model import TOKENS, FakeModel, FakePackage, fake_package

F32 = NDArray[np.float32]
EOS = TOKENS.eos[1]
SAMPLES = Path(models.__file__).parent / "data" / "samples"
PROMPT = "the speech"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> FakePackage:
    return fake_package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def demo() -> Model:
    return open_model(models.find("demo"))


@pytest.fixture(scope="module")
def tiny(package: Callable[[str, str], Path]) -> Model:
    """Random weights: every hypothesis is another one."""
    return open_model(package("e2b", "q8"))


def noise(seconds: float, seed: int = 0) -> F32:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(int(seconds * SAMPLE_RATE))).astype(np.float32)


def one_pass(model: SpeechModel, samples: F32, instruction: str = PROMPT) -> tuple[list[int], str]:
    """Ids and stop of `edgegemma.generate` for the whole sound, with the same guards."""
    tokenizer = Tokenizer(model.package)
    template = ChatTemplate.of(model.package, tokenizer)
    content = [{"type": "text", "text": instruction}, {"type": "audio"}]
    soft = encode(model, samples)
    prompt = build(tokenizer, template, [{"role": "user", "content": content}], [soft])
    ids = model.config.tokens
    media = (ids.audio, ids.boa, ids.eoa, ids.image, ids.boi, ids.eoi, ids.video)
    most = token_limit(len(samples) / SAMPLE_RATE, model.config.text.vocab_size)
    forbidden = tuple(id for id in media if id is not None)
    run = generate(model, tokenizer, prompt, Sampling(forbidden=forbidden), max_tokens=most)
    for _ in run:
        if (kept := without_loop(run.ids)) < len(run.ids):
            return run.ids[:kept], "loop"
    return run.ids, run.summary.stop


def live(
    recognizer: Recognizer, samples: F32, cuts: list[int], guesses: list[bool]
) -> tuple[list[int], str]:
    """Ids and stop of the last hypothesis after hearing the sound in pieces, guessing after some."""
    recognizer.begin()
    places = sorted(cut % (len(samples) + 1) for cut in cuts)
    pieces = np.split(samples, places)
    for n, piece in enumerate(pieces):
        recognizer.hear(piece)
        if guesses and guesses[n % len(guesses)]:
            recognizer.hypothesis()
    recognizer.finish()
    last = recognizer.hypothesis()
    return list(last.ids), last.stop


cutting = st.lists(st.integers(0, 1 << 20), max_size=8)
guessing = st.lists(st.booleans(), max_size=4)


@settings(max_examples=40)
@given(cuts=cutting, guesses=guessing, seed=st.integers(0, 9), seconds=st.floats(0, 1.2))
def test_the_last_hypothesis_is_that_of_one_pass(
    files: FakePackage, cuts: list[int], guesses: list[bool], seed: int, seconds: float
) -> None:
    samples, model = noise(seconds, seed), FakeModel(files)
    got = live(Recognizer(model, PROMPT), samples, cuts, guesses)
    assert got == (one_pass(model, samples) if token_count(len(samples)) else ([], "stop"))


@settings(max_examples=8)
@given(cuts=cutting, guesses=guessing, seed=st.integers(0, 9))
def test_so_it_is_with_the_engine_and_random_weights(
    tiny: Model, cuts: list[int], guesses: list[bool], seed: int
) -> None:
    samples = noise(1.0, seed)
    assert live(Recognizer(tiny, PROMPT), samples, cuts, guesses) == one_pass(tiny, samples)


@settings(max_examples=8)
@given(cuts=cutting, guesses=guessing, sample=st.sampled_from(sorted(SAMPLES.glob("*.flac"))))
def test_so_it_is_with_the_embedded_model_and_real_speech(
    demo: Model, cuts: list[int], guesses: list[bool], sample: Path
) -> None:
    samples, prompt = read_audio(sample).samples, demo.package.prompts["transcribe"]
    got = live(Recognizer(demo, prompt), samples, cuts, guesses)
    assert got == one_pass(demo, samples, prompt)


def test_utterances_do_not_know_of_each_other(files: FakePackage) -> None:
    model = FakeModel(files)
    recognizer = Recognizer(model, PROMPT)
    for seed in range(4):
        samples = noise(0.5 + seed / 4, seed)
        assert live(recognizer, samples, [3000, 9000], [True]) == one_pass(model, samples)


def test_the_instruction_is_read_once_for_all_utterances(files: FakePackage) -> None:
    recognizer = Recognizer(FakeModel(files), PROMPT)
    tokenizer = recognizer.tokenizer
    content = [{"type": "text", "text": PROMPT}, {"type": "audio"}]
    template = ChatTemplate.of(files, tokenizer)
    before, _ = around_audio(tokenizer, template, [{"role": "user", "content": content}])
    for seed in range(3):
        live(recognizer, noise(0.5, seed), [4000], [True])
    assert recognizer.work.instruction_rows == len(before)


class Counted:
    """A model that counts what passes through it: soft tokens out of the encoder, and into the decoder."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.frames = self.encoded = self.read = 0
        self._soft: set[bytes] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def encode_audio(self, features: F32, mask: F32, state: Any) -> F32:
        soft: F32 = self._model.encode_audio(features, mask, state)
        self.frames += len(features)
        self.encoded += len(soft)
        self._soft |= {row.tobytes() for row in soft}
        return soft

    def forward(self, embeds: F32, per_layer: F32, cache: Any, num_logits: int = 1) -> F32:
        self.read += sum(row.tobytes() in self._soft for row in embeds)
        logits: F32 = self._model.forward(embeds, per_layer, cache, num_logits)
        return logits


def test_in_20_seconds_all_sound_is_encoded_and_read_once(demo: Model) -> None:
    prompts = [read_audio(path).samples for path in sorted(SAMPLES.glob("*.flac"))]
    samples = np.resize(np.concatenate(prompts), 20 * SAMPLE_RATE)
    prompt = demo.package.prompts["transcribe"]
    once, piecewise = Counted(demo), Counted(demo)
    want = one_pass(once, samples, prompt)
    recognizer = Recognizer(piecewise, prompt)
    cuts = list(range(5120, len(samples), 5120))
    assert live(recognizer, samples, cuts, [True]) == want
    assert (piecewise.frames, piecewise.encoded) == (once.frames, once.encoded)
    assert piecewise.read == once.read == piecewise.encoded == 500
    assert recognizer.work.sound_tokens == 500


def test_a_hypothesis_that_still_holds_is_checked_in_one_pass(files: FakePackage) -> None:
    model = FakeModel(files, [*range(600, 620), EOS])
    recognizer = Recognizer(model, PROMPT)
    recognizer.hear(noise(2.0))
    recognizer.hypothesis()
    calls, decoded = len(model.forwards), recognizer.work.decoded
    recognizer.hear(noise(0.08))
    assert list(recognizer.hypothesis().ids) == list(range(600, 620))
    assert len(model.forwards) == calls + 2  # the sound, and what follows it with the whole text
    assert recognizer.work.decoded == decoded


def test_what_is_fixed_stays_whatever_the_model_thinks_of_it_later(files: FakePackage) -> None:
    model = FakeModel(files, [600, 601, 602, EOS])
    recognizer = Recognizer(model, PROMPT)
    recognizer.hear(noise(1.0))
    recognizer.hypothesis()
    model.script = [700, 701, 702, 703, EOS]
    recognizer.hear(noise(1.0))
    assert recognizer.hypothesis(fixed=2).ids == (600, 601, 702, 703)


def test_a_text_that_repeats_itself_is_cut(files: FakePackage) -> None:
    recognizer = Recognizer(FakeModel(files, [599, *[600, 601, 602] * 60]), PROMPT)
    recognizer.hear(noise(4.0))
    for _ in range(2):
        last = recognizer.hypothesis()
        assert (last.ids, last.stop) == ((599, 600, 601, 602), "loop")


def test_a_text_that_does_not_end_is_cut_by_the_length_of_the_sound(files: FakePackage) -> None:
    recognizer = Recognizer(FakeModel(files, list(range(600, 999))), PROMPT)
    recognizer.hear(noise(2.0))
    last = recognizer.hypothesis()
    assert (last.stop, len(last.ids)) == ("length", token_limit(2, 1024))


def test_media_tokens_are_never_written(files: FakePackage) -> None:
    recognizer = Recognizer(FakeModel(files, [TOKENS.audio or 0, EOS]), PROMPT)
    recognizer.hear(noise(1.0))
    assert TOKENS.audio not in recognizer.hypothesis().ids


def test_the_longest_utterance_fits(files: FakePackage) -> None:
    letters = [int(x) for x in np.random.default_rng(0).integers(600, 1000, 999)]
    model = FakeModel(files, letters)
    recognizer = Recognizer(model, PROMPT)
    recognizer.hear(noise(30.0))
    recognizer.finish()
    assert len(recognizer.hypothesis().ids) == token_limit(30, 1024)
    assert model.last_cache.length <= model.last_cache.limit


def test_cancelling_ends_with_what_there_is(files: FakePackage) -> None:
    calls = iter([False] * 4 + [True] * 99)
    model = FakeModel(files, list(range(600, 700)))
    recognizer = Recognizer(model, PROMPT, cancel=lambda: next(calls))
    recognizer.hear(noise(2.0))
    last = recognizer.hypothesis()
    assert (last.ids, last.stop) == ((600, 601, 602, 603), "cancelled")


@pytest.mark.parametrize(
    ("mean", "vocabulary", "doubted"),
    [(-0.9, 262_144, False), (-1.2, 262_144, True), (-1.2, 3_072, False), (-1.7, 3_072, True)],
)
def test_a_small_model_may_doubt_more(mean: float, vocabulary: int, doubted: bool) -> None:
    assert made_up([float(np.exp(mean))] * 3, vocabulary) is doubted
