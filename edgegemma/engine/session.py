"""Our executor: the graphs of a package bound to kernels, and the steps of a model run on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from edgegemma.engine import budget, graphs, plan
from edgegemma.engine.cache import SLACK, Kind, KVCache, Layout
from edgegemma.engine.functions import bind
from edgegemma.engine.graph import Graph
from edgegemma.engine.graphs import AUDIO, DECODER, EMBED
from edgegemma.engine.layers import OWNERS, Chunk
from edgegemma.engine.model import CHUNK, F32, FRAMES, I64, AudioState, Cache, Model
from edgegemma.engine.plan import Plan
from edgegemma.engine.repeat import Repeat, repeats
from edgegemma.engine.state import audio_arrays
from edgegemma.engine.values import exact, rows
from edgegemma.errors import InputError, PackageError
from edgegemma.kernels import threads as pool
from edgegemma.package import Package

T = TypeVar("T")
CHANGING = ("input_ids", "position_ids")
"""Inputs of the graphs that are others for each token of a text."""


class Program:
    """A graph whose calls are bound, and the plans made of it so far."""

    def __init__(self, package: Package, source: Graph) -> None:
        self.graph = source
        self.calls = [bind(package, source, node) for node in source.nodes]
        self._plans: dict[tuple[str, ...], plan.Plan] = {}

    def plan(self, outputs: Sequence[str]) -> plan.Plan:
        """Give the plan for some outputs, made once."""
        key = tuple(outputs)
        if key not in self._plans:
            self._plans[key] = plan.make(self.graph, self.calls, key)
        return self._plans[key]

    @cached_property
    def row_bytes(self) -> int:
        """Bytes that it reads from disk for each position."""
        return sum(call.row_bytes for call in self.calls)

    @property
    def scratch_width(self) -> int:
        """Floats a position needs at most: the widest kernel, and the values between calls."""
        return max((call.width for call in self.calls), default=0)

    @property
    def largest_reads(self) -> int:
        """Bytes of weights that one call reads at most."""
        return max((sum(call.reads.values()) for call in self.calls), default=0)


class EngineModel(Model):
    """A package on our own engine. See `Model`."""

    executor = "edgegemma"

    def __init__(self, package: Package, threads: int, kv: Kind) -> None:
        super().__init__(package, pool.use(threads))
        self._kv = kv
        loaded = graphs.load(package)
        self._programs = {name: Program(package, source) for name, source in loaded.items()}
        self._present = [name for name in loaded[DECODER].outputs if name != "logits"]
        # Layers get keys and values by the state; whatever else asks for them is told that it gets none.
        self._absent: dict[str, Any] = dict.fromkeys(loaded[DECODER].inputs)
        _check_present(loaded[DECODER], self._present)
        self._tokens: WeakKeyDictionary[KVCache, Repeat] = WeakKeyDictionary()

    @property
    def decoder_graph(self) -> Graph:
        """What the decoder was loaded from."""
        return self._programs[DECODER].graph

    def decoder_plan(self, logits: bool) -> plan.Plan:
        """Give the steps of a chunk, with logits or without: what runs and what it reads."""
        return self._programs[DECODER].plan([*(["logits"] if logits else []), *self._present])

    def plan(self, context: int, slack: int | None = None) -> budget.Plan:
        """Say what one more text of so many positions will need. See `Model.plan`."""
        loaded = {name: program.graph for name, program in self._programs.items()}
        text = budget.external_bytes(loaded[name] for name in (EMBED, DECODER))
        audio = 0
        if self._hearing and self.config.audio is not None:
            audio = budget.external_bytes(loaded.values()) - text
            if AUDIO in self.passing:
                audio = min(audio, self._programs[AUDIO].largest_reads)
            arrays = audio_arrays(self.config.audio).values()
            audio += sum(array.nbytes for array in arrays)
        caches = [c for c in self._caches if isinstance(c, KVCache)]
        if context:  # not written to, so it takes no memory itself
            caches.append(self._new_cache(context, slack))
        planned = sum(cache.planned(cache.limit) for cache in caches)
        return budget.Plan(text, audio, self._inline_bytes(), self._scratch_bytes(), planned)

    def _let_go(self, name: str) -> None:
        files = {other: program.graph.files for other, program in self._programs.items()}
        for file in files.pop(name, set()).difference(*files.values()):
            self.package.release(file)

    def _run(
        self, name: str, outputs: Sequence[str], feeds: Mapping[str, Any], state: Any, several: bool
    ) -> list[Any]:
        steps = self._programs[name].plan(outputs)
        after = partial(self._let_go, name) if name in self.passing else None
        self.counters.read_bytes.update(steps.reads)
        return self._work(several, partial(steps.run, feeds, state, after))

    def _work(self, several: bool, work: Callable[[], T]) -> T:
        """Do what runs a plan, on as many threads as are meant for it."""
        # Numba keeps the number for each calling thread.
        pool.use(self.prefill_threads if several else self.threads)
        # The numbers are the package's: an infinite product is its business, not worth a warning.
        with pool.lock, np.errstate(all="ignore"):
            return work()

    def _embed(self, ids: I64) -> tuple[F32, F32]:
        program, count = self._programs[EMBED], len(ids)
        names = tuple(program.graph.outputs)
        found = self._run(EMBED, names, {"input_ids": ids[None]}, None, count > 1)
        self.counters.read_bytes["rows"] += program.row_bytes * count
        return graphs.embedded(self.config.text, dict(zip(names, found, strict=True)), count)

    def _new_cache(self, capacity: int, slack: int | None) -> KVCache:
        text = self.config.text
        layouts = [
            Layout(*text.heads_of(i), text.window_of(i)) for i in range(text.first_shared_layer)
        ]
        return KVCache(layouts, capacity, self._kv, SLACK if slack is None else slack)

    def _step(self, embeds: F32, per_layer: F32, cache: Cache, keep: int) -> F32:
        if not isinstance(cache, KVCache):
            raise InputError("forward: got the cache of another executor; want this model's")
        start, count = cache.length, len(embeds)
        cache.reserve(count)
        feeds: dict[str, Any] = {
            "inputs_embeds": embeds[None],
            "per_layer_inputs": per_layer[None],
            "position_ids": np.arange(start, start + count, dtype=np.int64)[None],
            "num_logits_to_keep": np.array(keep, np.int64),
        }
        chunk = Chunk(cache, start, start + count)
        outputs = [*(["logits"] if keep else []), *self._present]
        results = self._run(DECODER, outputs, self._absent | feeds, chunk, count > 1)
        self.counters.read_bytes.update(chunk.reads)
        cache.advance(count)
        vocabulary = self.config.text.vocab_size
        if not keep:
            return np.empty((0, vocabulary), np.float32)
        return rows(DECODER, results[0], vocabulary, count=keep)

    def _decode(self, token: int, cache: Cache) -> F32:
        apart = not self._repeats or self.passing.intersection((EMBED, DECODER))
        if apart or not isinstance(cache, KVCache):
            return super()._decode(token, cache)
        cache.reserve(1)
        chunk = Chunk(cache, cache.length, cache.length + 1)
        logits = self._work(False, partial(self._again, token, chunk))
        for steps in self._token_plans():
            self.counters.read_bytes.update(steps.reads)
        self.counters.read_bytes["rows"] += self._programs[EMBED].row_bytes
        self.counters.read_bytes.update(chunk.reads)
        cache.advance(1)
        vocabulary = self.config.text.vocab_size
        return exact(DECODER, logits, 1, 1, vocabulary).reshape(vocabulary)

    def _token_plans(self) -> tuple[Plan, Plan]:
        """Give the plans of a token that is decoded: to look it up, and to read it."""
        lookup = self._programs[EMBED]
        return lookup.plan(tuple(lookup.graph.outputs)), self.decoder_plan(logits=True)

    @cached_property
    def _repeats(self) -> bool:
        return repeats(self._token_plans(), CHANGING)

    def _again(self, token: int, chunk: Chunk) -> Any:
        """Give the logits of a token, read as the one before of its text was."""
        plans, cache = self._token_plans(), chunk.cache
        repeat = self._tokens.get(cache)
        inputs = {"input_ids": token, "position_ids": chunk.start}
        if repeat is None or repeat.plans != plans:
            ones = {name: np.array([[value]], np.int64) for name, value in inputs.items()}
            feeds = self._absent | ones | {"num_logits_to_keep": np.array(1, np.int64)}
            repeat = self._tokens[cache] = Repeat(plans, feeds, CHANGING, chunk)
        return repeat.run(inputs, chunk)

    def _encode(self, features: F32, mask: F32, state: AudioState) -> F32:
        feeds = {
            "input_features": features[None],
            "input_features_mask": mask[None],
            "position": np.array([state.position], np.int64),
            **{f"past_{name}": array for name, array in state.arrays.items()},
        }
        outputs = ["audio_features", *(f"present_{name}" for name in state.arrays)]
        soft, *arrays = self._run(AUDIO, outputs, feeds, None, True)
        state.arrays = {
            name: exact(f"{AUDIO}: present_{name}", array, *old.shape)
            for (name, old), array in zip(state.arrays.items(), arrays, strict=True)
        }
        return rows(AUDIO, soft, self.config.text.hidden_size, count=len(features) // FRAMES)

    def _inline_bytes(self) -> int:
        tensors = (t for p in self._programs.values() for t in p.graph.tensors.values())
        return sum(len(tensor.data) for tensor in tensors if tensor.data is not None)

    def _scratch_bytes(self) -> int:
        text = self.config.text
        values = (
            text.num_hidden_layers * text.hidden_size_per_layer_input * 2 + text.hidden_size * 3
        )
        widest = max(program.scratch_width for program in self._programs.values())
        return 4 * (CHUNK * (widest + values) + text.vocab_size)


def _check_present(decoder: Graph, present: Sequence[str]) -> None:
    """Keys and values that a shared layer reads must come from a layer that writes them."""
    owners = {name for node in decoder.nodes if node.op in OWNERS for name in node.outputs}
    if missing := set(present) - owners:
        raise PackageError(f"{decoder.name}: {min(missing)!r} is not the output of a layer")
