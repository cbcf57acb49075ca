"""Batches: which clips are seen together, and the tensors made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Self

import numpy as np
import torch
from tokenizers import Tokenizer

from train.corpus import PHONES, ban, training_shards
from train.features import FRAMES_PER_TOKEN, MELS, Clip, Shard
from train.frames import changed
from train.guidance import Path as Heard
from train.phones import BLANK, Pronunciations
from train.schedule import WEIGHTS, Settings
from train.split import guard
from train.tokens import CONTROL, INSTRUCTION, VOCABULARY, answer_ids, prompt_ids

TOKEN_SECONDS, DELAY = 0.04, 0.06
CORRUPTION = 0.1
POOL = 512
IGNORED = -100


@dataclass
class Sequences:
    """What the batches of both kinds have.

    Attributes
    ----------
    input_ids : Tensor, shape (clips, tokens)
        Prompt, transcript and end of turn.
    labels : Tensor, shape (clips, tokens)
        The token to follow each position, `IGNORED` outside the answer.
    token_lengths : Tensor, shape (clips,)
        Soft tokens of each clip.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    token_lengths: torch.Tensor

    def to(self, device: torch.device) -> Self:
        """Give the batch with its tensors on a device."""
        tensors = {name: held for name, held in vars(self).items() if torch.is_tensor(held)}
        return replace(self, **{name: held.to(device) for name, held in tensors.items()})

    @property
    def first_audio(self) -> int:
        """The place of the first soft token, the same in every row."""
        return self.input_ids[0].tolist().index(CONTROL["<|audio|>"])

    @property
    def first_answers(self) -> list[int]:
        """The place at which each row predicts the first token of its answer."""
        return (self.labels != IGNORED).int().argmax(1).tolist()


@dataclass
class Batch(Sequences):
    """Clips padded to the longest, and the token sequences the decoder is trained on.

    Attributes
    ----------
    features : Tensor, shape (clips, frames, 128)
    mask : Tensor of bool, shape (clips, frames)
    targets, words : Tensor, shape (phones,) and (pieces,)
        The phones and the pieces of the transcripts one after the other, for CTC.
    target_lengths, word_lengths : Tensor, shape (clips,)
        Phones and pieces of each transcript.
    heard : Tensor, shape (all soft tokens,)
        The phone of each soft token, `IGNORED` where it is not known.
    """

    features: torch.Tensor
    mask: torch.Tensor
    targets: torch.Tensor
    target_lengths: torch.Tensor
    words: torch.Tensor
    word_lengths: torch.Tensor
    heard: torch.Tensor


@dataclass
class SoftBatch(Sequences):
    """What the decoder is trained on when the tower is finished.

    Attributes
    ----------
    soft : Tensor, shape (clips, tokens, width)
        Soft tokens, padded.
    mask : Tensor of bool, shape (clips, tokens)
    paths : list
        Where each piece of the transcript is heard, as `best_path` gives it.
    """

    soft: torch.Tensor
    mask: torch.Tensor
    paths: list[Heard | None]


def heard(clip: Clip, pronunciations: Pronunciations, tokens: int) -> np.ndarray:
    """Give the phone each of a clip's soft tokens should tell, where that is known.

    The tower hears nothing ahead: a token answers for the time `DELAY` before its middle.
    """
    if not clip.text:
        return np.full(tokens, BLANK)
    if not clip.timed:
        return np.full(tokens, IGNORED)
    phones, ends = zip(*clip.timed, strict=True)
    middles = (np.arange(tokens) + 0.5) * TOKEN_SECONDS - DELAY
    places = np.minimum(np.searchsorted(ends, middles), len(phones) - 1)
    return np.array([pronunciations.number(phones[place]) for place in places])


def sequences(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    token_lengths: Sequence[int],
    corruption: float = 0.0,
    generator: np.random.Generator | None = None,
    instruction: str = INSTRUCTION,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Make `input_ids` and `labels` of answers.

    `corruption` is the share of transcript tokens replaced in the decoder's input (not in its
    labels), so that it learns to listen rather than to guess from what was said before.
    """
    rows, labels = [], []
    for text, tokens in zip(texts, token_lengths, strict=True):
        answer = answer_ids(tokenizer, text)
        prompt = prompt_ids(tokenizer, tokens, instruction)
        read = np.array(answer, dtype=np.int64)
        if generator is not None and len(read):
            wrong = generator.random(len(read)) < corruption
            first = tokenizer.token_to_id("▁")
            read = np.where(wrong, generator.integers(first, VOCABULARY, len(read)), read)
        rows.append([*prompt, *read])
        labels.append([IGNORED] * (len(prompt) - 1) + [*answer, CONTROL["<turn|>"]])
    length = max(map(len, rows))
    return (
        torch.tensor([row + [CONTROL["<pad>"]] * (length - len(row)) for row in rows]),
        torch.tensor([row + [IGNORED] * (length - len(row)) for row in labels]),
    )


def collate(
    frames: list[np.ndarray],
    clips: list[Clip],
    tokenizer: Tokenizer,
    pronunciations: Pronunciations,
    *,
    corruption: float = 0.0,
    generator: np.random.Generator | None = None,
) -> Batch:
    """Make a batch of features and transcripts; `corruption` is that of `sequences`."""
    longest = max(len(clip) for clip in frames)
    features = np.zeros((len(frames), longest, MELS), dtype=np.float32)
    mask = np.zeros((len(frames), longest), dtype=bool)
    for number, clip in enumerate(frames):
        features[number, : len(clip)] = clip
        mask[number, : len(clip)] = True
    tokens = [-(-len(clip) // FRAMES_PER_TOKEN) for clip in frames]
    phones = [pronunciations.numbers(clip) for clip in clips]
    texts = [clip.text for clip in clips]
    words = [answer_ids(tokenizer, text) for text in texts]
    return Batch(
        *sequences(tokenizer, texts, tokens, corruption, generator),
        torch.tensor(tokens),
        torch.from_numpy(features),
        torch.from_numpy(mask),
        torch.tensor([phone for said in phones for phone in said], dtype=torch.long),
        torch.tensor([len(said) for said in phones]),
        torch.tensor([word for said in words for word in said], dtype=torch.long),
        torch.tensor([len(said) for said in words]),
        torch.from_numpy(
            np.concatenate(
                [
                    heard(clip, pronunciations, count)
                    for clip, count in zip(clips, tokens, strict=True)
                ]
            )
        ),
    )


def _kind(shard: str, clip: Clip) -> str:
    if shard.startswith(("voices", "more")):
        return "hibari" if clip.source == "hibari" else "other voices"
    return shard.split("-")[0]


class TrainingClips:
    """The training shards, drawn from at random.

    Parameters
    ----------
    work : Path
        The work folder; its `shards` are read.
    settings : Settings
        Frames of a batch, padding included, and of the longest clip; the seed.
    """

    def __init__(self, work: Path, tokenizer: Tokenizer, settings: Settings) -> None:
        self.tokenizer, self._settings = tokenizer, settings
        self.pronunciations = Pronunciations(work / PHONES)
        self._clips: dict[str, list[tuple[Shard, Clip]]] = {kind: [] for kind in WEIGHTS}
        banned = ban(work)
        for path in training_shards(work):
            shard = Shard(path)
            keys = (key for clip in shard.clips for key in clip.key.split("+"))
            guard(path.stem, keys, (clip.text for clip in shard.clips), banned)
            for clip in shard.clips:
                self._clips[_kind(path.stem, clip)].append((shard, clip))

    def of(self, kind: str) -> Sequence[tuple[Shard, Clip]]:
        """Give the clips of a kind, each with its shard."""
        return self._clips[kind]

    @property
    def hours(self) -> dict[str, float]:
        """Hours of speech per kind."""
        return {
            kind: sum(clip.frames for _, clip in clips) / 360_000
            for kind, clips in self._clips.items()
        }

    def _pool(
        self, weights: dict[str, float], generator: np.random.Generator
    ) -> list[list[tuple[Shard, Clip]]]:
        """Draw clips and divide them into batches, clips of like length together."""
        kinds = generator.choice(list(weights), POOL, p=list(weights.values()))
        drawn = [self._clips[kind][generator.integers(len(self._clips[kind]))] for kind in kinds]
        short = [pair for pair in drawn if pair[1].frames <= self._settings.longest]
        batches: list[list[tuple[Shard, Clip]]] = [[]]
        for pair in sorted(short, key=lambda pair: pair[1].frames):
            full = (len(batches[-1]) + 1) * pair[1].frames > self._settings.batch_frames
            if full and batches[-1]:
                batches.append([])
            batches[-1].append(pair)
        return batches

    def _batch(self, pairs: list[tuple[Shard, Clip]], generator: np.random.Generator) -> Batch:
        frames = []
        for shard, clip in pairs:
            frames.append(changed(shard.frames(clip), clip, generator))
        return collate(
            frames,
            [clip for _, clip in pairs],
            self.tokenizer,
            self.pronunciations,
            corruption=CORRUPTION,
            generator=generator,
        )

    def once(
        self, counts: Mapping[str, int], rank: int, processes: int
    ) -> Iterator[tuple[Batch, list[tuple[str, Clip]]]]:
        """Yield some clips of each kind once, in batches, with the kinds and the clips.

        They are changed as in training; each process has a share of them.
        """
        generator = np.random.default_rng([self._settings.seed, rank])
        drawn: list[tuple[str, Shard, Clip]] = []
        for kind, most in counts.items():
            order = np.random.default_rng(self._settings.seed).permutation(len(self._clips[kind]))
            drawn += [(kind, *self._clips[kind][n]) for n in order[:most][rank::processes]]
        short = [each for each in drawn if each[2].frames <= self._settings.longest]
        short.sort(key=lambda each: each[2].frames)
        size = max(1, self._settings.batch_frames // self._settings.longest * 4)
        for start in range(0, len(short), size):
            part = short[start : start + size]
            batch = self._batch([(shard, clip) for _, shard, clip in part], generator)
            yield batch, [(kind, clip) for kind, _, clip in part]

    def stream(
        self, rank: int, step: int, kinds: Callable[[int], dict[str, float]]
    ) -> Iterator[Batch]:
        """Yield batches without end, from a step on.

        Parameters
        ----------
        rank : int
            The process: each has batches of its own.
        step : int
            The first to give; what is given is what would have come after those before it.
        kinds : callable
            How often a clip of each kind is drawn, by the step at which a pool begins.
        """
        reached = 0
        for pool in count():
            generator = np.random.default_rng([self._settings.seed, rank, pool])
            batches = self._pool(kinds(reached), generator)
            for place in generator.permutation(len(batches)):
                if reached >= step:
                    own = np.random.default_rng([self._settings.seed, rank, pool, place])
                    yield self._batch(batches[place], own)
                reached += 1
