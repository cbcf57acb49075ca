"""Which words of a growing hypothesis are safe: those that stood while more was heard, but for the last ones.

Words are committed whole and for good. The word that was heard last may still be growing, so it is held back.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgegemma.listen.events import Word
from edgegemma.text.tokenizer import Tokenizer

STAND_SECONDS = 0.32  # of sound that a word must have stood, so over two hypotheses at least
SURE = 0.9  # the model's probability of each token of a word
HOLD_BACK = 1  # words; a translation, whose order is not that of the speech, wants more
TRANSLATION_HOLD_BACK = 2

_UNSPACED = (("\u0e00", "\u0eff"), ("\u2e80", "\u9fff"), ("\uf900", "\ufaff"))  # Thai, Lao; CJK


class Agreement:
    """Commits of one utterance.

    Attributes
    ----------
    ids : tuple of int
        the last hypothesis
    committed : int
        how many of its first tokens are committed
    """

    def __init__(self, tokenizer: Tokenizer, hold_back: int = HOLD_BACK) -> None:
        self._tokenizer, self._hold_back = tokenizer, hold_back
        self.ids: tuple[int, ...] = ()
        self.committed = 0
        self._since: list[float] = []  # seconds of sound after which each token stood

    def update(self, ids: Sequence[int], sure: Sequence[float], heard_s: float) -> bool:
        """Take the next hypothesis; say whether it commits words.

        Parameters
        ----------
        ids : tokens
        sure : float
            the model's probability of each
        heard_s : float
            where the sound that it is about ends
        """
        self._take(ids, heard_s)
        stood = sum(heard_s - since >= STAND_SECONDS - 1e-6 for since in self._since)
        stood = next((n for n in range(self.committed, stood) if sure[n] < SURE), stood)
        starts = word_starts(self._tokenizer, ids)
        last = starts[-self._hold_back] if len(starts) >= self._hold_back else 0
        fixed = max((n for n in starts if n <= min(stood, last)), default=0)
        grew = fixed > self.committed
        self.committed = max(self.committed, fixed)
        return grew

    def finish(self, ids: Sequence[int], heard_s: float) -> bool:
        """Take the last hypothesis and commit all of it; say whether there was something to commit."""
        self._take(ids, heard_s)
        grew = len(ids) > self.committed
        self.committed = len(ids)
        return grew

    def text(self, start: int, stop: int | None = None) -> str:
        """Text of some tokens as it continues what stands before them."""
        before, text = (self._tokenizer.decode(self.ids[:n]).strip() for n in (start, stop))
        return text[len(before) :]

    def words(self, start: int, stop: int, begin_s: float) -> tuple[Word, ...]:
        """Give the words of some tokens; the first was not said before ``begin_s``.

        Words that were first heard at the same moment share the time since the one before them by their length.
        """
        borders = word_starts(self._tokenizer, self.ids)
        starts = [start, *(n for n in borders if start < n < stop)]  # a committed word may grow
        texts = [
            self._tokenizer.decode(self.ids[a:b]).strip()
            for a, b in zip(starts, [*starts[1:], stop], strict=True)
        ]
        heard = [self._since[b - 1] for b in [*starts[1:], stop]]
        words: list[Word] = []
        first = 0
        for n in range(1, len(texts) + 1):
            if n == len(texts) or heard[n] != heard[first]:
                words += _shared(texts[first:n], begin_s, max(begin_s, heard[first]))
                begin_s, first = max(begin_s, heard[first]), n
        return tuple(word for word in words if word.text)

    def _take(self, ids: Sequence[int], heard_s: float) -> None:
        agreed = _agreed(self.ids, ids)
        self.ids = tuple(ids)
        self._since = self._since[:agreed] + [heard_s] * (len(ids) - agreed)


def word_starts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """Places in ``ids`` where a word begins, the first token's among them."""
    return [n for n, id in enumerate(ids) if n == 0 or _begins_word(tokenizer.decode([id]))]


def _begins_word(piece: str) -> bool:
    """Whether a token with this text begins a word: after a space, or in a script that has none."""
    first = piece[:1]
    unspaced = first.isalpha() and any(a <= first <= b for a, b in _UNSPACED)
    return first.isspace() or unspaced


def _agreed(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common beginning."""
    same = (x == y for x, y in zip(a, b, strict=False))
    return next((n for n, equal in enumerate(same) if not equal), min(len(a), len(b)))


def _shared(texts: list[str], start_s: float, end_s: float) -> list[Word]:
    """Divide a stretch among words by their length."""
    total, at, words = sum(map(len, texts)) or 1, start_s, []
    for text in texts:
        stop = at + (end_s - start_s) * len(text) / total
        words.append(Word(text, at, stop))
        at = stop
    return words
