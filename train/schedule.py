"""The schedule: what is trained when, counted in steps so that a run can be repeated.

The tower learns phones of known time, then phones and words by CTC; then it is quantised and finished while the rate
falls; the decoder learns from its soft tokens; at the end the decoder is quantised, while the rate falls again.
Before `tower_from` the rate is the same all along, and the run can be made longer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from train.batches import ALIGNED, WEIGHTS


@dataclass(frozen=True)
class Settings:
    """What a run is told."""

    steps: int = 19_000
    # Shares of the steps:
    timed_until: float = 0.014  # until when only phones of known time are learnt
    stem_until: float = 0.3  # until when the convolutions are trained, the slowest part
    tower_from: float = 0.55  # when the tower is quantised, and the rate falls
    listen_from: float = 0.70  # when the tower stays as it is, and the decoder learns from it
    quantised_from: float = 0.92  # when the decoder is quantised, and the rate falls
    static_from: float = (
        1.0  # when activations are rounded to static scales: not at all, see README
    )
    peak_rate: float = 2e-3
    warm_up: float = 0.007
    weight_decay: float = 0.02
    guide_weight: float = 0.5
    batch_frames: int = 3_200  # of each process
    longest: int = 1_000  # frames in a clip
    seed: int = 1
    save_minutes: float = 2.0
    evaluate_steps: int = 1_000
    processes: int = 2

    def reached(self, share: float, step: int) -> bool:
        """Tell whether a share of the steps is done."""
        return step >= share * self.steps

    def kinds(self, step: int) -> dict[str, float]:
        """Say how often a clip of each kind is drawn."""
        return WEIGHTS if self.reached(self.timed_until, step) else ALIGNED

    def stage(self, step: int) -> str:
        """Name what is trained: the "tower" or the "decoder"."""
        return "decoder" if self.reached(self.listen_from, step) else "tower"

    def rate(self, step: int) -> float:
        """Give the learning rate: warm-up, the peak, and a cosine to nothing for each part."""
        if not self.reached(self.warm_up, step):
            return self.peak_rate * step / (self.warm_up * self.steps)
        start, end = self.quantised_from, 1.0
        if not self.reached(self.listen_from, step):
            start, end = self.tower_from, self.listen_from
        falling = max(0.0, step / self.steps - start) / max(end - start, 1e-9)
        return self.peak_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, falling)))
