"""Batches: which clips are seen together, and the tensors made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from train.corpus import PHONES, TRAINING
from train.features import FRAMES_PER_TOKEN, MELS, Clip, Shard
from train.phones import BLANK, Pronunciations
from train.recordings import guard
from train.tokens import CONTROL, prompt_ids

WEIGHTS = {
    "real": 0.30,
    "joined": 0.26,
    "hibari": 0.26,
    "other voices": 0.06,
    "silence": 0.03,
    "aligned": 0.09,
}
"""How often a clip of each kind is drawn."""
ALIGNED = {"aligned": 0.95, "silence": 0.05}
"""The same, while the tower learns phones from their times."""
TOKEN_SECONDS, DELAY = 0.04, 0.06
POOL = 512
IGNORED = -100


@dataclass
class Batch:
    """Clips padded to the longest, and the token sequences the decoder is trained on.

    Attributes
    ----------
    features : Tensor, shape (clips, frames, 128)
    mask : Tensor of bool, shape (clips, frames)
    input_ids : Tensor, shape (clips, tokens)
        Prompt, transcript and end of turn.
    labels : Tensor, shape (clips, tokens)
        The token to follow each position, `IGNORED` outside the answer.
    targets : Tensor, shape (phones,)
        The phones of the transcripts one after the other, for CTC.
    target_lengths, token_lengths : Tensor, shape (clips,)
        Phones of each transcript, and soft tokens of each clip.
    heard : Tensor, shape (all soft tokens,)
        The phone of each soft token, `IGNORED` where it is not known.
    """

    features: torch.Tensor
    mask: torch.Tensor
    input_ids: torch.Tensor
    labels: torch.Tensor
    targets: torch.Tensor
    target_lengths: torch.Tensor
    token_lengths: torch.Tensor
    heard: torch.Tensor


def spec_augmented(frames: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Hide up to two bands of frequency and two spans of time behind the clip's mean."""
    frames, mean = frames.copy(), frames.mean()
    for _ in range(2):
        width = generator.integers(0, 18)
        start = generator.integers(0, MELS - width)
        frames[:, start : start + width] = mean
        length = generator.integers(0, min(16, len(frames) // 6) + 1)
        start = generator.integers(0, len(frames) - length + 1)
        frames[start : start + length] = mean
    return frames


def heard(clip: Clip, pronunciations: Pronunciations) -> np.ndarray:
    """Give the phone each soft token of a clip should tell, where that is known.

    The tower hears nothing ahead: a token answers for the time `DELAY` before its middle.
    """
    if not clip.text:
        return np.full(clip.tokens, BLANK)
    if not clip.timed:
        return np.full(clip.tokens, IGNORED)
    phones, ends = zip(*clip.timed, strict=True)
    middles = (np.arange(clip.tokens) + 0.5) * TOKEN_SECONDS - DELAY
    places = np.minimum(np.searchsorted(ends, middles), len(phones) - 1)
    return np.array([pronunciations.number(phones[place]) for place in places])


def collate(
    frames: list[np.ndarray],
    clips: list[Clip],
    tokenizer: Tokenizer,
    pronunciations: Pronunciations,
    *,
    corruption: float = 0.0,
    generator: np.random.Generator | None = None,
) -> Batch:
    """Make a batch of features and transcripts.

    `corruption` is the share of transcript tokens replaced in the decoder's input (not in its
    labels), so that it learns to listen rather than to guess from what was said before.
    """
    longest = max(len(clip) for clip in frames)
    features = np.zeros((len(frames), longest, MELS), dtype=np.float32)
    mask = np.zeros((len(frames), longest), dtype=bool)
    answers = [tokenizer.encode(clip.text, add_special_tokens=False).ids for clip in clips]
    phones = [pronunciations.numbers(clip) for clip in clips]
    rows, labels = [], []
    for number, (clip, answer) in enumerate(zip(frames, answers, strict=True)):
        features[number, : len(clip)] = clip
        mask[number, : len(clip)] = True
        prompt = prompt_ids(tokenizer, -(-len(clip) // FRAMES_PER_TOKEN))
        read = np.array(answer, dtype=np.int64)
        if generator is not None and len(read):
            wrong = generator.random(len(read)) < corruption
            first = tokenizer.token_to_id("▁")
            read = np.where(
                wrong, generator.integers(first, tokenizer.get_vocab_size(), len(read)), read
            )
        rows.append([*prompt, *read])
        labels.append([IGNORED] * (len(prompt) - 1) + [*answer, CONTROL["<turn|>"]])
    length = max(map(len, rows))
    return Batch(
        torch.from_numpy(features),
        torch.from_numpy(mask),
        torch.tensor([row + [CONTROL["<pad>"]] * (length - len(row)) for row in rows]),
        torch.tensor([row + [IGNORED] * (length - len(row)) for row in labels]),
        torch.tensor([phone for said in phones for phone in said], dtype=torch.long),
        torch.tensor([len(said) for said in phones]),
        torch.tensor([-(-len(clip) // FRAMES_PER_TOKEN) for clip in frames]),
        torch.from_numpy(np.concatenate([heard(clip, pronunciations) for clip in clips])),
    )


def _kind(shard: str, clip: Clip) -> str:
    if shard.startswith("voices"):
        return "hibari" if clip.source == "hibari" else "other voices"
    return shard.split("-")[0]


class TrainingClips:
    """The training shards, drawn from at random.

    Parameters
    ----------
    work : Path
        The work folder; its `shards` are read.
    frames : int
        The most frames in a batch, padding included.
    longest : int
        The most frames in a clip.

    Attributes
    ----------
    weights : dict
        How often a clip of each kind is drawn, from the next pool on.
    """

    def __init__(self, work: Path, tokenizer: Tokenizer, frames: int, longest: int) -> None:
        self._tokenizer, self._budget, self._longest = tokenizer, frames, longest
        self.pronunciations = Pronunciations(work / PHONES)
        self.seed(0)
        self.weights = WEIGHTS
        self._clips: dict[str, list[tuple[Shard, Clip]]] = {kind: [] for kind in WEIGHTS}
        paths = [
            path
            for pattern in TRAINING
            for path in sorted((work / "shards").glob(pattern + ".jsonl"))
        ]
        for path in paths:
            shard = Shard(path)
            guard(key for clip in shard.clips for key in clip.key.split("+"))
            for clip in shard.clips:
                self._clips[_kind(path.stem, clip)].append((shard, clip))

    def seed(self, seed: int) -> None:
        """Fix what is drawn from here on."""
        self._generator = np.random.default_rng(seed)

    @property
    def hours(self) -> dict[str, float]:
        """Hours of speech per kind."""
        return {
            kind: sum(clip.frames for _, clip in clips) / 360_000
            for kind, clips in self._clips.items()
        }

    def _pool(self) -> list[tuple[Shard, Clip]]:
        kinds = self._generator.choice(list(self.weights), POOL, p=list(self.weights.values()))
        drawn = [
            self._clips[kind][self._generator.integers(len(self._clips[kind]))] for kind in kinds
        ]
        short = [pair for pair in drawn if pair[1].frames <= self._longest]
        return sorted(short, key=lambda pair: pair[1].frames)

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches without end, clips of like length together."""
        while True:
            batches: list[list[tuple[Shard, Clip]]] = [[]]
            for pair in self._pool():
                if (len(batches[-1]) + 1) * pair[1].frames > self._budget and batches[-1]:
                    batches.append([])
                batches[-1].append(pair)
            for number in self._generator.permutation(len(batches)):
                frames = [
                    spec_augmented(shard.frames(clip), self._generator)
                    for shard, clip in batches[number]
                ]
                clips = [clip for _, clip in batches[number]]
                yield collate(
                    frames,
                    clips,
                    self._tokenizer,
                    self.pronunciations,
                    corruption=0.08,
                    generator=self._generator,
                )
