"""A full-size random checkpoint in the form Google publishes, written shard by shard.

Values come from a few pools of a million random numbers, read in a ring from a place that depends on the
tensor's name. A pool's length is prime, so no two rows of a matrix are alike; writing costs little more than
the disk, and memory does not grow with the model.
"""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import shapes, stand_in
from edgegemma.console import Report
from edgegemma.errors import InputError

FORMATS = ("bf16", "qat-mobile")
POOL = 1_048_573  # prime
ITEM = {"BF16": 2, "F32": 4, "U8": 1, "I8": 1}

# What HF's map says for the published mobile checkpoints; patterns in order, the first that matches counts.
_BITS = {
    r"^lm_head$": 2,
    r"audio_tower(?!.*lconv1d\.linear_start)": 2,
    r"audio_tower\.layers\.\d+\.lconv1d\.linear_start\.": 4,
    r"language_model\.embed_tokens$": 2,
    r"language_model\.embed_tokens_per_layer$": 4,
    r"language_model\.layers\.([0-9]|1[0-4])\.mlp\.": 4,
    r"language_model\.layers\.\d+\.mlp\.": 2,
    r"language_model\.layers\.\d+\.per_layer_input_gate$": 8,
    r"language_model\.layers\.\d+\.per_layer_projection$": 8,
    r"language_model\.layers\.\d+\.self_attn\.": 4,
    r"language_model\.layers\.\d+\.experts\.": 2,  # no published checkpoint has any in codes
    r"vision_tower": 8,
}
_BITS_E4B = {
    r"language_model\.embed_tokens_per_layer$": 2,
    r"language_model\.layers\.\d+\.mlp\.": 4,
}
_KEPT = (
    "model.vision_tower.patch_embedder", "model.audio_tower.subsample_conv_projection",
    "model.audio_tower.output_proj", "relative_k_proj", "model.embed_audio",
    "model.embed_vision", "per_layer_model_projection", "router.proj",
)  # fmt: skip
# Step of a symmetric quantizer for normal weights of variance one, by bits.
_STEP = {2: 0.878, 4: 0.359, 8: 0.0251}
# pattern, low, high of a uniform value
_RANGES = (
    (r"layer_scalar$", 0.4, 1.1),
    (r"per_dim_scale$", -0.8, 0.8),
    (r"input_min$", -3.0, -1.5),
    (r"input_max$", 1.5, 3.0),
    (r"output_min$", -3.5, -1.5),
    (r"output_max$", 1.5, 3.5),
    (r"(in|out)put_activation_scale$", 0.03, 0.08),
    (r"[kv]_cache_scale$", 0.02, 0.05),
    (r"router\.proj\.weight$", -2.5, 2.5),  # so that a few experts stand out
)


@dataclass(frozen=True)
class Entry:
    """One tensor of the file: where its values come from, and how they are scaled."""

    name: str
    dtype: str
    shape: shapes.Shape
    pool: str  # "normal", "uniform", "zero", "codes2", "codes4", "codes8"
    low: float = 0.0  # value = low + step * pool
    step: float = 1.0
    seat: str = ""  # the name that chooses the place in the pool, where not its own

    @property
    def count(self) -> int:
        """Elements of the tensor as stored."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.count * ITEM[self.dtype]


def config_of(model: str, form: str, vision: bool = False) -> shapes.Config:
    """Return the ``config.json`` of one of `shapes.MODELS` or of a file, in one of `FORMATS`."""
    if model in shapes.MODELS:
        config = shapes.published(model, vision)
    elif Path(model).is_file():
        config = json.loads(Path(model).read_text())
    else:
        known = ", ".join(shapes.MODELS)
        raise InputError(f"model {model!r}: want {known} or the path of a config.json")
    if form not in FORMATS:
        raise InputError(f"--format {form!r}: want one of {', '.join(FORMATS)}")
    if form == "qat-mobile" and "quantization_config" not in config:
        _make_mobile(config)
    return config


def _make_mobile(config: shapes.Config) -> None:
    """Change a BF16 checkpoint's config into the mobile one's."""
    text = config["text_config"]
    bits = _BITS if text["use_double_wide_mlp"] else _BITS | _BITS_E4B
    if not text["use_double_wide_mlp"]:  # the split of the MLP is E2B's alone
        bits = {k: v for k, v in bits.items() if "1[0-4]" not in k}
    config["tie_word_embeddings"] = text["tie_word_embeddings"] = False
    for part in ("audio_config", "vision_config"):
        if config[part] is not None:
            config[part]["use_clipped_linears"] = False
    config["quantization_config"] = {
        "quant_method": "gemma", "num_bits": 4, "quantize_embeddings": True,
        "module_quant_configs": {k: {"num_bits": v} for k, v in bits.items()},
        "modules_to_not_convert": list(_KEPT),
    }  # fmt: skip


def entries(config: shapes.Config, unused: bool = False) -> Iterator[Entry]:
    """Yield every tensor of the checkpoint this config describes."""
    quantized = config.get("quantization_config", {}).get("module_quant_configs")
    groups = config["text_config"]["num_hidden_layers"]
    for name, shape in shapes.tensors(config, unused):
        module = name.removesuffix(".weight")
        codes = quantized and (len(shape) == 2 or ".experts." in name)
        bits = _bits(module, quantized) if codes else None
        if bits is None:
            yield _plain(name, shape)
        elif "embed_tokens" in module:
            yield from _table(module, shape, bits, groups if "per_layer" in module else 1)
        else:
            yield from _linear(module, shape, bits)
        if quantized and name.endswith("self_attn.k_norm.weight"):
            yield _plain(name.replace("k_norm.weight", "k_cache_scale"), (), "F32")
            yield _plain(name.replace("k_norm.weight", "v_cache_scale"), (), "F32")


def _bits(module: str, patterns: dict[str, Any]) -> int | None:
    if any(kept in module for kept in _KEPT):
        return None
    return next((int(o["num_bits"]) for p, o in patterns.items() if re.search(p, module)), 4)


def _plain(name: str, shape: shapes.Shape, dtype: str = "BF16") -> Entry:
    for pattern, low, high in _RANGES:
        if re.search(pattern, name):
            return Entry(name, dtype, shape, "uniform", low, high - low)
    if re.search(r"[qk]_norm\.weight$", name):  # keeps attention scores near one
        unit = 1.3 * shape[0] ** -0.25
        return Entry(name, dtype, shape, "uniform", 0.5 * unit, unit)
    if len(shape) == 1 and not name.endswith("bias"):
        return Entry(name, dtype, shape, "uniform", 0.5, 1.0)
    width = int(np.prod(shape[1:])) if len(shape) > 1 else 16
    if ".experts." in name:
        width = shape[-1]
    if "embed_tokens_per_layer" in name:
        width = 256  # rows are many layers side by side
    return Entry(name, dtype, shape, "normal", 0.0, width**-0.5)


def _packed(name: str, shape: shapes.Shape, bits: int, seat: str) -> Entry:
    dtype = "I8" if bits == 8 else "U8"
    packed = (*shape[:-1], shape[-1] * bits // 8)
    return Entry(name, dtype, packed, f"codes{bits}", seat=seat)


def _table(module: str, shape: shapes.Shape, bits: int, groups: int) -> Iterator[Entry]:
    step = _STEP[bits] * (shape[1] // groups) ** -0.5
    yield _packed(module + ".embedding_quantized", shape, bits, module)
    scale = (shape[0], groups)
    yield Entry(
        module + ".embedding_scale", "F32", scale, "uniform", 0.9 * step, 0.2 * step, module
    )


def _linear(module: str, shape: shapes.Shape, bits: int) -> Iterator[Entry]:
    step = _STEP[bits] * shape[-1] ** -0.5
    # The head is a copy of the table, so it sits where the table sits.
    seat = "model.language_model.embed_tokens" if module == "lm_head" else module
    yield _packed(module + ".weight", shape, bits, seat)
    scale = (*shape[:-1], 1)
    yield Entry(module + ".weight_scale", "F32", scale, "uniform", 0.9 * step, 0.2 * step, seat)
    for side in ("input", "output"):
        name = f"{module}.{side}_activation_scale"
        yield Entry(name, "F32", (), "zero") if module == "lm_head" else _plain(name, (), "F32")


class Pools:
    """Random numbers enough for any model: each pool a ring of `POOL` values."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.seed = seed
        self.normal = rng.standard_normal(POOL, np.float32)
        self.uniform = rng.random(POOL, np.float32)
        self.codes = {bits: _code_pool(rng, bits) for bits in _STEP}

    def stream(self, entry: Entry) -> Iterator[NDArray[Any]]:
        """Yield the tensor's values in pieces, in the dtype of the file (BF16 as bit patterns)."""
        if entry.pool == "zero":
            yield np.zeros(entry.count, np.float32)
            return
        start = zlib.crc32(f"{self.seed}:{entry.seat or entry.name}".encode()) % POOL
        if entry.pool.startswith("codes"):
            ring: NDArray[Any] = self.codes[int(entry.pool[5:])]
        else:
            ring = self.normal if entry.pool == "normal" else self.uniform
            if entry.count < POOL:
                ring, start = np.take(ring, range(start, start + entry.count), mode="wrap"), 0
            ring = np.float32(entry.low) + ring * np.float32(entry.step)
            ring = _to_bf16(ring) if entry.dtype == "BF16" else ring
        left = entry.count
        while left:
            piece = ring[start : start + left]
            yield piece
            left, start = left - len(piece), 0


def _code_pool(rng: np.random.Generator, bits: int) -> NDArray[np.uint8]:
    per, offset = 8 // bits, 1 << (bits - 1)
    normal = rng.standard_normal((POOL, per), np.float32) / np.float32(_STEP[bits])
    codes = np.clip(np.rint(normal), -offset, offset - 1).astype(np.int16)
    if bits == 8:
        return np.asarray(codes.astype(np.int8)).view(np.uint8).reshape(POOL)
    shifts = (np.arange(per) * bits).astype(np.int16)
    return np.asarray(((codes + offset) << shifts).sum(1), np.uint8)


def _to_bf16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = x.astype(np.float32).view(np.uint32)
    return np.asarray((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def shards(found: Iterator[Entry], limit: int) -> list[list[Entry]]:
    """Divide the tensors into files of at most ``limit`` bytes; a larger tensor gets its own."""
    files: list[list[Entry]] = [[]]
    room = limit
    for entry in found:
        if files[-1] and entry.nbytes > room:
            files.append([])
            room = limit
        files[-1].append(entry)
        room -= entry.nbytes
    return files


def write_shard(path: Path, found: list[Entry], pools: Pools, told: Callable[[int], None]) -> None:
    """Write one safetensors file; ``told`` hears the bytes of each piece."""
    found = sorted(found, key=lambda e: -ITEM[e.dtype])  # wide items first: all stay aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for entry in found:
        header[entry.name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.nbytes],
        }
        at += entry.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in found:
            for piece in pools.stream(entry):
                file.write(piece.data)
                told(piece.nbytes)


def write(
    config: shapes.Config,
    out: Path,
    *,
    seed: int = 0,
    unused: bool = False,
    shard: int = 4_000_000_000,
    tokenizer: Path | None = None,
    report: Report = lambda _what, _done, _total: None,
) -> Path:
    """Write a whole checkpoint folder; it has its name only once it is complete.

    Parameters
    ----------
    config : dict
        From `config_of`.
    out : Path
        The folder to make. It must not exist.
    shard : int
        Largest file in bytes.
    tokenizer : Path, optional
        Folder whose tokenizer files and chat template are copied; else a stand-in is generated.
    """
    if out.exists():
        raise InputError(f"{out}: is there already; choose another --out or remove it")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_weights(config, partial, Pools(seed), shards(entries(config, unused), shard), report)
        stand_in.write(partial, config, tokenizer)
        (partial / "config.json").write_text(json.dumps(config, indent=2))
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _write_weights(
    config: shapes.Config, folder: Path, pools: Pools, files: list[list[Entry]], report: Report
) -> None:
    total = sum(entry.nbytes for file in files for entry in file)
    done = 0
    weights: dict[str, str] = {}
    for number, file in enumerate(files, 1):
        name = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        if len(files) == 1:
            name = "model.safetensors"

        def told(count: int, name: str = name) -> None:
            nonlocal done
            done += count
            report(name, done, total)

        write_shard(folder / name, file, pools, told)
        weights |= {entry.name: name for entry in file}
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weights}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
