"""What is kept for testing: recordings by their keys, made-up texts by their hash; and what training may not say.

The keys are in `heldout.txt`. A text of two words or more is kept if its hash says so: no voice says it for training, and the
test sets of synthetic speech have no other, but for one in which only the voice is unseen. And no training clip of two words or more, recorded or made up, says all the words of a recording that is kept in their order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path

HELD_OUT = Path(__file__).with_name("heldout.txt")
TEXT_SHARE = 6  # one text in six
LEAST = 2  # words: single ones are in every text
RECORDED = ("real", "joined")
"""Kinds of clips whose texts nobody made up: they may be among those that are kept."""


def held_out_keys() -> set[str]:
    """Read the committed list of recordings that are kept for testing."""
    return set(HELD_OUT.read_text().split())


def kept(transcript: str) -> bool:
    """Tell whether a made-up text is kept for testing."""
    several = len(transcript.split()) >= LEAST
    return several and hashlib.sha256(transcript.encode()).digest()[0] % TEXT_SHARE == 0


class Ban:
    """The transcripts of recordings that are kept for testing.

    Parameters
    ----------
    transcripts : collection of str
        Those of fewer than two words are left out.
    """

    def __init__(self, transcripts: Collection[str]) -> None:
        self._said = [f" {text} " for text in transcripts if len(text.split()) >= LEAST]

    def on(self, transcript: str) -> bool:
        """Tell whether a text says one of them."""
        return any(banned in f" {transcript} " for banned in self._said)


def guard(kind: str, keys: Iterable[str], texts: Iterable[str], ban: Ban) -> None:
    """Refuse to train on clips that are kept for testing, or say what is.

    Parameters
    ----------
    kind : str
        The shard's name.
    keys, texts : iterables of str
        Of its clips.

    Raises
    ------
    ValueError
    """
    if leaked := held_out_keys() & set(keys):
        raise ValueError(f"{kind}: held-out recordings in a training set: {sorted(leaked)}")
    said = set(texts)
    made_up = set() if kind in RECORDED else {text for text in said if kept(text)}
    if leaked := made_up | {text for text in said if ban.on(text)}:
        raise ValueError(f"{kind}: held-out texts in a training set: {sorted(leaked)[:5]}")
