"""The transcript into another language, sentence by sentence as they are committed."""

from __future__ import annotations

from collections.abc import Iterator

from edgegemma.generate import Cancel, generate
from edgegemma.listen.events import Commit, Translation, Word
from edgegemma.listen.recognizer import SpeechModel
from edgegemma.listen.task import SENTENCE_ENDS, Task
from edgegemma.text.prompt import build
from edgegemma.text.sampler import Sampling
from edgegemma.text.template import ChatTemplate
from edgegemma.text.tokenizer import Tokenizer

FIRST_TOKENS = 16  # a translation has at most so many…
TIMES_TOKENS = 3  # …and so many for each of the original


class Translator:
    """Collects committed words to sentences and translates each.

    Parameters
    ----------
    model : Model
    task : Task
        with a language to translate to
    cancel : threading.Event or callable, optional
    """

    def __init__(self, model: SpeechModel, task: Task, cancel: Cancel = None) -> None:
        assert task.translate_to is not None
        self._model, self._task, self._cancel = model, task, cancel
        self._language: str = task.translate_to
        self._tokenizer = Tokenizer(model.package)
        self._template = ChatTemplate.of(model.package, self._tokenizer)
        self._waiting: list[Word] = []
        self._text = ""

    def take(self, commit: Commit) -> Iterator[Translation]:
        """Add committed words; translate what is a whole sentence now."""
        self._waiting += commit.words
        self._text += commit.text
        if self._text.rstrip().endswith(SENTENCE_ENDS):
            yield from self.finish()

    def finish(self) -> Iterator[Translation]:
        """Translate what waits: the utterance is over."""
        text, words = self._text.strip(), self._waiting
        self._text, self._waiting = "", []
        if text:
            translated = self._translate(text)
            span = words[0].start_s, words[-1].end_s
            yield Translation(translated, text, self._language, *span)

    def _translate(self, sentence: str) -> str:
        request = self._task.text_prompt(sentence)
        prompt = build(self._tokenizer, self._template, [{"role": "user", "content": request}])
        most = FIRST_TOKENS + TIMES_TOKENS * len(self._tokenizer.encode(sentence))
        answer = generate(
            self._model,
            self._tokenizer,
            prompt,
            Sampling(),
            max_tokens=most,
            cancel=self._cancel,
        )
        for _ in answer:
            pass
        return answer.text.strip()
