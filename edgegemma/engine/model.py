"""What the rest of edgegemma sees of a model: text and audio steps over state that the caller holds.

Two executors give the same interface: our engine and onnxruntime. Chunking, the checks of what comes in
and the books are here, once for both.
"""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgegemma.config import AudioConfig
from edgegemma.engine import budget, memory
from edgegemma.engine.graphs import AUDIO
from edgegemma.engine.state import MELS, audio_arrays, check_floats, check_ids, check_room
from edgegemma.engine.state import AudioState as AudioState
from edgegemma.engine.state import Cache as Cache
from edgegemma.engine.state import Counters as Counters
from edgegemma.errors import InputError, UnsupportedError
from edgegemma.package import Package, Progress

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

CHUNK = 128  # positions of a prefill step; weights are read once for each
AUDIO_CHUNK = 64  # soft tokens of an encoder step
FRAMES = 4  # mel frames of a soft token
EXECUTORS = ("edgegemma", "onnxruntime")


class Model(ABC):
    """A package ready to run. Not for several threads at once: a lock makes them wait.

    Attributes
    ----------
    package : Package
    config : ModelConfig
    counters : Counters
    threads : int
        While a token is decoded.
    prefill_threads : int
        While several positions or sound are read.
    memory_limit : int, optional
        Bytes that the plan of every new text is held to.
    passing : set of str
        Graphs whose weights are let go after each call: slower, in the memory of the largest call.
    """

    executor: str

    def __init__(self, package: Package, threads: int) -> None:
        self.package, self.config = package, package.config
        self.threads = self.prefill_threads = threads
        self.memory_limit: int | None = None
        self.passing: set[str] = set()
        self._hearing = False  # the audio encoder's weights are in use
        self.counters = Counters()
        self._lock = threading.RLock()
        self._caches: weakref.WeakSet[Cache] = weakref.WeakSet()
        self._audio_states: weakref.WeakSet[AudioState] = weakref.WeakSet()

    def embed(self, ids: I64) -> tuple[F32, F32]:
        """Look up tokens.

        Parameters
        ----------
        ids : int64 [S]

        Returns
        -------
        embeds : float32 [S, H]
        per_layer : float32 [S, L, P]
        """
        ids = np.ascontiguousarray(ids)
        if ids.ndim != 1 or ids.dtype != np.int64:
            raise InputError(f"embed: got {ids.dtype} {list(ids.shape)}; want int64 [S]")
        check_ids("embed", ids.tolist(), self.config.text.vocab_size)
        with self._lock:
            self.counters.calls["embed"] += 1
            return self._embed(ids)

    def decode(self, token: int, cache: Cache) -> F32:
        """Read one token, and give the logits of the next.

        The same as `embed` and `forward`, in less time.

        Parameters
        ----------
        token : int
        cache : Cache
            Advances by 1.

        Returns
        -------
        float32 [V]
        """
        check_ids("decode", [token], self.config.text.vocab_size)
        check_room(cache, 1)
        with self._lock:
            self.counters.calls["embed"] += 1
            self.counters.calls["logits"] += 1
            return self._decode(token, cache)

    def new_cache(self, capacity: int | None = None, slack: int | None = None) -> Cache:
        """Give the empty state of a text.

        Parameters
        ----------
        capacity : int, optional
            Positions it may ever hold; by default the model's.
        slack : int, optional
            How far `Cache.truncate` can go back: what sliding layers keep beside their window.
        """
        longest = self.config.text.max_position_embeddings
        if capacity is not None and not 0 < capacity <= longest:
            raise InputError(f"context: got {capacity} positions; want 1 to {longest}")
        self._admit(capacity or longest, slack)
        cache = self._new_cache(capacity or longest, slack)
        self._caches.add(cache)
        return cache

    def forward(self, embeds: F32, per_layer: F32, cache: Cache, num_logits: int = 1) -> F32:
        """Read the next positions and give the logits of the last ones.

        Long inputs are read in chunks. A chunk of which no logits are wanted writes its keys and values
        only; this is exact.

        Parameters
        ----------
        embeds : float32 [S, H]
        per_layer : float32 [S, L, P]
        cache : Cache
            Advances by S.
        num_logits : int
            0 to S.

        Returns
        -------
        float32 [num_logits, V]
        """
        text, count = self.config.text, len(embeds)
        layers, width = text.num_hidden_layers, text.hidden_size_per_layer_input
        check_floats("forward: embeds", embeds, (count, text.hidden_size))
        check_floats("forward: per_layer", per_layer, (count, layers, width))
        if not 0 <= num_logits <= count:
            raise InputError(f"forward: got num_logits {num_logits}; want 0 to {count}")
        check_room(cache, count)
        logits = np.empty((num_logits, text.vocab_size), np.float32)
        first = count - num_logits  # position of the first logits
        with self._lock:
            for start in range(0, count, CHUNK):
                stop = min(start + CHUNK, count)
                keep = max(0, stop - max(start, first))
                self.counters.calls["logits" if keep else "prefill"] += 1
                part = self._step(embeds[start:stop], per_layer[start:stop], cache, keep)
                if stop - start == count:
                    return part  # a token's logits are a megabyte: not copied
                logits[stop - keep - first : stop - first] = part
        return logits

    def new_audio_state(self) -> AudioState:
        """Give the state of the audio encoder before any sound."""
        audio = self._audio()
        self._hearing = True
        self._admit(0)
        state = AudioState(audio_arrays(audio))
        self._audio_states.add(state)
        return state

    def encode_audio(self, features: F32, mask: F32, state: AudioState) -> F32:
        """Encode the next mel frames.

        Parameters
        ----------
        features : float32 [4n, 128]
        mask : float32 [4n]
            1 for a frame of sound, 0 for padding.
        state : AudioState
            Advances by n soft tokens.

        Returns
        -------
        float32 [n, H]
        """
        self._audio()
        tokens, rest = divmod(len(features), FRAMES)
        check_floats("encode_audio: features", features, (tokens * FRAMES + rest, MELS))
        check_floats("encode_audio: mask", mask, (len(features),))
        if rest:
            raise InputError(
                f"encode_audio: got {len(features)} frames; want a multiple of {FRAMES}"
            )
        soft = np.empty((tokens, self.config.text.hidden_size), np.float32)
        with self._lock:
            for start in range(0, tokens, AUDIO_CHUNK):
                stop = min(start + AUDIO_CHUNK, tokens)
                part = slice(start * FRAMES, stop * FRAMES)
                self.counters.calls["audio"] += 1
                soft[start:stop] = self._encode(features[part], mask[part], state)
                state.position += stop - start
        return soft

    def ledger(self) -> memory.Ledger:
        """Say where the memory is."""
        return memory.Ledger(
            mapped=self.package.mapped_bytes,
            inline=self._inline_bytes(),
            scratch=self._scratch_bytes(),
            cache=sum(cache.nbytes for cache in self._caches),
            audio_state=sum(state.nbytes for state in self._audio_states),
            resident=memory.resident_bytes(),
            peak=memory.peak_bytes(),
        )

    def plan(self, context: int, slack: int | None = None) -> budget.Plan:
        """Say what one more text of so many positions will need, with the texts that are there already.

        The audio encoder counts from its first state until `release_audio`: with all its weights, or with those of its
        largest call if they are let go after each.

        Raises
        ------
        UnsupportedError
            The executor's memory cannot be told ahead.
        """
        raise UnsupportedError(
            f"memory limit: {self.executor} does not tell its memory ahead; use executor 'edgegemma'"
        )

    def release_audio(self) -> None:
        """Give back the memory of the audio encoder's weights; they come again when sound does."""
        self._hearing = False
        self.passing.discard(AUDIO)
        self._let_go(AUDIO)

    def _admit(self, context: int, slack: int | None = None) -> None:
        """Hold what is planned to the limit.

        Where there is no room for the encoder's weights beside the decoder's, they go after each call from then on:
        they come back from the page cache in a tenth of the time that the call takes. The decoder's all stay, as every
        token wants them.
        """
        if self.memory_limit is None:
            return
        if self._hearing and self.plan(context, slack).total > self.memory_limit:
            self.passing.add(AUDIO)
            self._let_go(AUDIO)
        self.plan(context, slack).check(self.memory_limit)

    def _audio(self) -> AudioConfig:
        if self.config.audio is None:
            raise InputError(f"{self.package.path}: the model has no audio encoder")
        return self.config.audio

    @abstractmethod
    def _let_go(self, name: str) -> None:
        """Give back the memory of a graph's weights, where that is possible, but not of files that other graphs have too."""

    @abstractmethod
    def _embed(self, ids: I64) -> tuple[F32, F32]: ...

    @abstractmethod
    def _new_cache(self, capacity: int, slack: int | None) -> Cache: ...

    @abstractmethod
    def _step(self, embeds: F32, per_layer: F32, cache: Cache, keep: int) -> F32:
        """Run one chunk; give float32 [keep, V]."""

    def _decode(self, token: int, cache: Cache) -> F32:
        """Run a token; give float32 [V]."""
        logits = self._step(*self._embed(np.array([token], np.int64)), cache, 1)
        return logits.reshape(logits.size)

    @abstractmethod
    def _encode(self, features: F32, mask: F32, state: AudioState) -> F32:
        """Run one step of the encoder, replacing the state's arrays; give float32 [n, H]."""

    @abstractmethod
    def _inline_bytes(self) -> int: ...

    @abstractmethod
    def _scratch_bytes(self) -> int: ...


def open_model(
    path: str | Path,
    executor: str = "edgegemma",
    threads: int | None = None,
    kv: str = "float32",
    verify: bool = False,
    progress: Progress | None = None,
    memory_limit: int | None = None,
) -> Model:
    """Open a package and make it ready to run.

    Parameters
    ----------
    path : str or Path
        The package's folder.
    executor : str
        "edgegemma", or "onnxruntime" for the same file on stock onnxruntime.
    threads : int, optional
        By default as many as `edgegemma warmup` found fastest, else one for each physical core this process may use.
    kv : str
        Keys and values in the cache: "float32", or "int8" at a quarter of the memory.
    verify : bool
        Compare the sha256 of every file first; ``progress`` is told.
    memory_limit : int, optional
        Bytes the whole process may take; a text whose plan is beyond them is refused.

    Raises
    ------
    PackageError, InputError, BudgetError
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads: got {threads}; want at least 1")
    if executor not in EXECUTORS:
        raise InputError(f"executor: got {executor!r}; want one of {EXECUTORS}")
    if kv not in ("float32", "int8"):
        raise InputError(f"kv: got {kv!r}; want 'float32' or 'int8'")
    package = Package.open(path, verify, progress)
    model = _opened(package, executor, threads, kv)
    if memory_limit is not None:
        model.plan(1).check(memory_limit)
        model.memory_limit = memory_limit
    return model


def _opened(package: Package, executor: str, threads: int | None, kv: str) -> Model:
    cores = memory.physical_cores()
    if executor == "edgegemma":
        from edgegemma.engine import ahead
        from edgegemma.engine.session import EngineModel

        tuned = ahead.known(package)
        kind: Literal["int8", "float32"] = "int8" if kv == "int8" else "float32"
        model = EngineModel(package, threads or tuned.decode or cores, kind)
        model.prefill_threads = threads or tuned.prefill or cores
        return model
    if kv != "float32":
        raise UnsupportedError("kv: onnxruntime keeps float32 only; use executor 'edgegemma'")
    from edgegemma.engine.ort import OrtModel

    return OrtModel(package, threads or cores)
