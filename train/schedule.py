"""The schedule: what is trained when, counted in steps so that a run can be repeated.

The tower learns phones alone, then by CTC; the decoder joins; at the end weights are quantised, then
activations, while the rate falls. Until then the rate is the same all along, and the run can be made longer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from train.batches import ALIGNED, WEIGHTS


@dataclass(frozen=True)
class Settings:
    """What a run is told."""

    steps: int = 14_000
    # Shares of the steps:
    timed_until: float = 0.1  # until when only phones of known time are learnt
    stem_until: float = 0.3  # until when the convolutions are trained, the slowest part
    decoder_from: float = 0.15  # when the decoder joins the tower
    quantised_from: float = 0.82  # when weights are quantised and the rate falls
    static_from: float = (
        1.0  # when activations are rounded to static scales: not at all, see README
    )
    peak_rate: float = 6e-4
    warm_up: float = 0.01
    weight_decay: float = 0.01
    ctc_weight: float = 1.0
    guide_weight: float = 0.5
    batch_frames: int = 2_600  # of each process
    longest: int = 1_000  # frames in a clip
    seed: int = 1
    save_minutes: float = 3.0
    evaluate_steps: int = 1_000
    processes: int = 2

    def reached(self, share: float, step: int) -> bool:
        """Tell whether a share of the steps is done."""
        return step >= share * self.steps

    def kinds(self, step: int) -> dict[str, float]:
        """Say how often a clip of each kind is drawn."""
        return WEIGHTS if self.reached(self.timed_until, step) else ALIGNED

    def rate(self, step: int) -> float:
        """Give the learning rate: warm-up, the peak, and a cosine to nothing."""
        if not self.reached(self.warm_up, step):
            return self.peak_rate * step / (self.warm_up * self.steps)
        falling = max(0.0, step / self.steps - self.quantised_from) / (1 - self.quantised_from)
        return self.peak_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, falling)))
