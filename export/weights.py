"""A checkpoint's weights as the graph builders want them: the policy, applied chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgegemma.config import ModelConfig
from edgegemma.errors import CheckpointError
from export import names
from export.checkpoint import FLOATS, Checkpoint, TensorInfo, widen
from export.names import HEAD, LANGUAGE, Match, Wanted
from export.source import F32, Matrix
from quant.pack import U8, pack, unpack
from quant.policy import Preset, Rule
from quant.report import Meter, Report
from quant.rtn import quantize

Chunk = tuple[npt.NDArray[Any], F32]
Advance = Callable[[int], None]

BLOCKS = (128, 64, 32, 16)
"""What the kernels and MatMulNBits take; a scale a row is presented in the largest that divides K."""
UNCLIPPED = float(np.finfo(np.float32).max)
SIGN = np.uint8(0x80)
TABLE = f"{LANGUAGE}.embed_tokens"
PER_LAYER_TABLE = f"{LANGUAGE}.embed_tokens_per_layer"
_NO_SCALE = np.ones((1, 1), np.float32)


@dataclass(frozen=True)
class _Stored:
    """One weight as the checkpoint has it."""

    module: str
    name: str
    info: TensorInfo
    shape: tuple[int, ...]
    """[N, K], or [E, N, K] for stacked experts."""

    @property
    def rows(self) -> int:
        """Rows of all matrices together."""
        return math.prod(self.shape[:-1])

    @property
    def columns(self) -> int:
        """Inputs."""
        return self.shape[-1]

    @property
    def stacked(self) -> int:
        """Matrices that are stacked; 0 for one matrix."""
        return self.shape[0] if len(self.shape) > 2 else 0

    @property
    def codes(self) -> int:
        """Bits of its codes; 0 for floats."""
        if self.info.dtype in FLOATS:
            return 0
        return names.code_bits(self.name, self.info, self.shape)


class Weights:
    """`export.source.WeightSource` over a checkpoint.

    Parameters
    ----------
    tied : bool
        What the config says: the head may be absent. One that is there is tied if its bytes are the embedding's.
    clipped : bool
        What the config says of the audio tower's linears; if not, bounds in the file are nothing, as in transformers.
    advance : callable, optional
        Told the bytes of the checkpoint as they are read.

    Attributes
    ----------
    report : Report
        Gets a row for each matrix when its last chunk has been read.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: ModelConfig,
        preset: Preset,
        tied: bool,
        clipped: bool = True,
        advance: Advance = lambda _: None,
    ) -> None:
        self.config, self.preset, self._tied, self._clipped = config, preset, tied, clipped
        self.report = Report(preset.name, preset.method)
        self.quantized = preset.method != "float"
        self._checkpoint, self._advance = checkpoint, advance
        self._match: Match = names.match(config, checkpoint.tensors, tied)
        self.unexpected = self._match.unexpected
        self.tied_head = HEAD not in self._match.wanted or self._same_bytes(HEAD, TABLE)

    def again(self, advance: Advance = lambda _: None) -> Weights:
        """Give the same weights with an empty report, to read them once more."""
        said = self._tied, self._clipped
        return Weights(self._checkpoint, self.config, self.preset, *said, advance)

    def matrices(self) -> dict[str, Matrix]:
        """Give all that the builders will stream, by canonical module; their chunks are not read yet."""
        found = {}
        for module, what in self._match.wanted.items():
            if what.kind == "vector" or (module == HEAD and self.tied_head):
                continue
            found[module] = self._any(module, what.kind)
        return found

    def source_bytes(self) -> int:
        """Bytes of the checkpoint that the builders will read."""
        return sum(self._stored(module).info.nbytes for module in self.matrices())

    def linear(self, module: str) -> Matrix:
        """Give the matrix of a linear, or those of all experts; that of the embedding for a tied head."""
        what = self._wanted(module) if module != HEAD or not self.tied_head else None
        if what is None:
            return self._codes(self._stored(TABLE), HEAD, as_table=False)
        clip = self._clip(module) if what.kind == "clipped" else None
        return self._codes(self._stored(module), module, as_table=False, clip=clip)

    def table(self, module: str) -> Matrix:
        """Give a table that is gathered by row."""
        return self._codes(self._stored(module), module, as_table=True)

    def rows(self, module: str) -> Matrix:
        """Give a matrix that is float in every preset."""
        return self._float(self._stored(module), np.zeros(2, np.float32), None)

    def vector(self, tensor: str) -> F32:
        """Give a small tensor as float32, in the checkpoint's shape."""
        name = self._name(tensor)
        info = self._checkpoint.info(name)
        return np.ascontiguousarray(widen(self._checkpoint.array(name), info.dtype))

    def cache_scales(self, layer: int) -> tuple[float, float]:
        """Give the static int8 scales of a layer's keys and values, or 0, 0."""
        module = f"{LANGUAGE}.layers.{layer}.self_attn"
        key, value = self._scalars(module, names.CACHE_SCALES)
        return key, value

    def _any(self, module: str, kind: names.Kind) -> Matrix:
        if kind == "rows":
            return self.rows(module)
        return self.table(module) if kind == "table" else self.linear(module)

    def _codes(
        self, stored: _Stored, module: str, as_table: bool, clip: F32 | None = None
    ) -> Matrix:
        """Give codes, or floats in the float preset."""
        activation = self._activation(module)
        if self.preset.method == "float":
            return self._float(stored, activation, clip)
        if self.preset.method == "source":
            bits, groups = stored.codes, self._scale_columns(stored)
            chunks = self._kept(stored, bits, groups)
        else:
            _refuse_codes(stored)
            rule = self.preset.rule(stored.module)
            bits, block = rule.bits, self._rule_block(stored, rule)
            groups = stored.columns // block
            chunks = self._rounded(stored, bits, block)
        if not bits:
            raise CheckpointError(
                f"{stored.info.file}: {stored.name}: got floats; this preset keeps the codes of the source"
            )
        if as_table or groups > 1:
            block = stored.columns // groups
        else:
            block = _kernel_block(stored)
        rows, columns = stored.rows, stored.columns
        return Matrix(rows, columns, bits, block, groups, chunks, activation, clip, stored.stacked)

    def _float(self, stored: _Stored, activation: F32, clip: F32 | None) -> Matrix:
        bits = 16 if stored.info.dtype == "BF16" else 32
        chunks = self._floats(stored, bits)
        rows, columns = stored.rows, stored.columns
        return Matrix(rows, columns, bits, 0, 1, chunks, activation, clip, stored.stacked)

    def _kept(self, stored: _Stored, bits: int, groups: int) -> Iterator[Chunk]:
        """Pass the source's codes through; int8 becomes offset binary, which is one flipped bit."""
        meter = Meter(f"{stored.module}.weight", bits, stored.columns // groups)
        scale = self._scale(stored)
        start = 0
        for chunk in self._read(stored):
            codes: U8 = chunk.view(np.uint8) ^ SIGN if bits == 8 else chunk
            part = scale[start : start + len(chunk)]
            start += len(chunk)
            meter.passed(len(chunk), stored.columns, part.size)
            yield codes, part
        self.report.rows.append(meter.row())

    def _rounded(self, stored: _Stored, bits: int, block: int) -> Iterator[Chunk]:
        """Round floats to nearest."""
        meter = Meter(f"{stored.module}.weight", bits, block)
        for chunk in self._read(stored):
            w = widen(chunk, stored.info.dtype)
            q = quantize(w, bits, block, name=stored.name)
            meter.quantized(w, q)
            yield pack(q.codes, bits), q.scale
        self.report.rows.append(meter.row())

    def _floats(self, stored: _Stored, bits: int) -> Iterator[Chunk]:
        """Pass floats through, bfloat16 as bit patterns; decode codes into float32."""
        meter = Meter(f"{stored.module}.weight", bits, 0)
        scale = self._scale(stored) if stored.codes else _NO_SCALE
        start = 0
        for chunk in self._read(stored):
            if stored.codes:
                rows = _decoded(chunk, stored.codes, scale[start : start + len(chunk)])
            else:
                rows = chunk if bits == 16 else widen(chunk, stored.info.dtype)
            start += len(chunk)
            meter.passed(len(chunk), stored.columns, 0)
            yield rows, _NO_SCALE
        self.report.rows.append(meter.row())

    def _read(self, stored: _Stored) -> Iterator[npt.NDArray[Any]]:
        for chunk in self._checkpoint.chunks(stored.name):
            yield chunk.reshape(-1, chunk.shape[-1])
            self._advance(chunk.nbytes)

    def _rule_block(self, stored: _Stored, rule: Rule) -> int:
        """Give the columns that share a scale under a rule."""
        if rule.block and stored.columns % rule.block:
            raise CheckpointError(
                f"{stored.name}: preset {self.preset.name} wants blocks of {rule.block}; "
                f"{stored.columns} columns do not divide into them"
            )
        if rule.block:
            return rule.block
        if stored.module == PER_LAYER_TABLE:  # its row is one slice for each layer
            return self.config.text.hidden_size_per_layer_input
        return stored.columns

    def _activation(self, module: str) -> F32:
        return np.array(self._scalars(module, names.ACTIVATIONS), np.float32)

    def _clip(self, module: str) -> F32:
        """Give the four bounds of a clipped linear; infinite or absent ones are off."""
        bounds = [self._scalar(f"{module}.{bound}", finite=False) for bound in names.CLIPS]
        if not self._clipped or all(bound is None for bound in bounds):
            return np.array([-UNCLIPPED, UNCLIPPED] * 2, np.float32)
        if any(bound is None for bound in bounds):
            missing = names.CLIPS[bounds.index(None)]
            raise CheckpointError(f"tensor {module}.{missing} is missing from the checkpoint")
        return np.clip(np.array(bounds, np.float32), -UNCLIPPED, UNCLIPPED)

    def _scalars(self, module: str, parts: tuple[str, ...]) -> list[float]:
        """Give scales of a module, 0 for those that are not there."""
        scales = [self._scalar(f"{module}.{part}") or 0.0 for part in parts]
        if min(scales) < 0:
            raise CheckpointError(f"{module}: {', '.join(parts)}: got {scales}; want none below 0")
        return scales

    def _scalar(self, tensor: str, finite: bool = True) -> float | None:
        """Give a scalar tensor, or None if there is none."""
        if tensor not in self._match.names:
            return None
        name = self._name(tensor)
        info = self._checkpoint.info(name)
        if info.dtype not in FLOATS or info.shape not in ((), (1,)):
            raise CheckpointError(
                f"{info.file}: {name}: got {info.dtype} {list(info.shape)}; want one float"
            )
        return float(widen(self._checkpoint.array(name, finite=finite), info.dtype).reshape(()))

    def _scale(self, stored: _Stored) -> F32:
        scale: F32 = self._checkpoint.array(self._name(f"{stored.module}.weight_scale"))
        return scale.reshape(stored.rows, -1)

    def _scale_columns(self, stored: _Stored) -> int:
        if not stored.codes:
            return 1
        return self._checkpoint.info(self._name(f"{stored.module}.weight_scale")).shape[-1]

    def _wanted(self, module: str) -> Wanted:
        if module not in self._match.wanted:
            raise CheckpointError(f"{module}: the config of this checkpoint has no such module")
        return self._match.wanted[module]

    def _stored(self, module: str) -> _Stored:
        name = self._name(f"{module}.weight")
        return _Stored(module, name, self._checkpoint.info(name), self._wanted(module).shape)

    def _name(self, tensor: str) -> str:
        if tensor not in self._match.names:
            raise CheckpointError(f"tensor {tensor} is missing from the checkpoint")
        return self._match.names[tensor]

    def _same_bytes(self, one: str, other: str) -> bool:
        """Whether two modules hold the same weights, bit for bit."""
        for part in ("weight", "weight_scale"):
            pair = [self._match.names.get(f"{module}.{part}") for module in (one, other)]
            if pair == [None, None]:
                continue
            if pair[0] is None or pair[1] is None:
                return False
            a, b = (self._checkpoint.info(name) for name in pair if name)
            if (a.dtype, a.shape) != (b.dtype, b.shape):
                return False
            streams = (self._checkpoint.chunks(name) for name in pair if name)
            if not all(np.array_equal(x, y) for x, y in zip(*streams, strict=True)):
                return False
        return True


def _refuse_codes(stored: _Stored) -> None:
    if stored.codes:
        raise CheckpointError(
            f"{stored.info.file}: {stored.name}: got codes, but config.json has no "
            "quantization_config; want floats to round"
        )


def _kernel_block(stored: _Stored) -> int:
    for block in BLOCKS:
        if stored.columns % block == 0:
            return block
    raise CheckpointError(
        f"{stored.name}: {stored.columns} columns: want a multiple of {BLOCKS[-1]}"
    )


def _decoded(chunk: npt.NDArray[Any], bits: int, scale: F32) -> F32:
    """Turn stored codes into weights."""
    if bits == 8:
        levels = chunk.astype(np.float32)
    else:
        levels = unpack(chunk, bits).astype(np.float32) - np.float32(1 << (bits - 1))
    rows, groups = scale.shape
    return (levels.reshape(rows, groups, -1) * scale[:, :, None]).reshape(rows, -1)
