"""From a source of sound to events: the loop that `edgegemma listen` and `transcribe` run.

>>> for event in Listener(model, Microphone(), Task(language="English")):    # doctest: +SKIP
...     if isinstance(event, Commit):
...         print(event.text, end="", flush=True)
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from edgegemma.audio import utterances as sound
from edgegemma.audio.blocks import Block, Source
from edgegemma.audio.features import SAMPLE_RATE
from edgegemma.audio.utterances import POSTROLL_SECONDS, PREROLL_SECONDS, Utterances
from edgegemma.errors import EdgeGemmaError
from edgegemma.generate import Cancel
from edgegemma.listen.events import Event, Final, Gap, Lag, Partial, Silence
from edgegemma.listen.guards import MIN_SPEECH_SECONDS
from edgegemma.listen.pace import FILE, Mode, Pace
from edgegemma.listen.recognizer import Recognizer, SpeechModel
from edgegemma.listen.spoken import Spoken
from edgegemma.listen.stats import Stats
from edgegemma.listen.task import Task
from edgegemma.listen.translate import Translator

FIRST_SECONDS = 0.5  # of an utterance, pre-roll included, before anything is guessed
LAG_SECONDS = 1.0  # a lag worth saying, and how often


class Listener:
    """An iterator of events. Iterate it once; `Source.close` ends it after what was heard so far.

    Parameters
    ----------
    model : Model
    source : Source
        a microphone, a recording, a pipe
    task : Task, optional
    utterances : Utterances, optional
        how speech is found and where it ends
    partials : bool, optional
        hypotheses while somebody speaks; by default for live sources
    done : int
        samples at the beginning whose utterances are known already: they are found again and left out
    context : str
        the text of the last of these, if what was being said goes on after it
    cancel : threading.Event or callable, optional
        stops at once, in the middle of an utterance

    Attributes
    ----------
    stats : Stats
    source : Source
    """

    def __init__(
        self,
        model: SpeechModel,
        source: Source,
        task: Task | None = None,
        *,
        utterances: Utterances | None = None,
        partials: bool | None = None,
        done: int = 0,
        context: str = "",
        cancel: Cancel = None,
    ) -> None:
        self.source, self.stats = source, Stats()
        self._task = Task() if task is None else task
        self._prompts, self._context = model.package.prompts, context
        prompt = self._task.speech_prompt(self._prompts)
        self._recognizer = Recognizer(model, prompt, cancel=cancel)
        self.stats.work = self._recognizer.work
        self._translator = Translator(model, self._task, cancel) if self._task.both else None
        self._utterances = Utterances() if utterances is None else utterances
        wanted = source.live if partials is None else partials
        self._pace = Pace(wanted) if wanted or source.live else None
        self._done = done
        self._lag_said_s = 0.0
        self._taken_at = time.perf_counter()
        self._behind_s = 0.0  # sound that waited when the last block was taken
        self._heard = self._silent_from = 0  # samples
        self._spoken: Spoken | None = None
        self._cancelled = self._prepared = self._away = False

    def prepare(self) -> None:
        """Do beforehand what the first words would wait for; a live source is first asked for sound after it."""
        if not self._prepared:
            self._prepared = True
            self._recognizer.prepare()
            self.stats.work = self._recognizer.work

    @property
    def mode(self) -> Mode:
        """How it works now."""
        return FILE if self._pace is None else self._pace.mode

    @property
    def heard_s(self) -> float:
        """Seconds of sound since the source began."""
        return self._heard / SAMPLE_RATE

    @property
    def lag_s(self) -> float:
        """Seconds between the sound that exists and the sound that was heard; none exists while a device is away."""
        return 0.0 if self._away else self._behind_s + time.perf_counter() - self._taken_at

    @property
    def levels_db(self) -> tuple[float, float]:
        """Level of the sound and of the noise under it, in dB of full scale."""
        return self._utterances.gate.level_db, self._utterances.gate.floor_db

    def __iter__(self) -> Iterator[Event]:
        """Give the events as they happen.

        Raises
        ------
        EdgeGemmaError
            what the source raised, after everything that was heard before is final
        """
        if self.source.live:
            self.prepare()
        self._taken_at = time.perf_counter()  # no sound existed before
        failed: EdgeGemmaError | None = None
        blocks = iter(self.source)
        while not self._cancelled:
            try:
                block = next(blocks, None)
            except EdgeGemmaError as error:
                block, failed = None, error
            if block is None:
                break
            yield from self._hear(block)
        self._taken_at, self._behind_s, self._away = time.perf_counter(), 0.0, False
        if not self._cancelled:
            yield from self._tell(self._utterances.finish())
            if self._heard > self._silent_from:
                yield Silence(self._silent_from / SAMPLE_RATE, self.heard_s)
        if failed is not None:
            raise failed

    def _hear(self, block: Block) -> Iterator[Event]:
        self._taken_at, self._behind_s = time.perf_counter(), self.source.backlog_s
        away, self._away = self._away, False
        if block.start > self._heard:
            reason = "the device was away" if away else "sound was not taken in time"
            yield self._gap(self._heard, block.start, reason)
        self._heard = block.stop
        self.stats.heard_s += block.seconds
        before = self._spoken and self._spoken.length
        yield from self._tell(self._utterances.feed(block))
        if self._spoken is not None and self._spoken.length == before and self._pace is not None:
            # Silence, perhaps the end: what there is, is read and guessed before that is decided.
            yield from self._guess(self._spoken)
        if block.cut:
            yield self._gap(block.stop, block.stop, self.source.lost or "the sound broke off")
        if self._pace is not None:
            yield from self._lag(self._pace)
        self._away = block.cut
        self._cancelled |= self._recognizer.cancelled

    def _tell(self, events: Iterable[sound.Event]) -> Iterator[Event]:
        """Turn what happened in the sound into what it means."""
        for event in events:
            if isinstance(event, sound.Begin):
                yield from self._begin(event.at)
            elif isinstance(event, sound.End):
                self._silent_from = event.at
            if self._spoken is None:
                continue
            if isinstance(event, sound.Sound):
                self._spoken.take(event.samples)
                self.stats.spoken_s += len(event.samples) / SAMPLE_RATE
                if self._spoken.waits_s >= self.mode.block_s:
                    yield from self._guess(self._spoken)
            elif isinstance(event, sound.Pause) and self._pace is not None:
                yield from self._guess(self._spoken)
            elif isinstance(event, sound.End):
                spoken, self._spoken = self._spoken, None
                yield from self._end(spoken, event)

    def _begin(self, at: int) -> Iterator[Event]:
        onset = at
        if at > self._silent_from or at == 0:
            onset += round(PREROLL_SECONDS * SAMPLE_RATE)
        if at > self._silent_from:
            yield Silence(self._silent_from / SAMPLE_RATE, at / SAMPLE_RATE)
        if at >= self._done:
            self._recognizer.begin(self._task.speech_prompt(self._prompts, self._context))
            self._spoken = Spoken(self._recognizer, at, onset, self._task.hold_back)

    def _guess(self, spoken: Spoken) -> Iterator[Event]:
        """Read the sound that waits, and say what it seems to mean if that is wanted now."""
        if not spoken.waits_s:
            return
        spoken.read()
        early = spoken.length < FIRST_SECONDS * SAMPLE_RATE or self._utterances.doubtful
        if not self.mode.partials or early:
            return
        guess = spoken.guess()
        self.stats.hypotheses += 1
        self._cancelled |= guess.stop == "cancelled"
        yield from self._commit(spoken)
        first = not spoken.shown
        if (text := spoken.partial()) is not None:
            if first and text:
                self.stats.first_shown_s.append(self._since(spoken))
            yield Partial(text, spoken.said_s, spoken.stop_s)

    def _end(self, spoken: Spoken, end: sound.End) -> Iterator[Event]:
        if end.speech_s < MIN_SPEECH_SECONDS and not spoken.committed:
            self._silent_from = spoken.start
            if spoken.shown:
                yield Partial("", spoken.said_s, end.at / SAMPLE_RATE)
            return
        postroll = POSTROLL_SECONDS if end.reason == "silence" else 0.0
        last = spoken.finish(end.at / SAMPLE_RATE - postroll)
        self.stats.hypotheses += 1
        self._cancelled |= last.stop == "cancelled"
        yield from self._commit(spoken)
        self._context = spoken.text if end.reason == "limit" else ""
        self.stats.utterances += 1
        self.stats.final_s.append(delay := self.lag_s)
        span = spoken.start / SAMPLE_RATE, end.at / SAMPLE_RATE
        yield Final(spoken.text, *span, end.reason, last.stop, len(last.ids), delay)
        if self._translator is not None:
            yield from self._timed(self._translator.finish())

    def _commit(self, spoken: Spoken) -> Iterator[Event]:
        shown, committed = spoken.shown, spoken.committed
        commit = spoken.commit()
        if commit is None:
            return
        if not shown:
            self.stats.first_shown_s.append(self._since(spoken))
        if not committed:
            self.stats.first_commit_s.append(self._since(spoken))
        self.stats.words += len(commit.words)
        yield commit
        if self._translator is not None:
            yield from self._timed(self._translator.take(commit))

    def _timed(self, translations: Iterator[Event]) -> Iterator[Event]:
        began = time.perf_counter()
        for translation in translations:
            self.stats.translate_s += time.perf_counter() - began
            yield translation
            began = time.perf_counter()

    def _since(self, spoken: Spoken) -> float:
        """Seconds since the voice began."""
        return self.heard_s + self.lag_s - spoken.onset / SAMPLE_RATE

    def _gap(self, start: int, stop: int, reason: str) -> Gap:
        return Gap(start / SAMPLE_RATE, stop / SAMPLE_RATE, reason, self.source.overflows)

    def _lag(self, pace: Pace) -> Iterator[Event]:
        """Say how far behind we are, if that changes how we work or lasts."""
        lag = self.lag_s
        self.stats.most_lag_s = max(self.stats.most_lag_s, lag)
        self.stats.overflows = self.source.overflows
        changed = pace.update(self.heard_s, lag)
        if changed or (lag > LAG_SECONDS <= self.heard_s - self._lag_said_s):
            self._lag_said_s = self.heard_s
            yield Lag(lag, *pace.mode)
