"""Options that `listen`, `transcribe` and `translate` share."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from edgegemma import console

if TYPE_CHECKING:
    from edgegemma.audio.gate import Gate
    from edgegemma.engine.model import Model
    from edgegemma.listen.events import Final
    from edgegemma.listen.task import Task

LANGUAGE_HELP = "Language of the speech, by name or code; left out, the package's prompt decides."
SPEECH = "Speech"


class Form(StrEnum):
    """How a transcript is written."""

    TEXT = "text"
    JSON = "json"
    JSONL = "jsonl"
    SRT = "srt"
    VTT = "vtt"


class Vad(StrEnum):
    """What tells speech from silence."""

    AUTO = "auto"
    ENERGY = "energy"
    SILERO = "silero"


LanguageOption = Annotated[
    str | None, typer.Option("--language", "-l", help=LANGUAGE_HELP, rich_help_panel=SPEECH)
]
InstructionOption = Annotated[
    str | None,
    typer.Option(help="What to ask of the model, instead of all that.", rich_help_panel=SPEECH),
]
FormOption = Annotated[Form, typer.Option("--format", "-f", help="How to write it.")]
VadOption = Annotated[
    Vad,
    typer.Option(
        help="What finds speech; auto: Silero's detector if the extra `vad` is installed.",
        rich_help_panel=SPEECH,
    ),
]
EndpointOption = Annotated[
    int,
    typer.Option(
        min=200, max=5000, help="Silence that ends an utterance, ms.", rich_help_panel=SPEECH
    ),
]
ENDPOINT_MS = 600


def detector(vad: Vad) -> Vad:
    """Say which of the two ``auto`` is here."""
    from edgegemma.audio.silero import find_model

    if vad is not Vad.AUTO:
        return vad
    return Vad.ENERGY if find_model() is None else Vad.SILERO


def gate(vad: Vad) -> Gate:
    """Make what finds speech."""
    from edgegemma.audio.gate import EnergyGate
    from edgegemma.audio.silero import SileroGate

    return SileroGate() if detector(vad) is Vad.SILERO else EnergyGate()


def note_task(model: Model, task: Task) -> None:
    """Say if the model was not made for the task."""
    if task.is_new_to(model.package.prompts):
        console.note("the model has not learned this translation; expect none")


def note_guard(name: str, final: Final, note: Callable[[str], None] = console.note) -> None:
    """Say if a text was cut because it ran away."""
    if final.stop in ("loop", "length"):
        why = "repeated itself" if final.stop == "loop" else "ran on without end"
        span = f"{final.start_s:.1f} to {final.end_s:.1f} s"
        note(f"{name}: {span}: the model {why}; cut short")
