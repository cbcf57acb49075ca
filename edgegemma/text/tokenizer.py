"""Text to token ids and back, by the package's own ``tokenizer.json``; decoding also token by token.

Decoding is done here, over bytes: a token is a piece of text, one byte of UTF-8 (``<0xE2>``) or a control
token. That equals the library's decoder wherever the bytes are valid UTF-8, and makes the incremental decoder exact:
it gives a character as soon as its last byte is there, and what it gave joins to what `Tokenizer.decode` gives.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tokenizers

from edgegemma.config import ModelConfig
from edgegemma.errors import InputError, PackageError
from edgegemma.text.vocabulary import BYTE, SPACE, Vocabulary

log = logging.getLogger(__name__)
Ids = npt.NDArray[np.int64]

FILE = "tokenizer.json"
LARGE_BYTES = 4 << 20  # from here on tables are made: see `edgegemma.text.vocabulary`

_DECODER = ["Replace", "ByteFallback", "Fuse"]  # of Gemma's tokenizers; the one that `_bytes` does


class PackageFiles(Protocol):
    """What this floor needs of a package (`edgegemma.package.Package` has it)."""

    @property
    def config(self) -> ModelConfig:
        """The model's dimensions and token ids."""

    def file(self, name: str) -> Path:
        """Path of a checked member."""


class Tokenizer:
    """The tokenizer of a package.

    Attributes
    ----------
    tokens : TokenConfig
        the ids of the control tokens that the runtime knows
    """

    def __init__(self, package: PackageFiles) -> None:
        path = package.file(FILE)
        self._library = _opened(path)
        self._check_decoder(path)
        self.tokens = package.config.tokens
        self._special = self._library.special
        self._pieces: dict[int, bytes] = {}
        size = package.config.text.vocab_size
        if (got := self._library.size) > size:
            raise PackageError(
                f"{path}: got {got} tokens; want {size} or fewer, the model's vocabulary"
            )
        named = {k: v for k, v in self.tokens.to_json().items() if isinstance(v, int)}
        for field, token_id in named.items():
            if self._library.token_of(token_id) is None:
                raise PackageError(f"{path}: has no token {token_id}, the manifest's {field!r}")

    def encode(self, text: str) -> Ids:
        """Ids of a text, int64 [n]. Control tokens spelled in it become control tokens; nothing is added."""
        try:
            text.encode()  # the library would only say that it wants a string
        except UnicodeEncodeError as error:  # a lone surrogate, as undecodable bytes give
            raise InputError(f"text: not valid Unicode at character {error.start}") from error
        return np.array(self._library.encode(text), np.int64)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of these ids. A byte that belongs to no character becomes U+FFFD."""
        return b"".join(self._bytes(int(id), skip_special) for id in ids).decode("utf-8", "replace")

    def detokenizer(self, skip_special: bool = True) -> Detokenizer:
        """Start decoding token by token."""
        return Detokenizer(self, skip_special)

    def id_of(self, token: str) -> int:
        """Id of a token by its spelling."""
        found = self._library.id_of(token)
        if found is None:
            raise PackageError(f"{FILE}: has no token {token!r}")
        return found

    def token_of(self, token_id: int) -> str:
        """Spelling of a token; the inverse of `id_of`."""
        found = self._library.token_of(token_id)
        if found is None:
            raise PackageError(f"{FILE}: has no token {token_id}")
        return found

    def is_special(self, token_id: int) -> bool:
        """Whether this is a control token, which ordinary text does not show."""
        return token_id in self._special

    def _bytes(self, token_id: int, skip_special: bool) -> bytes:
        """UTF-8 that one token stands for."""
        if skip_special and token_id in self._special:
            return b""
        piece = self._pieces.get(token_id)
        if piece is None:
            token = self._library.token_of(token_id)
            byte = BYTE.fullmatch(token or "")
            # A vocabulary may be padded beyond the tokenizer: such an id has no text.
            piece = (
                bytes([int(byte[1], 16)]) if byte else (token or "").replace(SPACE, " ").encode()
            )
            self._pieces[token_id] = piece
        return piece

    def _check_decoder(self, path: Path) -> None:
        state: Any = self._library.decoder
        steps: Any = state.get("decoders") if isinstance(state, dict) else None
        listed = isinstance(steps, list) and all(isinstance(step, dict) for step in steps)
        kinds = [step.get("type") for step in steps] if listed else []
        replace = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
        if kinds != _DECODER or steps[0] != replace:
            got = kinds or (state.get("type") if isinstance(state, dict) else state)
            raise PackageError(
                f"{path}: got the decoder {got}; want Gemma's, {_DECODER} with {SPACE!r} for a space"
            )


class Detokenizer:
    """Text as the tokens come: never half a character, and joined it is `Tokenizer.decode` of all of them."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer, self._skip = tokenizer, skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Take one token; return the text that is certain now, often empty in the middle of a character."""
        return self._utf8.decode(self._tokenizer._bytes(token_id, self._skip))

    def finish(self) -> str:
        """Return U+FFFD if a character was left unfinished; start afresh."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


class Whole:
    """A ``tokenizer.json`` as the library loads it; the same face as `Vocabulary`."""

    def __init__(self, path: Path) -> None:
        try:
            self._library = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise PackageError(f"{path}: not a tokenizer: {error}") from error
        _return_freed_memory()
        added = self._library.get_added_tokens_decoder()
        self.special = frozenset(id for id, token in added.items() if token.special)
        self.size: int = self._library.get_vocab_size()
        decoder = self._library.decoder
        self.decoder: dict[str, Any] = json.loads(decoder.__getstate__()) if decoder else {}

    def encode(self, text: str) -> list[int]:
        """Ids of a text."""
        return list(self._library.encode(text, add_special_tokens=False).ids)

    def id_of(self, token: str) -> int | None:
        """Id of a token by its spelling; None if there is none."""
        found: int | None = self._library.token_to_id(token)
        return found

    def token_of(self, token_id: int) -> str | None:
        """Spelling of a token; None if there is none."""
        found: str | None = self._library.id_to_token(token_id) if token_id >= 0 else None
        return found


def _opened(path: Path) -> Vocabulary | Whole:
    """Open a small file with the library, a large one by its tables, which are made at the first time."""
    found = path.stat()
    if found.st_size < LARGE_BYTES:
        return Whole(path)
    from edgegemma.kernels import cache

    maker = Path(__file__).with_name("vocabulary.py").read_bytes()
    # Not its place: an export looks at the package before that gets its name.
    identity = (found.st_ino, found.st_size, found.st_mtime_ns, maker)
    folder = cache.root() / "tokenizers" / hashlib.sha256(repr(identity).encode()).hexdigest()[:32]
    if not folder.is_dir():
        # In a process of its own: it takes 0.3 GB for a moment, which this one would not give back.
        # -P: nothing is imported from the folder one happens to be in.
        command = [sys.executable, "-P", "-m", "edgegemma.text.vocabulary", str(path), str(folder)]
        made = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if made.returncode:
            log.info("read whole: %s", made.stderr.strip()[-200:])
    try:
        return Vocabulary(folder)
    except (OSError, EOFError, ValueError, KeyError):  # another form, no place, or damaged
        return Whole(path)


def _return_freed_memory() -> None:
    """Hand what parsing freed back to the system: of Gemma's 262,144 tokens 111 MB stay instead of 293."""
    with contextlib.suppress(AttributeError, OSError):  # glibc has it, other C libraries do not
        ctypes.CDLL(None).malloc_trim(0)
