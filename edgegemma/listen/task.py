"""What the model is asked to do with the speech: Gemma 4's own prompts, and ours where its card has none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgegemma.errors import InputError
from edgegemma.listen.agreement import HOLD_BACK, TRANSLATION_HOLD_BACK
from edgegemma.listen.languages import language

TRANSCRIBE = "transcribe"  # the names of the package's prompts in its manifest
TRANSLATE = "translate to {}"

_RULES = "Follow these specific instructions for formatting the answer:\n"
_TRANSCRIPT = (
    "Transcribe the following speech segment in {speech} into {text} text.\n\n"
    + _RULES
    + "*   Only output the transcription, with no newlines.\n"
    "*   When transcribing numbers, write the digits, i.e. write 1.7 and not one point seven, "
    "and write 3 instead of three."
)
_SPEECH = (  # not on the card, which only transcribes first; worded after its transcription
    "Translate the following speech segment in {speech} into {text} text.\n\n"
    + _RULES
    + "*   Only output the translation, with no newlines."
)
_TEXT = (
    "Translate the following text in {speech} into {text}. Only output the translation, "
    "with no newlines.\n\n{sentence}"
)
_BEFORE = (
    "\n*   The segment goes on after these words, which are not to be repeated: {sentence}"  # ours
)
_ANY = "its original language"

CONTEXT_CHARACTERS = 200
SENTENCE_ENDS = (".", "!", "?", "…", "。", "！", "？", "।", "؟")


@dataclass(frozen=True)
class Task:
    """What to do with the speech.

    Attributes
    ----------
    language : str, optional
        of the speech, by name or code; without it the package's own prompt is used, or the model finds out
    translate_to : str, optional
        the language of a translation
    both : bool
        the transcript live, and a translation of each committed sentence; else the speech is translated directly
    instruction : str, optional
        instead of all prompts for speech
    """

    language: str | None = None
    translate_to: str | None = None
    both: bool = False
    instruction: str | None = None

    def __post_init__(self) -> None:
        for field in ("language", "translate_to"):
            if (name := getattr(self, field)) is not None:
                object.__setattr__(self, field, language(name))
        if self.both and self.translate_to is None:
            raise InputError("both: wants a language to translate to")

    @property
    def translates_speech(self) -> bool:
        """Whether the text that comes out of the speech is a translation."""
        return self.translate_to is not None and not self.both

    @property
    def hold_back(self) -> int:
        """Words that a commit leaves out."""
        return TRANSLATION_HOLD_BACK if self.translates_speech else HOLD_BACK

    def speech_prompt(self, prompts: Mapping[str, str], context: str = "") -> str:
        """Give the instruction that stands before the sound.

        Parameters
        ----------
        prompts : mapping
            the package's
        context : str
            words that were said just before, in the same breath. A prompt with a list of rules has one more with
            them; a prompt of another kind is all that its model knows, and stays as it is.

        Raises
        ------
        InputError
            Nothing says what to do.
        """
        prompt = self._prompt(prompts)
        sentence = last_sentence(context)
        return (
            prompt + _BEFORE.format(sentence=sentence) if sentence and _RULES in prompt else prompt
        )

    def _prompt(self, prompts: Mapping[str, str]) -> str:
        if self.instruction is not None:
            return self.instruction
        if self.translates_speech:
            general = _SPEECH.format(speech=self.language or _ANY, text=self.translate_to)
            return self._translation(prompts) or general
        own = prompts.get(TRANSCRIBE)
        if not self._speaks(own or ""):
            return _TRANSCRIPT.format(speech=self.language, text=self.language)
        if own is None:
            raise InputError(
                f"listen: the package has no prompt {TRANSCRIBE!r}; give a language or an instruction"
            )
        return own

    def _speaks(self, prompt: str) -> bool:
        """Whether a prompt is for the language that is spoken, as far as that is known."""
        return self.language is None or f" in {self.language} " in prompt

    def _translation(self, prompts: Mapping[str, str]) -> str | None:
        """Give the package's own prompt for the translation, if it has one."""
        own = prompts.get(TRANSLATE.format(self.translate_to))
        return own if own is not None and self._speaks(own) else None

    def is_new_to(self, prompts: Mapping[str, str]) -> bool:
        """Whether a translation is asked of a model that was taught other prompts only, and without a list of rules."""
        if self.translate_to is None or _RULES in prompts.get(TRANSCRIBE, _RULES):
            return False
        return self.both or self._translation(prompts) is None

    def text_prompt(self, sentence: str) -> str:
        """Give the request to translate a sentence of the transcript."""
        return _TEXT.format(speech=self.language or _ANY, text=self.translate_to, sentence=sentence)


def last_sentence(text: str) -> str:
    """Give the last sentence, or as many of its last words as fit the prompt."""
    words = text.split()
    ends = [n for n, word in enumerate(words[:-1]) if word.endswith(SENTENCE_ENDS)]
    words = words[ends[-1] + 1 :] if ends else words
    while len(" ".join(words)) > CONTEXT_CHARACTERS:
        words = words[1:]
    return " ".join(words)
