"""From blocks of sound to utterances: what is worth hearing, and where it begins and ends.

An utterance begins a little before the gate opens, once a voice is heard in what is loud, and ends when the gate has
been shut for a while; in between its samples are given as they come. Silence is held back until it is known to be a pause, so that an utterance ends soon after its
last word. The older an utterance, the less silence ends it: from some length on a short pause does, and in one that
has none, the last seconds are held back and cut at their quietest place. Utterances are stretches of the input
that do not overlap, and where one is cut while somebody speaks, the next begins with the very next sample.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from edgegemma.audio.blocks import Block
from edgegemma.audio.features import F32, SAMPLE_RATE
from edgegemma.audio.gate import LOUD, SPEAKING, STEADY, EnergyGate, Gate
from edgegemma.audio.quietest import quietest
from edgegemma.errors import InputError

ENDPOINT_SECONDS = 0.6  # of silence end an utterance
PREROLL_SECONDS = 0.3  # before the gate opened
LIMIT_SECONDS = 28.0  # Gemma 4 hears 30
POSTROLL_SECONDS = 0.3  # silence that an utterance keeps at its end
ONSET_SECONDS = 0.08  # less speech than this begins nothing: a click
VOICE_SECONDS = 5.0  # are looked at…
VOICE_SHARE = 0.45  # …and of the steps that have a pitch, so many move like a voice…
VOICE_LOUD_SHARE = 0.12  # …and so many of those that are loud
VOICE_BACK_SECONDS = 1.5  # before a voice is certain, an utterance may begin
PAUSE_SECONDS = 0.16
ROLL_SECONDS = 8.0  # before the limit a pause is as good as an endpoint…
ROLL_POSTROLL_SECONDS = 0.08  # …and this much of it stays with what was said
HOLD_SECONDS = 2.0  # before the limit nothing is given until the cut is known
FILL_SECONDS = 0.5  # a gap in the sound no longer than this is heard as silence

Reason = Literal["silence", "limit", "break", "end of input"]


@dataclass(frozen=True)
class Begin:
    """An utterance begins at this sample; its first `Sound` does too."""

    at: int


@dataclass(frozen=True, eq=False)
class Sound:
    """The next samples of the utterance, float32 [n], n > 0; they follow those of the `Sound` before."""

    at: int
    samples: F32

    @property
    def stop(self) -> int:
        """Place after the last sample."""
        return self.at + len(self.samples)


@dataclass(frozen=True)
class Pause:
    """Nothing was said for a moment before this sample: a good time for a hypothesis."""

    at: int


@dataclass(frozen=True)
class End:
    """The utterance is complete.

    Attributes
    ----------
    at : int
        its last `Sound` stops here
    reason : {"silence", "limit", "break", "end of input"}
        ``silence``: the endpoint. ``limit``: it is as long as the model can hear; what was being said goes on in
        the next one. ``break``: sound was lost after it.
    speech_s : float
        seconds in it that the gate took for speech; 0 of a short one that did not go on moving like a voice
    """

    at: int
    reason: Reason
    speech_s: float


Event: TypeAlias = Begin | Sound | Pause | End


class Utterances:
    """Finds utterances while the sound arrives; the same ones for any cut of the input.

    Only where a `Sound` is divided depends on the cut.

    Parameters
    ----------
    gate : Gate, optional
        an `EnergyGate` if none is given
    endpoint_s, preroll_s, limit_s : float
        see the constants of this module

    Attributes
    ----------
    gate : Gate
        its levels are good for a meter
    filled_s : float
        seconds of silence put in for short gaps in the sound
    """

    def __init__(
        self,
        gate: Gate | None = None,
        endpoint_s: float = ENDPOINT_SECONDS,
        preroll_s: float = PREROLL_SECONDS,
        limit_s: float = LIMIT_SECONDS,
    ) -> None:
        _check("endpoint", endpoint_s, PAUSE_SECONDS, 5.0)
        _check("pre-roll", preroll_s, 0.0, 2.0)
        _check("longest utterance", limit_s, 2 * HOLD_SECONDS, 30.0)
        self.gate = EnergyGate() if gate is None else gate
        self.filled_s = 0.0
        self._endpoint, self._preroll, self._limit = map(_samples, (endpoint_s, preroll_s, limit_s))
        self._postroll = _samples(min(POSTROLL_SECONDS, endpoint_s))
        self._roll = self._limit - min(_samples(ROLL_SECONDS), self._limit // 2)
        self._onset = -(-_samples(ONSET_SECONDS) // self.gate.step)
        self._recent: deque[int] = deque(maxlen=self._onset + 2)
        self._pitched: deque[int] = deque(maxlen=_samples(VOICE_SECONDS) // self.gate.step)
        self._events: list[Event] = []
        self._fed = self._given = 0  # samples
        self._next = 0  # place of the sample that comes next
        self._restart(0)

    @property
    def skipped_s(self) -> float:
        """Seconds of sound that belong to no utterance."""
        return (self._fed - self._given - len(self._held)) / SAMPLE_RATE

    @property
    def doubtful(self) -> bool:
        """Whether the utterance is short and did not go on moving like a voice; if it ends now, it was none."""
        if self._begin is None or self._decided - self._begin > _samples(VOICE_SECONDS):
            return False
        return not self._is_voice()

    def feed(self, block: Block) -> list[Event]:
        """Take the next block; give what it makes known, in order.

        Raises
        ------
        InputError
            the block begins before the last one's end
        """
        gap = block.start - self._next
        if gap < 0:
            raise InputError(f"sound: got a block at {block.start}; want {self._next} or later")
        if 0 < gap <= _samples(FILL_SECONDS):
            self.filled_s += gap / SAMPLE_RATE
            self._take(np.zeros(gap, np.float32))
        elif gap:
            self._break("break")
            self._restart(block.start)
        self._take(block.samples)
        if block.cut:
            self._break("break")
            self._restart(self._next)
        return self._known()

    def finish(self) -> list[Event]:
        """Give what the end of the input makes known."""
        self._break("end of input")
        self._restart(self._next)
        return self._known()

    def _known(self) -> list[Event]:
        self._give()
        events, self._events = self._events, []
        return events

    def _restart(self, at: int) -> None:
        """Begin anew at a place: nothing is held, nobody speaks."""
        self.gate.restart()
        self._next = at
        self._first = at  # samples before it are known elsewhere, or do not exist
        self._decided = at  # the gate has judged what is before it
        self._base, self._held = at, np.empty(0, np.float32)  # samples from base to next
        self._idle()

    def _idle(self) -> None:
        self._begin: int | None = None  # of an utterance that is certain to be speech, or may be
        self._certain = False
        self._recent.clear()

    def _take(self, samples: F32) -> None:
        self._held = np.concatenate([self._held, samples])
        self._next += len(samples)
        self._fed += len(samples)
        for level in map(int, self.gate.feed(samples)):
            self._decided += self.gate.step
            if self._begin is None:
                self._listen(level)
            else:
                self._pitched.append(level)
                hear = self._follow if self._certain else self._doubt
                hear(self._begin, level >= LOUD)

    def _listen(self, level: int) -> None:
        """Find out whether an utterance may begin here."""
        step, recent = self.gate.step, self._recent
        recent.append(level)
        if sum(at >= LOUD for at in recent) < self._onset:
            self._drop(self._decided - len(recent) * step - self._preroll)
            return
        places = range(self._decided - len(recent) * step, self._decided, step)
        self._spoken = [at for at, loud in zip(places, recent, strict=True) if loud >= LOUD]
        self._begin = self._free = max(self._spoken[0] - self._preroll, self._first)
        self._drop(self._begin)
        self._certain = False
        self._pitched.clear()
        self._pitched.extend(recent)
        if self._is_voice():
            self._open(self._begin)
            self._allow()

    def _doubt(self, begin: int, loud: bool) -> None:
        """Find out whether what is loud is a voice; until then nothing has begun for anybody else."""
        if loud:
            self._spoken.append(self._decided - self.gate.step)
        if self._is_voice():
            self._open(begin)
            self._allow()
        elif self._decided - self._spoken_stop >= self._endpoint:
            self._idle()
        else:
            begin = max(begin, self._decided - _samples(VOICE_BACK_SECONDS))
            self._begin = self._free = begin
            self._spoken = [at for at in self._spoken if at >= begin] or self._spoken[-1:]
            self._drop(begin)

    def _is_voice(self) -> bool:
        loud, pitched, speaking = (
            sum(level >= least for level in self._pitched) for least in (LOUD, STEADY, SPEAKING)
        )
        return speaking >= max(self._onset, VOICE_SHARE * pitched, VOICE_LOUD_SHARE * loud)

    def _open(self, at: int) -> None:
        self._begin = self._free = at
        self._certain, self._paused = True, False
        self._events.append(Begin(at))

    def _follow(self, begin: int, speech: bool) -> None:
        """Find out whether the utterance ends here."""
        if speech:
            self._spoken.append(self._decided - self.gate.step)
            self._paused = False
        self._allow()
        silence = self._decided - self._spoken_stop
        if silence >= self._endpoint:
            self._close("silence", self._decided)
        elif silence >= _samples(PAUSE_SECONDS) and not self._paused:
            self._paused = True
            self._give()
            self._events.append(Pause(self._decided))
            if self._decided - begin >= self._roll:
                self._close("limit", self._decided)
        elif self._decided + self.gate.step - begin > self._limit:
            self._roll_over()

    @property
    def _spoken_stop(self) -> int:
        return self._spoken[-1] + self.gate.step

    def _allow(self) -> None:
        """Move the place up to which samples may be given; it never goes back."""
        assert self._begin is not None
        begin, length = self._begin, self._decided - self._begin
        postroll = _samples(ROLL_POSTROLL_SECONDS) if length >= self._roll else self._postroll
        most = min(self._spoken_stop + postroll, begin + self._limit - _samples(HOLD_SECONDS))
        self._free = max(self._free, min(self._decided, most))

    def _give(self) -> None:
        """Give the samples that may be given."""
        if self._begin is None or not self._certain or self._free == self._base:
            return
        count = self._free - self._base
        self._events.append(Sound(self._base, self._held[:count]))
        self._given += count
        self._drop(self._free)

    def _drop(self, to: int) -> None:
        """Hold nothing before this place any more."""
        if to > self._base:
            self._base, self._held = to, self._held[to - self._base :]

    def _close(self, reason: Reason, known: int) -> None:
        """End the utterance after its last word and what may follow it, as far as sound is known."""
        most = _samples(ROLL_POSTROLL_SECONDS) if reason == "limit" else self._postroll
        self._end(min(known, self._spoken_stop + most), reason)
        self._idle()

    def _end(self, at: int, reason: Reason) -> None:
        self._free = at = max(self._free, at)
        self._give()
        spoken = [place for place in self._spoken if place < at]
        self._spoken = self._spoken[len(spoken) :]
        self._first = at
        steps = 0 if self.doubtful else len(spoken)
        self._events.append(End(at, reason, steps * self.gate.step / SAMPLE_RATE))

    def _roll_over(self) -> None:
        """Cut at the quietest of the last places; the rest is the next utterance's."""
        start = max(self._free, self._decided - _samples(HOLD_SECONDS))
        held = self._held[start - self._base : self._decided - self._base]
        self._end(start + quietest(held), "limit")
        if self._spoken:
            self._open(self._first)
            self._allow()
        else:
            self._idle()

    def _break(self, reason: Reason) -> None:
        """Nothing follows what is held."""
        if self._begin is not None and self._certain:
            self._close(reason, self._next)


def _samples(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


def _check(what: str, got: float, least: float, most: float) -> None:
    if not least <= got <= most:
        raise InputError(f"{what}: got {got:g} s; want {least:g} to {most:g} s")
