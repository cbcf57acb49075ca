"""One utterance on its way through the model: each piece of sound is encoded once and read once.

The cache holds ``instruction | sound so far | what follows the sound | text``. The instruction stays for the whole
session. New sound goes behind the sound, so the rest is forgotten first; a hypothesis then reads what follows the sound
and the previous hypothesis in one pass, keeps what the model would have chosen itself, and goes on from there. Since a
row's result does not depend on the rows beside it, that is the text of one pass over the whole sound, bit for bit.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from edgegemma.audio.encoder import AudioModel, AudioStream
from edgegemma.audio.features import F32, SAMPLE_RATE, TOKENS_PER_SECOND
from edgegemma.generate import Cancel, TextModel
from edgegemma.listen.guards import token_limit, without_loop
from edgegemma.listen.task import CONTEXT_CHARACTERS
from edgegemma.text.prompt import around_audio
from edgegemma.text.sampler import Sampler, Sampling, logprob
from edgegemma.text.template import ChatTemplate
from edgegemma.text.tokenizer import Ids, PackageFiles, Tokenizer

Stop = Literal["stop", "length", "loop", "cancelled"]

LONGEST_SECONDS = 30.0  # what Gemma 4 was trained to hear in one piece: 750 soft tokens
VERIFY_AT_ONCE = 32  # rows of logits of a pass; Gemma's have 1 MB each
CONTEXT_ROOM = 2 * CONTEXT_CHARACTERS  # positions that an instruction may grow by
PREPARE_SECONDS = (0.16, 0.32, 0.64)  # the blocks that live sound is read in
PREPARE_TOKENS = 8


class SpeechModel(AudioModel, TextModel, Protocol):
    """A model that hears and writes (`edgegemma.engine.model.Model` has it)."""

    @property
    def package(self) -> Any:
        """Its package: files, config and prompts."""


@dataclass(frozen=True)
class Hypothesis:
    """What the model takes the sound so far for.

    Attributes
    ----------
    ids : tuple of int
        without the stop token and what a guard cut
    stop : str
    sure : tuple of float
        the model's probability of each token, if that was asked for; 1 for those that were fixed
    """

    ids: tuple[int, ...]
    stop: Stop
    sure: tuple[float, ...] = ()


@dataclass
class Work:
    """What was done: counts, and seconds in each part."""

    sound_tokens: int = 0  # encoded and read by the decoder
    instruction_rows: int = 0
    checked_rows: int = 0  # positions after the sound, read in passes
    decoded: int = 0  # tokens read one by one
    features_s: float = 0.0
    encode_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0


class Recognizer:
    """Turns utterances into text, one after the other.

    Parameters
    ----------
    model : Model
    instruction : str
    longest_s : float
        of an utterance
    cancel : threading.Event or callable, optional
        asked before every step; the hypothesis ends ``cancelled``

    Attributes
    ----------
    tokenizer : Tokenizer
    vocabulary : int
    work : Work
    heard : int
        samples of the utterance so far
    """

    def __init__(
        self,
        model: SpeechModel,
        instruction: str,
        longest_s: float = LONGEST_SECONDS,
        cancel: Cancel = None,
    ) -> None:
        package: PackageFiles = model.package
        self._model, self._cancel = model, cancel
        self.tokenizer = Tokenizer(package)
        self._template = ChatTemplate.of(package, self.tokenizer)
        self._instruction = instruction
        self._before, self._after = self._around(instruction)
        tokens = self.tokenizer.tokens
        media = (tokens.audio, tokens.boa, tokens.eoa, tokens.image, tokens.boi, tokens.eoi)
        forbidden = tuple(id for id in (*media, tokens.video) if id is not None)
        self._sampler = Sampler(Sampling(forbidden=forbidden))
        self._stop_ids = frozenset(tokens.eos)
        self.vocabulary = model.config.text.vocab_size
        sound = int(longest_s * TOKENS_PER_SECOND) + 1
        text = token_limit(longest_s, self.vocabulary)
        room = len(self._before) + CONTEXT_ROOM + sound + len(self._after) + text
        room = min(room, model.config.text.max_position_embeddings)
        # Slack for everything: after each utterance the cache goes back to the instruction.
        self._cache = model.new_cache(room, slack=room)
        self._pad_row: F32 | None = None
        self.work = Work()
        self.begin()

    def begin(self, instruction: str | None = None) -> None:
        """Start a new utterance, perhaps with another instruction: what both have in common stays read."""
        if instruction is not None and instruction != self._instruction:
            self._instruction, old = instruction, self._before
            self._before, self._after = self._around(instruction)
            shared = min(len(old), len(self._before))
            same = int(np.cumprod(old[:shared] == self._before[:shared]).sum())
            self._cache.truncate(min(self._cache.length, same))
        self._stream = AudioStream(self._model)
        self._draft: list[int] = []
        self._sure: list[float] = []
        self._judges = False
        self.heard = 0

    def prepare(self) -> None:
        """Read the instruction and run what an utterance runs, so that the first words do not wait for it.

        Kernels are loaded when they are first called, and weights when they are first read.
        """
        for seconds in PREPARE_SECONDS:
            self.hear(np.zeros(round(seconds * SAMPLE_RATE), np.float32))
        self.finish()
        self._draft = [self.tokenizer.tokens.pad] * PREPARE_TOKENS
        self._check(PREPARE_TOKENS - 1, PREPARE_TOKENS + 1)
        self._extend(self._draft, PREPARE_TOKENS + 1)
        self.begin()
        self.work = Work()

    def hear(self, samples: F32) -> None:
        """Take the next samples of the utterance, float32 [n]."""
        self.heard += len(samples)
        mel_s, began = self._stream.mel_s, time.perf_counter()
        soft = self._stream.feed(samples)
        self._note_encoding(mel_s, began)
        self._read_sound(soft)

    def finish(self) -> None:
        """Say that the utterance has no more samples."""
        mel_s, began = self._stream.mel_s, time.perf_counter()
        soft = self._stream.finish()
        self._note_encoding(mel_s, began)
        self._read_sound(soft)

    def hypothesis(self, fixed: int = 0, sure: bool = False) -> Hypothesis:
        """Say what the sound so far means.

        Parameters
        ----------
        fixed : int
            so many of the previous hypothesis' first tokens stay, whatever the model thinks of them now
        sure : bool
            also say how sure the model is of each token: a sum over the vocabulary for each
        """
        self._judges = sure
        if self._stream.tokens == 0:
            return Hypothesis((), "stop")
        most = token_limit(self.heard / SAMPLE_RATE, self.vocabulary)
        most = min(most, self._cache.limit - self._sound_stop - len(self._after))
        ids, stop = self._check(fixed, most)
        while stop is None:
            stop = self._extend(ids, most)
        self._draft = ids
        kept = max(fixed, without_loop(ids)) if stop == "loop" else len(ids)
        return Hypothesis(tuple(ids[:kept]), stop, tuple(self._sure[:kept]))

    def _around(self, instruction: str) -> tuple[Ids, Ids]:
        """Give the ids before and after the sound."""
        content = [{"type": "text", "text": instruction}, {"type": "audio"}]
        request = [{"role": "user", "content": content}]
        return around_audio(self.tokenizer, self._template, request)

    @property
    def _sound_stop(self) -> int:
        return len(self._before) + self._stream.tokens

    def _note_encoding(self, mel_s: float, began: float) -> None:
        features_s = self._stream.mel_s - mel_s
        self.work.features_s += features_s
        self.work.encode_s += time.perf_counter() - began - features_s

    def _read_sound(self, soft: F32) -> None:
        """Put soft tokens behind the sound, behind the instruction."""
        if len(soft) == 0:
            return
        began = time.perf_counter()
        start = self._sound_stop - len(soft)
        if self._cache.length > start:
            self._cache.truncate(start)
        if self._cache.length < len(self._before):
            rest = self._before[self._cache.length :]
            self._model.forward(*self._model.embed(rest), self._cache, num_logits=0)
            self.work.instruction_rows += len(rest)
        if self._pad_row is None:
            _, self._pad_row = self._model.embed(np.array([self.tokenizer.tokens.pad], np.int64))
        self._model.forward(soft, np.repeat(self._pad_row, len(soft), 0), self._cache, num_logits=0)
        self.work.sound_tokens += len(soft)
        self.work.prefill_s += time.perf_counter() - began

    def _check(self, fixed: int, most: int) -> tuple[list[int], Stop | None]:
        """Read what follows the sound and the draft; give what stands of it, and one token or the stop more.

        Afterwards the cache holds all but the last of the ids.
        """
        began = time.perf_counter()
        self._cache.truncate(self._sound_stop)
        ids = self._draft[:fixed]
        self._sure = [1.0] * fixed
        rows = np.concatenate([self._after, np.array(self._draft, np.int64)])
        start, stop = 0, None
        first = len(self._after) + fixed - 1  # the row that chooses the first free token
        while stop is None:
            if self.cancelled:
                return ids, "cancelled"
            end = min(len(rows), (first + VERIFY_AT_ONCE) if start == 0 else start + VERIFY_AT_ONCE)
            keep = end - max(start, first)
            logits = self._model.forward(
                *self._model.embed(rows[start:end]), self._cache, num_logits=keep
            )
            self.work.checked_rows += end - start
            stop, right = self._accept(ids, logits, most)
            if not right or end == len(rows):
                break
            start = end
        # Rows of the draft that the model would not have chosen are forgotten.
        stands = self._sound_stop + len(self._after) + max(0, len(ids) - 1)
        self._cache.truncate(min(self._cache.length, stands))
        self.work.prefill_s += time.perf_counter() - began
        return ids, stop

    def _accept(self, ids: list[int], logits: F32, most: int) -> tuple[Stop | None, bool]:
        """Choose a token from each row of logits, as long as the draft has the same ones."""
        for row in logits:
            stop = self._take(ids, row, most)
            if stop is not None:
                return stop, False
            if len(ids) > len(self._draft) or ids[-1] != self._draft[len(ids) - 1]:
                return None, False
        return None, True

    def _extend(self, ids: list[int], most: int) -> Stop | None:
        """Decode one token more."""
        if self.cancelled:
            return "cancelled"
        began = time.perf_counter()
        logits = self._model.decode(ids[-1], self._cache)
        stop = self._take(ids, logits, most)
        self.work.decoded += 1
        self.work.decode_s += time.perf_counter() - began
        return stop

    def _take(self, ids: list[int], logits: F32, most: int) -> Stop | None:
        """Choose the next token; say if the text ends with it."""
        chosen = self._sampler.pick(logits)
        if chosen in self._stop_ids:
            return "stop"
        ids.append(chosen)
        if self._judges:
            self._sure.append(math.exp(logprob(logits, chosen)))
        if without_loop(ids) < len(ids):
            return "loop"
        return "length" if len(ids) >= most else None

    @property
    def cancelled(self) -> bool:
        """Whether the caller wants no more."""
        asked = self._cancel
        if asked is None:
            return False
        return asked() if callable(asked) else asked.is_set()
