"""Figures of a session: what came out, how soon, and what it took."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edgegemma.listen.recognizer import Work


@dataclass
class Stats:
    """Sums of a session. Delays are seconds; `percentile` reads them.

    Attributes
    ----------
    heard_s : float
        of sound taken from the source
    spoken_s : float
        of it in utterances
    first_shown_s, first_commit_s : list of float
        per utterance, from where somebody began to speak to the first word shown, and committed
    final_s : list of float
        per utterance, from when the sound that decided its end was there to its final
    hypotheses : int
    most_lag_s : float
    overflows : int
    """

    utterances: int = 0
    words: int = 0
    heard_s: float = 0.0
    spoken_s: float = 0.0
    first_shown_s: list[float] = field(default_factory=list)
    first_commit_s: list[float] = field(default_factory=list)
    final_s: list[float] = field(default_factory=list)
    hypotheses: int = 0
    most_lag_s: float = 0.0
    overflows: int = 0
    translate_s: float = 0.0
    work: Work = field(default_factory=Work)

    @property
    def skipped_s(self) -> float:
        """Seconds of silence that nothing was spent on."""
        return max(0.0, self.heard_s - self.spoken_s)

    def lines(self) -> list[str]:
        """Say it for people."""
        per = 1 / max(self.heard_s, 1e-9)
        work = self.work
        parts = {
            "features": work.features_s,
            "encoder": work.encode_s,
            "prefill": work.prefill_s,
            "decode": work.decode_s,
        } | ({"translation": self.translate_s} if self.translate_s else {})
        split = ", ".join(f"{name} {seconds * per:.3f}" for name, seconds in parts.items())
        sound = (
            f"{self.words} words in {self.utterances} utterances; {self.heard_s:.1f} s of sound, "
            f"{self.skipped_s:.1f} s of silence skipped, {self.overflows} overflows"
        )
        delays = (
            f"first word shown after {_middle(self.first_shown_s)}, committed after "
            f"{_middle(self.first_commit_s)}, final after {_middle(self.final_s)}; "
            f"most lag {self.most_lag_s:.1f} s"
        )
        done = (
            f"{work.sound_tokens} soft tokens, each encoded and read once; {self.hypotheses} "
            f"hypotheses, {work.checked_rows} rows read for them at once, {work.decoded} one by one"
        )
        share = f"share of real time {sum(parts.values()) * per:.3f}: {split}"
        return [sound, delays, share, done]


def percentile(values: list[float], percent: float) -> float | None:
    """Give a percentile; None of nothing."""
    return float(np.percentile(values, percent)) if values else None


def _middle(values: list[float]) -> str:
    half, most = percentile(values, 50), percentile(values, 95)
    return "-" if half is None or most is None else f"{half:.2f} s (p95 {most:.2f})"
