"""Recordings to text with times: `edgegemma.listen` as fast as it goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from edgegemma.audio import files
from edgegemma.audio.blocks import Block, Source
from edgegemma.audio.features import F32, SAMPLE_RATE, as_pcm
from edgegemma.audio.files import Pcm
from edgegemma.audio.sources import Recording
from edgegemma.audio.utterances import LIMIT_SECONDS, Utterances
from edgegemma.generate import Cancel
from edgegemma.listen.events import Final
from edgegemma.listen.listener import Listener
from edgegemma.listen.recognizer import SpeechModel
from edgegemma.listen.task import Task

Progress = Callable[[float, float | None], None]  # seconds done, seconds in all if known

BLOCK_SECONDS = 1.0


def transcribe(
    model: SpeechModel,
    source: files.Source | Pcm | F32,
    *,
    task: Task | None = None,
    limit_s: float = LIMIT_SECONDS,
    progress: Progress | None = None,
    cancel: Cancel = None,
) -> Iterator[Final]:
    """Transcribe a recording, utterance by utterance as they are ready.

    Parameters
    ----------
    model : Model
    source : path, bytes, binary file object, Pcm or float32 samples
    task : Task, optional
        a language, a translation, an instruction instead of the package's
    limit_s : float
        longest utterance
    progress : callable, optional
        called with the seconds that are done and the recording's length if it is known
    cancel : threading.Event or callable, optional

    Yields
    ------
    Final
        with an empty text where there were no words in the sound
    """
    sound = recording(source)
    listener = Listener(model, sound, task, utterances=Utterances(limit_s=limit_s), cancel=cancel)
    try:
        for event in listener:
            if progress is not None:
                progress(listener.heard_s, sound.seconds)
            if isinstance(event, Final):
                yield event
    finally:
        sound.close()


def recording(source: files.Source | Pcm | F32) -> Source:
    """Give a recording as a source of sound, as fast as it can be read."""
    if isinstance(source, Pcm):
        return Samples(source.samples, source.name)
    if isinstance(source, np.ndarray):
        return Samples(source)
    return Recording(source, BLOCK_SECONDS)


class Samples:
    """Samples in memory, float32 [n] mono at 16 kHz. A `Source`."""

    live = False
    backlog_s = 0.0
    overflows = 0
    lost = None

    def __init__(self, samples: F32, name: str = "audio", block_s: float = BLOCK_SECONDS) -> None:
        self.name, self.seconds = name, len(samples) / SAMPLE_RATE
        self._samples = as_pcm(samples)
        self._block = round(block_s * SAMPLE_RATE)
        self._closed = False

    def close(self) -> None:
        """End the iterator."""
        self._closed = True

    def __iter__(self) -> Iterator[Block]:
        """Give blocks of one length; the last one may be shorter."""
        for start in range(0, len(self._samples), self._block):
            if self._closed:
                return
            yield Block(start, self._samples[start : start + self._block])
