"""Batches for the decoder once the tower is finished: its soft tokens, and what they say.

A batch depends on its number alone, as those of `batches` do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from train.bank import Bank, Spoken
from train.batches import SoftBatch, sequences
from train.corpus import ban, sentences
from train.texts import PUT_TOGETHER, transcript
from train.tokens import (
    ANSWER_TRANSLATED,
    INSTRUCTION_SPANISH,
    INSTRUCTION_TRANSLATE,
    answer_ids,
)
from train.translations import Translations


@dataclass(frozen=True)
class Mix:
    """What the decoder listens to in a turn.

    Attributes
    ----------
    clips : how many of each kind are taken into the bank, or all
    kinds : how often one of each is drawn
    recorded : how often the recorded speaker says what is put together
    """

    clips: Mapping[str, int]
    kinds: Mapping[str, float]
    recorded: float


FIRST = Mix(
    clips={
        "real": 2_000,
        "joined": 500,
        "spliced": 1_200,
        "hibari": 1_600,
        "other voices": 2_600,
        "neural": 1_600,
        "alone": 600,
        "silence": 300,
    },
    kinds={
        "put together": 0.40,
        "real": 0.12,
        "joined": 0.06,
        "spliced": 0.10,
        "hibari": 0.08,
        "other voices": 0.10,
        "neural": 0.08,
        "alone": 0.02,
        "silence": 0.04,
    },
    recorded=0.5,
)
OTHERS = Mix(
    clips={**FIRST.clips, "hibari": 4_000, "other voices": 20_000, "neural": 4_000},
    kinds={
        "put together": 0.40,
        "real": 0.06,
        "joined": 0.02,
        "spliced": 0.06,
        "hibari": 0.08,
        "other voices": 0.20,
        "neural": 0.12,
        "alone": 0.02,
        "silence": 0.04,
    },
    recorded=0.25,
)
"""More of the other voices, when the decoder has learnt what the recorded speaker says."""
OTHERS_FROM = 3  # the cycle, from 0


def mix(cycle: int) -> Mix:
    """Say what the decoder listens to in a cycle."""
    return OTHERS if cycle >= OTHERS_FROM else FIRST


CLIPS, BATCHES = 16, 32  # of a batch, and batches among which clips of like length come together
LONGEST = 250  # soft tokens
CORRUPTION = 0.15
TRANSLATED = 4  # batches among these in which a transcript and its translation are asked for…
DIRECT = 4  # …and a translation only
CUT = 0.12  # share of clips that end too early, as speech does while it arrives


class Listening:
    """What the decoder listens to.

    Parameters
    ----------
    work : Path
        The work folder: the source of texts.
    told : Mix
        Of what the bank was filled.
    """

    def __init__(self, work: Path, bank: Bank, told: Mix, tokenizer: Tokenizer, seed: int) -> None:
        self._work, self._bank, self._mix = work, bank, told
        self._tokenizer, self._seed = tokenizer, seed
        self._ban = ban(work)

    def _draw(self, source: Iterator[str], generator: np.random.Generator) -> Spoken:
        kinds = self._mix.kinds
        kind = str(generator.choice(list(kinds), p=list(kinds.values())))
        if kind != "put together":
            made, pieces = self._bank.recorded(kind, generator)
            return self._cut(made, pieces, generator) if generator.random() < CUT else made
        while True:
            text = next(source)
            pieces = answer_ids(self._tokenizer, text)
            spoken = self._bank.spoken(text, pieces, generator, self._mix.recorded)
            if spoken is not None:
                cut = generator.random() < CUT
                return self._cut(spoken, pieces, generator) if cut else spoken

    def _cut(self, spoken: Spoken, pieces: list[int], generator: np.random.Generator) -> Spoken:
        """End a clip at a random place, and its transcript after the last word heard whole."""
        if spoken.path is None:
            return spoken
        end = int(generator.integers(len(spoken.soft) // 4, len(spoken.soft))) + 1
        first, last = spoken.path
        count = int(np.searchsorted(last, end))
        while 0 < count < len(pieces) and not self._opens(pieces[count]):
            count -= 1
        text = self._tokenizer.decode(pieces[:count]).strip()
        path = (first[:count], last[:count]) if count else None
        return Spoken(spoken.soft[:end], text, path)

    def _opens(self, piece: int) -> bool:
        return str(self._tokenizer.id_to_token(piece)).startswith("▁")

    def _translated(
        self, source: Translations, generator: np.random.Generator, *, direct: bool
    ) -> Spoken:
        """Put together a sentence of which the translation is known, and ask for both or for it alone."""
        while True:
            english, spanish = source.draw()
            if self._ban.on(english):
                continue
            pieces = answer_ids(self._tokenizer, english)
            made = self._bank.spoken(english, pieces, generator, self._mix.recorded)
            if made is None:
                continue
            if direct:
                return replace(made, text=spanish, path=None, instruction=INSTRUCTION_SPANISH)
            both = ANSWER_TRANSLATED.format(english, spanish)
            return replace(made, text=both, instruction=INSTRUCTION_TRANSLATE)

    def _pool(self, rank: int, pool: int) -> list[list[Spoken]]:
        generator = np.random.default_rng([self._seed, rank, pool])
        seed = int(generator.integers(2**31))
        made = sentences(self._work, seed, PUT_TOGETHER)
        source = iter(lambda: transcript(made.draw()), None)
        pairs = Translations(seed)
        batches: list[list[Spoken]] = []
        for count, draw in (
            (BATCHES - TRANSLATED - DIRECT, lambda: self._draw(source, generator)),
            (TRANSLATED, lambda: self._translated(pairs, generator, direct=False)),
            (DIRECT, lambda: self._translated(pairs, generator, direct=True)),
        ):
            drawn: list[Spoken] = []
            while len(drawn) < CLIPS * count:
                clip = draw()
                if 0 < len(clip.soft) <= LONGEST:
                    drawn.append(clip)
            drawn.sort(key=lambda clip: len(clip.soft))
            batches += [drawn[start : start + CLIPS] for start in range(0, len(drawn), CLIPS)]
        return batches

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
        instruction = clips[0].instruction  # a batch is of one kind
        soft = [torch.from_numpy(clip.soft) for clip in clips]
        return SoftBatch(
            *sequences(self._tokenizer, texts, lengths, CORRUPTION, generator, instruction),
            torch.tensor(lengths),
            torch.nn.utils.rnn.pad_sequence(soft, batch_first=True),
            torch.arange(max(lengths)) < torch.tensor(lengths)[:, None],
            [clip.path for clip in clips],
        )
