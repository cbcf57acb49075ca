"""The schedule: what is trained when, counted in steps so that a run can be repeated.

The tower learns phones of known time, then phones and words by CTC; as soon as it can tell where the words of the recordings are, it
hears these in other orders, too; then it is quantised and finished while the rate falls; the decoder learns from its soft tokens; at the
end the decoder is quantised, while the rate falls again. In later cycles both take further turns, with their bits and at half the rate; a finished
run can be made longer by more of these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

UNSPLICED = {
    "real": 0.18,
    "joined": 0.12,
    "hibari": 0.16,
    "other voices": 0.22,
    "neural": 0.16,
    "alone": 0.08,
    "silence": 0.04,
    "aligned": 0.04,
}
"""How often a clip of each kind is drawn, until the recordings are spliced."""
WEIGHTS = {
    "real": 0.10,
    "joined": 0.06,
    "spliced": 0.20,
    "hibari": 0.14,
    "other voices": 0.26,
    "neural": 0.14,
    "alone": 0.03,
    "silence": 0.04,
    "aligned": 0.03,
}
"""The same, from then on."""
LATER = {
    "real": 0.04,
    "joined": 0.02,
    "spliced": 0.16,
    "hibari": 0.14,
    "other voices": 0.34,
    "neural": 0.22,
    "alone": 0.03,
    "silence": 0.03,
    "aligned": 0.02,
}
"""The same in later cycles: the tower knows the recordings by heart by then."""
ALIGNED = {"aligned": 0.95, "silence": 0.05}
"""The same, while the tower learns phones from their times."""


class OtherRunError(ValueError):
    """A run is not the one that is wanted."""


MAY_CHANGE = ("cycles", "save_minutes", "evaluate_steps")


@dataclass(frozen=True)
class Settings:
    """What a run is told."""

    cycles: tuple[int, ...] = (14_000, 8_000, 8_000, 8_000)  # steps of each
    # Shares of a cycle's steps; what begins in the first cycle goes on in those after it:
    timed_until: float = 0.02  # until when only phones of known time are learnt
    spliced_from: float = 0.12  # when the recordings are cut into words and put in other orders
    stem_until: float = 0.3  # until when the convolutions are trained, the slowest part
    tower_from: float = 0.4  # when the tower is quantised, and the rate falls
    listen_from: float = 0.54  # when the tower stays as it is, and the decoder learns from it
    quantised_from: float = 0.88  # when the decoder is quantised, and the rate falls
    turn_from: float = 0.65  # when the decoder takes its turn in a later cycle
    falling: float = 0.27  # the last part of a turn, in which the rate falls there
    static_from: float = math.inf  # when activations get static scales: never, see README
    peak_rate: float = 2e-3
    warm_up: float = 0.01
    weight_decay: float = 0.02
    guide_weight: float = 0.5
    batch_frames: int = 3_200  # of each process
    longest: int = 1_000  # frames in a clip
    seed: int = 1
    save_minutes: float = 2.0
    evaluate_steps: int = 1_000
    processes: int = 2

    def check_goes_on(self, before: Mapping[str, Any]) -> None:
        """Refuse to go on with a run that had other settings, but for further cycles.

        Parameters
        ----------
        before : mapping
            Those of the run, by name.

        Raises
        ------
        OtherRunError
        """
        own = asdict(self)
        if other := own.keys() ^ before.keys():
            raise OtherRunError(f"{min(other)}: this run is of another version of the recipe")
        begun = tuple(before["cycles"])
        if self.cycles[: len(begun)] != begun:
            told = " ".join(map(str, begun))
            raise OtherRunError(f"cycles: got {self.cycles}; this run has --cycles {told}")
        for name, value in own.items():
            if name not in MAY_CHANGE and value != before[name]:
                raise OtherRunError(f"{name}: got {value}; this run has {before[name]}")

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return sum(self.cycles)

    def place(self, step: int) -> tuple[int, float]:
        """Give the number of the cycle that a step is in, and the share of it that is done."""
        number = 0
        while number + 1 < len(self.cycles) and step >= self.cycles[number]:
            step -= self.cycles[number]
            number += 1
        return number, step / self.cycles[number]

    def ended(self, step: int) -> int | None:
        """Give the number of the cycle that is done after so many steps, if one just is."""
        ends = list(accumulate(self.cycles))
        return ends.index(step) if step in ends else None

    def reached(self, share: float, step: int) -> bool:
        """Tell whether a share of the first cycle's steps is done."""
        number, done = self.place(step)
        return share <= (1.0 if number else done)

    def kinds(self, step: int) -> dict[str, float]:
        """Say how often a clip of each kind is drawn."""
        if self.place(step)[0]:
            return LATER
        if self.reached(self.spliced_from, step):
            return WEIGHTS
        return UNSPLICED if self.reached(self.timed_until, step) else ALIGNED

    def _turn(self, step: int) -> float:
        """Give the share of a step's cycle that is the tower's."""
        return self.turn_from if self.place(step)[0] else self.listen_from

    def stage(self, step: int) -> str:
        """Name what is trained: the "tower" or the "decoder"."""
        return "decoder" if self.place(step)[1] >= self._turn(step) else "tower"

    def rate(self, step: int) -> float:
        """Give the learning rate: warm-up, the peak, half of it in later cycles, and a cosine to nothing for each part."""
        number, done = self.place(step)
        turn = self._turn(step)
        peak = self.peak_rate / (2 if number else 1)
        if done < self.warm_up:
            return peak * done / self.warm_up
        begin, end = (0.0, turn) if done < turn else (turn, 1.0)
        start = self.tower_from if done < turn else self.quantised_from
        if number:
            start = end - self.falling * (end - begin)
        falling = max(0.0, done - start) / max(end - start, 1e-9)
        return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, falling)))
