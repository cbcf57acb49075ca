"""Tokens one after another: prefill the prompt, then sample, decode, repeat.

>>> run = generate(model, tokenizer, prompt, max_tokens=64)        # doctest: +SKIP
>>> for token in run:                                              # doctest: +SKIP
...     print(token.text, end="", flush=True)
>>> run.summary.stop, run.summary.tokens_per_s                     # doctest: +SKIP
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from threading import Event
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from edgegemma.config import ModelConfig
from edgegemma.errors import InputError
from edgegemma.text.prompt import Prompt
from edgegemma.text.sampler import Sampler, Sampling, logprob
from edgegemma.text.tokenizer import Tokenizer

F32 = npt.NDArray[np.float32]
Cancel = Event | Callable[[], bool] | None
Stop = Literal["stop", "length", "cancelled", "running"]

PREFILL_AT_ONCE = 128  # positions embedded together; bounds memory and the wait after a cancel


class TextModel(Protocol):
    """What this module needs of a model (`edgegemma.engine.model.Model` has it)."""

    @property
    def config(self) -> ModelConfig:
        """The model's dimensions."""

    def embed(self, ids: npt.NDArray[np.int64]) -> tuple[F32, F32]:
        """Ids to embeddings ``[S, H]`` and per-layer rows ``[S, L, P]``."""

    def new_cache(self, capacity: int | None = None, slack: int | None = None) -> Any:
        """Start an empty K/V cache."""

    def forward(self, embeds: F32, per_layer: F32, cache: Any, num_logits: int = 1) -> F32:
        """Append positions to the cache; logits of the last ones, ``[num_logits, V]``."""

    def decode(self, token: int, cache: Any) -> F32:
        """Append one token to the cache; its logits, ``[V]``."""


@dataclass(frozen=True)
class Token:
    """One generated token; the texts of all of them join to the whole text."""

    id: int
    text: str
    logprob: float | None
    at_s: float  # since generation began


@dataclass(frozen=True)
class Summary:
    """How a generation went. Times are the model's, without what the caller did between tokens."""

    prompt_tokens: int
    cached_tokens: int  # of the prompt, found in the cache
    prefill_s: float
    new_tokens: int  # sampled, a stop token included
    decode_s: float  # of all tokens but the first, which the prefill gives
    stop: Stop

    @property
    def tokens_per_s(self) -> float:
        """Speed of decoding; 0 before there is a second token."""
        return (self.new_tokens - 1) / self.decode_s if self.decode_s > 0 else 0.0

    @property
    def prefill_per_s(self) -> float:
        """Speed of the prefill."""
        return (
            (self.prompt_tokens - self.cached_tokens) / self.prefill_s
            if self.prefill_s > 0
            else 0.0
        )


class Generation(Iterator[Token]):
    """A running generation: an iterator of tokens. Stop iterating at any time, or set ``cancel``.

    Attributes
    ----------
    ids : list of int
        tokens so far, without the stop token
    text : str
        their text so far
    cache
        the K/V cache; holds the prompt and all of ``ids`` but perhaps the last
    """

    def __init__(
        self,
        model: TextModel,
        tokenizer: Tokenizer,
        prompt: Prompt,
        sampler: Sampler,
        max_tokens: int,
        cache: Any,
    ) -> None:
        self._model, self._prompt, self._sampler = model, prompt, sampler
        self._detokenizer = tokenizer.detokenizer()
        self._room = min(max_tokens, _room(model, prompt, cache))
        self.cache = model.new_cache(len(prompt) + self._room) if cache is None else cache
        if self.cache.length >= len(prompt):
            self.cache.truncate(len(prompt) - 1)  # the last position's logits are needed
        self._cached: int = self.cache.length
        self.stop_ids: frozenset[int] = frozenset(tokenizer.tokens.eos)
        self.cancel: Cancel = None
        self.ids: list[int] = []
        self.text = ""
        self._sampled = 0
        self._prefill_s = self._decode_s = 0.0
        self._stop: Stop = "running"
        self._began = time.perf_counter()
        self._tokens = self._run()

    def __next__(self) -> Token:
        return next(self._tokens)

    @property
    def summary(self) -> Summary:
        """The figures so far; final after the last token."""
        return Summary(
            len(self._prompt),
            self._cached,
            self._prefill_s,
            self._sampled,
            self._decode_s,
            self._stop,
        )

    def _run(self) -> Iterator[Token]:
        self._began = start = time.perf_counter()
        logits = self._prefill()
        self._prefill_s = time.perf_counter() - start
        while logits is not None:
            start = time.perf_counter()
            chosen = self._sampler.pick(logits, self._seen())
            self._decode_s += time.perf_counter() - start if self._sampled else 0.0
            self._sampled += 1
            token = self._token(chosen, logits)
            if token.text or chosen not in self.stop_ids:
                yield token
            if self._stop != "running":
                return
            if self._cancelled():
                break
            start = time.perf_counter()
            logits = self._model.decode(chosen, self.cache)
            self._decode_s += time.perf_counter() - start
        self._stop = "cancelled"

    def _prefill(self) -> F32 | None:
        """Run what the cache lacks of the prompt; the last position's logits, or None when cancelled."""
        ids, logits = self._prompt.ids, None
        for start in range(self._cached, len(ids), PREFILL_AT_ONCE):
            if self._cancelled():
                return None
            some = ids[start : start + PREFILL_AT_ONCE]
            logits = self._forward(start, some, last=start + len(some) == len(ids))
        return logits

    def _forward(self, start: int, ids: npt.NDArray[np.int64], last: bool) -> F32 | None:
        """Embed and run some positions; soft tokens where the prompt has them."""
        first, stop = np.searchsorted(self._prompt.positions, [start, start + len(ids)])
        if first == stop:
            embeds, per_layer = self._model.embed(ids)
        else:
            media = self._prompt.positions[first:stop] - start
            ids = ids.copy()
            ids[media] = self._model.config.tokens.pad
            embeds, per_layer = self._model.embed(ids)
            embeds = embeds.copy()
            embeds[media] = self._prompt.soft[first:stop]
        logits = self._model.forward(embeds, per_layer, self.cache, num_logits=int(last))
        return logits[-1] if last else None

    def _token(self, chosen: int, logits: F32) -> Token:
        """Take a sampled token in: into text and ids, or as the end."""
        if chosen in self.stop_ids:
            self._stop = "stop"
            text = self._detokenizer.finish()
        else:
            self.ids.append(chosen)
            text = self._detokenizer.push(chosen)
            if len(self.ids) >= self._room:
                self._stop = "length"
                text += self._detokenizer.finish()
        self.text += text
        likely = logprob(logits, chosen) if self._sampler.sampling.logprobs else None
        return Token(chosen, text, likely, time.perf_counter() - self._began)

    def _seen(self) -> list[int]:
        """Ids of the text so far, if a penalty asks for them."""
        if self._sampler.sampling.repetition_penalty == 1:
            return []
        return [*self._prompt.ids.tolist(), *self.ids]

    def _cancelled(self) -> bool:
        if isinstance(self.cancel, Event):
            return self.cancel.is_set()
        return self.cancel is not None and self.cancel()


def generate(
    model: TextModel,
    tokenizer: Tokenizer,
    prompt: Prompt,
    sampling: Sampling | None = None,
    *,
    max_tokens: int = 1024,
    stop: Collection[int] | None = None,
    cancel: Cancel = None,
    cache: Any = None,
) -> Generation:
    """Continue a prompt.

    Parameters
    ----------
    model : Model
    tokenizer : Tokenizer
    prompt : Prompt
        ids and soft tokens
    sampling : Sampling, optional
        greedy by default
    max_tokens : int
        also bounded by what the context has room for
    stop : ids, optional
        that end the text; the package's end tokens by default
    cancel : threading.Event or callable, optional
        asked before every step; the stop reason is then ``"cancelled"``
    cache : Cache, optional
        that holds the first ``cache.length`` positions of this very prompt; a new one by default

    Returns
    -------
    Generation
        nothing runs before its first ``next``
    """
    if max_tokens < 1:
        raise InputError(f"max_tokens: got {max_tokens}; want 1 or more")
    run = Generation(model, tokenizer, prompt, Sampler(sampling or Sampling()), max_tokens, cache)
    run.cancel = cancel
    if stop is not None:
        run.stop_ids = frozenset(stop)
    return run


def _room(model: TextModel, prompt: Prompt, cache: Any) -> int:
    """Tokens that fit behind the prompt, in the model's context or in the cache that is given."""
    limit = model.config.text.max_position_embeddings
    if cache is not None:
        limit = min(limit, cache.limit)
    if len(prompt) == 0:
        raise InputError("prompt: is empty")
    if len(prompt) >= limit:
        raise InputError(
            f"prompt: got {len(prompt)} tokens; want fewer than {limit}, the context; shorten it"
        )
    hidden = model.config.text.hidden_size
    if len(prompt.positions) and prompt.soft.shape[1] != hidden:
        raise InputError(f"prompt: got soft tokens of width {prompt.soft.shape[1]}; want {hidden}")
    return limit - len(prompt)
