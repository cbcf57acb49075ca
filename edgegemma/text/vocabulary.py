"""A large ``tokenizer.json`` in a form that opens at once: tables beside the compiled kernels.

The library takes 1.4 s, 92 MB and for a moment 370 MB to load Gemma's 262,144 tokens and 514,906 merges. A text
needs few of them: byte-pair encoding only ever looks up strings that stand in the text. So the tables
are searched for all tokens that do, and the library is given a tokenizer of these tokens and their merges,
everything else as in the file. What is left out could not have been found: the ids are the same.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

Ids = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

SPACE = "▁"
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
LONGEST = 255  # characters of a token
SPAN = 1 << 14  # characters of a text that are searched at a time
NORMALIZER = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
TABLES = ("hashes", "ids", "text", "starts", "merge_starts", "merge_ranks", "merge_cuts")
_BASE = np.uint64(0x9E3779B97F4A7C15)
_FILTER = 1 << 21  # slots that say whether any token has such a hash


class Vocabulary:
    """The tokens of a ``tokenizer.json``, from the folder that `build` made of it.

    Attributes
    ----------
    size : int
    special : frozenset of int
        Ids of control tokens.
    decoder : dict
        As in the file.
    """

    def __init__(self, folder: Path) -> None:
        self._skeleton = json.loads((folder / "skeleton.json").read_bytes())
        self._always: list[int] = self._skeleton.pop("always")
        self._longest: int = self._skeleton.pop("longest")
        self._tables: dict[str, npt.NDArray[Any]] = {
            n: np.load(folder / f"{n}.npy", mmap_mode="r") for n in TABLES
        }
        hashes = self._tables["hashes"]
        self._seen = np.zeros(_FILTER, np.bool_)
        self._seen[_slots(hashes)] = True
        self.size = len(hashes)
        self.decoder: dict[str, Any] = self._skeleton["decoder"] or {}
        added = self._skeleton["added_tokens"]
        self.special = frozenset(token["id"] for token in added if token["special"])

    def encode(self, text: str) -> list[int]:
        """Ids of a text, as the whole tokenizer gives them."""
        model = self._skeleton["model"]
        found = np.unique(np.concatenate([np.array(self._always, np.int64), *self._inside(text)]))
        tokens = {int(i): self._spelling(int(i)) for i in found}
        mini = model | {
            "vocab": {token: i for i, token in tokens.items()},
            "merges": self._merges(tokens),
        }
        library = tokenizers.Tokenizer.from_str(json.dumps(self._skeleton | {"model": mini}))
        return list(library.encode(text, add_special_tokens=False).ids)

    def id_of(self, token: str) -> int | None:
        """Id of a token by its spelling; None if there is none."""
        if not 0 < len(token) <= self._longest:
            return None
        return next((int(i) for i in self._known(_codes(token), len(token))), None)

    def token_of(self, token_id: int) -> str | None:
        """Spelling of a token; None if there is none."""
        if not 0 <= token_id < len(self._tables["starts"]) - 1:
            return None
        return self._spelling(token_id) or None

    def _spelling(self, token_id: int) -> str:
        first, last = self._tables["starts"][token_id : token_id + 2]
        spelled: bytes = self._tables["text"][first:last].tobytes()
        return spelled.decode()

    def _inside(self, text: str) -> Iterator[Ids]:
        """Give the ids of all tokens that stand somewhere in a text."""
        codes = _codes(text.replace(" ", SPACE))
        for start in range(0, len(codes), SPAN):
            part = codes[start : start + SPAN + self._longest - 1]
            for length in range(1, min(self._longest, len(part)) + 1):
                yield self._known(part, length)

    def _known(self, codes: npt.NDArray[np.uint32], length: int) -> Ids:
        """Give the ids of the tokens of so many characters in a text."""
        hashes = _hashes(codes, length)
        places = np.flatnonzero(self._seen[_slots(hashes)])
        wanted, first = np.unique(hashes[places], return_index=True)
        table = self._tables["hashes"]
        rows = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
        hit = table[rows] == wanted
        ids: Ids = self._tables["ids"][rows[hit]].astype(np.int64)
        spelled = [codes[p : p + length].tobytes() for p in places[first[hit]]]
        same = [
            _codes(self._spelling(int(i))).tobytes() == s for i, s in zip(ids, spelled, strict=True)
        ]
        return ids[np.array(same, np.bool_)]

    def _merges(self, tokens: Mapping[int, str]) -> list[tuple[str, str]]:
        """Give the merges whose result is among these tokens, in the file's order."""
        starts, ranks, cuts = (self._tables[f"merge_{n}"] for n in ("starts", "ranks", "cuts"))
        found = []
        for token_id, token in tokens.items():
            first, last = (int(x) for x in starts[token_id : token_id + 2])
            found += [
                (int(rank), token[:cut], token[cut:])
                for rank, cut in zip(ranks[first:last], cuts[first:last].tolist(), strict=True)
            ]
        return [(left, right) for _, left, right in sorted(found)]


def build(source: Path, folder: Path) -> None:
    """Make the tables of a ``tokenizer.json``; the folder appears when it is complete.

    Raises
    ------
    ValueError, KeyError, TypeError, AttributeError
        The file is not a byte-pair encoding in Gemma's form: only the library can read it.
    """
    data = json.loads(source.read_bytes())
    model = data["model"]
    vocab, merges = model.pop("vocab"), model.pop("merges")
    _check(data, vocab)
    tables = _tables(vocab) | _merge_tables(vocab, merges)
    names = {token["content"] for token in data["added_tokens"]} | {model["unk_token"]}
    always = sorted(i for token, i in vocab.items() if token in names or BYTE.fullmatch(token))
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
    try:
        for name, table in tables.items():
            np.save(partial / f"{name}.npy", table)
        skeleton = data | {"always": always, "longest": max(map(len, vocab))}
        (partial / "skeleton.json").write_text(json.dumps(skeleton))
        _check_library(Vocabulary(partial))
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_library(made: Vocabulary) -> None:
    """Refuse what the library cannot read: then it says why, of the whole file."""
    try:
        made.encode("")
    except Exception as error:  # the library raises plain Exception
        raise ValueError(f"not a tokenizer: {error}") from error


def _check(data: dict[str, Any], vocab: dict[str, int]) -> None:
    """Refuse what could make a token depend on more than the strings inside the text."""
    model = data["model"]
    split = (data["pre_tokenizer"] or {"type": "Split"})["type"]
    plain = not any(
        model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    )
    if model["type"] != "BPE" or split != "Split" or data["normalizer"] != NORMALIZER or not plain:
        raise ValueError("not in Gemma's form")
    if sorted(vocab.values()) != list(range(len(vocab))) or not all(vocab):
        raise ValueError("ids have gaps")
    if any(vocab[token["content"]] != token["id"] for token in data["added_tokens"]):
        raise ValueError("an added token has another id")


def _tables(vocab: dict[str, int]) -> dict[str, npt.NDArray[Any]]:
    """Give spellings by id, and ids by the hash of the spelling."""
    tokens = [token for token, _ in sorted(vocab.items(), key=lambda item: item[1])]
    spelled = [token.encode() for token in tokens]
    starts = np.concatenate([[0], np.cumsum([len(x) for x in spelled])]).astype(np.uint32)
    hashes = _token_hashes(tokens)
    order = np.argsort(hashes)
    if len(np.unique(hashes)) < len(hashes) or max(map(len, tokens)) > LONGEST:
        raise ValueError("a token is too long, or two have the same hash")
    text = np.frombuffer(b"".join(spelled), np.uint8)
    ids = order.astype(np.uint32)
    return {"hashes": hashes[order], "ids": ids, "text": text, "starts": starts}


def _token_hashes(tokens: list[str]) -> U64:
    """Hash each token; those of a length together, which is twenty times as fast."""
    lengths = np.array([len(token) for token in tokens])
    found = np.empty(len(tokens), np.uint64)
    for length in np.unique(lengths).tolist():
        rows = np.flatnonzero(lengths == length)
        joined = _codes("".join(tokens[row] for row in rows))
        found[rows] = _hashes(joined, length)[::length]
    return found


def _merge_tables(vocab: dict[str, int], merges: list[Any]) -> dict[str, npt.NDArray[Any]]:
    """Give for each token the merges that make it: their rank, and characters of the left part."""
    pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in merges]
    results = np.array([vocab[left + right] for left, right in pairs], np.int64)
    parts = {part for pair in pairs for part in pair}
    if not parts <= vocab.keys() or any(BYTE.fullmatch(part) for part in parts):
        raise ValueError("a merge of what is no text")
    order = np.argsort(results, kind="stable")
    counts = np.bincount(results, minlength=len(vocab))
    cuts = np.array([len(left) for left, _ in pairs], np.uint8)
    return {
        "merge_starts": np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32),
        "merge_ranks": order.astype(np.uint32),
        "merge_cuts": cuts[order],
    }


def _codes(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _hashes(codes: npt.NDArray[np.uint32], length: int) -> U64:
    """Hash every run of so many characters."""
    count = len(codes) - length + 1
    found = np.full(count, length, np.uint64)
    for at in range(length):
        found *= _BASE
        found += codes[at : at + count]
    return found


def _slots(hashes: U64) -> npt.NDArray[np.intp]:
    return (hashes >> np.uint64(32)).astype(np.intp) % _FILTER


def main() -> None:
    """Make the tables of a file in a process of its own: ``SOURCE FOLDER``."""
    source, folder = map(Path, sys.argv[1:])
    try:
        build(source, folder)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        sys.exit(f"{source}: {error}")


if __name__ == "__main__":
    main()
