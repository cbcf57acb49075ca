"""The choice of the next token: greedy, or by chance under temperature, top-k, top-p and min-p.

>>> import numpy as np
>>> Sampler(Sampling()).pick(np.array([0.5, 2.0, 1.0], np.float32))
1
>>> Sampler(Sampling(temperature=1.0, top_k=2)).probabilities(np.array([0, 0, -9], np.float32)).round(3).tolist()
[0.5, 0.5, 0.0]
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgegemma.errors import EdgeGemmaError, InputError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. The default is greedy; Gemma's own advice for chat is 1.0, 64, 0.95.

    Attributes
    ----------
    temperature : float
        0 is greedy
    top_k : int
        keep the k most likely; 0 is all
    top_p : float
        keep the fewest that hold this share of the probability, the one that crosses it included
    min_p : float
        drop what is less likely than this share of the most likely
    repetition_penalty : float
        above 1 makes tokens of the text so far less likely, at any temperature
    seed : int, optional
        the same seed gives the same choices
    forbidden : tuple of int
        ids that are never chosen
    logprobs : bool
        note the log-probability of each choice under the model
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    forbidden: tuple[int, ...] = ()
    logprobs: bool = False

    def __post_init__(self) -> None:
        self._want("temperature", 0 <= self.temperature < math.inf, "0 or more")
        whole = isinstance(self.top_k, int)  # a package's file may say anything
        self._want("top_k", whole and self.top_k >= 0, "0 (all) or more")
        self._want("top_p", 0 < self.top_p <= 1, "above 0, at most 1")
        self._want("min_p", 0 <= self.min_p <= 1, "0 to 1")
        self._want(
            "repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0 (1 is none)"
        )
        self._want("seed", self.seed is None or self.seed >= 0, "0 or more")

    def _want(self, field: str, fine: bool, want: str) -> None:
        if not fine:
            raise InputError(f"{field}: got {getattr(self, field)}; want {want}")


class Sampler:
    """Choices in a row under one `Sampling`; holds the random state."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._forbidden = np.array(sorted(sampling.forbidden), np.int64)
        self._random = np.random.default_rng(sampling.seed)

    def pick(self, logits: F32, seen: Iterable[int] = ()) -> int:
        """Choose the next token.

        Parameters
        ----------
        logits : float32 [V]
            -inf is allowed, NaN is not
        seen : ids of the text so far
            for the repetition penalty

        Returns
        -------
        int
        """
        if self.sampling.temperature == 0:
            return int(np.argmax(self._adjusted(logits, seen)))
        ids, shares = self._candidates(logits, seen)
        edge = self._random.random() * np.cumsum(shares)[-1]
        return int(
            ids[min(int(np.searchsorted(np.cumsum(shares), edge, side="right")), len(ids) - 1)]
        )

    def probabilities(self, logits: F32, seen: Iterable[int] = ()) -> F64:
        """Chance of each token to be picked, float64 [V]."""
        chances = np.zeros(len(logits))
        if self.sampling.temperature == 0:
            chances[np.argmax(self._adjusted(logits, seen))] = 1.0
            return chances
        ids, shares = self._candidates(logits, seen)
        chances[ids] = shares
        return chances

    def _candidates(self, logits: F32, seen: Iterable[int]) -> tuple[npt.NDArray[np.int64], F64]:
        """Ids that can be picked, most likely first and the lower id first among equals, and their chances."""
        adjusted, sampling = self._adjusted(logits, seen), self.sampling
        if sampling.top_k:
            ids = _best(adjusted, sampling.top_k)
            shares = self._shares(adjusted[ids])
        else:
            shares = self._shares(adjusted)
            # Those below this share are at most V, and hold less than top-p drops, all together.
            least = max(sampling.min_p * shares.max(), (1 - sampling.top_p) / len(shares))
            ids = _falling(adjusted, np.flatnonzero(shares >= least))
            shares = shares[ids]
        keep = _nucleus(shares, sampling.top_p) if sampling.top_p < 1 else len(ids)
        keep = min(keep, int(np.count_nonzero(shares >= sampling.min_p * shares[0])))
        keep = min(
            keep, int(np.count_nonzero(shares))
        )  # what underflowed to zero can never be picked
        return ids[:keep], shares[:keep] / shares[:keep].sum()

    def _shares(self, scores: F32) -> F64:
        """Softmax under the temperature."""
        # The best has score 0 here: no temperature, however small, can overflow the exponent.
        below = scores.astype(np.float64) - scores.max()
        shares = np.exp(below / max(self.sampling.temperature, 1e-6))
        return np.asarray(shares / shares.sum(), np.float64)

    def _adjusted(self, logits: F32, seen: Iterable[int]) -> F32:
        """Logits after the penalty, the forbidden at -inf."""
        top = logits.max()
        if not np.isfinite(top):  # a NaN anywhere makes the maximum NaN
            raise EdgeGemmaError(
                f"sampler: got a largest logit of {top}; the model's output is broken"
            )
        penalty = self.sampling.repetition_penalty
        used = np.unique(np.fromiter(seen, np.int64)) if penalty != 1 else self._forbidden[:0]
        if len(used) == len(self._forbidden) == 0:
            return logits
        logits = logits.copy()
        scores = logits[used]
        logits[used] = np.where(scores < 0, scores * penalty, scores / penalty)
        logits[self._forbidden] = -np.inf
        if logits.max() == -np.inf:
            raise InputError("sampler: every token is forbidden")
        return logits


def _best(scores: F32, count: int) -> npt.NDArray[np.int64]:
    """Ids of the best so many, by falling score, lower ids first among equals."""
    return _falling(scores, np.flatnonzero(scores >= _edge(scores, count)))[:count]


def _falling(scores: F32, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Rising ids by falling score, lower ids first among equals."""
    return ids[np.argsort(-scores[ids], kind="stable")]


def _edge(scores: F32, count: int) -> float:
    """Give a score that so many reach, and few more: so many of some groups reach it by their best.

    To look for the last of 64 in a vocabulary of 262,144 itself takes ten times as long.
    """
    groups = min(16 * count, len(scores))
    largest = scores[: len(scores) // groups * groups].reshape(-1, groups).max(axis=0)
    place = max(groups - count, 0)
    return float(np.partition(largest, place)[place])


def _nucleus(shares: F64, top_p: float) -> int:
    """How many of these falling shares it takes to reach ``top_p``."""
    return int(np.searchsorted(np.cumsum(shares), top_p, side="left")) + 1


def logprob(logits: F32, token_id: int) -> float:
    """Natural logarithm of the model's own probability of a token, before any sampling option."""
    top = float(logits.max())
    return (
        float(logits[token_id])
        - top
        - math.log(float(np.exp(logits - np.float32(top)).sum(dtype=np.float64)))
    )
