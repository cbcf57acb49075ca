"""``edgegemma run``: one prompt, text streamed as it is made."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgegemma import console
from edgegemma.cli.options import (
    CacheKind,
    EngineOption,
    Executor,
    JsonOption,
    KvOption,
    MemoryOption,
    ModelArgument,
    StatsOption,
    ThreadsOption,
    VerifyOption,
    load,
)
from edgegemma.cli.stats import Clock, note_memory
from edgegemma.errors import InputError, PackageError

if TYPE_CHECKING:
    from edgegemma.engine.model import Model
    from edgegemma.generate import Generation
    from edgegemma.package import Package
    from edgegemma.text.prompt import Prompt
    from edgegemma.text.sampler import Sampling
    from edgegemma.text.tokenizer import Tokenizer

SAMPLING = "Sampling"

DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""What a package's ``generation_config.json`` may say of sampling."""


def run(  # noqa: PLR0913  a command line has many options
    model: ModelArgument,
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="What to say; `-`: read stdin. Nothing: stdin, too, or with --audio what the package has for sound alone."
        ),
    ] = None,
    audio: Annotated[
        Path | None, typer.Option(help="A sound file to hear, after the prompt.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="No chat template: continue the text.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 1024,
    temperature: Annotated[
        float | None, typer.Option(help="0: always the likeliest token.", rich_help_panel=SAMPLING)
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Choose among so many; 0: all.", rich_help_panel=SAMPLING)
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="… that hold this share.", rich_help_panel=SAMPLING)
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option(help="… this likely beside the likeliest.", rich_help_panel=SAMPLING),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(help="Above 1: what was said is less likely.", rich_help_panel=SAMPLING),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed, the same answer.", rich_help_panel=SAMPLING)
    ] = None,
    engine: EngineOption = Executor.EDGEGEMMA,
    threads: ThreadsOption = None,
    kv: KvOption = CacheKind.FLOAT32,
    verify: VerifyOption = False,
    memory_limit: MemoryOption = None,
    stats: StatsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Continue a prompt. How to choose tokens comes from the package unless options say otherwise.

    For example:

      edgegemma run gemma-4-E2B "Why is the sky blue?" --stats

      edgegemma run gemma-4-E2B "What is said here?" --audio note.flac --temperature 0

      cat letter.txt | edgegemma run gemma-4-E2B --system "Translate into French."
    """
    text = _text(prompt, audio)
    if raw and (audio or system):
        raise InputError("--raw: has no place for --audio or --system; leave them out")
    clock = Clock()
    opened = load(model, engine, threads, kv, verify, memory_limit)
    asked = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "repetition_penalty": repetition_penalty, "seed": seed,
    }  # fmt: skip
    how = sampling(opened.package, asked)
    from edgegemma.generate import generate
    from edgegemma.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(opened.package)
    given = _prompt(opened, tokenizer, text, audio, system, raw)
    opened_s = clock.seconds
    answer = generate(opened, tokenizer, given, how, max_tokens=max_tokens)
    if as_json:
        for _ in answer:
            pass
        console.out(json.dumps(_record(answer), ensure_ascii=False))
    else:
        _stream(answer)
        _note_end(answer)
    if stats:
        _note_stats(answer, opened_s)


def _text(prompt: str | None, audio: Path | None) -> str | None:
    """Give the prompt, from stdin if it is not on the command line; None: the package's own, for sound alone."""
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and (audio is not None or sys.stdin.isatty()):
        if audio is None:
            raise InputError("prompt: got none; give it as an argument or on stdin")
        return None
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise InputError(f"stdin: not UTF-8 at byte {error.start}") from error
    if not text.strip():
        raise InputError("stdin: got no text; want a prompt")
    return text


def sampling(package: Package, asked: dict[str, Any]) -> Sampling:
    """Join the package's ``generation_config.json`` and what the user asked for."""
    from edgegemma.text.sampler import Sampling

    given = {k: v for k, v in asked.items() if v is not None}
    return Sampling(**_defaults(package) | given)


def _defaults(package: Package) -> dict[str, Any]:
    """Read the sampling in ``generation_config.json``; nothing where that is greedy."""
    name = "generation_config.json"
    if name not in package.members:
        return {}
    try:
        config = json.loads(package.read(name, 1 << 20))
    except (ValueError, RecursionError) as error:
        raise PackageError(f"{name}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise PackageError(f"{name}: got {type(config).__name__}; want an object")
    if not config.get("do_sample"):
        return {}
    numbers = {k: config[k] for k in DEFAULTS if isinstance(config.get(k), int | float)}
    return {"temperature": 1.0} | numbers


def _prompt(
    model: Model,
    tokenizer: Tokenizer,
    text: str | None,
    audio: Path | None,
    system: str | None,
    raw: bool,
) -> Prompt:
    from edgegemma.text.prompt import build, text_prompt
    from edgegemma.text.template import ChatTemplate

    if text is None:
        text = model.package.prompts.get("transcribe")
        if text is None:
            raise InputError("prompt: the package has none for sound; give one")
    if raw:
        return text_prompt(tokenizer, text)
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    content: list[dict[str, str]] = [{"type": "text", "text": text}]
    soft = []
    if audio is not None:
        from edgegemma.audio.encoder import encode
        from edgegemma.audio.files import read_audio

        soft.append(encode(model, read_audio(audio).samples))
        model.release_audio()
        content.append({"type": "audio"})
    messages.append({"role": "user", "content": content if soft else text})
    template = ChatTemplate.of(model.package, tokenizer)
    return build(tokenizer, template, messages, soft)


def _stream(answer: Generation) -> None:
    try:
        for token in answer:
            sys.stdout.write(token.text)
            sys.stdout.flush()
    except BaseException:
        if answer.text:
            console.out()  # the line that an error or Ctrl-C leaves begins at the left
        raise
    console.out()


def _note_end(answer: Generation) -> None:
    """Say what the text does not show: that it was cut, or that there is none."""
    figures = answer.summary
    if figures.stop == "length":
        console.note(
            f"cut after {figures.new_tokens} tokens: --max-tokens or the context allow no more"
        )
    elif not answer.text.strip():
        console.note("the model ended its answer at once, without text")


def _record(answer: Generation) -> dict[str, Any]:
    from edgegemma.engine.memory import peak_bytes

    figures = answer.summary
    return {
        "text": answer.text,
        "stop": figures.stop,
        "prompt_tokens": figures.prompt_tokens,
        "new_tokens": figures.new_tokens,
        "prefill_s": round(figures.prefill_s, 4),
        "decode_s": round(figures.decode_s, 4),
        "tokens_per_s": round(figures.tokens_per_s, 3),
        "peak_bytes": peak_bytes(),
    }


def _note_stats(answer: Generation, opened_s: float) -> None:
    figures = answer.summary
    console.note(
        f"open {opened_s:.2f} s; prompt {figures.prompt_tokens} tokens in {figures.prefill_s:.2f} s "
        f"({figures.prefill_per_s:.1f} a second); answer {figures.new_tokens} tokens, "
        f"{figures.tokens_per_s:.2f} a second; ended by {figures.stop}"
    )
    note_memory()
