"""A tiny tokenizer in Gemma 4's form: BPE with byte fallback, the real control tokens, a chat template."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

CONTROL = {
    0: "<pad>", 1: "<eos>", 2: "<bos>", 3: "<unk>", 4: "<mask>", 46: "<|tool>", 47: "<tool|>",
    48: "<|tool_call>", 49: "<tool_call|>", 50: "<|tool_response>", 51: "<tool_response|>",
    52: '<|"|>', 98: "<|think|>", 100: "<|channel>", 101: "<channel|>", 105: "<|turn>",
    106: "<turn|>", 500: "<|image>", 501: "<|image|>", 502: "<image|>", 503: "<|audio>",
    504: "<|audio|>", 505: "<audio|>", 506: "<|video|>",
}  # fmt: skip
BYTES_AT = 110  # ids of the 256 byte tokens
PIECES_AT = 370
WORDS = ("▁the", "▁speech", "user", "model", "▁text")

TEMPLATE = """{{ bos_token }}
{%- for message in messages -%}
<|turn>{{ 'model' if message.role == 'assistant' else message.role }}
{% if message.content is string -%}
{{ message.content | trim }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'text' -%}{{ part.text | trim }}{%- elif part.type == 'audio' -%}<|audio|>{%- endif -%}
{%- endfor -%}
{%- endif -%}<turn|>
{% endfor -%}
{%- if add_generation_prompt -%}<|turn>model
{% endif -%}
"""


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write ``tokenizer.json``, its config, a chat template and a generation config."""
    pieces = ["▁", *map(chr, range(33, 127))]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        for cut in range(1, len(word)):
            pair = (word[:cut], word[cut])
            if pair not in merges:
                merges.append(pair)
                pieces.append("".join(pair))
    tokens = {BYTES_AT + b: f"<0x{b:02X}>" for b in range(256)} | {107: "\n", 108: "\n\n"} | CONTROL
    free = iter(i for i in range(PIECES_AT, vocab_size) if i not in tokens)
    tokens |= {next(free): piece for piece in pieces}
    vocab = {tokens.get(i, f"<unused{i}>"): i for i in range(vocab_size)}
    tokenizer = Tokenizer(
        BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in CONTROL.values()]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
    dump(folder / "tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer", **names})
    dump(
        folder / "generation_config.json",
        {"eos_token_id": [1, 106, 50], "top_k": 64, "top_p": 0.95},
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def dump(path: Path, value: object) -> None:
    """Write JSON."""
    path.write_text(json.dumps(value, indent=1))
