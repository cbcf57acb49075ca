"""The tables of a large tokenizer give the ids that the library gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.trainers import BpeTrainer

from edgegemma.errors import PackageError
from edgegemma.kernels import cache
from edgegemma.text import tokenizer as module
from edgegemma.text import vocabulary
from edgegemma.text.vocabulary import Vocabulary, build
from tests.fake_model import FakePackage
from tests.tiny_tokenizer import write_tokenizer

SIZE = 1024
TEXT = (
    "the speech of the model and the text of the user, spoken there and then; "
    "zwölf Boxkämpfer jagen Viktor; さくら、さくら; a  b   c\n\n\tthe end. " * 3
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer in Gemma's form with merges learnt from the text, several for many tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, SIZE)
    data = json.loads((folder / "tokenizer.json").read_text())
    learnt = tokenizers.Tokenizer(tokenizers.models.BPE())
    words = TEXT.replace(" ", "▁").split(",")
    learnt.train_from_iterator(words, BpeTrainer(vocab_size=600, show_progress=False))
    model = json.loads(learnt.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    vocab = data["model"]["vocab"]
    for token in model["vocab"]:
        vocab.setdefault(token, len(vocab))
    known = set(merges)
    merges += [
        (token[:cut], token[cut:])  # a token that can be made in several ways, as Gemma's
        for token in sorted(model["vocab"], key=len)
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab and (token[:cut], token[cut:]) not in known
    ]
    data["model"]["merges"] = merges
    (folder / "tokenizer.json").write_text(json.dumps(data))
    return folder / "tokenizer.json"


@pytest.fixture(scope="module")
def library(source: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(source))


@pytest.fixture(scope="module")
def tables(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    folder = tmp_path_factory.mktemp("tables") / "made"
    build(source, folder)
    return Vocabulary(folder)


pieces = st.sampled_from([*TEXT.split(), " ", "  ", "\n", "<bos>", "<|turn>", "<0x41>", "▁", "🦊"])
texts = st.lists(pieces | st.text(max_size=5), max_size=40).map("".join)


@settings(deadline=None, max_examples=200)
@given(text=texts)
def test_a_text_has_the_ids_that_the_whole_tokenizer_gives(
    tables: Vocabulary, library: tokenizers.Tokenizer, text: str
) -> None:
    assert tables.encode(text) == library.encode(text, add_special_tokens=False).ids


def test_a_token_across_two_searched_parts_is_found(
    tables: Vocabulary, library: tokenizers.Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "SPAN", 7)
    assert tables.encode(TEXT) == library.encode(TEXT, add_special_tokens=False).ids


def test_every_token_has_the_librarys_spelling_and_id(
    tables: Vocabulary, library: tokenizers.Tokenizer
) -> None:
    assert tables.size == library.get_vocab_size()
    for token_id in range(tables.size):
        token = tables.token_of(token_id)
        assert token == library.id_to_token(token_id)
        assert token is not None
        assert tables.id_of(token) == token_id


def test_what_is_no_token_is_not_found(tables: Vocabulary) -> None:
    assert tables.id_of("") is tables.id_of("qqq") is tables.id_of("x" * 300) is None
    assert tables.token_of(tables.size) is tables.token_of(-1) is None


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": None},
        {"pre_tokenizer": {"type": "ByteLevel"}},
        {"model": {"dropout": 0.1}},
        {"model": {"end_of_word_suffix": "</w>"}},
        {"model": {"vocab": {"a": 0, "b": 2}}},
        {"model": {"merges": ["<0x41> <0x42>"]}},
        {"added_tokens": [{"id": 9999, "content": "<bos>", "special": True}]},
    ],
    ids=str,
)
def test_another_form_of_tokenizer_is_left_to_the_library(
    source: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    data = json.loads(source.read_text())
    model = data["model"] | change.get("model", {})
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(data | change | {"model": model}))
    with pytest.raises((ValueError, KeyError)):
        build(other, tmp_path / "made")
    assert list(tmp_path.iterdir()) == [other]


@pytest.mark.parametrize(
    "change",
    [
        {"decoder": "none"},
        {"decoder": {"type": "Sequence", "decoders": ["Replace"]}},
        {"post_processor": {"type": "Nothing"}},
    ],
    ids=str,
)
def test_a_large_file_that_is_no_tokenizer_of_gemmas_is_refused(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    monkeypatch.setattr(module, "LARGE_BYTES", 0)
    monkeypatch.setattr(cache, "root", lambda: tmp_path / "cache")
    other = tmp_path / "tokenizer.json"
    other.write_text(json.dumps(json.loads(source.read_text()) | change))
    with pytest.raises(PackageError, match=r"tokenizer\.json"):
        module.Tokenizer(FakePackage(tmp_path))


def test_a_large_file_is_opened_by_tables_that_are_made_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGE_BYTES", 0)
    monkeypatch.setattr(cache, "root", lambda: tmp_path)
    assert isinstance(module._opened(source), Vocabulary)
    (made,) = (tmp_path / "tokenizers").iterdir()
    when = made.stat().st_mtime_ns
    assert isinstance(module._opened(source), Vocabulary)
    assert made.stat().st_mtime_ns == when


def test_damaged_tables_are_not_used(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGE_BYTES", 0)
    monkeypatch.setattr(cache, "root", lambda: tmp_path)
    module._opened(source)
    next(tmp_path.glob("tokenizers/*/hashes.npy")).write_bytes(b"")
    assert isinstance(module._opened(source), module.Whole)
