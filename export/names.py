"""Names and shapes of a checkpoint's tensors: the one table.

`canonical` brings every spelling to one: Hugging Face's own for ``Gemma4ForConditionalGeneration``, with
a weight called ``MODULE.weight`` and its codes' scale ``MODULE.weight_scale``, whatever layout they come
in. `wanted` lists what a config asks for. `match` joins the two and refuses what is missing or of
another shape, before anything is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from edgegemma.config import AudioConfig, ModelConfig, TextConfig
from edgegemma.errors import CheckpointError
from export.checkpoint import FLOATS, TensorInfo

LANGUAGE, AUDIO, EMBED_AUDIO = "model.language_model", "model.audio_tower", "model.embed_audio"
HEAD = "lm_head"
MEL_ROWS = 32  # 128 mel bins through two convolutions of stride 2

# (how a name starts, what that becomes); the first that fits. None: deliberately not exported.
PREFIXES: tuple[tuple[str, str | None], ...] = (
    ("model.vision_tower.", None),
    ("model.embed_vision.", None),
    ("model.language_model.", f"{LANGUAGE}."),
    ("model.audio_tower.", f"{AUDIO}."),
    ("model.embed_audio.", f"{EMBED_AUDIO}."),
    ("vision_tower.", None),
    ("embed_vision.", None),
    ("language_model.lm_head.", "lm_head."),
    ("language_model.model.", f"{LANGUAGE}."),
    ("language_model.", f"{LANGUAGE}."),
    ("audio_tower.", f"{AUDIO}."),
    ("embed_audio.", f"{EMBED_AUDIO}."),
    ("lm_head.", "lm_head."),
    ("model.", f"{LANGUAGE}."),  # Gemma4ForCausalLM
)
# (part of a name, what that becomes): the towers' wrapped linears, Google's packed tables, stacked experts.
SPELLINGS = (
    (r"\.linear\.", "."),
    (r"\.embedding_quantized$", ".weight"),
    (r"\.embedding_scale$", ".weight_scale"),
    (r"(\.experts\.(gate_up|down)_proj)$", r"\1.weight"),
)
# Buffers that some versions save and nothing needs.
IGNORED = re.compile(r"rotary_emb\.|inv_freq$|inv_timescales$|\.embed_scale$")

TEXT_NORMS = (
    "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)  # fmt: skip
EXPERT_NORMS = (
    "post_feedforward_layernorm_1", "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2",
)  # fmt: skip
AUDIO_NORMS = (
    "feed_forward1.pre_layer_norm", "feed_forward1.post_layer_norm", "feed_forward2.pre_layer_norm",
    "feed_forward2.post_layer_norm", "norm_pre_attn", "norm_post_attn", "norm_out",
    "lconv1d.pre_layer_norm", "lconv1d.conv_norm",
)  # fmt: skip
CLIPS = ("input_min", "input_max", "output_min", "output_max")
ACTIVATIONS = ("input_activation_scale", "output_activation_scale")
CACHE_SCALES = ("k_cache_scale", "v_cache_scale")

Kind = Literal["linear", "clipped", "experts", "table", "rows", "vector"]


@dataclass(frozen=True)
class Wanted:
    """One thing a graph needs: a tensor ("vector"), or a module and the shape of its weight."""

    kind: Kind
    shape: tuple[int, ...]


def canonical(name: str) -> str | None:
    """Give the canonical name of a checkpoint's tensor, or None for what is not exported."""
    for start, becomes in PREFIXES:
        if name.startswith(start):
            if becomes is None:
                return None
            name = becomes + name.removeprefix(start)
            break
    for pattern, becomes in SPELLINGS:
        name = re.sub(pattern, becomes, name)
    return name


def wanted(config: ModelConfig) -> dict[str, Wanted]:
    """List everything the graphs of a model ask for, by canonical module or tensor name."""
    found = dict(_text(config.text))
    if config.audio is not None:
        found |= _audio(config.audio)
        shape = (config.text.hidden_size, config.audio.output_proj_dims)
        found[f"{EMBED_AUDIO}.embedding_projection"] = Wanted("rows", shape)
    return found


def _text(c: TextConfig) -> Iterator[tuple[str, Wanted]]:
    H, V, P = c.hidden_size, c.vocab_size, c.hidden_size_per_layer_input
    wide = c.num_hidden_layers * P
    yield f"{LANGUAGE}.embed_tokens", Wanted("table", (V, H))
    if P:
        yield f"{LANGUAGE}.embed_tokens_per_layer", Wanted("table", (V, wide))
        yield f"{LANGUAGE}.per_layer_model_projection", Wanted("rows", (wide, H))
        yield f"{LANGUAGE}.per_layer_projection_norm.weight", Wanted("vector", (P,))
    yield f"{LANGUAGE}.norm.weight", Wanted("vector", (H,))
    yield HEAD, Wanted("linear", (V, H))
    for i in range(c.num_hidden_layers):
        for name, what in (*_layer(c, i), *_per_layer(c), *_experts(c)):
            yield f"{LANGUAGE}.layers.{i}.{name}", what


def _layer(c: TextConfig, i: int) -> Iterator[tuple[str, Wanted]]:
    """List what every layer has."""
    H = c.hidden_size
    kv_heads, D = c.heads_of(i)
    inner, queries = c.intermediate_of(i), c.num_attention_heads * D
    yield "layer_scalar", Wanted("vector", (1,))
    for norm in TEXT_NORMS:
        yield f"{norm}.weight", Wanted("vector", (H,))
    yield "self_attn.q_norm.weight", Wanted("vector", (D,))
    linears = {
        "self_attn.q_proj": (queries, H), "self_attn.o_proj": (H, queries),
        "mlp.gate_proj": (inner, H), "mlp.up_proj": (inner, H), "mlp.down_proj": (H, inner),
    }  # fmt: skip
    if i < c.first_shared_layer:
        yield "self_attn.k_norm.weight", Wanted("vector", (D,))
        linears["self_attn.k_proj"] = (kv_heads * D, H)
        if not c.values_of_keys(i):
            linears["self_attn.v_proj"] = (kv_heads * D, H)
    for name, shape in linears.items():
        yield name, Wanted("linear", shape)


def _per_layer(c: TextConfig) -> Iterator[tuple[str, Wanted]]:
    """List what a layer has for its per-layer inputs."""
    H, P = c.hidden_size, c.hidden_size_per_layer_input
    if P:
        yield "post_per_layer_input_norm.weight", Wanted("vector", (H,))
        yield "per_layer_input_gate", Wanted("linear", (P, H))
        yield "per_layer_projection", Wanted("linear", (H, P))


def _experts(c: TextConfig) -> Iterator[tuple[str, Wanted]]:
    """List what a layer has for its experts."""
    H, E, inner = c.hidden_size, c.num_experts, c.moe_intermediate_size
    if E:
        for norm in EXPERT_NORMS:
            yield f"{norm}.weight", Wanted("vector", (H,))
        yield "router.scale", Wanted("vector", (H,))
        yield "router.per_expert_scale", Wanted("vector", (E,))
        yield "router.proj", Wanted("rows", (E, H))
        yield "experts.gate_up_proj", Wanted("experts", (E, 2 * inner, H))
        yield "experts.down_proj", Wanted("experts", (E, H, inner))


def _audio(c: AudioConfig) -> Iterator[tuple[str, Wanted]]:
    C, (c0, c1) = c.hidden_size, c.subsampling_conv_channels
    subsample = f"{AUDIO}.subsample_conv_projection"
    yield f"{subsample}.layer0.conv.weight", Wanted("vector", (c0, 1, 3, 3))
    yield f"{subsample}.layer0.norm.weight", Wanted("vector", (c0,))
    yield f"{subsample}.layer1.conv.weight", Wanted("vector", (c1, c0, 3, 3))
    yield f"{subsample}.layer1.norm.weight", Wanted("vector", (c1,))
    yield f"{subsample}.input_proj_linear", Wanted("rows", (C, c1 * MEL_ROWS))
    yield f"{AUDIO}.output_proj", Wanted("rows", (c.output_proj_dims, C))
    yield f"{AUDIO}.output_proj.bias", Wanted("vector", (c.output_proj_dims,))
    linears = {
        "feed_forward1.ffw_layer_1": (4 * C, C), "feed_forward1.ffw_layer_2": (C, 4 * C),
        "feed_forward2.ffw_layer_1": (4 * C, C), "feed_forward2.ffw_layer_2": (C, 4 * C),
        "self_attn.q_proj": (C, C), "self_attn.k_proj": (C, C), "self_attn.v_proj": (C, C),
        "self_attn.post": (C, C), "lconv1d.linear_start": (2 * C, C), "lconv1d.linear_end": (C, C),
    }  # fmt: skip
    for i in range(c.num_hidden_layers):
        layer = f"{AUDIO}.layers.{i}"
        for name, shape in linears.items():
            yield f"{layer}.{name}", Wanted("clipped", shape)
        for norm in AUDIO_NORMS:
            yield f"{layer}.{norm}.weight", Wanted("vector", (C,))
        yield f"{layer}.self_attn.relative_k_proj", Wanted("rows", (C, C))
        yield f"{layer}.self_attn.per_dim_scale", Wanted("vector", (c.head_dim,))
        depthwise = Wanted("vector", (C, 1, c.conv_kernel_size))
        yield f"{layer}.lconv1d.depthwise_conv1d.weight", depthwise


@dataclass(frozen=True)
class Match:
    """A checkpoint's tensors under their canonical names."""

    wanted: dict[str, Wanted]
    names: dict[str, str]
    """Canonical tensor name → the checkpoint's."""
    unexpected: tuple[str, ...]
    """Tensors of the checkpoint that nothing asks for and nothing excuses."""


def match(config: ModelConfig, tensors: Mapping[str, TensorInfo], tied: bool) -> Match:
    """Find everything a config asks for and check its shape.

    Parameters
    ----------
    tied : bool
        The config ties the head to the embedding, so that ``lm_head`` may be absent.

    Raises
    ------
    CheckpointError
        A tensor is missing, named twice, of another type or shape, or a part of a weight that is not known; names
        file, tensor, got, want.
    """
    names: dict[str, str] = {}
    for name in tensors:
        known = canonical(name)
        if known is None:
            continue
        if known in names:
            raise CheckpointError(
                f"{tensors[name].file}: {name} and {names[known]} are the same tensor"
            )
        names[known] = name
    want = wanted(config)
    unexpected = _unexpected(config, want, names, tensors)
    if tied and f"{HEAD}.weight" not in names:
        del want[HEAD]
    for item, what in want.items():
        _check_item(item, what, names, tensors)
    return Match(want, names, unexpected)


def _unexpected(
    config: ModelConfig,
    want: Mapping[str, Wanted],
    names: Mapping[str, str],
    tensors: Mapping[str, TensorInfo],
) -> tuple[str, ...]:
    """Give what nothing asks for; refuse what would change a weight, as a bias or a zero point does."""
    excused = _excused(config)
    used = {part for item, what in want.items() for part in _parts(item, what)}
    matrices = tuple(f"{item}." for item, what in want.items() if what.kind != "vector")
    found = []
    for known, name in names.items():
        if known in used or excused.search(known):
            continue
        # scales of activations are ignored beside what is never quantized, as in transformers
        if known.startswith(matrices) and not known.endswith(ACTIVATIONS):
            raise CheckpointError(
                f"{tensors[name].file}: {name}: belongs to a weight and cannot be applied to it; "
                "want a checkpoint without it"
            )
        found.append(name)
    return tuple(found)


def _check_item(
    item: str, what: Wanted, names: Mapping[str, str], tensors: Mapping[str, TensorInfo]
) -> None:
    tensor = item if what.kind == "vector" else f"{item}.weight"
    if tensor not in names:
        raise CheckpointError(f"tensor {tensor} {list(what.shape)} is missing from the checkpoint")
    name, scale = names[tensor], f"{item}.weight_scale"
    info = tensors[name]
    if info.dtype in FLOATS:
        _check_shape(name, info, what.shape)
        if scale in names and what.kind != "vector":
            raise CheckpointError(
                f"{info.file}: {names[scale]}: a scale, but {name} is {info.dtype}; want codes"
            )
    elif what.kind in ("vector", "rows"):
        raise CheckpointError(f"{info.file}: {name}: got {info.dtype}; want floats")
    else:
        code_bits(name, info, what.shape)
        _check_scale(item, what, names, tensors)


def code_bits(name: str, info: TensorInfo, shape: tuple[int, ...]) -> int:
    """Give the bits of packed codes by their type and width; raise `CheckpointError` if they fit none."""
    *rows, columns = shape
    if info.dtype == "I8" and info.shape == shape:
        return 8
    for bits in (2, 4):
        if info.dtype == "U8" and info.shape == (*rows, columns * bits // 8):
            return bits
    leading = ", ".join(map(str, rows))
    raise CheckpointError(
        f"{info.file}: {name}: got {info.dtype} {list(info.shape)}; want 2- or 4-bit codes in U8 "
        f"[{leading}, {columns // 4} or {columns // 2}], I8 {list(shape)}, or floats of that shape"
    )


def _check_shape(name: str, info: TensorInfo, shape: tuple[int, ...]) -> None:
    if info.shape != shape:
        raise CheckpointError(f"{info.file}: {name}: got {list(info.shape)}; want {list(shape)}")


def _check_scale(
    module: str, what: Wanted, names: Mapping[str, str], tensors: Mapping[str, TensorInfo]
) -> None:
    scale = f"{module}.weight_scale"
    if scale not in names:
        raise CheckpointError(
            f"tensor {scale} is missing from the checkpoint: {module} holds codes"
        )
    info = tensors[names[scale]]
    rows = what.shape[:-1]
    groups = info.shape[-1] if len(info.shape) == len(what.shape) else 0
    fits = groups == 1 or (what.kind == "table" and groups > 0 and what.shape[1] % groups == 0)
    if info.dtype != "F32" or info.shape[:-1] != rows or not fits:
        raise CheckpointError(
            f"{info.file}: {names[scale]}: got {info.dtype} {list(info.shape)}; want F32 {[*rows, 1]}"
            + (" or a scale for each equal slice of a row" if what.kind == "table" else "")
        )


def _parts(item: str, what: Wanted) -> list[str]:
    """Give all tensors that may belong to something wanted."""
    if what.kind == "vector":
        return [item]
    suffixes = ["weight", "weight_scale"]
    suffixes += ACTIVATIONS if what.kind in ("linear", "clipped", "experts") else ()
    suffixes += CLIPS if what.kind == "clipped" else ()
    return [f"{item}.{suffix}" for suffix in suffixes]


def _excused(config: ModelConfig) -> re.Pattern[str]:
    """Match tensors that may be there without being wanted."""
    shared = range(config.text.first_shared_layer, config.text.num_hidden_layers)
    layers = "|".join(map(str, shared)) or "none"
    excused = [
        IGNORED.pattern,
        r"self_attn\.[kv]_cache_scale$",
        # early uploads keep the unused K/V of layers that borrow them
        rf"language_model\.layers\.({layers})\.self_attn\.(k_proj|v_proj|k_norm)\.",
    ]
    if config.audio is None:
        excused.append(r"^model\.(audio_tower|embed_audio)\.")
    return re.compile("|".join(excused))
