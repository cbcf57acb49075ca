"""A GGUF file of a package's shape with random weights, for llama.cpp: what is measured is speed, not sense.

Every matrix, the tables too, is of one type. Blocks are written as they lie in the file: nothing is quantized, so a
file is made as fast as the disk writes. The architecture is llama.cpp's own ``gemma4``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edgegemma.config import SLIDING
from edgegemma.console import Report
from edgegemma.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from edgegemma.config import TextConfig

Q4_0, Q2_K = "Q4_0", "Q2_K"
# weights and bytes of a block
BLOCKS = {Q4_0: (32, 18), Q2_K: (256, 84)}
POOL = 10_007  # random blocks, used again and again; prime, so that rows differ


@dataclass(frozen=True)
class Entry:
    """A tensor: its name in the file, and its shape ``[rows, columns]`` or ``[n]`` for one of float32."""

    name: str
    shape: tuple[int, ...]


def entries(text: TextConfig) -> Iterator[Entry]:
    """Name every tensor that llama.cpp wants of this model's text part."""
    H, V, P = text.hidden_size, text.vocab_size, text.hidden_size_per_layer_input
    wide = text.num_hidden_layers * P
    yield Entry("token_embd.weight", (V, H))
    yield Entry("per_layer_token_embd.weight", (V, wide))
    yield Entry("per_layer_model_proj.weight", (wide, H))
    yield Entry("per_layer_proj_norm.weight", (P,))
    yield Entry("output_norm.weight", (H,))
    yield Entry("rope_freqs.weight", (text.global_head_dim // 2,))
    for layer in range(text.num_hidden_layers):
        for name, shape in _layer(text, layer).items():
            yield Entry(f"blk.{layer}.{name}.weight", shape)


def _layer(text: TextConfig, layer: int) -> dict[str, tuple[int, ...]]:
    H, P, inner = text.hidden_size, text.hidden_size_per_layer_input, text.intermediate_of(layer)
    kv_heads, dim = text.heads_of(layer)
    queries = text.num_attention_heads * dim
    shapes: dict[str, tuple[int, ...]] = {
        "attn_norm": (H,), "attn_q": (queries, H), "attn_q_norm": (dim,),
        "attn_output": (H, queries), "post_attention_norm": (H,), "layer_output_scale": (1,),
        "ffn_norm": (H,), "ffn_gate": (inner, H), "ffn_up": (inner, H), "ffn_down": (H, inner),
        "post_ffw_norm": (H,), "inp_gate": (P, H), "proj": (H, P), "post_norm": (H,),
    }  # fmt: skip
    if layer < text.first_shared_layer:
        shapes |= {
            "attn_k": (kv_heads * dim, H),
            "attn_v": (kv_heads * dim, H),
            "attn_k_norm": (dim,),
        }
    return shapes


def blocks(kind: str, columns: int, seed: int = 0) -> NDArray[np.uint8]:
    """Give `POOL` random blocks, uint8 [POOL, bytes], whose weights have a variance of 1 / columns."""
    rng = np.random.default_rng(seed)
    _, size = BLOCKS[kind]
    made = rng.integers(0, 256, (POOL, size), np.uint8)
    unit = columns**-0.5
    if kind == Q4_0:  # d, 16 bytes of two codes: d * (code - 8)
        made[:, :2] = _half(unit / 4.6)
    else:  # 16 bytes of scale and minimum, 64 of four codes, d, dmin: d * scale * code - dmin * minimum
        both = rng.integers(8, 16, (POOL, 16), np.uint8)
        made[:, :16] = both | both << 4
        made[:, 80:82], made[:, 82:84] = _half(unit / 13), _half(1.5 * unit / 13)
    return made


def _half(value: float) -> NDArray[np.uint8]:
    return np.array([value], np.float16).view(np.uint8)


class _Ring:
    """A matrix of blocks from the pool, written piece by piece; looks to gguf's writer like an array."""

    def __init__(self, pool: NDArray[np.uint8], nbytes: int, told: Callable[[int], None]) -> None:
        self._bytes, self.nbytes, self._told = pool.reshape(-1), nbytes, told

    def tofile(self, file: BinaryIO) -> None:
        left = self.nbytes
        while left:
            piece = self._bytes[:left]
            file.write(piece.data)
            left -= len(piece)
            self._told(len(piece))


def write(
    text: TextConfig,
    path: Path,
    kind: str,
    report: Report = lambda _what, _done, _total: None,
) -> Path:
    """Write a file; it has its name only once it is complete.

    Parameters
    ----------
    text : TextConfig
    path : Path
    kind : str
        `Q4_0` or `Q2_K`, on every matrix.

    Raises
    ------
    MissingExtraError
        The gguf package is not installed.
    InputError
        The model has no per-layer inputs: of those no file is written here.
    """
    if not text.hidden_size_per_layer_input:
        raise InputError(f"{path.name}: llama.cpp is measured on E2B's and E4B's shapes only")
    try:
        import gguf
    except ImportError as error:
        raise MissingExtraError("gguf: not installed", "peers") from error
    partial = path.with_name(path.name + ".partial")
    writer: Any = gguf.GGUFWriter(str(partial), "gemma4")
    _describe(writer, text)
    weights, size = BLOCKS[kind]
    found = list(entries(text))
    raw = getattr(gguf.GGMLQuantizationType, kind)
    for entry in found:
        if len(entry.shape) == 1:
            count = 4 * entry.shape[0]
            writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), count)
        else:  # gguf wants the bytes of a row
            rows, columns = entry.shape
            width = columns // weights * size
            shape = (rows, width)
            writer.add_tensor_info(entry.name, shape, np.dtype(np.uint8), rows * width, raw)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        _write_tensors(writer, found, kind, lambda done, of: report(path.name, done, of))
        writer.close()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _write_tensors(
    writer: Any, found: list[Entry], kind: str, report: Callable[[int, int], None]
) -> None:
    weights, size = BLOCKS[kind]
    total = sum(e.shape[0] * e.shape[1] // weights * size for e in found if len(e.shape) == 2)
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        report(done, total)

    pools: dict[int, NDArray[np.uint8]] = {}
    for entry in found:
        if len(entry.shape) == 1:
            writer.write_tensor_data(_vector(entry))
            continue
        rows, columns = entry.shape
        if columns not in pools:
            pools[columns] = blocks(kind, columns)
        writer.write_tensor_data(_Ring(pools[columns], rows * columns // weights * size, told))


def _vector(entry: Entry) -> NDArray[np.float32]:
    ones = np.ones(entry.shape, np.float32)
    if entry.name == "rope_freqs.weight":  # a quarter rotates; a frequency so divided stands still
        ones[len(ones) // 4 :] = 1e30
    return ones


def _describe(writer: Any, text: TextConfig) -> None:
    """Write the dimensions. There is no vocabulary: tokens go in and come out as numbers."""
    layers = range(text.num_hidden_layers)
    writer.add_vocab_size(text.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length([text.intermediate_of(layer) for layer in layers])
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv([text.heads_of(layer)[0] for layer in layers])
    writer.add_key_length(text.global_head_dim)
    writer.add_value_length(text.global_head_dim)
    writer.add_key_length_swa(text.head_dim)
    writer.add_value_length_swa(text.head_dim)
    writer.add_rope_dimension_count(text.global_head_dim)
    writer.add_rope_dimension_count_swa(text.head_dim)
    writer.add_rope_freq_base(text.full_rope_theta)
    writer.add_rope_freq_base_swa(text.sliding_rope_theta)
    writer.add_sliding_window(text.sliding_window)
    writer.add_sliding_window_pattern([text.layer_types[layer] == SLIDING for layer in layers])
    writer.add_shared_kv_layers(text.num_kv_shared_layers)
    writer.add_embedding_length_per_layer_input(text.hidden_size_per_layer_input)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_final_logit_softcapping(text.final_logit_softcapping)
