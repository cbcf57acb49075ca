"""PCM to soft tokens while it arrives: token ``t`` comes out as soon as mel frame ``4t + 3`` exists.

The encoder is causal and its state is carried, so feeding pieces gives the tokens of one pass: with edgegemma's
engine bit for bit, since there a row's result does not depend on the rows beside it.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import numpy as np

from edgegemma.audio.features import F32, FRAMES_PER_TOKEN, MELS, MelStream
from edgegemma.config import ModelConfig
from edgegemma.errors import InputError


class AudioModel(Protocol):
    """What this module needs of a model (`edgegemma.engine.model.Model` has it)."""

    @property
    def config(self) -> ModelConfig:
        """The model's dimensions."""

    def new_audio_state(self) -> Any:
        """Give the encoder's state before the first token."""

    def encode_audio(self, features: F32, mask: F32, state: Any) -> F32:
        """``[4n, 128]``, ``[4n]`` to ``[n, H]``; the state advances in place."""


class AudioStream:
    """One clip on its way through the encoder.

    Attributes
    ----------
    mel : MelStream
        the samples heard so far
    state : AudioState
        the model's carried state
    tokens : int
        soft tokens given so far
    mel_s : float
        seconds spent on frames; the rest of `feed` is the model's
    """

    def __init__(self, model: AudioModel) -> None:
        if model.config.audio is None:
            raise InputError(
                "audio: this package has no audio encoder; export a model that hears (E2B, E4B)"
            )
        self._model = model
        self.mel = MelStream()
        self.state = model.new_audio_state()
        self.tokens = 0
        self.mel_s = 0.0
        self._waiting = np.empty((0, MELS), np.float32)
        self._finished = False

    @property
    def frames(self) -> int:
        """Valid mel frames heard so far."""
        return self.mel.frames

    def feed(self, pcm: F32) -> F32:
        """Take the next samples, float32 [any]; return the soft tokens they complete, ``[n, H]``."""
        if self._finished:
            raise InputError(
                "audio: the stream is finished; start a new AudioStream for the next clip"
            )
        began = time.perf_counter()
        frames = np.concatenate((self._waiting, self.mel.feed(pcm)))
        self.mel_s += time.perf_counter() - began
        whole = len(frames) // FRAMES_PER_TOKEN * FRAMES_PER_TOKEN
        self._waiting = frames[whole:].copy()
        return self._encode(frames[:whole], np.ones(whole, np.float32))

    def finish(self) -> F32:
        """Give the token of the last frames, if any wait, ``[0 or 1, H]``: the rest of its block is masked zeros."""
        self._finished = True
        valid = len(self._waiting)
        frames = np.zeros((FRAMES_PER_TOKEN if valid else 0, MELS), np.float32)
        frames[:valid] = self._waiting
        self._waiting = self._waiting[:0]
        return self._encode(frames, (np.arange(len(frames)) < valid).astype(np.float32))

    def _encode(self, frames: F32, mask: F32) -> F32:
        """Whole blocks of four frames to soft tokens; the model cuts long calls itself."""
        count = len(frames) // FRAMES_PER_TOKEN
        if count == 0:
            return np.empty((0, self._model.config.text.hidden_size), np.float32)
        self.tokens += count
        return self._model.encode_audio(frames, mask, self.state)


def encode(model: AudioModel, pcm: F32) -> F32:
    """Soft tokens of a whole clip, float32 [N] to ``[ceil(V / 4), H]``."""
    stream = AudioStream(model)
    return np.concatenate((stream.feed(pcm), stream.finish()))
