"""The tokenizer and the chat template, both in Gemma's form but with a small vocabulary.

Byte-pair pieces are learnt from transcripts split into words, with "▁" for the space before a
word; bytes are the fallback for everything else. Control tokens are spelled as Gemma 4 spells them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
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

VOCABULARY = 3_072
ENGLISH = (
    2_304  # of these for control tokens, bytes and the pieces of English; the rest for Spanish
)
INSTRUCTION_WEIGHT = 300
INSTRUCTION = "Transcribe the following speech segment in English into English text."
INSTRUCTION_TRANSLATE = (
    "Transcribe the following speech segment in English, then translate it into Spanish.\n"
    "When formatting the answer, first output the transcription in English, then one newline, then output "
    "the string 'Spanish: ', then the translation in Spanish."
)
INSTRUCTION_SPANISH = "Translate the following speech segment in English into Spanish text."
ANSWER_TRANSLATED = "{}\nSpanish: {}"
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
ACCENTS = "áéíñóúü"

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


def _learnt(texts: Iterable[str], room: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Learn pieces, at most `room` of them, and how they are put together.

    Merges never cross a space: the learner sees words, the finished tokenizer sees whole texts, as
    Gemma's does.
    """
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("▁", "merged_with_next"), pre_tokenizers.Split("\n", "isolated")]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=room, initial_alphabet=ALPHABET, show_progress=False, min_frequency=2
    )
    learner.train_from_iterator(texts, trainer)
    learnt = json.loads(learner.to_str())["model"]
    pieces = sorted(learnt["vocab"], key=learnt["vocab"].__getitem__)
    return pieces, [tuple(merge) for merge in learnt["merges"]]


def train_tokenizer(texts: Iterable[str], translations: Iterable[str] = ()) -> Tokenizer:
    """Learn the pieces from transcripts, so many that most words are one, then those of translations."""
    texts = [
        *(f" {text}" for text in texts),
        *[f"user {INSTRUCTION} model system"] * INSTRUCTION_WEIGHT,
    ]
    pieces, merges = _learnt(texts, ENGLISH - FIRST_PIECE)
    names = [*CONTROL, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    names += [f"<unused{number}>" for number in range(ENGLISH - len(names))]
    names += ACCENTS
    english = _gemma_form({name: number for number, name in enumerate(names)}, merges)
    answers = [ANSWER_TRANSLATED.format("", text).strip() for text in translations]
    answers += [INSTRUCTION_TRANSLATE] * INSTRUCTION_WEIGHT
    more = _continued(english, answers, VOCABULARY - len(names))
    names += ["".join(pair) for pair in more]
    names += [f"<unused{number}>" for number in range(len(names), VOCABULARY)]
    return _gemma_form({name: number for number, name in enumerate(names)}, [*merges, *more])


def _continued(tokenizer: Tokenizer, texts: Iterable[str], most: int) -> list[tuple[str, str]]:
    """Learn more merges, of the pieces that a tokenizer makes; it writes what it wrote in no more pieces."""
    counts = Counter(word for text in texts for word in re.findall(r" \S+|\S+|\n", text))
    words = [
        (tokenizer.encode(word, add_special_tokens=False).tokens, count)
        for word, count in counts.items()
    ]
    known = set(tokenizer.get_vocab())
    merges: list[tuple[str, str]] = []
    while len(merges) < most:
        pairs: Counter[tuple[str, str]] = Counter()
        for pieces, count in words:
            for pair in pairwise(pieces):
                if "".join(pair) not in known and "<0x" not in "".join(pair):
                    pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        known.add("".join(best))
        for pieces, _ in words:
            for place in range(len(pieces) - 2, -1, -1):
                if tuple(pieces[place : place + 2]) == best:
                    pieces[place : place + 2] = ["".join(best)]
    return merges


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


def prompt_ids(
    tokenizer: Tokenizer, audio_tokens: int, instruction: str = INSTRUCTION
) -> list[int]:
    """Write the prompt, instruction first, with room for the soft tokens."""
    before = tokenizer.encode(
        f"<bos><|turn>user\n{instruction}<|audio>", add_special_tokens=False
    ).ids
    after = tokenizer.encode("<audio|><turn|>\n<|turn>model\n", add_special_tokens=False).ids
    return [*before, *[CONTROL["<|audio|>"]] * audio_tokens, *after]


def answer_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Write an answer: every word with the space before it, also the first, so that it is one piece."""
    return tokenizer.encode(f" {text}", add_special_tokens=False).ids if text else []


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
    prompts = {"transcribe": INSTRUCTION, "translate to Spanish": INSTRUCTION_SPANISH}
    ours = {"prompts": prompts}  # the exporter takes it into the package
    (folder / "edgegemma.json").write_text(json.dumps(ours, indent=2) + "\n")
