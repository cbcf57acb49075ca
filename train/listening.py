"""Batches for the decoder once the tower is finished: its soft tokens, and what they say.

A batch depends on its number alone, as those of `batches` do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from train.bank import Bank, Spoken
from train.batches import SoftBatch, sequences, spans
from train.corpus import sentences
from train.phones import Pronunciations, pronounced
from train.texts import PUT_TOGETHER, transcript

KINDS = {
    "put together": 0.52,
    "real": 0.20,
    "joined": 0.10,
    "hibari": 0.07,
    "other voices": 0.07,
    "silence": 0.04,
}
"""How often a clip of each kind is drawn."""
WORDS = 8_000
CLIPS, BATCHES = 16, 32  # of a batch, and batches among which clips of like length come together
LONGEST = 250  # soft tokens
CORRUPTION = 0.15


class Listening:
    """What the decoder listens to.

    Parameters
    ----------
    work : Path
        The work folder: the source of texts.
    """

    def __init__(
        self,
        work: Path,
        bank: Bank,
        tokenizer: Tokenizer,
        pronunciations: Pronunciations,
        seed: int,
    ) -> None:
        self._work, self._bank, self._seed = work, bank, seed
        self._tokenizer, self._pronunciations = tokenizer, pronunciations
        self._phones: dict[str, str] = {"": ""}

    def _draw(self, source: Iterator[str], generator: np.random.Generator) -> Spoken:
        kind = str(generator.choice(list(KINDS), p=list(KINDS.values())))
        if kind != "put together":
            return self._bank.recorded(kind, generator)
        while True:
            text = next(source)
            numbers = self._pronunciations.of(self._said(text))
            made = self._bank.spoken(text, numbers, generator) if numbers else None
            if made is not None:
                return made

    def _said(self, text: str) -> str:
        if text not in self._phones:
            self._phones[text] = pronounced(text)
        return self._phones[text]

    def _pool(self, rank: int, pool: int) -> list[list[Spoken]]:
        generator = np.random.default_rng([self._seed, rank, pool])
        made = sentences(self._work, int(generator.integers(2**31)), WORDS, PUT_TOGETHER)
        source = iter(lambda: transcript(made.draw()), None)
        drawn: list[Spoken] = []
        while len(drawn) < CLIPS * BATCHES:
            clip = self._draw(source, generator)
            if 0 < len(clip.soft) <= LONGEST:
                drawn.append(clip)
        drawn.sort(key=lambda clip: len(clip.soft))
        return [drawn[start : start + CLIPS] for start in range(0, len(drawn), CLIPS)]

    def stream(self, rank: int, number: int) -> Iterator[SoftBatch]:
        """Yield batches without end, from a number on."""
        while True:
            pool, first = divmod(number, BATCHES)
            batches = self._pool(rank, pool)
            order = np.random.default_rng([self._seed, pool]).permutation(BATCHES)
            for place in order[first:]:  # the same in every process: none waits for a longer batch
                yield self._batch(
                    batches[place], np.random.default_rng([self._seed, rank, pool, place])
                )
                number += 1

    def _batch(self, clips: list[Spoken], generator: np.random.Generator) -> SoftBatch:
        lengths = [len(clip.soft) for clip in clips]
        texts = [clip.text for clip in clips]
        soft = [torch.from_numpy(clip.soft) for clip in clips]
        return SoftBatch(
            torch.nn.utils.rnn.pad_sequence(soft, batch_first=True),
            torch.arange(max(lengths)) < torch.tensor(lengths)[:, None],
            *sequences(self._tokenizer, texts, lengths, CORRUPTION, generator),
            torch.tensor(lengths),
            [spans(text, self._said(text), self._tokenizer) for text in texts],
            [clip.path for clip in clips],
        )
