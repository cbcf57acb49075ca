"""What a listener tells. Times are seconds of sound since the source began; `docs/listen.md` lists every field.

The texts of an utterance's commits, joined, are the text of its final; a partial's text would follow what is committed
so far, and may change or vanish. Nothing else is ever taken back.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Word:
    """A word and when it was said; the times are estimated from when it was first heard."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Partial:
    """What seems to be said after the committed words."""

    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Commit:
    """Words that stay. ``text`` is to be joined as it is: it brings its own space before it."""

    text: str
    start_s: float
    end_s: float
    words: tuple[Word, ...]


@dataclass(frozen=True)
class Final:
    """An utterance is over.

    Attributes
    ----------
    text : str
        empty if there were no words in the sound
    start_s, end_s : float
        of its sound
    reason : str
        why it ended: ``silence``, ``limit`` (as long as the model can hear), ``break`` (sound was lost after it),
        ``end of input``
    stop : str
        how its text ended: ``stop``: by the model; ``loop`` or ``length``: cut by a guard; ``cancelled``
    tokens : int
        of the text
    delay_s : float
        from when the sound that decided the end was there until this was known
    """

    text: str
    start_s: float
    end_s: float
    reason: str
    stop: str
    tokens: int
    delay_s: float


@dataclass(frozen=True)
class Translation:
    """A committed sentence in another language."""

    text: str
    source: str
    language: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Silence:
    """Nobody spoke here; it is told when it is over."""

    start_s: float
    end_s: float


@dataclass(frozen=True)
class Gap:
    """Sound was lost here. ``overflows`` counts all of them so far."""

    start_s: float
    end_s: float
    reason: str
    overflows: int


@dataclass(frozen=True)
class Lag:
    """How far behind the listener is, and how it works because of that: ``block_s`` of sound at a time."""

    seconds: float
    block_s: float
    partials: bool


Event: TypeAlias = Partial | Commit | Final | Translation | Silence | Gap | Lag

NAMES: dict[type[Any], str] = {
    kind: kind.__name__.lower() for kind in (Partial, Commit, Final, Translation, Silence, Gap, Lag)
}


def to_json(event: Event) -> dict[str, Any]:
    """Give an event as a JSON object: ``type`` and its fields, seconds to the millisecond."""
    return {"type": NAMES[type(event)], **_rounded(asdict(event))}


def from_json(record: dict[str, Any]) -> Event:
    """Give the event that `to_json` wrote."""
    (kind,) = (kind for kind, name in NAMES.items() if name == record["type"])
    values = {field.name: record[field.name] for field in fields(kind)}
    if kind is Commit:
        values["words"] = tuple(Word(**word) for word in values["words"])
    event: Event = kind(**values)
    return event


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {
        name: round(value, 3)
        if isinstance(value, float)
        else [_rounded(item) for item in value]
        if isinstance(value, tuple)
        else value
        for name, value in values.items()
    }
