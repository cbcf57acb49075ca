"""Words as people hear them come: accuracy and delays of live listening, over recordings played at their pace."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.scores import errors, laal, likeness
from edgegemma.errors import InputError

if TYPE_CHECKING:
    from edgegemma.audio.features import F32
    from edgegemma.listen.stats import Stats
    from edgegemma.listen.task import Task

LISTS = ("samples.json", "refs.json")  # rows of {"file": …, "text": …}, perhaps with "translation"
TAIL_SECONDS = 1.5  # of silence after each recording, so that its end is found
AFTER_S = [n / 10 for n in range(-20, 26)]  # the end of a recording: where errors are counted
DELAYS = ("first_shown_s", "first_commit_s", "final_s")


class Spoken(NamedTuple):
    """A recording and what should come out of it."""

    path: Path
    text: str
    translation: str | None


@dataclass
class Heard:
    """What came out of one recording, and when.

    Attributes
    ----------
    wanted : str
        what should have come
    sound_s, wall_s : list of float
        for each committed word: how much sound had been heard, and the time since the recording began
    seen : list of (float, str, str)
        whenever that changed: the time, all that was committed, and that with what was shown beside it
    """

    file: str
    wanted: str
    seconds: float
    text: str = ""
    erased: int = 0  # committed words that a final does not have
    sound_s: list[float] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    seen: list[tuple[float, str, str]] = field(default_factory=list)

    def at(self, wall_s: float) -> tuple[str, str]:
        """Give what was committed then, and what was shown."""
        past = [state[1:] for state in self.seen if state[0] <= wall_s]
        return past[-1] if past else ("", "")


def recordings(folder: Path) -> list[Spoken]:
    """Give the recordings of a folder with their words."""
    for name in LISTS:
        if (folder / name).exists():
            rows = json.loads((folder / name).read_text("utf-8"))
            return [Spoken(folder / r["file"], r["text"], r.get("translation")) for r in rows]
    raise InputError(f"{folder}: has none of {', '.join(LISTS)}, which list its recordings")


def measure(model: Any, rows: list[Spoken], task: Task, pace: float = 1.0) -> dict[str, Any]:
    """Listen to recordings live, and transcribe each at once for comparison.

    ``live`` and ``offline`` heard the same sound, ``bare`` the recordings without the silence after them.

    Raises
    ------
    InputError
        A translation is wanted of a recording that has none.
    """
    from edgegemma.audio.files import read_audio
    from edgegemma.listen.stats import percentile
    from edgegemma.transcribe import transcribe

    wanted = _wanted(rows, task)
    score = likeness if task.translates_speech else errors
    score(wanted, wanted)  # an extra that is missing is told before, not after all was heard
    delays: dict[str, list[float]] = {name: [] for name in DELAYS}
    heard: list[Heard] = []
    offline: list[str] = []
    bare: list[str] = []
    for row, words in zip(rows, wanted, strict=True):
        samples = read_audio(row.path).samples
        one, stats = listen(model, samples, Heard(row.path.name, words, 0.0), task, pace)
        heard.append(one)
        for name, values in delays.items():
            values += getattr(stats, name)
        for texts, sound in ((offline, _followed(samples)), (bare, samples)):
            texts.append(" ".join(f.text for f in transcribe(model, sound, task=task) if f.text))
    live = [one.text for one in heard]
    return {
        "recordings": len(rows), "seconds": sum(one.seconds for one in heard),
        "live": score(wanted, live), "offline": score(wanted, offline), "bare": score(wanted, bare),
        "as_offline": sum(a == b for a, b in zip(live, offline, strict=True)),
        "erased": sum(one.erased for one in heard),
        "laal_s": _mean([laal(one.sound_s, one.seconds, one.wanted) for one in heard]),
        "laal_computation_aware_s": _mean(
            [laal(one.wall_s, one.seconds, one.wanted) for one in heard]
        ),
        **{name: {f"p{p}": percentile(v, p) for p in (50, 95)} for name, v in delays.items()},
        "errors_by_delay": [] if task.translates_speech else by_delay(heard),
        "texts": [
            {"file": one.file, "said": one.wanted, "live": one.text, "offline": text}
            for one, text in zip(heard, offline, strict=True)
        ],
    }  # fmt: skip


def by_delay(heard: list[Heard]) -> list[dict[str, float]]:
    """Word error rates of what was committed and of what was shown, by the time after a recording's end."""
    wanted = [one.wanted for one in heard]
    found = []
    for after_s in AFTER_S:
        states = [one.at(one.seconds + after_s) for one in heard]
        committed, shown = (errors(wanted, [s[n] for s in states])["wer"] for n in (0, 1))
        found.append({"after_s": after_s, "committed": committed, "shown": shown})
    return found


def listen(
    model: Any, samples: F32, one: Heard, task: Task, pace: float = 1.0
) -> tuple[Heard, Stats]:
    """Play one recording and note what comes."""
    from edgegemma.audio.features import SAMPLE_RATE
    from edgegemma.audio.sources import RealTime
    from edgegemma.listen.events import Commit, Final, Partial
    from edgegemma.listen.listener import Listener
    from edgegemma.transcribe import Samples

    one.seconds = len(samples) / SAMPLE_RATE
    listener = Listener(model, RealTime(Samples(_followed(samples), one.file, 0.08), pace), task)
    before, open_text, shown = "", "", ""
    for event in listener:
        if isinstance(event, Commit):
            open_text, shown = open_text + event.text, ""
            one.sound_s += [listener.heard_s] * len(event.words)
            one.wall_s += [listener.heard_s + listener.lag_s] * len(event.words)
        elif isinstance(event, Partial):
            shown = event.text
        elif isinstance(event, Final):
            one.erased += 0 if event.text == open_text else len(open_text.split())
            before, open_text, shown = f"{before} {event.text}", "", ""
        state = f"{before} {open_text}", f"{before} {open_text}{shown}"
        one.seen.append((listener.heard_s + listener.lag_s, *state))
    one.text = " ".join(before.split())
    return one, listener.stats


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw the word error rate by the time after a recording's end.

    Raises
    ------
    MissingExtraError
        matplotlib is not installed.
    """
    from bench.report import pyplot

    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6, 3.5))
    rows = found["errors_by_delay"]
    for name in ("committed", "shown"):
        axis.plot([r["after_s"] for r in rows], [100 * r[name] for r in rows], label=name)
    axis.axhline(100 * found["offline"]["wer"], color="tab:gray", linestyle=":", label="offline")
    axis.set_xlabel("seconds after the recording's end")
    axis.set_ylabel("word error rate, %")
    axis.set_ylim(bottom=0)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _wanted(rows: list[Spoken], task: Task) -> list[str]:
    if not task.translates_speech:
        return [row.text for row in rows]
    if without := [row.path.name for row in rows if row.translation is None]:
        raise InputError(f"{without[0]}: has no translation in its folder's list")
    return [row.translation or "" for row in rows]


def _followed(samples: F32) -> F32:
    """Put silence behind a recording."""
    import numpy as np

    from edgegemma.audio.features import SAMPLE_RATE

    return np.append(samples, np.zeros(round(TAIL_SECONDS * SAMPLE_RATE), np.float32))


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
