"""A bank of soft tokens, cut by word, and sentences put together from it.

What a decoder learns last is to listen, because it hears few texts: it knows them by heart. Once the tower is
finished it is run over training clips; CTC's best path cuts its soft tokens into the pieces of words; and any
text can then be played to the decoder without a recording, as unit selection does it with samples: the longest
runs of words that the bank has, from one speaker.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.batches import Batch
from train.features import Clip
from train.guidance import Path as Heard
from train.guidance import best_path
from train.losses import short, word_scores
from train.phones import BLANK
from train.tokens import INSTRUCTION, VOCABULARY

RECORDED = "recorded"
OF_RECORDINGS = ("real", "joined", "spliced")
LONGEST_UNIT, LONGEST_RUN, KEY = 40, 4, 6
BLENDED, STRETCHED = 0.10, 0.12
CONFUSED = 8  # pieces for which each is most often taken…
KEPT = 64  # …and those of each process among which they are looked for


@dataclass(frozen=True)
class Spoken:
    """What the decoder is given: soft tokens, what it is to answer, and where each piece of it is heard.

    Attributes
    ----------
    soft : ndarray, shape (tokens, width)
    text : str
    path : (first, last) or None
        First and last soft token of each piece, as `best_path` gives them.
    instruction : str
        What it is asked for.
    """

    soft: np.ndarray
    text: str
    path: Heard | None
    instruction: str = INSTRUCTION


@torch.no_grad()
def heard(model: Any, table: torch.Tensor, batch: Batch) -> tuple[Any, ...]:
    """Return the soft tokens of each clip, CTC's paths, and how pieces are taken for each other."""
    batch = batch.to(model.device)
    with short(model.device):
        out = model.model.get_audio_features(batch.features, batch.mask)
    soft = out.pooler_output[out.attention_mask].float()
    scores = word_scores(table, soft, batch).cpu().numpy()
    targets = [part.tolist() for part in batch.words.split(batch.word_lengths.tolist())]
    paths = best_path(scores, targets, batch.token_lengths.tolist())
    confused = np.zeros((VOCABULARY, VOCABULARY), dtype=np.float32)
    for clip, (path, said) in enumerate(zip(paths, targets, strict=True)):
        if path is not None:
            np.add.at(confused, said, np.exp(scores[path[0], clip]))
    return soft.cpu().split(batch.token_lengths.tolist()), paths, targets, confused


def fill(
    model: Any,
    table: torch.Tensor,
    drawn: Iterable[tuple[Batch, list[tuple[str, Clip]]]],
    path: Path,
) -> None:
    """Write one process's share of the bank: `path` with the soft tokens of batches, and `.json` beside it."""
    model.eval()
    soft: list[np.ndarray] = []
    lines: list[dict[str, Any]] = []
    confused: Any = 0
    for batch, pairs in drawn:
        parts, paths, targets, mixed = heard(model, table, batch)
        confused = confused + mixed
        for part, found, said, (kind, clip) in zip(parts, paths, targets, pairs, strict=True):
            soft.append(part.numpy().astype(np.float16))
            lines.append(
                {
                    "kind": kind,
                    "speaker": RECORDED if kind in OF_RECORDINGS else clip.source,
                    "text": clip.text,
                    "tokens": len(part),
                    "pieces": said,
                    "path": None if found is None else [edge.tolist() for edge in found],
                }
            )
    np.fill_diagonal(confused, 0)
    confused[:, BLANK] = 0
    told = {"clips": lines, "confused": [_often(row) for row in confused]}
    path.with_suffix(".json").write_text(json.dumps(told))
    np.save(path.with_suffix(".new.npy"), np.concatenate(soft))
    path.with_suffix(".new.npy").replace(path.with_suffix(".npy"))


def _often(row: np.ndarray) -> dict[int, float]:
    """Give what a piece is most often taken for, and how often."""
    places = np.argpartition(-row, KEPT)[:KEPT]
    return {int(place): float(row[place]) for place in places if row[place] > 0}


def most_confused(parts: Sequence[Sequence[Mapping[str, float]]]) -> list[list[int]]:
    """Add up what the processes found, and give for each piece those for which it is most often taken; none if nobody said it."""
    found = []
    for rows in zip(*parts, strict=True):
        total: Counter[int] = Counter()
        for row in rows:
            total.update({int(other): often for other, often in row.items()})
        found.append([other for other, _ in total.most_common(CONFUSED)])
    return found


class Bank:
    """Rows of sound, cut into what is said in them; `read` gives the one that `fill` has written.

    Parameters
    ----------
    soft : ndarray, shape (tokens, width)
        The rows of all clips one after the other.
    clips : sequence of dict
        Of each the kind, the speaker, the number of tokens, the pieces that are said, and where: first and last token of each.
    confused : sequence of sequence of int
        For which others each piece is taken.
    """

    def __init__(
        self,
        soft: np.ndarray,
        clips: Sequence[dict[str, Any]],
        confused: Sequence[Sequence[int]] = (),
    ) -> None:
        self._soft, self._clips, self._confused = soft, clips, confused
        self._starts = np.cumsum([0, *(clip["tokens"] for clip in clips)])
        self.kinds: dict[str, list[int]] = {}
        self._deviation = soft[::7].astype(np.float32).std(0)
        self._cut()

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Bank:
        """Read the files back that `fill` has written."""
        told = [json.loads(path.with_suffix(".json").read_text()) for path in paths]
        soft = np.concatenate([np.load(path.with_suffix(".npy")) for path in paths])
        clips = [clip for part in told for clip in part["clips"]]
        return cls(soft, clips, most_confused([part["confused"] for part in told]))

    def _cut(self) -> None:
        """Cut the clips into pieces of words and sort these by what follows."""
        said: list[str] = []
        units: list[tuple[int, int, int, int]] = []  # start, past, first and last of the piece
        speakers: list[str] = []
        self._pauses: dict[str, list[tuple[int, int]]] = {}
        for number, clip in enumerate(self._clips):
            self.kinds.setdefault(clip["kind"], []).append(number)
            if clip["path"] is None or not clip["pieces"]:
                continue
            start, (first, last) = int(self._starts[number]), clip["path"]
            edges = [max(0, first[0] - 2), *(at + 1 for at in last[:-1])]
            edges.append(min(clip["tokens"], last[-1] + 2))
            said.extend([*map(chr, clip["pieces"]), "\0"])
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
        """Find a place at which a speaker says a run of pieces."""
        keys = self._keys[speaker]
        low = bisect_left(keys, run)
        high = bisect_left(keys, run + "\uffff", low)
        return self._places[speaker][generator.integers(low, high)] if low < high else None

    def _chosen(self, speaker: str, said: str, generator: np.random.Generator) -> list[int] | None:
        """Choose a unit for each piece, in runs that follow the piece before them if there are such."""
        chosen: list[int] = []
        while len(chosen) < len(said):
            at = len(chosen)
            longest = min(len(said) - at, int(generator.integers(1, LONGEST_RUN + 1)))
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

    def played(
        self, speaker: str, pieces: Sequence[int], generator: np.random.Generator
    ) -> list[tuple[np.ndarray, int, int]] | None:
        """Let a speaker say some pieces; None if one is lacking.

        Returns
        -------
        list of (rows, first, last)
            For each piece its rows, and the first and the last of these in which it is heard.
        """
        if speaker not in self._keys:
            return None
        units = self._chosen(speaker, "".join(map(chr, pieces)), generator)
        if units is None:
            return None
        placed = (self._units[unit] for unit in units)
        return [
            (self._soft[start:past].astype(np.float32), first - start, last - start)
            for start, past, first, last in placed
        ]

    def spoken(
        self,
        text: str,
        pieces: Sequence[int],
        generator: np.random.Generator,
        recorded: float = 0.5,
    ) -> Spoken | None:
        """Put a text together, this often by the recorded speaker; None if a piece of it is lacking.

        Some pieces are mixed with others, stretched or shortened: speech that was never trained on is heard less
        well than the clips of the bank.
        """
        wanted = RECORDED if generator.random() < recorded else str(generator.choice(self.speakers))
        for speaker in (wanted, RECORDED, "hibari"):
            played = self.played(speaker, pieces, generator)
            if played is not None:
                break
        else:
            return None
        parts, first, last = [self.pause(speaker, generator)], [], []
        at = len(parts[0])
        for (part, begins, ends), piece in zip(played, pieces, strict=True):
            if generator.random() < BLENDED and self._confused[piece]:
                other = int(generator.choice(self._confused[piece]))
                part = self._blended(speaker, part, other, generator)
            places = np.arange(len(part))
            if generator.random() < STRETCHED:
                places = np.sort(np.append(places, generator.integers(len(part))))
            elif len(part) > 2 and generator.random() < STRETCHED:
                places = np.delete(places, generator.integers(len(part)))
            parts.append(part[places])
            first.append(at + min(begins, len(places) - 1))
            last.append(at + min(max(ends, begins), len(places) - 1))
            at += len(places)
        parts.append(self.pause(speaker, generator))
        soft = self._noisy(np.concatenate(parts), generator)
        return Spoken(soft, text, (np.array(first), np.array(last)))

    def _blended(
        self, speaker: str, part: np.ndarray, piece: int, generator: np.random.Generator
    ) -> np.ndarray:
        """Mix another piece into the soft tokens of one, the ends of both at the same place."""
        place = self._find(speaker, chr(piece), generator)
        if place is None:
            return part
        start, past, *_ = self._units[place]
        share = np.float32(generator.uniform(0, 0.5))
        places = np.maximum(np.arange(past - len(part), past), start)
        return (1 - share) * part + share * self._soft[places]

    def pause(self, speaker: str, generator: np.random.Generator) -> np.ndarray:
        """Take the silence before or after a clip, up to half a second of it."""
        pauses = self._pauses.get(speaker) or self._pauses[RECORDED]
        start, past = pauses[generator.integers(len(pauses))]
        return self._soft[start : min(past, start + 12)].astype(np.float32)

    def _noisy(self, soft: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        noise = generator.standard_normal(soft.shape, dtype=np.float32)
        return soft + noise * self._deviation * np.float32(generator.uniform(0, 0.3))

    def recorded(self, kind: str, generator: np.random.Generator) -> tuple[Spoken, list[int]]:
        """Give a clip of the bank as it is, with some noise, and its pieces."""
        number = self.kinds[kind][generator.integers(len(self.kinds[kind]))]
        clip, start = self._clips[number], self._starts[number]
        soft = self._soft[start : start + clip["tokens"]].astype(np.float32)
        path = clip["path"] and (np.array(clip["path"][0]), np.array(clip["path"][1]))
        return Spoken(self._noisy(soft, generator), clip["text"], path), clip["pieces"]
