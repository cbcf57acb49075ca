"""The model's dimensions, as the manifest of a package keeps them.

Frozen dataclasses with the field names of Gemma 4's published ``config.json`` where there is one.
``from_json`` refuses a missing, unknown or wrongly typed field by name: a manifest is untrusted.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from typing import Any, Self

from edgegemma.errors import PackageError

SLIDING = "sliding_attention"
FULL = "full_attention"


class _Section:
    """JSON in and out for a frozen dataclass of plain values."""

    @classmethod
    def from_json(cls, data: object, where: str = "config") -> Self:
        """Build from a decoded JSON object; raise `PackageError` naming the field that is wrong."""
        if not isinstance(data, dict):
            raise PackageError(f"{where}: got {type(data).__name__}; want an object")
        hints = typing.get_type_hints(cls)
        fields = {f.name: f for f in dataclasses.fields(typing.cast(Any, cls))}
        if unknown := sorted(data.keys() - fields.keys()):
            raise PackageError(f"{where}: unknown field {unknown[0]!r}")
        values = {}
        for name, field in fields.items():
            if name not in data:
                if field.default is dataclasses.MISSING:
                    raise PackageError(f"{where}: field {name!r} is missing")
                continue
            values[name] = _coerce(data[name], hints[name], f"{where}.{name}")
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, tuples as lists."""
        return dataclasses.asdict(typing.cast(Any, self))


@dataclass(frozen=True)
class TextConfig(_Section):
    """The decoder. Layers from ``first_shared_layer`` on own no K/V (spec: Gemma 4, KV sharing).

    ``hidden_size_per_layer_input`` is 0 in a model without per-layer inputs, ``num_experts`` in one without experts.
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    layer_types: tuple[str, ...]
    num_attention_heads: int
    num_key_value_heads: int
    num_global_key_value_heads: int
    head_dim: int
    global_head_dim: int
    intermediate_size: int
    use_double_wide_mlp: bool
    num_kv_shared_layers: int
    hidden_size_per_layer_input: int
    sliding_window: int
    max_position_embeddings: int
    rms_norm_eps: float
    final_logit_softcapping: float
    sliding_rope_theta: float
    full_rope_theta: float
    full_partial_rotary_factor: float
    attention_k_eq_v: bool = False
    num_experts: int = 0
    top_k_experts: int = 0
    moe_intermediate_size: int = 0

    @property
    def first_shared_layer(self) -> int:
        """Index of the first layer that borrows K/V; the number of layers that own a cache."""
        return self.num_hidden_layers - self.num_kv_shared_layers

    def kv_source(self, layer: int) -> int:
        """Find the layer whose K/V ``layer`` reads: itself, or the last owner of the same type."""
        if layer < self.first_shared_layer:
            return layer
        kind = self.layer_types[layer]
        return max(i for i in range(self.first_shared_layer) if self.layer_types[i] == kind)

    def heads_of(self, layer: int) -> tuple[int, int]:
        """``(kv_heads, head_dim)`` of a layer, which depend on its type."""
        if self.layer_types[layer] == SLIDING:
            return self.num_key_value_heads, self.head_dim
        return self.num_global_key_value_heads, self.global_head_dim

    def window_of(self, layer: int) -> int:
        """Keys a query of this layer sees, itself included; 0 means all."""
        return self.sliding_window if self.layer_types[layer] == SLIDING else 0

    def values_of_keys(self, layer: int) -> bool:
        """Whether a layer makes its values of what its key projection gives."""
        return self.attention_k_eq_v and self.layer_types[layer] == FULL

    def intermediate_of(self, layer: int) -> int:
        """Inner width of the feed-forward block; doubled in shared layers where the model says so."""
        wide = self.use_double_wide_mlp and layer >= self.first_shared_layer
        return self.intermediate_size * (2 if wide else 1)


@dataclass(frozen=True)
class AudioConfig(_Section):
    """The Conformer tower. ``window`` counts the keys a query sees, itself included (12 or 13)."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    subsampling_conv_channels: tuple[int, ...]
    conv_kernel_size: int
    residual_weight: float
    window: int
    attention_logit_cap: float
    rms_norm_eps: float
    output_proj_dims: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class TokenConfig(_Section):
    """Ids the runtime itself needs to know; everything else is the tokenizer's business."""

    bos: int
    pad: int
    eos: tuple[int, ...]
    audio: int | None = None
    boa: int | None = None
    eoa: int | None = None
    image: int | None = None
    boi: int | None = None
    eoi: int | None = None
    video: int | None = None


@dataclass(frozen=True)
class ModelConfig(_Section):
    """All of it. ``audio`` is None for a checkpoint without an audio tower."""

    text: TextConfig
    tokens: TokenConfig
    audio: AudioConfig | None = None


def _coerce(value: Any, want: Any, where: str) -> Any:
    """Check one JSON value against a type of this file's vocabulary and return it converted."""
    if typing.get_origin(want) in (typing.Union, types.UnionType):
        if value is None:
            return None
        (want,) = (t for t in typing.get_args(want) if t is not type(None))
    if isinstance(want, type) and issubclass(want, _Section):
        return want.from_json(value, where)
    if typing.get_origin(want) is tuple:
        if not isinstance(value, list | tuple):
            raise PackageError(f"{where}: got {value!r}; want a list")
        item = typing.get_args(want)[0]
        return tuple(_coerce(v, item, f"{where}[{i}]") for i, v in enumerate(value))
    if want is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, want) or (want is int and isinstance(value, bool)):
        raise PackageError(f"{where}: got {value!r}; want {want.__name__}")
    return value
