"""llama.cpp as a peer, through the C API of llama-cpp-python: tokens go in and come out as numbers."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import numpy as np

from edgegemma.errors import EdgeGemmaError, MissingExtraError

BATCH = 512


class Llama:
    """A GGUF file ready to run on so many threads.

    Parameters
    ----------
    path : Path
    threads : int
    context : int
        Positions of its cache at most.
    """

    def __init__(self, path: Path, threads: int, context: int) -> None:
        try:
            import llama_cpp
        except ImportError as error:
            raise MissingExtraError("llama.cpp: not installed", "peers") from error
        self._api: Any = llama_cpp
        self.version = str(llama_cpp.__version__)
        self._quiet = _quiet(llama_cpp)
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise EdgeGemmaError(f"{path}: llama.cpp {self.version} does not load it")
        self._threads, self._size = threads, context
        self._context = self._new()
        self._resting = self._new()

    def _new(self) -> Any:
        settings = self._api.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = self._size, BATCH, BATCH
        settings.n_threads = settings.n_threads_batch = self._threads
        made = self._api.llama_init_from_model(self._model, settings)
        if not made:
            raise EdgeGemmaError(f"llama.cpp {self.version}: makes no context of {self._size}")
        return made

    def swap(self) -> None:
        """Go to the other of two contexts: one that decodes, one that reads."""
        self._context, self._resting = self._resting, self._context

    def read(self, count: int) -> float:
        """Read ``count`` random tokens; give the seconds until the last one's logits."""
        ids = np.random.default_rng(1).integers(3, 250_000, count)
        began = time.perf_counter()
        for start in range(0, count, BATCH):
            self._decode(ids[start : start + BATCH].tolist())
        self._argmax()
        return time.perf_counter() - began

    def decode(self, count: int) -> float:
        """Decode greedily; give the seconds."""
        token = 7
        began = time.perf_counter()
        for _ in range(count):
            self._decode([token])
            token = self._argmax()
        return time.perf_counter() - began

    def truncate(self, length: int) -> None:
        """Forget what came after ``length`` positions."""
        memory = self._api.llama_get_memory(self._context)
        if length == 0:
            self._api.llama_memory_clear(memory, True)
        elif not self._api.llama_memory_seq_rm(memory, 0, length, -1):
            raise EdgeGemmaError("llama.cpp: cannot go back in its cache")

    def _decode(self, ids: list[int]) -> None:
        array = (ctypes.c_int32 * len(ids))(*ids)
        batch = self._api.llama_batch_get_one(array, len(ids))
        if status := self._api.llama_decode(self._context, batch):
            raise EdgeGemmaError(f"llama.cpp: decoding ended with status {status}")

    def _argmax(self) -> int:
        """Give the likeliest token, found by numpy as for the others."""
        size = self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(self._model))
        logits = self._api.llama_get_logits_ith(self._context, -1)
        return int(np.argmax(np.ctypeslib.as_array(logits, (size,))))


def _quiet(api: Any) -> Any:
    """Have llama.cpp say nothing; the callback must live as long as it."""
    callback = api.llama_log_callback(lambda _level, _text, _data: None)
    api.llama_log_set(callback, ctypes.c_void_p(0))
    return callback
