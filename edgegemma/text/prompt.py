"""A conversation with sound as token ids and soft tokens, ready for `edgegemma.generate`.

Each ``<|audio|>`` that the template wrote becomes ``<|audio>``, one ``<|audio|>`` for each soft token and ``<audio|>``,
in the text and before it is tokenized, as the checkpoint's processor does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgegemma.errors import InputError
from edgegemma.text.template import ChatTemplate, Message
from edgegemma.text.tokenizer import Ids, Tokenizer

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Prompt:
    """Token ids and the soft tokens that stand at the media positions.

    Attributes
    ----------
    ids : int64 [S]
    positions : int64 [n]
        where the soft tokens belong, ascending; ``ids`` hold the audio token there
    soft : float32 [n, H]
        ``[0, 0]`` for a prompt of text alone
    """

    ids: Ids
    positions: Ids
    soft: F32

    def __post_init__(self) -> None:
        if len(self.positions) != len(self.soft):
            raise InputError(
                f"prompt: got {len(self.soft)} soft tokens; want {len(self.positions)}"
            )

    def __len__(self) -> int:
        return len(self.ids)


def text_prompt(tokenizer: Tokenizer, text: str) -> Prompt:
    """Take a text that is already in the model's form, control tokens spelled out, without sound."""
    return _prompt(tokenizer, tokenizer.encode(text), [])


def build(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Message],
    audio: Sequence[F32] = (),
    **options: object,
) -> Prompt:
    """Render a conversation, expand its placeholders and tokenize it.

    Parameters
    ----------
    messages : list of {"role": …, "content": …}
    audio : soft tokens of each audio part, in order
        float32 [n, H] each, from `edgegemma.audio.encoder`
    **options
        for `ChatTemplate.render`

    Returns
    -------
    Prompt
    """
    text = template.render(messages, **options)  # type: ignore[arg-type]
    return _prompt(
        tokenizer, tokenizer.encode(expand(tokenizer, text, [len(soft) for soft in audio])), audio
    )


def expand(tokenizer: Tokenizer, text: str, counts: Sequence[int]) -> str:
    """Replace the k-th ``<|audio|>`` by its opening, ``counts[k]`` of it and its closing."""
    ids = tokenizer.tokens
    if ids.audio is None or ids.boa is None or ids.eoa is None:
        if counts:
            raise InputError("prompt: has sound, but this package's model does not hear")
        return text
    opening, one, closing = (tokenizer.token_of(id) for id in (ids.boa, ids.audio, ids.eoa))
    pieces = text.split(one)
    if len(pieces) - 1 != len(counts):
        raise InputError(
            f"prompt: got {len(counts)} sounds for {len(pieces) - 1} places marked {one}"
        )
    middle = [opening + one * count + closing for count in counts]
    return "".join(a + b for a, b in zip(pieces, [*middle, ""], strict=True))


def around_audio(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message], **options: object
) -> tuple[Ids, Ids]:
    """Ids before and after the soft tokens of a conversation with one sound, for sound that is still arriving.

    The first part ends with ``<|audio>``, the second begins with ``<audio|>``: control tokens, over which no
    merge reaches, so that both parts are what the whole prompt has.
    """
    prompt = build(tokenizer, template, messages, [np.empty((1, 0), np.float32)], **options)
    (at,) = prompt.positions
    return prompt.ids[:at], prompt.ids[at + 1 :]


def _prompt(tokenizer: Tokenizer, ids: Ids, audio: Sequence[F32]) -> Prompt:
    soft = np.concatenate(list(audio)) if audio else np.empty((0, 0), np.float32)
    marked = tokenizer.tokens.audio
    positions = np.flatnonzero(ids == marked) if marked is not None else np.empty(0)
    return Prompt(ids, positions.astype(np.int64), soft)
