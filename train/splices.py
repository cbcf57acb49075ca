"""Sentences nobody has said in the voice of the recordings: words cut out of the prompts and put in another order.

The recordings are few; a tower that hears each of them hundreds of times comes to know them by heart, and takes a new one for the one
that is most like it. CTC's best path through the phones tells where a word ends; mel frames are cut there, at the quietest place near by.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.bank import RECORDED, Bank
from train.batches import DELAY, TOKEN_SECONDS, TrainingClips, collate
from train.corpus import sentences
from train.features import FRAMES_PER_TOKEN, MELS, write_frames
from train.guidance import best_path
from train.losses import phone_scores, short
from train.scope import LONGEST
from train.texts import PUT_TOGETHER, transcript

COUNT = 2_500  # sentences of each process
KIND, SEED = "spliced", 80_000
FRUITLESS = 1_000  # texts in a row that cannot be put together before this is given up


@dataclass(frozen=True)
class Cut:
    """A recording as rows of four mel frames, cut into words.

    Attributes
    ----------
    rows : ndarray, shape (tokens, 512)
    words, phones : list of str
        The words, and the phones of each.
    edges : ndarray of int, shape (words + 1,)
        The row at which each word begins, and the one after the last.
    """

    rows: np.ndarray
    words: list[str]
    phones: list[str]
    edges: np.ndarray


def edges(rows: np.ndarray, ends: list[int], first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Find where words begin and end.

    Parameters
    ----------
    rows : ndarray, shape (tokens, 512)
    ends : list of int
        How many phones there are up to the end of each word.
    first, last : ndarray of int, shape (phones,)
        The soft tokens in which each phone is told; they come `DELAY` late.

    Returns
    -------
    ndarray of int, shape (words + 1,)
    """
    late = DELAY / TOKEN_SECONDS
    inner = [(last[end - 1] + first[end] + 1) / 2 - late for end in ends[:-1]]
    loudness = rows.mean(1)
    found = [max(0, int(first[0] - late))]
    for place in inner:
        low = max(found[-1] + 1, round(place) - 1)
        near = np.arange(low, max(low + 1, round(place) + 2)).clip(1, len(rows) - 1)
        quiet = [min(loudness[at - 1], loudness[at]) for at in near]
        found.append(int(near[int(np.argmin(quiet))]))
    found.append(min(len(rows), max(found[-1] + 1, int(np.ceil(last[-1] + 2 - late)))))
    return np.array(found)


@torch.no_grad()
def cut(model: Any, ctc_head: torch.nn.Linear, clips: TrainingClips) -> Iterator[Cut]:
    """Cut every recorded training prompt into its words, as far as it can be told where they are."""
    model.eval()
    told, seen = clips.pronunciations, set()
    for shard, clip in clips.of("real"):
        phones = told.spoken(clip.text).split()
        words = clip.text.split()
        if clip.key in seen or len(phones) != len(words):
            continue
        seen.add(clip.key)  # the first is the recording, those after it are changed copies
        frames = shard.frames(clip)
        batch = collate([frames], [clip], clips.tokenizer, told).to(model.device)
        with short(model.device):
            out = model.model.get_audio_features(batch.features, batch.mask)
        soft = out.pooler_output[out.attention_mask].float()
        scores = phone_scores(ctc_head, soft, batch).cpu().numpy()
        (path,) = best_path(scores, [batch.targets.tolist()], batch.token_lengths.tolist())
        if path is None:
            continue
        rows = np.zeros((clip.tokens, FRAMES_PER_TOKEN * MELS), np.float32)
        rows.reshape(-1, MELS)[: len(frames)] = frames
        rows.reshape(-1, MELS)[len(frames) :] = frames[-1]
        ends = np.cumsum([len(said) for said in phones]).tolist()
        yield Cut(rows, words, phones, edges(rows, ends, *path))


def bank(cuts: list[Cut]) -> tuple[Bank, dict[str, tuple[int, str]]]:
    """Make a bank of cut recordings; give the number of each word in it, and its phones."""
    known: dict[str, tuple[int, str]] = {}
    for recording in cuts:
        for word, phones in zip(recording.words, recording.phones, strict=True):
            known.setdefault(word, (len(known) + 1, phones))
    clips = [
        {
            "kind": KIND,
            "speaker": RECORDED,
            "tokens": len(recording.rows),
            "pieces": [known[word][0] for word in recording.words],
            "path": (recording.edges[:-1], recording.edges[1:] - 1),
        }
        for recording in cuts
    ]
    return Bank(np.concatenate([recording.rows for recording in cuts]), clips), known


def spliced(
    cuts: list[Cut], work: Path, seed: int, count: int
) -> Iterator[tuple[np.ndarray, str, str, str, tuple[()], str, str]]:
    """Put sentences together; yield what `write_frames` takes."""
    units, known = bank(cuts)
    source, generator = sentences(work, seed, PUT_TOGETHER), np.random.default_rng(seed)
    made = fruitless = 0
    while made < count:
        text = transcript(source.draw())
        words = text.split()
        played = (
            units.played(RECORDED, [known[word][0] for word in words], generator)
            if known.keys() >= set(words)
            else None
        )
        if played is None or sum(len(rows) for rows, _, _ in played) * TOKEN_SECONDS > LONGEST:
            fruitless += 1
            if fruitless == FRUITLESS:
                raise ValueError("the cut recordings have too few words to make sentences of")
            continue
        parts = [units.pause(RECORDED, generator), *(rows for rows, _, _ in played)]
        parts.append(units.pause(RECORDED, generator))
        frames = np.concatenate(parts).reshape(-1, MELS)
        phones = " ".join(known[word][1] for word in words)
        yield frames, text, KIND, f"{seed}/{made}", (), "", phones
        made, fruitless = made + 1, 0


def write(
    work: Path, model: Any, ctc_head: torch.nn.Linear, clips: TrainingClips, rank: int
) -> None:
    """Write one process's shard of sentences, unless it is there."""
    path = work / "shards" / f"{KIND}-{rank}"
    if not path.with_suffix(".jsonl").exists():
        cuts = list(cut(model, ctc_head, clips))
        write_frames(path, spliced(cuts, work, SEED + rank, COUNT))
