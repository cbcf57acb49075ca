"""A stand-in tokenizer and chat template in Gemma 4's form, for checkpoints made without the real ones.

The right vocabulary size, control tokens at the published ids, byte fallback, single characters and a
few merges: it encodes and decodes any text, only not as compactly as the real one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from bench.shapes import Config
from edgegemma.errors import InputError

FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")

_CONTROL = {
    0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>", 46: "<|tool>", 47: "<tool|>",
    48: "<|tool_call>", 49: "<tool_call|>", 50: "<|tool_response>", 51: "<tool_response|>",
    52: '<|"|>', 98: "<|think|>", 100: "<|channel>", 101: "<channel|>", 105: "<|turn>",
    106: "<turn|>",
}  # fmt: skip
_MEDIA = {
    "boi_token_id": "<|image>", "image_token_id": "<|image|>", "eoi_token_id": "<image|>",
    "boa_token_id": "<|audio>", "audio_token_id": "<|audio|>", "eoa_token_id": "<audio|>",
    "video_token_id": "<|video|>",
}  # fmt: skip
_BYTES_AT = 238
_PIECES_AT = 494
_WORDS = ("▁the", "▁and", "▁speech", "▁text", "user", "model", "system", "Transcribe")

TEMPLATE = """{{ bos_token }}
{%- for message in messages -%}
<|turn>{{ 'model' if message.role == 'assistant' else message.role }}
{% if message.content is string -%}
{{ message.content | trim }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'text' -%}{{ part.text | trim }}
{%- elif part.type == 'audio' -%}<|audio|>
{%- elif part.type == 'image' -%}<|image|>{%- endif -%}
{%- endfor -%}
{%- endif -%}<turn|>
{% endfor -%}
{%- if add_generation_prompt -%}<|turn>model
{% endif -%}
"""


def write(folder: Path, config: Config, source: Path | None = None) -> None:
    """Write a tokenizer into ``folder``: copied from ``source``, or made up for this config."""
    if source is not None and not (source / "tokenizer.json").is_file():
        raise InputError(f"{source}: got a folder without tokenizer.json; want one with it")
    _write(folder / "tokenizer_config.json", _names())
    _write(folder / "generation_config.json", _generation(config))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    if source is None:
        _write(folder / "tokenizer.json", tokenizer(config))
        return
    for name in FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def tokenizer(config: Config) -> dict[str, object]:
    """Return the contents of a ``tokenizer.json`` with as many tokens as the config says."""
    size = config["text_config"]["vocab_size"]
    control = _CONTROL | {config[k]: token for k, token in _MEDIA.items() if k in config}
    pieces, merges = _pieces()
    tokens = {_BYTES_AT + b: f"<0x{b:02X}>" for b in range(256)} | {107: "\n", 108: "\n\n"}
    tokens |= {_PIECES_AT + i: piece for i, piece in enumerate(pieces)} | control
    vocabulary = {tokens.get(i, f"<unused{i}>"): i for i in range(size)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, token) for i, token in sorted(control.items())],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def _pieces() -> tuple[list[str], list[list[str]]]:
    pieces = ["▁", *map(chr, range(33, 127))]
    merges: list[list[str]] = []
    for word in _WORDS:
        for cut in range(1, len(word)):
            pair = [word[:cut], word[cut]]
            if pair not in merges:
                merges.append(pair)
                pieces.append("".join(pair))
    return pieces, merges


def _added(number: int, token: str) -> dict[str, object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": number, "content": token, **flags, "special": True}


def _names() -> dict[str, object]:
    return {
        "tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>",
        "pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>", "add_bos_token": False,
        "padding_side": "left",
    }  # fmt: skip


def _generation(config: Config) -> dict[str, object]:
    return {
        "bos_token_id": 2, "do_sample": True, "eos_token_id": config["eos_token_id"],
        "pad_token_id": 0, "temperature": 1.0, "top_k": 64, "top_p": 0.95,
    }  # fmt: skip


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
