"""A checkpoint's own chat template, rendered in a sandbox with the names that transformers provides.

The template comes with the package and is not trusted: it sees plain JSON values only, in jinja2's immutable sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgegemma.errors import InputError, PackageError
from edgegemma.text.tokenizer import PackageFiles, Tokenizer

Message = Mapping[
    str, Any
]  # role and content: text, or a list of {"type": "text", "text": …} and {"type": "audio"}

FILE = "chat_template.jinja"
ROLES = ("system", "developer", "user", "assistant", "model", "tool")
PARTS = ("text", "audio")

_MOST_BYTES = 1 << 20  # a template is tens of kilobytes


class _Refused(jinja2.TemplateError):
    """The template called ``raise_exception``: it does not accept these messages."""


class ChatTemplate:
    """The chat template of a package."""

    def __init__(
        self, source: str, tokens: Mapping[str, str] | None = None, where: str = FILE
    ) -> None:
        self._where = where
        self._tokens = dict(tokens or {})
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise PackageError(f"{where}: line {error.lineno}: {error.message}") from error
        except (
            Exception
        ) as error:  # what Python's own compiler says of the code that jinja2 makes of it
            raise PackageError(f"{where}: not a template: {error}") from error

    @classmethod
    def of(cls, package: PackageFiles, tokenizer: Tokenizer) -> ChatTemplate:
        """Read the template of a package."""
        path = package.file(FILE)
        try:
            if (size := path.stat().st_size) > _MOST_BYTES:
                raise PackageError(f"{path}: got {size} bytes; want at most {_MOST_BYTES}")
            source = path.read_bytes().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise PackageError(f"{path}: cannot be read: {error}") from error
        ids = tokenizer.tokens
        named = {"bos_token": ids.bos, "eos_token": ids.eos[0], "pad_token": ids.pad}
        return cls(source, {name: tokenizer.token_of(id) for name, id in named.items()}, str(path))

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: bool = False,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """Write a conversation as the text the model reads, media as their placeholders.

        Parameters
        ----------
        messages : list of {"role": …, "content": …}
            content is a text or a list of parts, ``{"type": "text", "text": …}`` and ``{"type": "audio"}``
        tools : list of JSON schemas, optional
        thinking : bool
            ``enable_thinking`` of the template
        add_generation_prompt : bool
            end with the opening of the model's turn
        """
        _check(messages)
        names = {
            **self._tokens,
            **_plain(variables),
            "messages": [_flat_system(_plain(message)) for message in messages],
            "tools": _plain(tools) if tools else None,
            "enable_thinking": thinking,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._template.render(names)
        except _Refused as error:
            raise InputError(f"messages: refused by the chat template: {error.message}") from error
        except MemoryError:
            raise
        except Exception as error:  # a template is code: its filters raise what they like
            raise PackageError(f"{self._where}: fails on these messages: {error}") from error


def _check(messages: Sequence[Message]) -> None:
    """Refuse what no template could read, naming the message."""
    if not messages:
        raise InputError("messages: got none; want at least one")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise InputError(
                f"messages[{i}]: got {type(message).__name__}; want an object with role and content"
            )
        role = message.get("role")
        if role not in ROLES:
            raise InputError(f"messages[{i}]: got role {role!r}; want one of {', '.join(ROLES)}")
        content = message.get("content")
        if content is None and (message.get("tool_calls") or message.get("tool_responses")):
            continue
        if isinstance(content, str):
            continue
        if not isinstance(content, list | tuple):
            raise InputError(
                f"messages[{i}]: got content of {type(content).__name__}; want a text or a list of parts"
            )
        for j, part in enumerate(content):
            kind = part.get("type") if isinstance(part, Mapping) else None
            if kind not in PARTS or (kind == "text" and not isinstance(part.get("text"), str)):
                raise InputError(
                    f"messages[{i}].content[{j}]: want {{'type': 'text', 'text': …}} or audio, got {kind!r}"
                )


def _flat_system(message: dict[str, Any]) -> dict[str, Any]:
    """Join the parts of a system message: templates trim its content as one text."""
    content = message.get("content")
    if message["role"] not in ("system", "developer") or not isinstance(content, list):
        return message
    if any(part["type"] != "text" for part in content):
        raise InputError(f"messages: a {message['role']} message holds text only")
    return {**message, "content": "".join(part["text"] for part in content)}


def _plain(value: Any) -> Any:
    """JSON values as they are; anything else, such as an array of samples, as the name of its type."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return str.__str__(value)
    return f"<{type(value).__name__}>"


def _environment() -> ImmutableSandboxedEnvironment:
    """Return the environment transformers renders chat templates in."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.update(
        raise_exception=_raise,
        strftime_now=lambda form: datetime.now().strftime(form),
        namespace=_Namespace,
    )
    return environment


class _Namespace(jinja2.utils.Namespace):
    """``namespace()`` without the names that lead into Python."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")
        super().__setitem__(name, value)


def _raise(message: str) -> None:
    raise _Refused(message)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Write JSON without jinja's escaping of HTML characters."""
    known = {"indent", "separators", "sort_keys"}
    return json.dumps(
        value, ensure_ascii=ensure_ascii, **{k: v for k, v in options.items() if k in known}
    )


class _Generation(jinja2.ext.Extension):
    """``{% generation %}`` marks the model's text for training; here it only shows its body."""

    tags = {"generation"}  # noqa: RUF012  jinja2's own way to declare it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """Keep the body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_body")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()
