"""Words to say: transcripts as the model writes them, and sentences made up for the voices.

A transcript is lower case words separated by single spaces. Numbers are words, apostrophes stay,
every other sign is gone. `Sentences` makes up texts: telephone prompts,
what else is said every day, numbers, times, dates, spelled letters, and words in no order, so that none can be guessed.
"""

from __future__ import annotations

import random
import re
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from train.split import Ban, kept
from train.translations import Translations

_PHRASES = tomllib.loads(Path(__file__).with_name("phrases.toml").read_text(encoding="utf-8"))
WORDS: dict[str, list[str]] = {name: words.split() for name, words in _PHRASES["words"].items()}
GRAMMAR: dict[str, list[str]] = _PHRASES["grammar"]
LISTED = ("ones", "tens", "sizes", "ordinals", "months", "days", "spelling", "letters", "clock")
ONES, TENS, ORDINALS = WORDS["ones"], WORDS["tens"], WORDS["ordinals"]

SPELLED = re.compile(r"\b(?:MGCP|PBX|IVR|USB|IAX)\b")
CORRECTIONS = {  # misspelt in the prompts' transcripts, or spelt in two ways
    "exclaimation": "exclamation",
    "fourtieth": "fortieth",
    "represenatives": "representatives",
    "umute": "unmute",
    "rerecord": "re record",
    "un indentified": "unidentified",
    "witheld": "withheld",
}
SIGNS = {"*": " star ", "#": " pound ", "&": " and ", "%": " percent ", "+": " plus "}


def cardinal(number: int) -> str:
    """Write a number below a billion in words, without "and"."""
    if number < 20:
        return ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens] + (f" {ONES[ones]}" if ones else "")
    for size, name in ((1_000_000, "million"), (1_000, "thousand"), (100, "hundred")):
        if number >= size:
            head, tail = divmod(number, size)
            return f"{cardinal(head)} {name}" + (f" {cardinal(tail)}" if tail else "")
    raise AssertionError(number)


def ordinal(number: int) -> str:
    """Write an ordinal below one hundred in words."""
    if number <= 20:
        return ORDINALS[number]
    tens, ones = divmod(number, 10)
    if ones:
        return f"{TENS[tens]} {ORDINALS[ones]}"
    return TENS[tens].removesuffix("y") + "ieth"


def _digits_in_words(match: re.Match[str]) -> str:
    digits = match.group()
    words = cardinal(int(digits)) if len(digits) <= 2 else " ".join(ONES[int(d)] for d in digits)
    return f" {words} "


def transcript(text: str) -> str:
    """Bring a text to the form the model is trained to write.

    Parameters
    ----------
    text : str
        Any English text. What stands in brackets is a remark and is dropped. Numbers of one or
        two digits become cardinals, longer ones are spelled digit by digit.

    Examples
    --------
    >>> transcript("Press 2 to re-record, or * to cancel. [beep]")
    'press two to re record or star to cancel'
    """
    text = unicodedata.normalize("NFKC", text).replace("\u2019", "'")
    text = SPELLED.sub(lambda match: " ".join(match.group()), text).lower()
    text = re.sub(r"\[.*?\]|\(.*?\)|<.*?>", " ", text)
    text = re.sub(r"\b([ap])\.m\.", r"\1 m", text)
    for sign, word in SIGNS.items():
        text = text.replace(sign, word)
    text = re.sub(r"\d+", _digits_in_words, text)
    text = re.sub(r"[^a-z' ]", " ", text)
    words = (word.strip("'") for word in text.split())
    text = " ".join(word for word in words if word)
    for wrong, right in CORRECTIONS.items():
        text = re.sub(rf"\b{wrong}\b", right, text)
    return text


def clauses(text: str) -> list[str]:
    """Split a text at its punctuation into clauses of two words or more."""
    parts = re.split(r"[.,;:!?]+\s|\.\.\.", re.sub(r"\[.*?\]|\(.*?\)", " ", text))
    return [part.strip(" .,;:!?") for part in parts if len(part.split()) > 1]


SPOKEN = {
    "prompt": 10,
    "joined_clauses": 10,
    "spans": 12,
    "altered": 10,
    "grammar": 18,
    "everyday": 14,
    "digits": 7,
    "number": 6,
    "time": 4,
    "date": 4,
    "spelled": 3,
    "any_words": 8,
}
"""The sentences for the synthetic voices."""
ALONE = {"alone": 1}
"""A word alone, which is harder than one among others: nothing around it helps."""
MEANT = {
    "grammar": 26,
    "everyday": 20,
    "digits": 10,
    "number": 8,
    "time": 8,
    "date": 8,
    "spelled": 4,
}
"""Those of them that a person might say: what the model is for, and tested with. The training prompts themselves are not among them."""
PUT_TOGETHER = {
    "joined_clauses": 6,
    "altered": 18,
    "spans": 14,
    "grammar": 16,
    "everyday": 20,
    "digits": 6,
    "number": 5,
    "time": 4,
    "date": 4,
    "spelled": 4,
    "any_words": 12,
    "alone": 8,
}
"""Those put together from the bank of soft tokens: more words, in orders that cannot be guessed."""


class Sentences:
    """Made-up sentences for the synthetic voices.

    Parameters
    ----------
    prompts : sequence of str
        Texts of the training prompts.
    ban : Ban
        On what no sentence may say.
    words : sequence of str
        Words for sequences without a grammar.
    seed : int
        Fixes every choice.
    kinds : dict
        How often each kind of sentence is made, by the name of its method.
    testing : bool
        Make those that are kept for testing and that no prompt says, instead of the others.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        ban: Ban,
        words: Sequence[str],
        seed: int,
        kinds: Mapping[str, int] = SPOKEN,
        *,
        testing: bool = False,
    ) -> None:
        self._random = random.Random(seed)
        self._prompts = [text for text in prompts if len(text.split()) <= 22]
        self._clauses = [clause for text in prompts for clause in clauses(text)]
        self._known = {transcript(text) for text in prompts} if testing else set()
        self._ban, self._testing = ban, testing
        self._words = words
        self._everyday = Translations(seed, testing=testing)
        self._kinds = {getattr(self, name): weight for name, weight in kinds.items()}

    def draw(self) -> str:
        """Make up one text."""
        kinds, weights = zip(*self._kinds.items(), strict=True)
        while True:
            text = self._random.choices(kinds, weights)[0]()
            said = transcript(text)
            meant = kept(said) == self._testing and said not in self._known
            if said and meant and not self._ban.on(said):
                return text

    def prompt(self) -> str:
        """Return a whole training prompt."""
        return self._random.choice(self._prompts)

    def joined_clauses(self) -> str:
        """Join up to three clauses of training prompts."""
        count = self._random.choices((1, 2, 3), (3, 3, 1))[0]
        return ", ".join(self._random.choice(self._clauses) for _ in range(count))

    def spans(self) -> str:
        """Join runs of words cut from training prompts, so that no order can be relied on."""
        cuts = []
        for _ in range(self._random.randint(1, 3)):
            words = self._random.choice(self._prompts).split()
            length = min(len(words), self._random.randint(1, 4))
            start = self._random.randint(0, len(words) - length)
            cuts.append(" ".join(words[start : start + length]).strip(".,:;"))
        return " ".join(cuts)

    def altered(self) -> str:
        """Put other words into a run of a training prompt."""
        words = self._random.choice(self._prompts).split()
        length = min(len(words), self._random.randint(2, 10))
        start = self._random.randint(0, len(words) - length)
        words = [word.strip(".,:;") for word in words[start : start + length]]
        for place in range(len(words)):
            if self._random.random() < 0.25:
                words[place] = self._random.choice(self._words)
        return " ".join(words)

    def everyday(self) -> str:
        """Give a sentence of which the translation is known, none of those kept for testing."""
        return f"{self._everyday.draw()[0]}."

    def grammar(self, symbol: str = "prompt") -> str:
        """Expand a symbol of `GRAMMAR`."""
        return re.sub(
            r"\{(\w+)\}", lambda match: self._symbol(match[1]), self._random.choice(GRAMMAR[symbol])
        )

    def _symbol(self, name: str) -> str:
        if name in GRAMMAR:
            return self.grammar(name)
        made = {
            "digits": self.digits,
            "count": self._count,
            "number": self.number,
            "time": self.time,
            "date": self.date,
            "day": lambda: self._random.choice(WORDS["days"]),
        }
        return made[name]()

    def _count(self) -> str:
        return cardinal(
            self._random.choice((self._random.randint(1, 20), self._random.randint(1, 99)))
        )

    def digits(self) -> str:
        """Read out between two and ten digits."""
        zero = self._random.choice(("zero", "oh"))
        count = self._random.choice((2, 3, 3, 4, 4, 5, 6, 7, 7, 10))
        drawn = [self._random.randrange(10) for _ in range(count)]
        return " ".join(zero if digit == 0 else ONES[digit] for digit in drawn)

    def number(self) -> str:
        """Say a cardinal or an ordinal."""
        if self._random.random() < 0.2:
            return ordinal(self._random.randint(1, 99))
        top = self._random.choice((20, 100, 100, 1_000, 1_000, 10_000, 100_000, 10_000_000))
        return cardinal(self._random.randrange(top))

    def time(self) -> str:
        """Say a time of day."""
        hour, minute = self._random.randint(1, 12), self._random.randrange(60)
        half = self._random.choice((" a.m.", " p.m.", ""))
        if minute == 0:
            return ONES[hour] + (half or " o'clock")
        return f"{ONES[hour]} {'oh ' if minute < 10 else ''}{cardinal(minute)}{half}"

    def date(self) -> str:
        """Say a day of the year."""
        text = f"{self._random.choice(WORDS['months'])} {ordinal(self._random.randint(1, 31))}"
        if self._random.random() < 0.4:
            text = f"{self._random.choice(WORDS['days'])}, {text}"
        if self._random.random() < 0.4:
            year = self._random.randint(1, 40)
            text += (
                f", two thousand {cardinal(year)}" if year < 10 else f", twenty {cardinal(year)}"
            )
        return text

    def spelled(self) -> str:
        """Spell letters, by name or in the telephone alphabet."""
        names = self._random.choice((WORDS["letters"], WORDS["spelling"]))
        return " ".join(self._random.choice(names) for _ in range(self._random.randint(2, 6)))

    def alone(self) -> str:
        """Say one word: of a number, a date, the alphabet or a prompt, or any other."""
        listed = [word for name in LISTED for word in WORDS[name]]
        source = self._random.choices(("listed", "prompt", "any"), (6, 3, 2))[0]
        if source == "listed":
            word = self._random.choice(listed)
        elif source == "prompt":
            word = self._random.choice(self._random.choice(self._prompts).split()).strip(".,:;?!")
        else:
            word = self._random.choice(self._words)
        return f"{word}."  # a letter is read by its name

    def any_words(self) -> str:
        """Say words in no order."""
        return " ".join(self._random.choice(self._words) for _ in range(self._random.randint(2, 6)))
