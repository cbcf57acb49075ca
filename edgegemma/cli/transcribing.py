"""``edgegemma transcribe`` and ``edgegemma translate``: recordings to text, subtitles or JSON lines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from edgegemma.cli.sounds import STDIN, spare
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
from edgegemma.errors import EdgeGemmaError, InputError

if TYPE_CHECKING:
    from edgegemma.listen.listener import Listener
    from edgegemma.listen.task import Task
    from edgegemma.listen.writers import Writer

FilesArgument = Annotated[
    list[str],
    typer.Argument(
        help="Sound files of any length: wav, flac, ogg, mp3; m4a, mp4, webm with the extra `video`. `-`: one on stdin."
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="Write there; for several files, a folder."),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on where an interrupted run with --output stopped.")
]


def transcribe(  # noqa: PLR0913  a command line has many options
    files: FilesArgument,
    model: ModelOption = "demo",
    form: FormOption = Form.TEXT,
    output: OutputOption = None,
    resume: ResumeOption = False,
    language: LanguageOption = None,
    instruction: InstructionOption = None,
    vad: VadOption = Vad.ENERGY,
    endpoint_ms: EndpointOption = ENDPOINT_MS,
    engine: EngineOption = Executor.EDGEGEMMA,
    threads: ThreadsOption = None,
    kv: KvOption = CacheKind.FLOAT32,
    verify: VerifyOption = False,
    memory_limit: MemoryOption = None,
    stats: StatsOption = False,
) -> None:
    """Turn recordings of any length into text. Silence is skipped.

    A file appears at --output when it is complete; until then what was heard is in FILE.partial.

    For example:

      edgegemma transcribe memo.flac --stats

      edgegemma transcribe talk.mp3 -m gemma-4-E2B -f srt -o talk.srt

      ffmpeg -i film.mkv -f wav - | edgegemma transcribe - -m gemma-4-E2B -f jsonl
    """
    from edgegemma.listen.task import Task

    task = Task(language, instruction=instruction)
    work = _Work(files, form, output, resume, task, vad, endpoint_ms / 1000, stats)
    work.run(model, engine, threads, kv, verify, memory_limit)


def translate(  # noqa: PLR0913  a command line has many options
    files: FilesArgument,
    to: Annotated[str, typer.Option("--to", help="Language to translate to, by name or code.")],
    model: ModelOption = "demo",
    both: Annotated[
        bool, typer.Option("--both", help="The transcript, and a translation of each sentence.")
    ] = False,
    form: FormOption = Form.TEXT,
    output: OutputOption = None,
    resume: ResumeOption = False,
    language: LanguageOption = None,
    vad: VadOption = Vad.ENERGY,
    endpoint_ms: EndpointOption = ENDPOINT_MS,
    engine: EngineOption = Executor.EDGEGEMMA,
    threads: ThreadsOption = None,
    kv: KvOption = CacheKind.FLOAT32,
    verify: VerifyOption = False,
    memory_limit: MemoryOption = None,
    stats: StatsOption = False,
) -> None:
    """Turn speech in one language into text in another. For the rest it is as `transcribe`.

    For example: edgegemma translate talk.mp3 --to es -m gemma-4-E2B -f srt -o talk.es.srt
    """
    from edgegemma.listen.task import Task

    task = Task(language, to, both)
    work = _Work(files, form, output, resume, task, vad, endpoint_ms / 1000, stats)
    work.run(model, engine, threads, kv, verify, memory_limit)


class _Work:
    """Several files and what to do with each."""

    def __init__(
        self,
        files: list[str],
        form: Form,
        output: Path | None,
        resume: bool,
        task: Task,
        vad: Vad,
        endpoint_s: float,
        stats: bool,
    ) -> None:
        if resume and output is None:
            raise InputError("--resume: wants --output, beside which the interrupted run is kept")
        self._files, self._targets = files, _targets(files, form, output)
        self._form, self._resume, self._task, self._stats = form, resume, task, stats
        self._vad, self._endpoint_s = vad, endpoint_s

    def run(
        self,
        model: str,
        engine: Executor,
        threads: int | None,
        kv: CacheKind,
        verify: bool,
        memory_limit: str | None,
    ) -> None:
        """Do them one after the other; one that cannot be read does not stop the others."""
        self._heard_by = {"model": model, "engine": engine.value, "kv": kv.value}
        self._model = load(model, engine, threads, kv, verify, memory_limit)
        note_task(self._model, self._task)
        failed = 0
        for name, target in zip(self._files, self._targets, strict=True):
            try:
                if target is None:
                    self._to_stdout(name)
                else:
                    self._to_file(name, target)
            except EdgeGemmaError as error:
                if len(self._files) == 1:
                    raise
                console.note(str(error))  # the other files are still worth having
                failed += 1
        if self._stats:
            note_memory()
        if failed:
            raise InputError(f"{failed} of {len(self._files)} files could not be transcribed")

    def _to_stdout(self, name: str) -> None:
        from edgegemma.listen.writers import writer

        several = len(self._files) > 1
        if several and self._form is Form.TEXT:
            console.out(f"{name}:")
            sys.stdout.flush()
        fields = {"file": name} if several or self._form is Form.JSON else {}
        # On a terminal a bar would cut into the text.
        bar = not sys.stdout.isatty()
        self._hear(name, writer(self._form.value, sys.stdout, self._task.both, **fields), bar)

    def _to_file(self, name: str, target: Path) -> None:
        from edgegemma.cli.journal import Journal, identity, partial

        if self._resume and target.is_file() and not partial(target).exists():
            console.note(f"{name}: {target} is complete; it stays as it is")
            return
        key = identity(name, self._heard_by, self._task, self._vad, self._endpoint_s)
        with Journal(target, key, self._resume) as journal:
            self._hear(name, journal, True, journal.done, journal.context)
            fields = {"file": name} if self._form is Form.JSON else {}
            journal.complete(self._form.value, self._task.both, **fields)

    def _hear(self, name: str, sink: Writer, bar: bool, done: int = 0, context: str = "") -> None:
        from edgegemma.audio.features import SAMPLE_RATE
        from edgegemma.audio.utterances import Utterances
        from edgegemma.cli.sounds import Watched
        from edgegemma.listen.events import Final
        from edgegemma.listen.listener import Listener
        from edgegemma.transcribe import recording

        source = recording(sys.stdin.buffer if name == STDIN else name)
        utterances = Utterances(gate(self._vad), endpoint_s=self._endpoint_s)
        with console.progress(bar=bar, lines=False) as report:
            total = int(source.seconds or 0)
            watched = Watched(source, lambda block: report(name, block.stop // SAMPLE_RATE, total))
            listener = Listener(
                self._model, watched, self._task, utterances=utterances, done=done, context=context
            )
            complete = False
            try:
                for event in listener:
                    sink.write(event)
                    if isinstance(event, Final):
                        note_guard(name, event)
                complete = True
            finally:
                sink.finish(complete)
                source.close()
        if self._stats:
            self._note(name, listener)

    def _note(self, name: str, listener: Listener) -> None:
        work = listener.stats.work
        took = work.features_s + work.encode_s + work.prefill_s + work.decode_s
        pace = f" ({listener.heard_s / took:.1f} times as fast as speech)" if took else ""
        console.note(f"{name}: {listener.heard_s:.1f} s of sound in {took:.2f} s{pace}")
        for line in listener.stats.lines():
            console.note(line)


def _targets(files: list[str], form: Form, output: Path | None) -> list[Path | None]:
    """Give the file for each transcript; None is stdout."""
    if output is None:
        if len(files) > 1 and form in (Form.SRT, Form.VTT):
            raise InputError(f"--format {form}: several files need --output FOLDER")
        return [None] * len(files)
    folder = len(files) > 1 or output.is_dir()
    targets = _inside(output, files, form) if folder else [output]
    for name, target in zip(files, targets, strict=True):
        spare("--output", target, name)
    return [*targets]


def _inside(folder: Path, files: list[str], form: Form) -> list[Path]:
    """Give the file in a folder for each transcript."""
    suffix = "txt" if form is Form.TEXT else form.value
    names = [f"{'stdin' if name == STDIN else Path(name).stem}.{suffix}" for name in files]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"--output {folder}: two transcripts would be called {twice[0]}")
    folder.mkdir(parents=True, exist_ok=True)
    return [folder / name for name in names]
