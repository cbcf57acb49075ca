"""What a listener asks a model for, and what its page says of its events."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from edgegemma.errors import InputError
from edgegemma.listen import events as kinds
from edgegemma.listen.task import Task

DOCS = Path(__file__).resolve().parent.parent / "docs" / "listen.md"


def test_prompts_say_the_languages() -> None:
    own = {"transcribe": "Transcribe in English into English text."}
    assert Task().speech_prompt(own) == own["transcribe"]
    assert Task("en").speech_prompt(own) == own["transcribe"]
    assert "in German into German" in Task("german").speech_prompt(own)
    assert "in French into Spanish" in Task("fr", "es").speech_prompt(own)
    assert "original language into Spanish" in Task(None, "es").speech_prompt(own)
    assert Task("fr", "es", both=True).speech_prompt(own).count("French") == 2
    assert "from" not in Task("fr", "es", both=True).text_prompt("x").lower()
    assert Task(instruction="Do.").speech_prompt({}) == "Do."


def test_a_model_of_one_prompt_is_new_to_translation() -> None:
    own = {"transcribe": "Transcribe in English into English text."}
    assert Task(None, "es").is_new_to(own)
    assert not Task().is_new_to(own)
    assert not Task(None, "es").is_new_to({"transcribe": Task("fr").speech_prompt({})})
    assert not Task(None, "es").is_new_to({})


def test_a_package_may_have_a_prompt_for_a_translation_from_its_language() -> None:
    own = {
        "transcribe": "Transcribe in English into English text.",
        "translate to Spanish": "Translate in English into Spanish text.",
    }
    for task in (Task(translate_to="es"), Task("en", "es")):
        assert task.speech_prompt(own) == own["translate to Spanish"]
        assert not task.is_new_to(own)
    for task in (Task("de", "es"), Task("en", "fr"), Task("en", "es", both=True)):
        assert task.speech_prompt(own) != own["translate to Spanish"]
        assert task.is_new_to(own)


@pytest.mark.parametrize(
    ("name", "hint"), [("Spannish", "Spanish"), ("qqq", "e.g."), ("xx", "e.g.")]
)
def test_an_unknown_language_is_refused_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(InputError, match=f"language '{name}': is not known; .*{hint}"):
        Task(translate_to=name)


def test_the_page_lists_every_field_of_every_event() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", DOCS.read_text(), re.MULTILINE)
    listed = {name: set(re.findall(r"`(\w+)`", fields)) for name, fields in rows}
    known = {
        name: {field.name for field in dataclasses.fields(kind)}
        for kind, name in kinds.NAMES.items()
    }
    assert {name: listed.get(name) for name in known} == known
