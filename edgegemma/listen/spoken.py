"""An utterance while it is heard: the sound that waits, the words that stand, and what is shown of the rest."""

from __future__ import annotations

import numpy as np

from edgegemma.audio.features import F32, SAMPLE_RATE
from edgegemma.listen.agreement import Agreement
from edgegemma.listen.events import Commit
from edgegemma.listen.guards import made_up
from edgegemma.listen.recognizer import Hypothesis, Recognizer


class Spoken:
    """One utterance.

    Parameters
    ----------
    recognizer : Recognizer
        which has begun anew
    start, onset : int
        samples since the source began: of the utterance, and where the voice is taken to begin
    hold_back : int
        words that a commit leaves out

    Attributes
    ----------
    length : int
        samples so far
    shown : bool
        whether a word of it was given to anybody
    committed : bool
        whether any word was committed
    """

    def __init__(self, recognizer: Recognizer, start: int, onset: int, hold_back: int) -> None:
        self.start, self.onset, self.length = start, onset, 0
        self.shown = self.committed = False
        self._recognizer = recognizer
        self._agreement = Agreement(recognizer.tokenizer, hold_back)
        self._given = 0  # tokens of the commits
        self._said_s = onset / SAMPLE_RATE  # where the last committed word ends
        self._partial = ""
        self._waiting: list[F32] = []

    @property
    def waits_s(self) -> float:
        """Seconds of sound that were not read yet."""
        return sum(map(len, self._waiting)) / SAMPLE_RATE

    @property
    def stop_s(self) -> float:
        """Where its sound ends so far."""
        return (self.start + self.length) / SAMPLE_RATE

    @property
    def text(self) -> str:
        """All that is committed."""
        return self._agreement.text(0, self._agreement.committed)

    def take(self, samples: F32) -> None:
        """Add sound, to be read when it is worth it."""
        self._waiting.append(samples)
        self.length += len(samples)

    def read(self) -> None:
        """Encode and read the sound that waits."""
        if self._waiting:
            self._recognizer.hear(np.concatenate(self._waiting))
            self._waiting = []

    def guess(self) -> Hypothesis:
        """Say what the sound so far means. `commit` and `partial` tell what that changes."""
        guess = self._hypothesis(sure=True)
        self._agreement.update(guess.ids, guess.sure, self.stop_s)
        return guess

    def finish(self, voice_stop_s: float) -> Hypothesis:
        """Read the end of the sound and commit what it means."""
        self.read()
        self._recognizer.finish()
        last = self._hypothesis(sure=not self._agreement.committed)
        self._agreement.finish(last.ids, voice_stop_s)
        return last

    def _hypothesis(self, sure: bool) -> Hypothesis:
        """Say what the sound so far means: nothing, if the model does not believe the first words itself."""
        committed = self._agreement.committed
        found = self._recognizer.hypothesis(committed, sure)
        guessed = not committed and made_up(found.sure, self._recognizer.vocabulary)
        return Hypothesis((), found.stop) if guessed else found

    def commit(self) -> Commit | None:
        """Give the words that were committed since the last time, if any."""
        agreement, given = self._agreement, self._given
        text = agreement.text(given, agreement.committed)
        if not text:
            return None
        words = agreement.words(given, agreement.committed, self._said_s)
        self._given, self._said_s = agreement.committed, words[-1].end_s
        self.shown = self.committed = True
        return Commit(text, words[0].start_s, words[-1].end_s, words)

    def partial(self) -> str | None:
        """Give what follows the committed words, if it has changed."""
        text = self._agreement.text(self._agreement.committed)
        if text == self._partial:
            return None
        self._partial = text
        self.shown |= bool(text)
        return text

    @property
    def said_s(self) -> float:
        """Where the last committed word ends."""
        return self._said_s
