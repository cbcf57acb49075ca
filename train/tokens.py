"""The tokenizer and the chat template, both in Gemma's form but with a small vocabulary.

Byte-pair pieces are learnt from transcripts split into words, with "▁" for the space before a
word; bytes are the fallback for everything else. Control tokens are spelled as Gemma 4 spells them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

VOCABULARY = 768
INSTRUCTION_WEIGHT = 300
INSTRUCTION = "Transcribe the following speech segment in English into English text."
_SPECIAL = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<mask>",
    "<|turn>",
    "<turn|>",
    "<|channel>",
    "<channel|>",
    "<|think|>",
    "<|tool>",
    "<tool|>",
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    '<|"|>',
    "<|image>",
    "<|image|>",
    "<image|>",
    "<|audio>",
    "<|audio|>",
    "<audio|>",
    "<|video|>",
]
CONTROL = {token: number for number, token in enumerate(_SPECIAL)}
FIRST_BYTE = len(CONTROL)
FIRST_PIECE = FIRST_BYTE + 256
EOS_IDS = [CONTROL["<eos>"], CONTROL["<turn|>"], CONTROL["<|tool_response>"]]
ALPHABET = ["\n", "▁", *(chr(code) for code in range(33, 127))]

TEMPLATE = """\
{{ bos_token }}
{%- for message in messages -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{- '<|turn>' + role + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] | trim -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'text' -%}
                {{- part['text'] | trim -}}
            {%- elif part['type'] == 'audio' -%}
                {{- '<|audio|>' -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<turn|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|turn>model\\n' -}}
{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Learn the pieces from transcripts.

    Merges never cross a space: the learner sees words, the finished tokenizer sees whole texts, as
    Gemma's does.
    """
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Split("\n", "isolated")]
    )
    room = VOCABULARY - FIRST_PIECE
    trainer = trainers.BpeTrainer(
        vocab_size=room, initial_alphabet=ALPHABET, show_progress=False, min_frequency=2
    )
    texts = [*texts, *[f"user {INSTRUCTION} model system"] * INSTRUCTION_WEIGHT]
    learner.train_from_iterator(texts, trainer)
    learnt = json.loads(learner.to_str())["model"]
    pieces = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    names = [*CONTROL, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    names += [f"<unused{number}>" for number in range(VOCABULARY - len(names))]
    merges = [tuple(merge) for merge in learnt["merges"]]
    return _gemma_form({name: number for number, name in enumerate(names)}, merges)


def _gemma_form(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    model = models.BPE(
        vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in CONTROL]
    )
    return tokenizer


def prompt_ids(tokenizer: Tokenizer, audio_tokens: int) -> list[int]:
    """Write the transcription prompt, instruction first, with room for the soft tokens."""
    before = tokenizer.encode(
        f"<bos><|turn>user\n{INSTRUCTION}<|audio>", add_special_tokens=False
    ).ids
    after = tokenizer.encode("<audio|><turn|>\n<|turn>model\n", add_special_tokens=False).ids
    return [*before, *[CONTROL["<|audio|>"]] * audio_tokens, *after]


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, its configuration, the generation defaults and the template."""
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "GemmaTokenizer",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
        "padding_side": "left",
        "add_bos_token": False,
        "image_token": "<|image|>",
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "audio_token": "<|audio|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
        "sot_token": "<|turn>",
        "eot_token": "<turn|>",
        "soc_token": "<|channel>",
        "eoc_token": "<channel|>",
        "think_token": "<|think|>",
        "model_max_length": 4096,
    }
    generation = {
        "bos_token_id": CONTROL["<bos>"],
        "pad_token_id": CONTROL["<pad>"],
        "eos_token_id": EOS_IDS,
        "do_sample": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    ours = {"prompts": {"transcribe": INSTRUCTION}}  # the exporter takes it into the package
    (folder / "edgegemma.json").write_text(json.dumps(ours, indent=2) + "\n")
