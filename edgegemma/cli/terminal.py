"""What a person sees who talks to `edgegemma listen`: committed lines, and one line that changes."""

from __future__ import annotations

import shutil
import unicodedata
from contextlib import suppress
from typing import IO, TYPE_CHECKING

from edgegemma.console import plain
from edgegemma.listen.events import Commit, Event, Final, Gap, Lag, Partial, Translation

if TYPE_CHECKING:
    from edgegemma.audio.blocks import Block
    from edgegemma.listen.listener import Listener

METER = " ▁▂▃▄▅▆▇█"
LOWEST_DB, HIGHEST_DB = -60.0, -10.0
CLEAR, DIM, PLAIN = "\r\x1b[K", "\x1b[2m", "\x1b[0m"
LAG_SECONDS = 0.5  # less than this is not worth a word


class View:
    """Draws on a terminal. Committed words are bright, what may change is dim."""

    def __init__(self, stream: IO[str], listener: Listener | None = None) -> None:
        self._stream = stream
        self.listener = listener
        self._said = self._partial = self._how = ""

    def write(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, Commit):
            self._said, self._partial = self._said + event.text, ""
        elif isinstance(event, Partial):
            self._partial = event.text
        elif isinstance(event, Final):
            self._line(event.text)
            self._said = self._partial = ""
        elif isinstance(event, Translation):
            self._line(f"{event.language}: {event.text}")
        elif isinstance(event, Gap):
            self._line(f"[{event.reason}]")
        elif isinstance(event, Lag):
            self._pace(event)
        self._draw()

    def finish(self, complete: bool = True) -> None:
        """Leave the cursor on an empty line."""
        self._put(CLEAR)

    def tick(self, _block: Block) -> None:
        """Move the meter."""
        self._draw()

    def note(self, text: str) -> None:
        """Say something about the work above the line that changes."""
        self._line(f"edgegemma: {text}")
        self._draw()

    def _pace(self, lag: Lag) -> None:
        """Say that words come in another way now; how far behind it is, the meter shows."""
        how = f"{lag.block_s:g} s at a time" if lag.partials else "only at the end"
        if how != self._how:
            self._how = how
            why = f"lag {lag.seconds:.1f} s" if lag.seconds >= LAG_SECONDS else "caught up"
            self._line(f"[{why}; words come {how}]")

    def _line(self, text: str) -> None:
        if text := plain(text).strip():
            self._put(f"{CLEAR}{text}\n")

    def _draw(self) -> None:
        width = shutil.get_terminal_size().columns - 1
        meter = self._meter()
        said, partial = plain(self._said), plain(self._partial)
        room = width - len(meter) - 1
        cut = cells(said + partial) - room
        if cut > 0:  # the end is what changes
            said, partial = _without(said, cut), _without(partial, cut - cells(said))
        self._put(f"{CLEAR}{meter} {said}{DIM}{partial}{PLAIN}")

    def _put(self, text: str) -> None:
        with suppress(OSError):  # the window was closed; the sentence is finished without it
            self._stream.write(text)
            self._stream.flush()

    def _meter(self) -> str:
        if self.listener is None:
            return METER[0]
        level, _ = self.listener.levels_db
        share = (level - LOWEST_DB) / (HIGHEST_DB - LOWEST_DB)
        bar = METER[round(min(max(share, 0.0), 1.0) * (len(METER) - 1))]
        lag = self.listener.lag_s
        return f"{bar} lag {lag:.1f} s" if lag >= LAG_SECONDS else bar


def cells(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _without(text: str, columns: int) -> str:
    """Leave out so many columns at the beginning."""
    at = 0
    while columns > 0 and at < len(text):
        columns -= cells(text[at])
        at += 1
    return text[at:]
