"""Phones: what the tower is trained to hear, by CTC, beside what the decoder writes.

English spelling hides which words sound alike; phones are far quicker to learn from few hours.
They are made from the transcripts by Hibari's pronunciation rules, without stress or punctuation,
and are not needed once the model is trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from train.features import Clip
from train.voices import hibari_engine

BLANK = 0


def pronounced(text: str) -> str:
    """Give the phones of a transcript, one character each, with spaces between the words."""
    spoken = "".join(hibari_engine().phonemize(text)) if text else ""
    return "".join(sign for sign in spoken if sign == " " or (sign.isalpha() and sign not in "ˈˌː"))


def write(path: Path, texts: Iterable[str]) -> None:
    """Write the phones of all texts to a file."""
    phones = {text: pronounced(text) for text in sorted(set(texts))}
    path.write_text(json.dumps(phones, ensure_ascii=False))


class Pronunciations:
    """The phones of the corpus as numbers; 0 is CTC's blank."""

    def __init__(self, path: Path) -> None:
        self._phones: dict[str, str] = json.loads(path.read_text())
        alphabet = sorted(set("".join(self._phones.values())) - {" "})
        self._numbers = {phone: number for number, phone in enumerate(alphabet, start=BLANK + 1)}

    def __len__(self) -> int:
        return len(self._numbers) + 1

    def number(self, phone: str) -> int:
        """Give the number of a phone; of silence, the blank."""
        return self._numbers[phone] if phone else BLANK

    def numbers(self, clip: Clip) -> list[int]:
        """Give the phones of a clip of the corpus."""
        if clip.timed:
            return [self.number(phone) for phone, _ in clip.timed if phone]
        said = clip.phones or self.spoken(clip.text)
        return [self._numbers[phone] for phone in said if phone != " "]

    def of(self, phones: str) -> list[int] | None:
        """Give the numbers of phones as `pronounced` writes them; None if one is not in the corpus."""
        said = phones.replace(" ", "")
        return (
            [self._numbers[phone] for phone in said] if self._numbers.keys() >= set(said) else None
        )

    def spoken(self, text: str) -> str:
        """Give the phones of a transcript of the corpus, word by word."""
        return self._phones[text]
