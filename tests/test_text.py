"""Text to ids and back, the chat template in its sandbox, and prompts with sound."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from edgegemma.errors import InputError, PackageError
from edgegemma.text.prompt import Prompt, around_audio, build, expand, text_prompt
from edgegemma.text.template import ChatTemplate
from edgegemma.text.tokenizer import Tokenizer
from tests.fake_model import HIDDEN, TOKENS, VOCABULARY, FakePackage, fake_package
from tests.tiny_tokenizer import BYTES_AT, CONTROL

# No lone surrogates, which no UTF-8 has, and no "▁", which is how the tokenizer writes a space.
texts = st.text(st.characters(codec="utf-8", exclude_characters="▁"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> FakePackage:
    return fake_package(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(files: FakePackage) -> Tokenizer:
    return Tokenizer(files)


@pytest.fixture(scope="module")
def template(files: FakePackage, tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate.of(files, tokenizer)


@pytest.fixture(scope="module")
def library(files: FakePackage) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(files.file("tokenizer.json")))


@given(text=texts)
def test_decoding_gives_the_text_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert tokenizer.decode(ids, skip_special=False) == text


@given(text=texts)
def test_decoding_agrees_with_the_library(
    tokenizer: Tokenizer, library: tokenizers.Tokenizer, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == library.decode(ids.tolist())


tokens = st.one_of(
    st.integers(0, VOCABULARY - 1),
    st.integers(BYTES_AT, BYTES_AT + 255),
    st.sampled_from(sorted(CONTROL)),
)
emoji = st.text("🤗é€👩‍🚀ab", max_size=4)


@settings(max_examples=300)
@given(ids=st.lists(tokens, max_size=30), text=emoji, skip=st.booleans())
def test_streamed_text_joins_to_the_whole_and_holds_no_half_characters(
    tokenizer: Tokenizer, ids: list[int], text: str, skip: bool
) -> None:
    ids = [*tokenizer.encode(text).tolist(), *ids, *tokenizer.encode(text).tolist()]
    stream = tokenizer.detokenizer(skip)
    pieces = [stream.push(token) for token in ids] + [stream.finish()]
    assert "".join(pieces) == tokenizer.decode(ids, skip)
    assert all(piece.encode().decode() == piece for piece in pieces)


def test_an_emoji_of_bytes_comes_with_its_last_byte(tokenizer: Tokenizer) -> None:
    stream = tokenizer.detokenizer()
    assert [stream.push(BYTES_AT + byte) for byte in "🤗".encode()] == ["", "", "", "🤗"]
    assert [stream.push(BYTES_AT + 0xF0), stream.finish()] == ["", "�"]


def test_control_tokens_are_known_by_spelling_and_id(tokenizer: Tokenizer) -> None:
    assert tokenizer.id_of("<|turn>") == 105
    assert tokenizer.token_of(105) == "<|turn>"
    assert tokenizer.is_special(105)
    assert not tokenizer.is_special(BYTES_AT)
    assert tokenizer.encode("<|turn>").tolist() == [105]
    for unknown in ("<|nothing>", -1, VOCABULARY):
        with pytest.raises(PackageError, match="has no token"):
            tokenizer.id_of(unknown) if isinstance(unknown, str) else tokenizer.token_of(unknown)


def test_ids_beyond_the_tokenizer_have_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([VOCABULARY + 5, -1]) == ""


def test_a_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="not valid Unicode"):
        tokenizer.encode("a\udc80")


def changed(
    files: FakePackage, folder: Path, change: Callable[[dict[str, Any]], None]
) -> FakePackage:
    """The package with another tokenizer.json."""
    state = json.loads(files.file("tokenizer.json").read_text())
    change(state)
    (folder / "tokenizer.json").write_text(json.dumps(state))
    return FakePackage(folder, files.config)


def test_a_foreign_decoder_is_refused(files: FakePackage, tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="got the decoder ByteLevel"):
        Tokenizer(changed(files, tmp_path, lambda s: s.update(decoder=BYTE_LEVEL)))
    with pytest.raises(PackageError, match="got the decoder None"):
        Tokenizer(changed(files, tmp_path, lambda s: s.update(decoder=None)))


BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": True,
    "trim_offsets": True,
    "use_regex": True,
}


def test_a_tokenizer_larger_than_the_model_is_refused(files: FakePackage, tmp_path: Path) -> None:
    extra = {f"<more{i}>": VOCABULARY + i for i in range(3)}
    with pytest.raises(PackageError, match=f"got {VOCABULARY + 3} tokens; want {VOCABULARY}"):
        Tokenizer(changed(files, tmp_path, lambda s: s["model"]["vocab"].update(extra)))


def test_what_is_no_tokenizer_is_refused(files: FakePackage, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(PackageError, match="not a tokenizer"):
        Tokenizer(FakePackage(tmp_path, files.config))


def test_a_conversation_is_written_as_the_template_says(template: ChatTemplate) -> None:
    said: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "text", "text": " hear: "}, {"type": "audio"}]},
        {"role": "assistant", "content": "yes"},
    ]
    assert template.render(said) == (
        "<bos><|turn>user\nhear:<|audio|><turn|>\n<|turn>model\nyes<turn|>\n<|turn>model\n"
    )
    assert template.render(said, add_generation_prompt=False).endswith("yes<turn|>\n")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "got none"),
        (["hi"], r"messages\[0\]: got str"),
        ([{"role": "god", "content": ""}], "got role 'god'"),
        ([{"role": "user"}], "got content of NoneType"),
        ([{"role": "user", "content": [{"type": "smell"}]}], r"messages\[0\].content\[0\]: want"),
        ([{"role": "user", "content": [{"type": "text"}]}], r"messages\[0\].content\[0\]: want"),
        ([{"role": "system", "content": [{"type": "audio"}]}], "holds text only"),
    ],
)
def test_messages_that_no_template_reads_are_refused(
    template: ChatTemplate, messages: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        template.render(messages)


HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("source", "want"),
    [
        ("{{ bos_token }}{{ messages[0]['content'] }}", "<bos>hello"),
        ("{{ {'a': '<ü>'} | tojson }}", '{"a": "<ü>"}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1, sort_keys=true) }}", '{\n "a": 2,\n "b": 1\n}'),
        ("{% generation %}x{% endgeneration %}", "x"),
        ("{% for m in messages %}{% break %}{% endfor %}", ""),
        ("  {% if true %}\nx\n  {% endif %}\n", "x\n"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% set ns = namespace(a=1) %}{% set ns.a = 2 %}{{ ns.a }}", "2"),
        ("{{ tools is none }}{{ enable_thinking }}{{ more }}", "TrueFalse7"),
        ("{{ messages[0].thing }}", "<ndarray>"),
    ],
)
def test_templates_find_what_transformers_provides(source: str, want: str) -> None:
    template = ChatTemplate(source, {"bos_token": "<bos>"})
    said = [{**HELLO[0], "thing": np.zeros(3)}]
    assert template.render(said, more=7) == want


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(a=1) }}",
        "{{ strftime_now.__globals__.keys() }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ raise_exception.__globals__['__builtins__'] }}",
        "{{ 1 // 0 }}",
        "{{ messages | nothing }}",
        "{% for x in range(999999999) %}{% endfor %}",
        "{{ '{}'.format() }}",
        "{{ 'a'.encode('nope') }}",
        "{{ 'x' | truncate(1) }}",
        "{% for x in y %}" * 25 + "{% endfor %}" * 25,
        "{{ " + "(" * 3_000 + "1" + ")" * 3_000 + " }}",
        "{{ " + "9" * 5_000 + " }}",
    ],
)
def test_templates_cannot_leave_the_sandbox(source: str) -> None:
    with pytest.raises(PackageError, match="chat_template"):
        ChatTemplate(source).render(HELLO)


def test_an_image_is_refused_as_nothing_reads_it() -> None:
    with pytest.raises(InputError, match=r"messages\[0\].content\[0\]: .*got 'image'"):
        ChatTemplate("x").render([{"role": "user", "content": [{"type": "image"}]}])


def test_a_template_may_refuse_messages() -> None:
    with pytest.raises(InputError, match="refused by the chat template: roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render(HELLO)


def test_a_template_with_an_error_names_its_line() -> None:
    with pytest.raises(PackageError, match="line 2"):
        ChatTemplate("a\n{% if %}")


def test_parts_of_a_system_message_are_joined() -> None:
    parts = [{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}]
    template = ChatTemplate("{{ messages[0]['content'] | trim }}")
    assert template.render([{"role": "system", "content": parts}]) == "be kind"


def soft(count: int, value: float) -> Any:
    return np.full((count, HIDDEN), value, np.float32)


def test_soft_tokens_stand_between_their_control_tokens(
    tokenizer: Tokenizer, template: ChatTemplate
) -> None:
    parts = [{"type": "audio"}, {"type": "text", "text": "and"}, {"type": "audio"}]
    prompt = build(
        tokenizer, template, [{"role": "user", "content": parts}], [soft(3, 1), soft(2, 2)]
    )
    ids = prompt.ids.tolist()
    first = ids.index(TOKENS.boa)
    assert ids[first : first + 5] == [TOKENS.boa, *[TOKENS.audio] * 3, TOKENS.eoa]
    assert [ids[at] for at in prompt.positions] == [TOKENS.audio] * 5
    assert prompt.soft[:, 0].tolist() == [1, 1, 1, 2, 2]
    assert len(prompt) == len(ids)
    assert tokenizer.decode(ids) == "user\nand\nmodel\n"


def test_a_prompt_of_text_has_no_soft_tokens(tokenizer: Tokenizer, template: ChatTemplate) -> None:
    prompt = build(tokenizer, template, HELLO)
    assert (len(prompt.positions), len(prompt.soft)) == (0, 0)
    assert text_prompt(tokenizer, template.render(HELLO)).ids.tolist() == prompt.ids.tolist()


def test_sound_without_a_place_and_places_without_sound_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="got 1 sounds for 0 places"):
        expand(tokenizer, "nothing", [3])
    with pytest.raises(InputError, match="got 0 sounds for 1 places"):
        expand(tokenizer, "the user typed <|audio|>", [])
    with pytest.raises(InputError, match="got 1 soft tokens; want 0"):
        Prompt(np.zeros(3, np.int64), np.zeros(0, np.int64), soft(1, 0))


def test_live_sound_goes_between_two_parts_of_the_same_prompt(
    tokenizer: Tokenizer, template: ChatTemplate
) -> None:
    said = [{"role": "user", "content": [{"type": "text", "text": "the"}, {"type": "audio"}]}]
    before, after = around_audio(tokenizer, template, said)
    whole = build(tokenizer, template, said, [soft(4, 0)])
    assert (before[-1], after[0]) == (TOKENS.boa, TOKENS.eoa)
    assert [*before, *[TOKENS.audio] * 4, *after] == whole.ids.tolist()
