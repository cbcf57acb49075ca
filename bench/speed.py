"""Tokens a second: decoding and prefill at chosen contexts, beside the machine's own limits in the same minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from bench import filling, samples, work
from bench.breakdown import watched
from bench.meters import Meter
from edgegemma.errors import InputError

if TYPE_CHECKING:
    from bench.limits import Limits
    from edgegemma.engine.model import Cache, Model
    from edgegemma.engine.session import EngineModel

MOST_TOKENS = 192  # a sliding layer can go back so far


@dataclass(frozen=True)
class Setting:
    """How to measure.

    Attributes
    ----------
    rounds : timed repetitions of everything
    tokens : tokens of a repetition
    kv : entries of the K/V cache
    """

    rounds: int = 5
    tokens: int = 16
    kv: str = "float32"


def decode(
    model: Model,
    context: int,
    setting: Setting,
    limits: Limits,
    meter: Meter | None = None,
    breakdown: bool = True,
) -> dict[str, Any]:
    """Measure greedy decoding after ``context`` positions.

    Returns
    -------
    dict
        ``tokens_per_s``, ``weight_bytes`` and ``cache_bytes`` of a token, ``read_share`` and ``dot_share`` of the
        machine's, ``fork`` in seconds, ``map_share`` of what a plain read of the mapped weights gets, ``joules`` of a token or None,
        ``breakdown`` by function and, with it, ``besides``: what a token takes with products and attention left out, in
        seconds and as a share. Each figure with its spread.
    """
    if not 1 <= setting.tokens <= MOST_TOKENS:
        raise InputError(f"tokens: got {setting.tokens}; want 1 to {MOST_TOKENS}")
    text = model.config.text
    cache = filling.filled(model, context, 2 * setting.tokens)
    _decode(model, cache, 2)  # compiled, and the weights in memory
    cache.truncate(context)
    reads = work.Reads(model)
    _decode(model, cache, setting.tokens)
    weight_bytes = reads.weights() / setting.tokens
    cache.truncate(context)

    def once() -> float:
        seconds = _decode(model, cache, setting.tokens)
        cache.truncate(context)
        return setting.tokens / seconds

    ours = model.executor == "edgegemma"
    kind = setting.kv if ours else "float32"
    cache_bytes = filling.cache_bytes(text, context, kind)
    weights = limits.readable(_mapped(model))
    more = {"map": lambda: limits.read(weights)} if len(weights) else {}
    found = _beside(once, setting.rounds, limits, meter, more)
    macs = work.products(text, 1, 1)
    each = weight_bytes + cache_bytes if ours else 0.0
    result = _result(found, each, macs, setting.tokens)
    result |= {"context": context, "weight_bytes": weight_bytes or None, "cache_bytes": cache_bytes}
    result["breakdown"] = _breakdown(
        model, lambda: _decode(model, cache, setting.tokens), setting.tokens, breakdown
    )
    if result["breakdown"]:
        result["besides"] = _besides(once, setting.rounds)
    return result


def prefill(
    model: Model,
    context: int,
    setting: Setting,
    limits: Limits,
    meter: Meter | None = None,
    breakdown: bool = True,
) -> dict[str, Any]:
    """Measure reading ``setting.tokens`` positions at once after ``context`` others; see `decode`."""
    text, count = model.config.text, setting.tokens
    ids = np.random.default_rng(1).integers(0, text.vocab_size, count)
    box = [filling.filled(model, context, count)]

    def once() -> float:
        began = time.perf_counter()
        model.forward(*model.embed(ids), box[0], num_logits=1)
        seconds = time.perf_counter() - began
        box[0] = filling.rewind(model, box[0], context, count)
        return count / seconds

    reads = work.Reads(model)
    once()
    weight_bytes = reads.weights() / count
    once()
    found = _beside(once, setting.rounds, limits, meter, {})
    macs = work.products(text, count, 1) / count
    result = _result(found, weight_bytes, macs, count)
    result |= {"context": context, "tokens": count, "weight_bytes": weight_bytes or None}
    result["seconds"] = asdict(samples.figure([count / rate for rate in found["work"]]))
    result["breakdown"] = _breakdown(model, once, count, breakdown)
    return result


def _decode(model: Model, cache: Cache, count: int) -> float:
    """Decode greedily; give the seconds."""
    token = 7
    began = time.perf_counter()
    for _ in range(count):
        token = int(np.argmax(model.decode(token, cache)))
    return time.perf_counter() - began


def _mapped(model: Model) -> NDArray[np.uint8]:
    """Give the largest mapped file of the decoder's weights; nothing for an executor that does not tell."""
    if model.executor != "edgegemma":
        return np.empty(0, np.uint8)
    files = cast("EngineModel", model).decoder_graph.files
    maps = [model.package.map(file) for file in files]
    return max(maps, key=len, default=np.empty(0, np.uint8))


def _beside(
    once: Callable[[], float],
    rounds: int,
    limits: Limits,
    meter: Meter | None,
    more: Mapping[str, Callable[[], float]],
) -> dict[str, list[float]]:
    """Take turns: bandwidth, dot products, forks, the work, and what more there is."""
    joules: list[float] = []

    def metered() -> float:
        if meter is None:
            return once()
        meter.start()
        rate = once()
        joules.append(meter.stop())
        return rate

    works = {"read": limits.read, "dot": limits.dot, "fork": limits.fork, "work": metered, **more}
    return samples.in_turns(works, rounds) | {"joules": joules}


def _result(found: dict[str, list[float]], each: float, macs: float, tokens: int) -> dict[str, Any]:
    """Sum up; ``each`` bytes and ``macs`` products belong to a token."""
    rates = found["work"]
    bytes_s, macs_s = [each * r for r in rates], [macs * r for r in rates]
    figures = {
        "tokens_per_s": samples.figure(rates),
        "bytes_per_s": samples.figure(bytes_s) if each else None,
        "macs_per_s": samples.figure(macs_s),
        "read_bandwidth": samples.figure(found["read"]),
        "dot_peak": samples.figure(found["dot"]),
        "fork": samples.figure(found["fork"]),
        "read_share": samples.ratio(bytes_s, found["read"]) if each else None,
        "dot_share": samples.ratio(macs_s, found["dot"]),
        "map_bandwidth": samples.figure(found["map"]) if "map" in found else None,
        "map_share": samples.ratio(bytes_s, found["map"]) if "map" in found else None,
        "joules": samples.figure([j / tokens for j in found["joules"]])
        if found["joules"]
        else None,
    }
    shown: dict[str, Any] = {k: asdict(v) if v else None for k, v in figures.items()}
    return shown | {
        "products": macs,
        "samples": {"work": rates, "read": found["read"], "dot": found["dot"]},
    }


def _breakdown(
    model: Model, once: Callable[[], object], units: int, wanted: bool
) -> list[dict[str, Any]]:
    """Time by function; nothing for an executor that does not run call by call."""
    if not wanted or model.executor != "edgegemma":
        return []
    with watched(model) as profile:
        once()
    return profile.rows(units)


def _besides(once: Callable[[], float], rounds: int) -> dict[str, Any]:
    """Measure tokens whose products and attention are left out, in turns with whole ones; ``once`` gives tokens a second."""
    from edgegemma.kernels.besides import products_left_out

    def left_out() -> float:
        with products_left_out():
            return 1 / once()

    left_out()  # compiled
    found = samples.in_turns({"besides": left_out, "whole": lambda: 1 / once()}, rounds)
    share = samples.ratio(found["besides"], found["whole"])
    return {"seconds": asdict(samples.figure(found["besides"])), "share": asdict(share)}
