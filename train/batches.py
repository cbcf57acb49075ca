"""Batches: which clips are seen together, and the tensors made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from train.corpus import PHONES, TRAINING
from train.features import MELS, Clip, Shard
from train.phones import Pronunciations
from train.recordings import guard
from train.tokens import CONTROL, prompt_ids

WEIGHTS = {"real": 0.26, "joined": 0.28, "hibari": 0.31, "other voices": 0.12, "silence": 0.03}
"""How often a clip of each kind is drawn."""
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
    """

    features: torch.Tensor
    mask: torch.Tensor
    input_ids: torch.Tensor
    labels: torch.Tensor
    targets: torch.Tensor
    target_lengths: torch.Tensor
    token_lengths: torch.Tensor


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


def collate(
    frames: list[np.ndarray],
    texts: list[str],
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
    answers = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    phones = [pronunciations.numbers(text) for text in texts]
    rows, labels = [], []
    for number, (clip, answer) in enumerate(zip(frames, answers, strict=True)):
        features[number, : len(clip)] = clip
        mask[number, : len(clip)] = True
        prompt = prompt_ids(tokenizer, -(-len(clip) // 4))
        heard = np.array(answer, dtype=np.int64)
        if generator is not None and len(heard):
            wrong = generator.random(len(heard)) < corruption
            first = tokenizer.token_to_id("▁")
            heard = np.where(
                wrong, generator.integers(first, tokenizer.get_vocab_size(), len(heard)), heard
            )
        rows.append([*prompt, *heard])
        labels.append([IGNORED] * (len(prompt) - 1) + [*answer, CONTROL["<turn|>"]])
    length = max(map(len, rows))
    return Batch(
        torch.from_numpy(features),
        torch.from_numpy(mask),
        torch.tensor([row + [CONTROL["<pad>"]] * (length - len(row)) for row in rows]),
        torch.tensor([row + [IGNORED] * (length - len(row)) for row in labels]),
        torch.tensor([phone for said in phones for phone in said], dtype=torch.long),
        torch.tensor([len(said) for said in phones]),
        torch.tensor([-(-len(clip) // 4) for clip in frames]),
    )


def _kind(shard: str, clip: Clip) -> str:
    if shard.startswith("voices"):
        return "hibari" if clip.source == "hibari" else "other voices"
    return shard


class TrainingClips:
    """The training shards, drawn from at random.

    Parameters
    ----------
    work : Path
        The work folder; its `shards` are read.
    frames : int
        The most frames in a batch, padding included.
    """

    def __init__(self, work: Path, tokenizer: Tokenizer, frames: int, seed: int) -> None:
        self._tokenizer, self._budget = tokenizer, frames
        self.pronunciations = Pronunciations(work / PHONES)
        self._generator = np.random.default_rng(seed)
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

    @property
    def hours(self) -> dict[str, float]:
        """Hours of speech per kind."""
        return {
            kind: sum(clip.frames for _, clip in clips) / 360_000
            for kind, clips in self._clips.items()
        }

    def _pool(self) -> list[tuple[Shard, Clip]]:
        kinds = self._generator.choice(list(WEIGHTS), POOL, p=list(WEIGHTS.values()))
        drawn = [
            self._clips[kind][self._generator.integers(len(self._clips[kind]))] for kind in kinds
        ]
        return sorted(drawn, key=lambda pair: pair[1].frames)

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
                texts = [clip.text for _, clip in batches[number]]
                yield collate(
                    frames,
                    texts,
                    self._tokenizer,
                    self.pronunciations,
                    corruption=0.08,
                    generator=self._generator,
                )
