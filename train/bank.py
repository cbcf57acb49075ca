"""A bank of soft tokens, cut by phone, and sentences put together from it.

What a decoder learns last is to listen, because it hears few texts: it knows them by heart. Once the tower is
finished it is run over training clips; CTC's best path cuts its soft tokens into phones; and any
text whose pronunciation is known can then be played to the decoder without a recording, as
unit selection does it with samples: the longest runs of phones that the bank has, from one speaker.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.batches import Batch, TrainingClips
from train.guidance import Path as Heard
from train.guidance import best_path
from train.losses import phone_scores
from train.phones import BLANK

CLIPS = {"real": 3_000, "joined": 600, "hibari": 1_800, "other voices": 1_500, "silence": 250}
"""How many clips of each kind are taken, or all."""
RECORDED = "recorded"
LONGEST_UNIT, LONGEST_RUN, KEY = 12, 6, 8
MISHEARD, BLENDED, STRETCHED = 0.03, 0.12, 0.12


@dataclass(frozen=True)
class Spoken:
    """What the decoder is given: soft tokens, what they say, and where each phone is heard.

    Attributes
    ----------
    soft : ndarray, shape (tokens, width)
    text : str
    path : (first, last) or None
        First and last soft token of each phone, as `best_path` gives them.
    """

    soft: np.ndarray
    text: str
    path: Heard | None


@torch.no_grad()
def heard(model: Any, ctc_head: torch.nn.Linear, batch: Batch) -> tuple[Any, ...]:
    """Return the soft tokens of each clip, CTC's paths, and how phones are taken for each other."""
    out = model.model.get_audio_features(batch.features, batch.mask)
    soft = out.pooler_output[out.attention_mask]
    scores = phone_scores(ctc_head, soft, batch).numpy()
    targets = [part.tolist() for part in batch.targets.split(batch.target_lengths.tolist())]
    paths = best_path(scores, targets, batch.token_lengths.tolist())
    confused = np.zeros((scores.shape[2], scores.shape[2]), dtype=np.float32)
    for clip, (path, said) in enumerate(zip(paths, targets, strict=True)):
        if path is not None:
            np.add.at(confused, said, np.exp(scores[path[0], clip]))
    return soft.split(batch.token_lengths.tolist()), paths, confused


def fill(
    model: Any,
    ctc_head: torch.nn.Linear,
    clips: TrainingClips,
    path: Path,
    rank: int,
    processes: int,
) -> None:
    """Write one process's share of the bank: `path` with the soft tokens, and `.json` beside it."""
    model.eval()
    soft: list[np.ndarray] = []
    lines: list[dict[str, Any]] = []
    confused: Any = 0
    for batch, pairs in clips.once(CLIPS, rank, processes):
        parts, paths, mixed = heard(model, ctc_head, batch)
        confused = confused + mixed
        for part, found, (kind, clip) in zip(parts, paths, pairs, strict=True):
            soft.append(part.numpy().astype(np.float16))
            lines.append(
                {
                    "kind": kind,
                    "speaker": RECORDED if kind in ("real", "joined") else clip.source,
                    "text": clip.text,
                    "tokens": len(part),
                    "phones": clips.pronunciations.numbers(clip),
                    "path": None if found is None else [edge.tolist() for edge in found],
                }
            )
    path.with_suffix(".json").write_text(
        json.dumps({"clips": lines, "confused": confused.tolist()})
    )
    np.save(path.with_suffix(".new.npy"), np.concatenate(soft))
    path.with_suffix(".new.npy").replace(path.with_suffix(".npy"))


class Bank:
    """The bank read back.

    Parameters
    ----------
    paths : sequence of Path
        The files `fill` has written.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        read = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
        self._soft = np.concatenate([np.load(path.with_suffix(".npy")) for path in paths])
        self._clips = [clip for part in read for clip in part["clips"]]
        self._starts = np.cumsum([0, *(clip["tokens"] for clip in self._clips)])
        self.kinds: dict[str, list[int]] = {}
        self._deviation = self._soft[::7].astype(np.float32).std(0)
        confused = np.sum([part["confused"] for part in read], axis=0)
        np.fill_diagonal(confused, 0)
        confused[:, BLANK] = 0
        self._confused = (confused + 1e-9) / (confused + 1e-9).sum(1, keepdims=True)
        self._cut()

    def _cut(self) -> None:
        """Cut the clips into phones and sort these by what follows."""
        said: list[str] = []
        units: list[tuple[int, int, int, int]] = []  # start, past, first and last of the phone
        speakers: list[str] = []
        self._pauses: dict[str, list[tuple[int, int]]] = {}
        for number, clip in enumerate(self._clips):
            self.kinds.setdefault(clip["kind"], []).append(number)
            if clip["path"] is None:
                continue
            start, (first, last) = int(self._starts[number]), clip["path"]
            edges = [max(0, first[0] - 2), *(at + 1 for at in last[:-1])]
            edges.append(min(clip["tokens"], last[-1] + 2))
            said.extend([*map(chr, clip["phones"]), "\0"])
            units += [
                (start + a, start + b, start + f, start + e)
                for a, b, f, e in zip(edges, edges[1:], first, last, strict=False)
            ]
            units.append((0, 0, 0, 0))
            speakers += [clip["speaker"]] * (len(first) + 1)
            pauses = self._pauses.setdefault(clip["speaker"], [])
            pauses.append((start, start + edges[0]))
            pauses.append((start + edges[-1], start + clip["tokens"]))
        self._units, self._said = units, "".join(said)
        self._places: dict[str, list[int]] = {}
        for place, speaker in enumerate(speakers):
            start, past, *_ = units[place]
            if 0 < past - start <= LONGEST_UNIT:
                self._places.setdefault(speaker, []).append(place)
        self._keys = {}
        for speaker, places in self._places.items():
            places.sort(key=lambda place: self._said[place : place + KEY])
            self._keys[speaker] = [self._said[place : place + KEY] for place in places]

    @property
    def speakers(self) -> list[str]:
        """The speakers there are units of, by name."""
        return sorted(self._places)

    def _find(self, speaker: str, run: str, generator: np.random.Generator) -> int | None:
        """Find a place at which a speaker says a run of phones."""
        keys = self._keys[speaker]
        low = bisect_left(keys, run)
        high = bisect_left(keys, run + "\uffff", low)
        return self._places[speaker][generator.integers(low, high)] if low < high else None

    def _chosen(self, speaker: str, said: str, generator: np.random.Generator) -> list[int] | None:
        """Choose a unit for each phone, in runs that follow the phone before them if there are such."""
        chosen: list[int] = []
        while len(chosen) < len(said):
            at = len(chosen)
            longest = min(len(said) - at, int(generator.integers(2, LONGEST_RUN + 1)))
            tries = [(1, n) for n in range(longest, 0, -1)] if at else [(0, longest)]
            tries += [(0, n) for n in range(min(2, longest), 0, -1)]
            for before, count in tries:
                place = self._find(speaker, said[at - before : at + count], generator)
                if place is not None:
                    chosen += range(place + before, place + before + count)
                    break
            else:
                return None
        return chosen

    def spoken(
        self, text: str, phones: Sequence[int], generator: np.random.Generator
    ) -> Spoken | None:
        """Put a text together; None if a phone of it is lacking.

        Some phones are taken for others, mixed with others, stretched or shortened: speech that was never trained
        on is heard less well than the clips of the bank.
        """
        speaker = RECORDED if generator.random() < 0.6 else str(generator.choice(self.speakers))
        really = "".join(map(chr, phones))
        said = "".join(
            chr(self._other(phone, generator)) if generator.random() < MISHEARD else chr(phone)
            for phone in phones
        )
        units = None
        for who, what in ((speaker, said), (RECORDED, really), ("hibari", really)):
            units = units or (self._chosen(who, what, generator) if who in self._keys else None)
        if units is None:
            return None
        parts, first, last = [self._pause(speaker, generator)], [], []
        at = len(parts[0])
        for unit, phone in zip(units, phones, strict=True):
            start, past, begins, ends = self._units[unit]
            part = self._soft[start:past].astype(np.float32)
            if generator.random() < BLENDED:
                part = self._blended(speaker, part, self._other(phone, generator), generator)
            places = np.arange(len(part))
            if generator.random() < STRETCHED:
                places = np.sort(np.append(places, generator.integers(len(part))))
            elif len(part) > 2 and generator.random() < STRETCHED:
                places = np.delete(places, generator.integers(len(part)))
            parts.append(part[places])
            first.append(at + min(begins - start, len(places) - 1))
            last.append(at + min(max(ends, begins) - start, len(places) - 1))
            at += len(places)
        parts.append(self._pause(speaker, generator))
        soft = self._noisy(np.concatenate(parts), generator)
        return Spoken(soft, text, (np.array(first), np.array(last)))

    def _other(self, phone: int, generator: np.random.Generator) -> int:
        """Draw what a phone is taken for."""
        return int(generator.choice(len(self._confused), p=self._confused[phone]))

    def _blended(
        self, speaker: str, part: np.ndarray, phone: int, generator: np.random.Generator
    ) -> np.ndarray:
        """Mix another phone into the soft tokens of one."""
        place = self._find(speaker, chr(phone), generator)
        if place is None:
            return part
        start, past, *_ = self._units[place]
        share = np.float32(generator.uniform(0, 0.6))
        places = np.linspace(start, past - 1, len(part)).round().astype(int)
        return (1 - share) * part + share * self._soft[places]

    def _pause(self, speaker: str, generator: np.random.Generator) -> np.ndarray:
        """Take the silence before or after a clip, up to half a second of it."""
        pauses = self._pauses.get(speaker) or self._pauses[RECORDED]
        start, past = pauses[generator.integers(len(pauses))]
        return self._soft[start : min(past, start + 12)].astype(np.float32)

    def _noisy(self, soft: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        noise = generator.standard_normal(soft.shape, dtype=np.float32)
        return soft + noise * self._deviation * np.float32(generator.uniform(0, 0.3))

    def recorded(self, kind: str, generator: np.random.Generator) -> Spoken:
        """Give a clip of the bank as it is, with some noise."""
        number = self.kinds[kind][generator.integers(len(self.kinds[kind]))]
        clip, start = self._clips[number], self._starts[number]
        soft = self._soft[start : start + clip["tokens"]].astype(np.float32)
        path = clip["path"] and (np.array(clip["path"][0]), np.array(clip["path"][1]))
        return Spoken(self._noisy(soft, generator), clip["text"], path)
