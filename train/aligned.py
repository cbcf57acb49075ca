"""Speech whose phones have known times: Hibari's, with the durations it chose itself.

Hibari's network predicts how long each phone lasts but does not say so; here that value is made an
output. Training the tower on these times for some minutes teaches it what phones sound like; CTC
then only has to find them in other voices.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx  # noqa: TID251 - a change to the voice, not to a model of ours
from hibari import dsp

from train.voices import Samples, hibari_engine, resampled, session

DURATIONS = "/Clip_output_0"
MARKS = "ˈˌː"


@cache
def _network() -> Any:
    graph = onnx.load(hibari_engine().model_path)
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(DURATIONS))
    return session(graph.SerializeToString())


def spoken(text: str, speed: float, seed: int) -> tuple[Samples, list[tuple[str, float]]]:
    """Say one sentence.

    Returns
    -------
    samples : ndarray, shape (samples,)
    timed : list of (phone, end)
        Every phone with the second at which it ends; "" for silence.
    """
    engine = hibari_engine()
    signs = "".join(engine.phonemize(text))
    known = [sign for sign in signs if sign in engine.vocab]
    inputs = {"ids": np.array([engine.ids(signs)]), "speed": np.array([speed], dtype=np.float32)}
    *spectra, durations = _network().run(None, inputs)
    samples = dsp.synth(*(part[0] for part in spectra), np.random.default_rng(seed))
    ends = np.cumsum(durations.ravel()) * (len(samples) / engine.sample_rate / durations.sum())
    timed = [
        (sign if sign.isalpha() else "", float(end))
        for sign, end in zip(["", *known, ""], ends, strict=True)
        if sign not in MARKS or sign == ""
    ]
    return resampled(samples, engine.sample_rate), timed
