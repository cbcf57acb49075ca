"""The model's scope: which words it is for, and what it is measured on.

It is for phrases of two words to ten seconds, made of the words of `phrases.toml` and of the English of `spanish.toml`, and of those
that at least two of the training prompts say. A word alone is out of it: the model takes it for another too often.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

from train.recordings import divided, prompts
from train.texts import GRAMMAR, WORDS, transcript
from train.translations import PAIRS

PROMPTS, LEAST, LONGEST = 2, 2, 10.0  # prompts that say a word, words of a phrase, its seconds


def _said(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in transcript(re.sub(r"\{\w+\}", " ", text)).split()}


def scope(texts: Iterable[str]) -> set[str]:
    """List the words of the scope, given the texts of the training prompts."""
    said = Counter(word for text in texts for word in set(transcript(text).split()))
    tables = (*WORDS.values(), *GRAMMAR.values())
    english = (english for pairs in PAIRS.values() for english, _ in pairs)
    return (
        {word for word, count in said.items() if count >= PROMPTS}
        | _said(text for table in tables for text in table)
        | _said(english)
    )


def training_scope(work: Path) -> set[str]:
    """List the words of the scope, given the work folder with the recordings."""
    return scope(recording.text for recording in divided(prompts(work))[0])


def within(text: str, words: Collection[str], seconds: float = 0.0) -> bool:
    """Tell whether what is said lies in the scope, given its words and how long it takes."""
    said = text.split()
    return len(said) >= LEAST and seconds <= LONGEST and all(word in words for word in said)
