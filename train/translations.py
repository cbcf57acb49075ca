"""Sentences in English and Spanish, from the pairs in `spanish.toml`, and how near a translation is to one."""

from __future__ import annotations

import random
import re
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from train.split import kept

_TABLE: dict[str, list[str]] = tomllib.loads(Path(__file__).with_name("spanish.toml").read_text())
PAIRS: dict[str, list[list[str]]] = {
    name: [pair.split(" | ") for pair in pairs] for name, pairs in _TABLE.items()
}
ORDERS = 6  # the longest runs of characters that chrF compares


class Translations:
    """The source of sentences.

    Parameters
    ----------
    seed : int
        Fixes every choice.
    testing : bool
        Give the sentences that are held out, instead of the others.
    """

    def __init__(self, seed: int, *, testing: bool = False) -> None:
        self._random, self._testing = random.Random(seed), testing

    def draw(self) -> tuple[str, str]:
        """Make up a sentence: English, Spanish."""
        while True:
            english, spanish = self._random.choice(PAIRS["sentence"])
            while names := re.findall(r"\{(\w+)\}", english):
                slot = names[0]
                pair = self._random.choice(PAIRS[slot.rstrip("2345")])
                english, spanish = (
                    text.replace(f"{{{slot}}}", words)
                    for text, words in zip((english, spanish), pair, strict=True)
                )
            if kept(english) == self._testing:
                return english, spanish


def chrf(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Give chrF2 of a set, from 0 to 100: the F-score of runs of characters, spaces left out.

    Counts are summed over the set, then precision and recall are averaged over the orders, as sacrebleu does.
    """
    matched, written, wanted = [0] * ORDERS, [0] * ORDERS, [0] * ORDERS
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        for order in range(ORDERS):
            there, made = (
                Counter(text[at : at + order + 1] for at in range(len(text) - order))
                for text in (reference.replace(" ", ""), hypothesis.replace(" ", ""))
            )
            matched[order] += (there & made).total()
            written[order] += made.total()
            wanted[order] += there.total()
    used = [order for order in range(ORDERS) if written[order] and wanted[order]]
    if not used:
        return 0.0
    precision = sum(matched[order] / written[order] for order in used) / len(used)
    recall = sum(matched[order] / wanted[order] for order in used) / len(used)
    return 100 * 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0
