"""The config of a package, checked: its numbers are sane and fit each other.

`edgegemma.config` knows types; this knows meaning. Everything the engine sizes by the config comes after.
"""

from __future__ import annotations

from edgegemma.config import FULL, SLIDING, AudioConfig, ModelConfig, TextConfig
from edgegemma.errors import PackageError

LIMIT = 1 << 24  # of any one number: 64 times the vocabulary
_WHERE = "manifest.json: config"
_EXPERTS = ("num_experts", "top_k_experts", "moe_intermediate_size")
_MAY_BE_ZERO = ("num_kv_shared_layers", "hidden_size_per_layer_input", *_EXPERTS)


def check_config(config: ModelConfig) -> None:
    """Refuse a config whose numbers are out of range or contradict each other.

    Raises
    ------
    PackageError
        Names the field.
    """
    _check_text(config.text)
    if config.audio:
        _check_audio(config.audio)
    if not config.tokens.eos:
        raise PackageError(
            f"{_WHERE}.tokens.eos: got none; want the id of a token that ends an answer"
        )
    for field, token in config.tokens.to_json().items():
        for value in token if isinstance(token, list | tuple) else [token]:
            if value is not None and not 0 <= value < config.text.vocab_size:
                raise PackageError(
                    f"{_WHERE}.tokens.{field}: got {value}; want an id of the vocabulary"
                )


def _check_text(text: TextConfig) -> None:
    where = f"{_WHERE}.text"
    _check_sizes(text, where, _MAY_BE_ZERO)
    layers, shared = text.num_hidden_layers, text.num_kv_shared_layers
    if len(text.layer_types) != layers or not set(text.layer_types) <= {SLIDING, FULL}:
        raise PackageError(f"{where}.layer_types: want {layers} of {SLIDING!r} and {FULL!r}")
    if shared >= layers:
        raise PackageError(f"{where}.num_kv_shared_layers: got {shared}; want less than {layers}")
    if not set(text.layer_types) <= set(text.layer_types[: layers - shared]):
        raise PackageError(f"{where}.layer_types: a shared layer has no earlier one of its type")
    for kv_heads in (text.num_key_value_heads, text.num_global_key_value_heads):
        if text.num_attention_heads % kv_heads:
            raise PackageError(f"{where}: {kv_heads} K/V heads do not divide the attention heads")


def _check_audio(audio: AudioConfig) -> None:
    where = f"{_WHERE}.audio"
    _check_sizes(audio, where, ())
    if audio.hidden_size % audio.num_attention_heads:
        raise PackageError(f"{where}: the attention heads do not divide hidden_size")
    channels = audio.subsampling_conv_channels
    if len(channels) != 2 or not all(0 < c <= LIMIT for c in channels):
        raise PackageError(f"{where}.subsampling_conv_channels: want two sizes")


def _check_sizes(
    section: TextConfig | AudioConfig, where: str, may_be_zero: tuple[str, ...]
) -> None:
    for name, value in section.to_json().items():
        lowest = 0 if name in may_be_zero or isinstance(value, float) else 1
        if isinstance(value, int | float) and not lowest <= value <= LIMIT:
            if isinstance(value, bool):
                continue
            raise PackageError(f"{where}.{name}: got {value}; want {lowest} to {LIMIT}")
