"""Guards against a text that runs away or was made up: its length, its repetitions, and how sure the model is of it."""

from __future__ import annotations

import math
from collections.abc import Sequence

FIRST_TOKENS = 4
WORD_TOKENS_PER_SECOND = 6  # of fast speech, with a vocabulary that has whole words
MARGIN = 1.5
SMALL_VOCABULARY = 65_536  # below this, words fall into several pieces each…
SMALL_MARGIN = 4.0  # …and a second of speech holds that many more

LONGEST_LOOP = 24  # tokens of a repeated phrase that is looked for
LOOP_TIMES = 4
LOOP_TOKENS = 12  # a loop has run over at least this many tokens

MIN_SPEECH_SECONDS = 0.12  # less than this is a click, not a word

# Mean logarithm of the model's probability of each token. Below it hears no words but guesses some; Whisper's limit too.
MADE_UP = -1.0
SMALL_MADE_UP = -1.5  # a small model believes less in what it hears right, too


def token_limit(seconds: float, vocabulary: int) -> int:
    """Tokens that speech of this length can need; a text beyond it has run away."""
    margin = MARGIN if vocabulary >= SMALL_VOCABULARY else SMALL_MARGIN
    return FIRST_TOKENS + int(WORD_TOKENS_PER_SECOND * margin * seconds)


def without_loop(ids: Sequence[int]) -> int:
    """How many of these ids to keep: all, or up to the first copy of a phrase they end in saying over and over."""
    for length in range(1, LONGEST_LOOP + 1):
        times = max(LOOP_TIMES, -(-LOOP_TOKENS // length))
        if len(ids) >= times * length and all(
            ids[-i] == ids[-i - length] for i in range(1, (times - 1) * length + 1)
        ):
            return len(ids) - (times - 1) * length
    return len(ids)


def made_up(sure: Sequence[float], vocabulary: int) -> bool:
    """Whether the model does not believe a text itself, given its probability of each token."""
    least = MADE_UP if vocabulary >= SMALL_VOCABULARY else SMALL_MADE_UP
    logs = [math.log(max(probability, 1e-30)) for probability in sure]
    return bool(logs) and sum(logs) / len(logs) < least
