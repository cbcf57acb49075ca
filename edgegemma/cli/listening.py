"""``edgegemma listen``: what is said becomes text while it is said."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from edgegemma import console
from edgegemma.cli.options import (
    CacheKind,
    EngineOption,
    Executor,
    KvOption,
    MemoryOption,
    ModelOption,
    StatsOption,
    ThreadsOption,
    VerifyOption,
    load,
)
from edgegemma.cli.sounds import Saver, Watched, drivers_hushed, source_of, spare
from edgegemma.cli.speech_options import (
    ENDPOINT_MS,
    EndpointOption,
    Form,
    FormOption,
    InstructionOption,
    LanguageOption,
    Vad,
    VadOption,
    gate,
    note_guard,
    note_task,
)
from edgegemma.cli.stats import note_memory
from edgegemma.cli.terminal import View

if TYPE_CHECKING:
    from edgegemma.audio.blocks import Block, Source
    from edgegemma.listen.listener import Listener
    from edgegemma.listen.writers import Writer

SOUND, RESULT = "Sound", "Result"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class OnLost(StrEnum):
    """What to do when the device goes away."""

    WAIT = "wait"
    STOP = "stop"


def listen(  # noqa: PLR0913  a command line has many options
    model: ModelOption = "demo",
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            "-d",
            help="Microphone, by number or part of its name.",
            rich_help_panel=SOUND,
        ),
    ] = None,
    list_devices: Annotated[
        bool, typer.Option("--list-devices", help="Show them and leave.", rich_help_panel=SOUND)
    ] = False,
    file: Annotated[
        str | None,
        typer.Option(
            help="A recording instead; `-`: raw samples from stdin, signed 16 bits, mono.",
            rich_help_panel=SOUND,
        ),
    ] = None,
    rate: Annotated[
        int, typer.Option(min=1000, help="Rate of raw samples, Hz.", rich_help_panel=SOUND)
    ] = 16_000,
    realtime: Annotated[
        bool, typer.Option("--realtime", help="Play --file at its pace.", rich_help_panel=SOUND)
    ] = False,
    on_lost: Annotated[
        OnLost,
        typer.Option(
            help="When the device is unplugged: wait for it, or end.", rich_help_panel=SOUND
        ),
    ] = OnLost.WAIT,
    save_audio: Annotated[
        Path | None, typer.Option(help="Keep the sound in a WAV file.", rich_help_panel=SOUND)
    ] = None,
    language: LanguageOption = None,
    translate_to: Annotated[
        str | None,
        typer.Option(
            help="Write a translation into this language instead.", rich_help_panel="Speech"
        ),
    ] = None,
    both: Annotated[
        bool,
        typer.Option(
            "--both",
            help="The transcript, and a translation of each sentence.",
            rich_help_panel="Speech",
        ),
    ] = False,
    instruction: InstructionOption = None,
    vad: VadOption = Vad.AUTO,
    endpoint_ms: EndpointOption = ENDPOINT_MS,
    partials: Annotated[
        bool,
        typer.Option(
            help="Words while they are said, if the machine can.", rich_help_panel="Speech"
        ),
    ] = True,
    form: FormOption = Form.TEXT,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write there as words are committed.")
    ] = None,
    engine: EngineOption = Executor.EDGEGEMMA,
    threads: ThreadsOption = None,
    kv: KvOption = CacheKind.FLOAT32,
    verify: VerifyOption = False,
    memory_limit: MemoryOption = None,
    stats: StatsOption = False,
) -> None:
    """Write what is said while it is said. Ctrl-C ends it after the sentence, a second one at once.

    On a terminal the words that may still change are dim. In a pipe or a file there are only words that stay; `-f jsonl` has every event.

    For example:

      edgegemma listen

      edgegemma listen -d headset -m gemma-4-E2B --translate-to es --both -f srt -o talk.srt

      ffmpeg -i stream.m3u8 -f s16le -ar 16000 -ac 1 - | edgegemma listen --file - -f jsonl
    """  # fmt: skip
    if list_devices:
        _list_devices()
        return
    from edgegemma.audio.utterances import Utterances
    from edgegemma.listen.listener import Listener
    from edgegemma.listen.task import Task
    from edgegemma.listen.writers import writer

    task = Task(language, translate_to, both, instruction)
    utterances = Utterances(gate(vad), endpoint_s=endpoint_ms / 1000)
    with ExitStack() as stack:
        stream = stack.enter_context(_opened(output, file))
        saver = None if save_audio is None else _saver(save_audio, file)
        source = source_of(file, device, rate, realtime, on_lost.value)
        stack.callback(source.close)
        opened = load(model, engine, threads, kv, verify, memory_limit)
        note_task(opened, task)
        if file is None:
            stack.enter_context(drivers_hushed())
        view = _view(form, output, stream)
        sound = Watched(source, *_watchers(saver, view))
        listener = Listener(
            opened, sound, task, utterances=utterances, partials=None if partials else False
        )
        if source.live:
            listener.prepare()
        if output is not None:  # it can listen: only now is what was in the files before lost
            _empty(stream)
        if saver is not None:
            stack.enter_context(saver)
        shown = view is not None and output is None
        sinks: list[Writer] = [] if shown else [writer(form.value, stream, both)]
        if view is not None:
            view.listener = listener
            sinks.append(view)
        _say_start(source)
        note = console.note if view is None else view.note
        stack.enter_context(_finishing(source, note))
        _follow(listener, sinks, note)
    if stats:
        for line in listener.stats.lines():
            console.note(line)
        note_memory()


def _list_devices() -> None:
    from edgegemma.audio.mic import list_devices

    rows = [
        (d.index, d.name, d.channels, f"{d.rate:.0f}", "default" if d.default else "")
        for d in list_devices()
    ]
    console.table(("number", "name", "channels", "Hz", ""), rows)


@contextmanager
def _opened(output: Path | None, file: str | None) -> Iterator[IO[str]]:
    """Open what is written to: before the model, so that a name that cannot be written is said at once."""
    if output is None:
        yield sys.stdout
        return
    spare("--output", output, file)
    with console.writing(output), output.open("a", encoding="utf-8") as stream:
        yield stream


def _empty(stream: IO[str]) -> None:
    if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):  # a pipe has nothing to lose
        stream.truncate(0)


def _saver(path: Path, file: str | None) -> Saver:
    spare("--save-audio", path, file)
    return Saver(path)


def _view(form: Form, output: Path | None, stream: IO[str]) -> View | None:
    """Draw on the terminal if text is to appear there, or if all that is written goes into a file."""
    on_screen = output is None and stream.isatty() and form is Form.TEXT
    drawn = sys.stderr.isatty() and (on_screen or output is not None)
    return View(sys.stderr) if drawn else None


def _watchers(saver: Saver | None, view: View | None) -> list[Callable[[Block], None]]:
    watchers: list[Callable[[Block], None]] = [] if saver is None else [saver]
    return watchers if view is None else [*watchers, view.tick]


def _say_start(source: Source) -> None:
    if source.live:
        console.note(f"listening to {source.name}; Ctrl-C ends it")


@contextmanager
def _finishing(source: Source, note: Callable[[str], None]) -> Iterator[None]:
    """Let the first Ctrl-C, or what else asks us to end, end the sound, and the second one everything."""
    before = {number: signal.getsignal(number) for number in ENDING}
    heeded = [number for number in ENDING if before[number] is not signal.SIG_IGN]

    def finish(_number: int, _frame: object) -> None:
        for number in heeded:
            if number != signal.SIGHUP:  # a terminal that is closed sends it more than once
                signal.signal(number, before[number])
        with suppress(OSError):  # that terminal
            note("finishing the sentence; Ctrl-C again stops at once")
        # In a thread, because this one may hold the very lock that closing waits for.
        threading.Thread(target=source.close).start()

    for number in heeded:
        signal.signal(number, finish)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, before[number])


def _follow(listener: Listener, sinks: list[Writer], note: Callable[[str], None]) -> None:
    """Give every event to everybody; what is not shown is said."""
    from edgegemma.listen.events import Final, Gap, Lag

    shown = any(isinstance(sink, View) for sink in sinks)
    complete = False
    try:
        for event in listener:
            for sink in sinks:
                sink.write(event)
            if isinstance(event, Final):
                note_guard(listener.source.name, event, note)
            elif not shown and isinstance(event, Gap):
                note(f"{event.reason} at {event.start_s:.1f} s; {event.overflows} overflows")
            elif not shown and isinstance(event, Lag):
                note(f"lag {event.seconds:.1f} s")
        complete = True
    finally:
        for sink in sinks:
            sink.finish(complete)
