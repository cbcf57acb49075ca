"""What was heard of a recording so far, kept beside the transcript until that is complete.

``FILE.partial`` holds JSON lines: first what was heard with what, then the events of `edgegemma.listen.events`, each
written out at once. After an interruption it tells where to go on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from edgegemma import console
from edgegemma.audio.features import SAMPLE_RATE
from edgegemma.cli.sounds import STDIN
from edgegemma.cli.speech_options import Vad, detector
from edgegemma.errors import InputError
from edgegemma.listen.events import (
    Commit,
    Event,
    Final,
    Gap,
    Silence,
    Translation,
    from_json,
    to_json,
)
from edgegemma.listen.task import Task
from edgegemma.listen.writers import writer

KEPT = (Commit, Final, Translation, Silence, Gap)


def identity(
    name: str, model: Mapping[str, str], task: Task, vad: Vad, endpoint_s: float
) -> dict[str, Any]:
    """Say what is heard with what: a run can only go on with the same."""
    about: dict[str, Any] = {"file": name, **model, "task": vars(task)}
    about |= {"vad": detector(vad).value, "endpoint_s": endpoint_s}
    if name != STDIN:
        with suppress(OSError):  # who reads it will say why it cannot be read
            found = Path(name).stat()
            about |= {"bytes": found.st_size, "changed": found.st_mtime_ns}
    return about


def partial(target: Path) -> Path:
    """Name the journal of a transcript."""
    return target.with_name(target.name + ".partial")


class Journal:
    """A context manager, and a `Writer` of events.

    Parameters
    ----------
    target : Path
        the transcript
    about : dict
        from `identity`
    resume : bool
        go on with what is there

    Attributes
    ----------
    done : int
        samples at the beginning of the recording whose events are here
    context : str
        the text of the last utterance among them, if what was being said goes on after it
    """

    def __init__(self, target: Path, about: dict[str, Any], resume: bool) -> None:
        self._target = target
        self._path = partial(target)
        self._final = 0  # where the last final ends
        self.context = ""
        self.done, kept = self._read(about) if resume and self._path.exists() else (0, 0)
        self._stream: IO[str] = self._path.open("r+" if kept else "w", encoding="utf-8")
        if kept:
            self._stream.truncate(self._stream.seek(kept))  # half an utterance is heard again
        else:
            self._put(about)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        if self.done == 0:
            self._path.unlink(missing_ok=True)  # nothing to go on from

    def write(self, event: Event) -> None:
        """Keep an event that a recording has, unless it was kept before the interruption."""
        if not isinstance(event, KEPT):
            return
        if isinstance(event, Silence | Gap) and round(event.start_s * SAMPLE_RATE) < self.done:
            return
        if not isinstance(event, Translation):  # the one of an utterance may follow its final
            self._mark()
        self._put(to_json(event))
        if isinstance(event, Final):
            self._final = round(event.end_s * SAMPLE_RATE)

    def finish(self, complete: bool = True) -> None:
        """Nothing is left."""

    def complete(self, form: str, translated: bool, **fields: Any) -> None:
        """Write the transcript and let the journal go; ``fields`` as `writer` has them."""
        self._mark()
        written = self._target.with_name(self._target.name + ".written")
        try:
            with console.writing(written), written.open("w", encoding="utf-8") as stream:
                made = writer(form, stream, translated, **fields)
                for record in _records(self._path):
                    made.write(from_json(record))
                made.finish()
            written.replace(self._target)
        finally:
            written.unlink(missing_ok=True)
        self.done = 0

    def _mark(self) -> None:
        """Note that an utterance and all that belongs to it is here."""
        if self._final > self.done:
            self.done = self._final
            self._put({"done": self.done})

    def _put(self, record: dict[str, Any]) -> None:
        with console.writing(self._path):
            self._stream.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._stream.flush()

    def _read(self, about: dict[str, Any]) -> tuple[int, int]:
        """Give the samples that are done, and the bytes of the journal that tell of them."""
        done = kept = at = 0
        head, said = None, ""
        with self._path.open("rb") as stream:
            with suppress(ValueError):
                head = json.loads(stream.readline())
            if head != json.loads(json.dumps(about)):
                raise InputError(
                    f"--resume: {self._path} is of another recording, model, task, --engine, --kv, "
                    "--vad or --endpoint-ms; remove it or leave --resume out"
                )
            at = stream.tell()
            for line in stream:
                at += len(line)
                with suppress(ValueError):  # a line that was cut off
                    record = json.loads(line)
                    if record.get("type") == "final":
                        said = record["text"] if record["reason"] == "limit" else ""
                    elif "done" in record:
                        done, kept, self.context = record["done"], at, said
        return done, kept


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as stream:
        next(stream)
        for line in stream:
            if "done" not in (record := json.loads(line)):
                yield record
