"""Recordings to text with times: segments, soft tokens, prompt, greedy text, and guards against running away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edgegemma.audio.encoder import AudioModel, encode
from edgegemma.audio.features import F32, SAMPLE_RATE
from edgegemma.audio.files import AudioFile, Pcm, Source
from edgegemma.audio.segments import LIMIT_SECONDS, Segment, segments, sound_span
from edgegemma.errors import InputError
from edgegemma.generate import Cancel, Generation, TextModel, generate
from edgegemma.text.prompt import build
from edgegemma.text.sampler import Sampling
from edgegemma.text.template import ChatTemplate
from edgegemma.text.tokenizer import PackageFiles, Tokenizer

Progress = Callable[[float, float | None], None]  # seconds done, seconds in all if known

PROMPT = "transcribe"  # its name in the manifest

FIRST_TOKENS = 4
WORD_TOKENS_PER_SECOND = 6  # of fast speech, with a vocabulary that has whole words
MARGIN = 1.5
SMALL_VOCABULARY = 65_536  # below this, words fall into several pieces each…
SMALL_MARGIN = 4.0  # …and a second of speech holds that many more

LONGEST_LOOP = 24  # tokens of a repeated phrase that is looked for
LOOP_TIMES = 4
LOOP_TOKENS = 12  # a loop has run over at least this many tokens


class SpeechModel(AudioModel, TextModel, Protocol):
    """A model that hears and writes."""

    @property
    def package(self) -> Any:
        """Its package: files, config and prompts."""


@dataclass(frozen=True)
class Passage:
    """What was said in one segment.

    Attributes
    ----------
    start_s, end_s : float
        of the sound in the segment, from the recording's start
    text : str
    stop : str
        ``stop``: the model ended it; ``length`` or ``loop``: a guard did; ``cancelled``
    tokens : int
        of the text
    encode_s, prefill_s, decode_s : float
        time spent
    """

    start_s: float
    end_s: float
    text: str
    stop: str
    tokens: int
    encode_s: float
    prefill_s: float
    decode_s: float


class Transcriber:
    """Transcribes with one model; loading the tokenizer and the template once."""

    def __init__(
        self,
        model: SpeechModel,
        *,
        instruction: str | None = None,
        limit_s: float = LIMIT_SECONDS,
        cancel: Cancel = None,
    ) -> None:
        package: PackageFiles = model.package
        self._model = model
        self._tokenizer = Tokenizer(package)
        self._template = ChatTemplate.of(package, self._tokenizer)
        prompts: dict[str, str] = model.package.prompts
        if instruction is None and PROMPT not in prompts:
            raise InputError(
                f"transcribe: the package has no prompt {PROMPT!r}; give an instruction"
            )
        self._instruction = prompts[PROMPT] if instruction is None else instruction
        self._limit_s, self._cancel = limit_s, cancel
        ids = self._tokenizer.tokens
        media = (ids.audio, ids.boa, ids.eoa, ids.image, ids.boi, ids.eoi, ids.video)
        self._forbidden = tuple(id for id in media if id is not None)

    def blocks(
        self, blocks: Iterable[F32], progress: Progress | None = None, total_s: float | None = None
    ) -> Iterator[Passage]:
        """Transcribe float32 mono 16 kHz samples that come in blocks; silent segments give nothing."""
        for segment in segments(blocks, self._limit_s):
            passage = self.segment(segment)
            if passage is not None:
                yield passage
                if passage.stop == "cancelled":
                    return
            if progress is not None:
                progress(segment.stop / SAMPLE_RATE, total_s)

    def segment(self, segment: Segment) -> Passage | None:
        """Transcribe one segment; None if there is nothing to hear in it."""
        span = sound_span(segment.samples)
        if span is None:
            return None
        start = time.perf_counter()
        soft = encode(self._model, segment.samples)
        encode_s = time.perf_counter() - start
        if len(soft) == 0:
            return None
        run = self._generate(soft, len(segment.samples) / SAMPLE_RATE)
        keep, looped = len(run.ids), False
        for _ in run:
            keep = without_loop(run.ids)
            if looped := keep < len(run.ids):
                break
        text = self._tokenizer.decode(run.ids[:keep]) if looped else run.text
        figures = run.summary
        start_s, end_s = ((segment.start + at) / SAMPLE_RATE for at in span)
        return Passage(
            start_s=start_s,
            end_s=end_s,
            text=text.strip(),
            stop="loop" if looped else figures.stop,
            tokens=keep,
            encode_s=encode_s,
            prefill_s=figures.prefill_s,
            decode_s=figures.decode_s,
        )

    def _generate(self, soft: F32, seconds: float) -> Generation:
        content = [{"type": "text", "text": self._instruction}, {"type": "audio"}]
        prompt = build(
            self._tokenizer, self._template, [{"role": "user", "content": content}], [soft]
        )
        most = token_limit(seconds, self._model.config.text.vocab_size)
        return generate(
            self._model,
            self._tokenizer,
            prompt,
            Sampling(forbidden=self._forbidden),
            max_tokens=most,
            cancel=self._cancel,
        )


def transcribe(
    model: SpeechModel,
    source: Source | Pcm | F32,
    *,
    instruction: str | None = None,
    limit_s: float = LIMIT_SECONDS,
    progress: Progress | None = None,
    cancel: Cancel = None,
) -> Iterator[Passage]:
    """Transcribe a recording, passage by passage as they are ready.

    Parameters
    ----------
    model : Model
    source : path, bytes, binary file object, Pcm or float32 samples
    instruction : str, optional
        instead of the package's
    limit_s : float
        longest segment
    progress : callable, optional
        called with the seconds that are done and the recording's length if it is known
    cancel : threading.Event or callable, optional

    Yields
    ------
    Passage
    """
    worker = Transcriber(model, instruction=instruction, limit_s=limit_s, cancel=cancel)
    if isinstance(source, Pcm | np.ndarray):
        samples = source.samples if isinstance(source, Pcm) else source
        yield from worker.blocks([samples], progress, len(samples) / SAMPLE_RATE)
        return
    with AudioFile(source) as file:
        yield from worker.blocks(file.blocks(), progress, file.seconds)


def token_limit(seconds: float, vocabulary: int) -> int:
    """Tokens that speech of this length can need; a text beyond it has run away."""
    margin = MARGIN if vocabulary >= SMALL_VOCABULARY else SMALL_MARGIN
    return FIRST_TOKENS + int(WORD_TOKENS_PER_SECOND * margin * seconds)


def without_loop(ids: Sequence[int]) -> int:
    """How many of these ids to keep: all, or up to the first copy of a phrase they end in saying over and over."""
    for length in range(1, LONGEST_LOOP + 1):
        times = max(LOOP_TIMES, -(-LOOP_TOKENS // length))
        if len(ids) >= times * length and all(
            ids[-i] == ids[-i - length] for i in range(1, (times - 1) * length + 1)
        ):
            return len(ids) - (times - 1) * length
    return len(ids)
