"""The second executor: the same package on stock onnxruntime, which inlines and runs the functions' bodies.

It is the witness of our engine and the way to machines that Numba does not serve. It keeps keys and values
as arrays that go in and come out, all of them in float32 and without windows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnxruntime

from edgegemma.engine import graphs
from edgegemma.engine.graphs import AUDIO, DECODER, EMBED
from edgegemma.engine.model import F32, FRAMES, I64, AudioState, Cache, Model
from edgegemma.engine.values import exact, rows
from edgegemma.errors import EdgeGemmaError, InputError
from edgegemma.package import Package

SEVERITY_ERROR = 3  # onnxruntime's levels; warnings about our graphs are of no use to a user
_Result = TypeVar("_Result")


class OrtCache:
    """Keys and values as onnxruntime gives them: float32 [1, kv_heads, length, D] for each owning layer."""

    def __init__(self, shapes: Mapping[str, tuple[int, int]], limit: int) -> None:
        self.limit = limit
        self.length = 0
        self._width = sum(heads * dim for heads, dim in shapes.values())
        self.arrays: dict[str, F32] = {
            name: np.zeros((1, heads, 0, dim), np.float32) for name, (heads, dim) in shapes.items()
        }

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return sum(array.nbytes for array in self.arrays.values())

    @property
    def bytes_per_token(self) -> int:
        """Bytes that each further position takes: all layers keep all positions."""
        return 4 * self._width

    def truncate(self, length: int) -> None:
        """Go back to an earlier length: what came after it is forgotten."""
        if not 0 <= length <= self.length:
            raise InputError(f"truncate: got length {length}; want 0 to {self.length}")
        self.arrays = {
            name: np.ascontiguousarray(array[:, :, :length]) for name, array in self.arrays.items()
        }
        self.length = length


class OrtModel(Model):
    """A package on onnxruntime. See `Model`."""

    executor = "onnxruntime"

    def __init__(self, package: Package, threads: int) -> None:
        super().__init__(package, threads)
        # onnxruntime trusts what it opens, so the files pass our checks of names and ranges first.
        loaded = graphs.load(package)
        self._inline = sum(
            len(tensor.data)
            for source in loaded.values()
            for tensor in source.tensors.values()
            if tensor.data is not None
        )
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def _session(self, name: str) -> onnxruntime.InferenceSession:
        if name not in self._sessions:
            self._sessions[name] = _opened(name, self.package.file(name), self.threads)
        return self._sessions[name]

    def _run(self, name: str, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        session, options = self._session(name), onnxruntime.RunOptions()
        options.log_severity_level = SEVERITY_ERROR
        return _guarded(name, lambda: list(session.run(list(outputs), dict(feeds), options)))

    def _embed(self, ids: I64) -> tuple[F32, F32]:
        names = [value.name for value in self._session(EMBED).get_outputs()]
        found = dict(zip(names, self._run(EMBED, names, {"input_ids": ids[None]}), strict=True))
        return graphs.embedded(self.config.text, found, len(ids))

    def _new_cache(self, capacity: int, _slack: int | None) -> Cache:
        text = self.config.text
        shapes = {
            f"{layer}.{part}": text.heads_of(layer)
            for layer in range(text.first_shared_layer)
            for part in ("key", "value")
        }
        return OrtCache(shapes, capacity)

    def _step(self, embeds: F32, per_layer: F32, cache: Cache, keep: int) -> F32:
        if not isinstance(cache, OrtCache):
            raise InputError("forward: got the cache of another executor; want this model's")
        stop = cache.length + len(embeds)
        # onnxruntime runs every node whatever is fetched (``only_execute_path_to_fetches`` works in
        # training builds only, microsoft/onnxruntime#16013). So a chunk without logits runs the
        # tail too, but over one position instead of all; 0 would cut nothing.
        feeds = {
            "inputs_embeds": embeds[None],
            "per_layer_inputs": per_layer[None],
            "position_ids": np.arange(cache.length, stop, dtype=np.int64)[None],
            "num_logits_to_keep": np.array(max(keep, 1), np.int64),
            **{f"past_key_values.{name}": array for name, array in cache.arrays.items()},
        }
        outputs = [f"present.{name}" for name in cache.arrays] + (["logits"] if keep else [])
        results = self._run(DECODER, outputs, _fed(self._session(DECODER), feeds))
        for (name, old), array in zip(cache.arrays.items(), results, strict=False):
            heads, dim = old.shape[1], old.shape[3]
            cache.arrays[name] = exact(f"{DECODER}: present.{name}", array, 1, heads, stop, dim)
        cache.length = stop
        vocabulary = self.config.text.vocab_size
        if not keep:
            return np.empty((0, vocabulary), np.float32)
        return rows(DECODER, results[-1], vocabulary, count=keep)

    def _encode(self, features: F32, mask: F32, state: AudioState) -> F32:
        feeds = {
            "input_features": features[None],
            "input_features_mask": mask[None],
            "position": np.array([state.position], np.int64),
            **{f"past_{name}": array for name, array in state.arrays.items()},
        }
        outputs = ["audio_features", *(f"present_{name}" for name in state.arrays)]
        soft, *arrays = self._run(AUDIO, outputs, feeds)
        state.arrays = {
            name: exact(f"{AUDIO}: present_{name}", array, *old.shape)
            for (name, old), array in zip(state.arrays.items(), arrays, strict=True)
        }
        return rows(AUDIO, soft, self.config.text.hidden_size, count=len(features) // FRAMES)

    def _let_go(self, name: str) -> None:
        del name  # onnxruntime keeps them

    def _inline_bytes(self) -> int:
        return self._inline

    def _scratch_bytes(self) -> int:
        return 0  # onnxruntime's own, and part of the resident memory


def runner(name: str, path: Path) -> Callable[[Mapping[str, Any]], list[Any]]:
    """Open a small model that is no package's, a detector of speech say; give what runs it, on one thread."""
    session = _opened(name, path, 1)
    return lambda feeds: _guarded(name, lambda: list(session.run(None, dict(feeds))))


def _opened(name: str, path: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = SEVERITY_ERROR
    providers = ["CPUExecutionProvider"]
    return _guarded(
        name, lambda: onnxruntime.InferenceSession(str(path), options, providers=providers)
    )


def _fed(session: onnxruntime.InferenceSession, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out inputs that onnxruntime found unused and dropped."""
    names = {value.name for value in session.get_inputs()}
    return {name: value for name, value in feeds.items() if name in names}


def _guarded(name: str, action: Callable[[], _Result]) -> _Result:
    """Do something in onnxruntime; give its errors as one line of ours."""
    try:
        return action()
    except Exception as error:  # its classes have no common base but this
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise EdgeGemmaError(f"{name}: onnxruntime: {lines[0]}") from error
