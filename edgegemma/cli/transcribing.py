"""``edgegemma transcribe``: recordings to text, subtitles or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from edgegemma import console
from edgegemma.cli.options import (
    CacheKind,
    EngineOption,
    Executor,
    KvOption,
    ModelOption,
    StatsOption,
    ThreadsOption,
    VerifyOption,
    load,
)
from edgegemma.cli.stats import Clock, note_memory
from edgegemma.errors import EdgeGemmaError, InputError

if TYPE_CHECKING:
    from edgegemma.engine.model import Model
    from edgegemma.transcribe import Passage

STDIN = "-"


class Form(StrEnum):
    """How a transcript is written."""

    TEXT = "text"
    JSON = "json"
    SRT = "srt"
    VTT = "vtt"


def transcribe(  # noqa: PLR0913  a command line has many options
    files: Annotated[
        list[str], typer.Argument(help="Sound files of any format and length; `-`: stdin.")
    ],
    model: ModelOption = "demo",
    form: Annotated[
        Form, typer.Option("--format", "-f", help="json: one object a file, on a line.")
    ] = Form.TEXT,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write there; for several files, a folder."),
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Instead of the package's own, e.g. to translate.")
    ] = None,
    engine: EngineOption = Executor.EDGEGEMMA,
    threads: ThreadsOption = None,
    kv: KvOption = CacheKind.FLOAT32,
    verify: VerifyOption = False,
    stats: StatsOption = False,
) -> None:
    """Turn recordings into text. What is longer than 30 seconds is cut at quiet places.

    For example:

      edgegemma transcribe memo.flac --stats

      edgegemma transcribe talk.mp3 -m gemma-4-E2B -f srt -o talk.srt

      ffmpeg -i film.mkv -f wav - | edgegemma transcribe - -m gemma-4-E2B -f json
    """
    targets = _targets(files, form, output)
    opened = load(model, engine, threads, kv, verify)
    failed = 0
    for name, target in zip(files, targets, strict=True):
        try:
            with _stream(target) as stream:
                prefix = f"{name}: " if len(files) > 1 and target is None else ""
                _one(Listener(opened, name, instruction, stream), form, stream, prefix, stats)
        except EdgeGemmaError as error:
            if len(files) == 1:
                raise
            console.note(str(error))  # the other files are still worth having
            failed += 1
    if stats:
        note_memory()
    if failed:
        raise InputError(f"{failed} of {len(files)} files could not be transcribed")


def _targets(files: list[str], form: Form, output: Path | None) -> list[Path | None]:
    """Give the file for each transcript; None is stdout."""
    if len(files) == 1 or output is None:
        if len(files) > 1 and form in (Form.SRT, Form.VTT):
            raise InputError(f"--format {form}: several files need --output FOLDER")
        return [output] * len(files)
    suffix = "txt" if form is Form.TEXT else form.value
    names = [f"{'stdin' if name == STDIN else Path(name).stem}.{suffix}" for name in files]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"--output {output}: two transcripts would be called {twice[0]}")
    output.mkdir(parents=True, exist_ok=True)
    return [output / name for name in names]


@contextmanager
def _stream(target: Path | None) -> Iterator[IO[str]]:
    """Open what one transcript is written to; a file appears only when it is complete."""
    if target is None:
        yield sys.stdout
        return
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            yield stream
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _one(heard: Listener, form: Form, stream: IO[str], prefix: str, stats: bool) -> None:
    """Transcribe one file into a stream."""
    clock = Clock()
    if form is Form.TEXT:
        _text(heard.passages(), stream, prefix)
    elif form is Form.JSON:
        passages = [_record(p) for p in heard.passages()]
        record = {
            "file": heard.name,
            "text": " ".join(p["text"] for p in passages if p["text"]),
            "audio_s": round(heard.seconds, 3),
            "time_s": round(clock.seconds, 3),
            "passages": passages,
        }
        stream.write(json.dumps(record, ensure_ascii=False) + "\n")
    else:
        from edgegemma.audio.subtitles import Cue, write

        cues = (Cue(p.start_s, p.end_s, p.text) for p in heard.passages())
        for piece in write(cues, form.value):
            stream.write(piece)
            stream.flush()
    if stats:
        took = clock.seconds
        pace = f" ({heard.seconds / took:.1f} times as fast as speech)" if took else ""
        console.note(f"{heard.name}: {heard.seconds:.1f} s of sound in {took:.2f} s{pace}")


class Listener:
    """One recording on its way through the model, with the bar and the warnings.

    Attributes
    ----------
    name : str
        of the file
    seconds : float
        of sound heard so far
    """

    def __init__(self, model: Model, name: str, instruction: str | None, stream: IO[str]) -> None:
        self._model, self.name, self._instruction = model, name, instruction
        self._bar = not stream.isatty()  # on a terminal it would cut into the text
        self.seconds = 0.0

    def passages(self) -> Iterator[Passage]:
        """Give passages as they are ready."""
        from edgegemma.transcribe import transcribe

        source: Any = sys.stdin.buffer if self.name == STDIN else self.name
        with console.progress(bar=self._bar, lines=False) as report:

            def watch(done: float, total: float | None) -> None:
                self.seconds = done
                report(self.name, int(done), int(total or 0))

            for passage in transcribe(
                self._model, source, instruction=self._instruction, progress=watch
            ):
                self._warn(passage)
                yield passage

    def _warn(self, passage: Passage) -> None:
        if passage.stop in ("loop", "length"):
            why = "repeated itself" if passage.stop == "loop" else "ran on without end"
            span = f"{passage.start_s:.1f} to {passage.end_s:.1f} s"
            console.note(f"{self.name}: {span}: the model {why}; cut short")


def _text(passages: Iterable[Passage], stream: IO[str], prefix: str) -> None:
    """Write one line a file, passage by passage as they come."""
    before = prefix
    try:
        for passage in passages:
            if passage.text:
                stream.write(before + passage.text)
                stream.flush()
                before = " "
    except BaseException:
        stream.write("\n" if before == " " else "")  # an error's line begins at the left
        raise
    stream.write("\n" if before == " " else prefix + "\n")


def _record(passage: Passage) -> dict[str, Any]:
    return {
        "start": round(passage.start_s, 3),
        "end": round(passage.end_s, 3),
        "text": passage.text,
        "stop": passage.stop,
    }
