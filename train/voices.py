"""Voices: the speech synthesisers of the corpus, each a callable from text to 16 kHz samples.

`VOICES` names them. One is never trained on: it is the unseen voice of the evaluation.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16_000
UNSEEN_VOICE = "flite-rms"

Samples = np.ndarray
"""Mono samples at 16 kHz, float32 in [-1, 1], shape (samples,)."""


def resampled(samples: Samples, rate: float) -> Samples:
    """Bring samples of any rate to 16 kHz."""
    if rate == SAMPLE_RATE:
        return samples.astype(np.float32)
    return np.asarray(soxr.resample(samples, rate, SAMPLE_RATE), dtype=np.float32)


def read(path: Path) -> Samples:
    """Read a sound file as 16 kHz mono."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return resampled(samples.mean(axis=1), rate)


def _spoken_by(command: list[str], text: str = "") -> Samples:
    """Run a synthesiser that may read the text, and whose command has a place `OUT` for the file it writes."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "speech.wav"
        command = [str(out) if part == "OUT" else part for part in command]
        subprocess.run(command, input=text.encode(), check=True, capture_output=True)
        return read(out)


def session(network: bytes) -> Any:
    """Open the network of a voice, for one thread."""
    import onnxruntime  # noqa: TID251 - a voice, not a model of ours

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(network, options)


@cache
def hibari_engine() -> Any:
    """Load Hibari, once."""
    from hibari import Hibari

    return Hibari(threads=1)


def hibari(text: str, speed: float) -> Samples:
    """Speak with Hibari's American voice."""
    engine = hibari_engine()
    return resampled(engine(text, speed=speed), engine.sample_rate)


def flite(voice: str) -> Callable[[str, float], Samples]:
    """Return the speaker for one of flite's voices."""
    return lambda text, speed: _spoken_by(
        [
            "flite",
            "-voice",
            voice,
            "--setf",
            f"duration_stretch={1 / speed:.3f}",
            "-t",
            text,
            "-o",
            "OUT",
        ]
    )


def pico(language: str) -> Callable[[str, float], Samples]:
    """Return the speaker for one of SVOX Pico's languages."""
    return lambda text, speed: _spoken_by(
        [
            "pico2wave",
            "-l",
            language,
            "-w",
            "OUT",
            f'<speed level="{round(100 * speed)}">{text}</speed>',
        ]
    )


def espeak(voice: str) -> Callable[[str, float], Samples]:
    """Return the speaker for one of eSpeak NG's voices."""
    return lambda text, speed: _spoken_by(
        ["espeak-ng", "-v", voice, "-s", str(round(160 * speed)), "-w", "OUT", text]
    )


def festival(voice: str) -> Callable[[str, float], Samples]:
    """Return the speaker for one of Festival's voices."""
    return lambda text, speed: _spoken_by(
        [
            "text2wave",
            "-eval",
            f"(voice_{voice}_diphone)",
            "-eval",
            f"(Parameter.set 'Duration_Stretch {1 / speed:.3f})",
            "-o",
            "OUT",
        ],
        text,
    )


def rhvoice(profile: str) -> Callable[[str, float], Samples]:
    """Return the speaker for one of RHVoice's voices."""
    return lambda text, speed: _spoken_by(
        ["RHVoice-test", "-p", profile, "-r", str(round(100 * speed)), "-o", "OUT"], text
    )


def kokoro(group: str | tuple[str, ...]) -> Callable[[str, float], Samples]:
    """Return the speaker for a group of Kokoro's voices."""

    def speak(text: str, speed: float) -> Samples:
        from train.kokoro import spoken

        return spoken(group, text, speed)

    return speak


VOICES: dict[str, Callable[[str, float], Samples]] = {
    "hibari": hibari,
    "flite-slt": flite("slt"),
    "flite-awb": flite("awb"),
    "flite-kal16": flite("kal16"),
    "pico-us": pico("en-US"),
    "pico-gb": pico("en-GB"),
    "espeak-us": espeak("en-us+f3"),
    "festival-ked": festival("ked"),
    "rhvoice-bdl": rhvoice("bdl"),
    "rhvoice-clb": rhvoice("clb"),
    "rhvoice-slt": rhvoice("slt"),
    "kokoro-american-women": kokoro("af_"),
    "kokoro-american-men": kokoro("am_"),
    "kokoro-british": kokoro("b"),
    "kokoro-foreign": kokoro(("e", "f", "h", "i", "j", "p", "z")),
    UNSEEN_VOICE: flite("rms"),
}
SHARES = {
    "hibari": 0.28,
    "flite-slt": 0.17,
    "flite-awb": 0.14,
    "flite-kal16": 0.07,
    "festival-ked": 0.07,
    "pico-us": 0.13,
    "pico-gb": 0.09,
    "espeak-us": 0.05,
}
"""How much of the shards `voices-NN` each voice says."""
MORE_SHARES = {"rhvoice-bdl": 0.5, "rhvoice-clb": 0.3, "rhvoice-slt": 0.2}
"""The same of the shards `more-NN`."""
NEURAL_SHARES = {
    "kokoro-american-women": 0.36,
    "kokoro-american-men": 0.34,
    "kokoro-british": 0.18,
    "kokoro-foreign": 0.12,
}
"""The same of the shards `neural-NN`."""
ALONE_SHARES = {
    "hibari": 0.18,
    "flite-slt": 0.06,
    "flite-awb": 0.05,
    "flite-kal16": 0.03,
    "festival-ked": 0.02,
    "pico-us": 0.06,
    "pico-gb": 0.04,
    "espeak-us": 0.02,
    "rhvoice-bdl": 0.05,
    "rhvoice-clb": 0.05,
    "rhvoice-slt": 0.04,
    "kokoro-american-women": 0.16,
    "kokoro-american-men": 0.14,
    "kokoro-british": 0.07,
    "kokoro-foreign": 0.03,
}
"""The same of the shards `alone-NN`: words that are said alone."""
