"""Log-mel features, computed as Gemma 4's processor does, and the shards that keep them.

A shard is `NAME.npy`, the valid frames of all its clips one after the other, shape (frames, 128)
in float16, and `NAME.jsonl`, one line of `Clip` per clip.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Gemma4AudioFeatureExtractor

from train.voices import Samples

MELS = 128
FRAMES_PER_TOKEN = 4


@dataclass(frozen=True)
class Clip:
    """One utterance of a shard: where its frames are, what is said, by whom."""

    start: int
    frames: int
    text: str
    source: str
    key: str
    timed: tuple[tuple[str, float], ...] = ()  # phones and the seconds at which they end, if known
    translation: str = ""  # in Spanish, if known
    phones: str = ""  # word by word, where the corpus does not tell

    @property
    def tokens(self) -> int:
        """How many soft tokens the audio tower makes of it."""
        return -(-self.frames // FRAMES_PER_TOKEN)


@cache
def _extractor() -> Gemma4AudioFeatureExtractor:
    return Gemma4AudioFeatureExtractor()


def log_mel(samples: Samples) -> np.ndarray:
    """Compute the valid frames of a clip, shape (frames, 128)."""
    made = _extractor()([samples], sampling_rate=16_000, return_tensors="np")
    return np.asarray(made["input_features"][0][made["input_features_mask"][0]], dtype=np.float32)


def write_shard(path: Path, clips: Iterable[tuple[Any, ...]]) -> None:
    """Write a shard of clips given as samples, transcript, source, key and perhaps phone times."""
    write_frames(path, ((log_mel(samples), *said) for samples, *said in clips))


def write_frames(path: Path, clips: Iterable[tuple[Any, ...]]) -> None:
    """Write a shard of clips given as frames, transcript, source, key and perhaps more of what `Clip` has."""
    features, lines, start = [], [], 0
    for frames, *said in clips:
        features.append(frames.astype(np.float16))
        lines.append(json.dumps(asdict(Clip(start, len(frames), *said))))
        start += len(frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path.with_suffix(".npy"), np.concatenate(features))
    written = path.with_suffix(".new")
    written.write_text("\n".join(lines) + "\n")
    written.replace(path.with_suffix(".jsonl"))  # which says that the shard is there


class Shard:
    """A shard read back; indexing gives the frames of a clip."""

    def __init__(self, path: Path) -> None:
        self.features = np.load(path.with_suffix(".npy"), mmap_mode="r")
        lines = path.with_suffix(".jsonl").read_text().splitlines()
        self.clips = [Clip(**json.loads(line)) for line in lines]

    def frames(self, clip: Clip) -> np.ndarray:
        """Return the features of one clip, float32."""
        return np.asarray(self.features[clip.start : clip.start + clip.frames], dtype=np.float32)
