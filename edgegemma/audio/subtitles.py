"""Timed text as SubRip or WebVTT, cue by cue, so that a file can be written while people speak.

>>> print(srt(1, Cue(0.0, 2.5, "Good morning.")), end="")
1
00:00:00,000 --> 00:00:02,500
Good morning.
<BLANKLINE>
"""

from __future__ import annotations

import re
import textwrap
from typing import NamedTuple

VTT_HEAD = "WEBVTT\n\n"

LINE_CHARACTERS = 42
CUE_LINES = 2

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


class Cue(NamedTuple):
    """A text and when it is shown, in seconds."""

    start_s: float
    end_s: float
    text: str


def spread(cue: Cue) -> list[Cue]:
    """Cut a long cue into readable ones of two lines; their times are estimated by their share of the characters."""
    lines = textwrap.wrap(cue.text, LINE_CHARACTERS, break_long_words=False, break_on_hyphens=False)
    texts = ["\n".join(lines[i : i + CUE_LINES]) for i in range(0, len(lines), CUE_LINES)]
    total, done, cues = sum(map(len, texts)), 0, []
    for text in texts:
        begin, done = done, done + len(text)
        length = cue.end_s - cue.start_s
        cues.append(
            Cue(cue.start_s + length * begin / total, cue.start_s + length * done / total, text)
        )
    return cues


def srt(number: int, cue: Cue) -> str:
    """Write one numbered SubRip cue with its blank line."""
    text = _lines(cue.text).replace("-->", "->")
    return f"{number}\n{_clock(cue.start_s, ',')} --> {_clock(cue.end_s, ',')}\n{text}\n\n"


def vtt(cue: Cue) -> str:
    """Write one WebVTT cue with its blank line; a file begins with `VTT_HEAD`."""
    text = _lines(cue.text).translate(_ESCAPES)
    return f"{_clock(cue.start_s, '.')} --> {_clock(cue.end_s, '.')}\n{text}\n\n"


def _lines(text: str) -> str:
    """Drop blank lines, which would end the cue, and control characters."""
    lines = (_CONTROL.sub("", line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))


def _clock(seconds: float, point: str) -> str:
    ms = _ms(seconds)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"
