"""Events as text, JSON or subtitles, each piece written and flushed as soon as it is known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any, Protocol

from edgegemma.audio.subtitles import (
    CUE_LINES,
    LINE_CHARACTERS,
    VTT_HEAD,
    Cue,
    spread,
    srt,
    vtt,
)
from edgegemma.errors import InputError
from edgegemma.listen.events import Commit, Event, Final, Translation, Word, to_json

FORMS = ("text", "json", "jsonl", "srt", "vtt")


class Writer(Protocol):
    """Writes what events say."""

    def write(self, event: Event) -> None:
        """Take the next event."""

    def finish(self, complete: bool = True) -> None:
        """Write what is left; the stream stays open. ``complete`` is false if the sound broke off with an error."""


def writer(form: str, stream: IO[str], translated: bool = False, **fields: Any) -> Writer:
    """Give a writer.

    Parameters
    ----------
    form : {"text", "json", "jsonl", "srt", "vtt"}
    stream : text file object
    translated : bool
        subtitles show the translations instead of the transcript
    **fields
        added to every JSON object
    """
    if form == "text":
        return Text(stream)
    if form == "json":
        return Json(stream, fields)
    if form == "jsonl":
        return JsonLines(stream, fields)
    if form in ("srt", "vtt"):
        return Subtitles(stream, form, translated)
    raise InputError(f"format: got {form!r}; want one of {', '.join(FORMS)}")


class Text:
    """Committed words as they come; a line for each utterance and for each translation."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._in_line = False

    def write(self, event: Event) -> None:
        """Write words that stay."""
        if isinstance(event, Commit):
            self._put(event.text if self._in_line else event.text.lstrip())
            self._in_line = True
        elif isinstance(event, Final):
            self.finish()
        elif isinstance(event, Translation):
            self.finish()
            self._put(f"{event.language}: {event.text}\n")

    def finish(self, complete: bool = True) -> None:
        """End the line."""
        if self._in_line:
            self._put("\n")
            self._in_line = False

    def _put(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class Json:
    """One object for the whole, when it is over: the text, and what was said when."""

    def __init__(self, stream: IO[str], fields: dict[str, Any]) -> None:
        self._stream, self._fields = stream, fields
        self._passages: list[dict[str, Any]] = []
        self._translations: list[dict[str, Any]] = []

    def write(self, event: Event) -> None:
        """Keep what is final."""
        if isinstance(event, Final):
            self._passages.append(_span(event) | {"text": event.text, "stop": event.stop})
        elif isinstance(event, Translation):
            self._translations.append(
                _span(event) | {"text": event.text, "language": event.language}
            )

    def finish(self, complete: bool = True) -> None:
        """Write the object, which says if it is not of the whole."""
        text = " ".join(passage["text"] for passage in self._passages if passage["text"])
        record = self._fields | {"text": text, "passages": self._passages}
        if self._translations:
            record["translations"] = self._translations
        if not complete:
            record["complete"] = False
        self._stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._stream.flush()


def _span(event: Final | Translation) -> dict[str, Any]:
    return {"start": round(event.start_s, 3), "end": round(event.end_s, 3)}


class JsonLines:
    """Every event, an object a line."""

    def __init__(self, stream: IO[str], fields: dict[str, Any]) -> None:
        self._stream, self._fields = stream, fields

    def write(self, event: Event) -> None:
        """Write an event."""
        record = to_json(event) | self._fields
        self._stream.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._stream.flush()

    def finish(self, complete: bool = True) -> None:
        """Nothing is left."""


class Subtitles:
    """SubRip or WebVTT: a cue for each utterance, or for as much of it as two lines hold."""

    def __init__(self, stream: IO[str], form: str, translated: bool) -> None:
        self._stream, self._form, self._translated = stream, form, translated
        self._number = 0
        self._free_s = 0.0  # where the last cue ends
        self._text, self._span = "", (0.0, 0.0)
        if form == "vtt":
            self._put(VTT_HEAD)

    def write(self, event: Event) -> None:
        """Write a cue when it is full or its utterance over."""
        if isinstance(event, Translation) and self._translated:
            self._cue(event.text, event.start_s, event.end_s)
        elif isinstance(event, Commit) and not self._translated:
            for text, word in pieces(event):
                self._add(text, word)
        elif isinstance(event, Final):
            self.finish()

    def finish(self, complete: bool = True) -> None:
        """Write the cue that is not full."""
        if self._text.strip():
            self._cue(self._text, *self._span)
        self._text = ""

    def _add(self, text: str, word: Word) -> None:
        if len(self._text + text) > CUE_LINES * LINE_CHARACTERS:
            self.finish()
        start_s = self._span[0] if self._text else word.start_s
        self._text, self._span = self._text + text, (start_s, word.end_s)

    def _cue(self, text: str, start_s: float, end_s: float) -> None:
        start_s = max(start_s, self._free_s)
        shown = " ".join(text.split())
        for cue in spread(Cue(start_s, max(end_s, start_s + 0.001), shown)):
            self._number += 1
            self._put(vtt(cue) if self._form == "vtt" else srt(self._number, cue))
            self._free_s = cue.end_s

    def _put(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


def pieces(commit: Commit) -> Iterator[tuple[str, Word]]:
    """Divide a commit's text among its words: each with the space before it."""
    at = 0
    for n, word in enumerate(commit.words):
        after = commit.text.index(word.text, at) + len(word.text)
        last = n + 1 == len(commit.words)
        yield commit.text[at:] if last else commit.text[at:after], word
        at = after
