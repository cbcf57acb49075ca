"""Attention that is told where to look: in the decoder, at the sound of the word to be written.

An attention decoder that learns from few hours finds out last of all where in the sound it is; until
then it guesses from the words before. The tower knows the places, so CTC's best path through a transcript gives
each token of the answer the soft tokens it is heard in, and some heads of the full layers are trained to
look there.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from train.phones import BLANK

HERE, NEXT = 0, 1
GUIDED = {1: {0: HERE}, 3: {0: NEXT, 1: NEXT}, 5: {0: NEXT, 1: NEXT}}
"""Layer, head and what it looks at: the sound of the token just written, or of the next one."""
UNKNOWN = -1

Path = tuple[np.ndarray, np.ndarray]
"""The first and the last soft token in which each piece is heard."""


def best_path(
    scores: np.ndarray, targets: list[list[int]], lengths: list[int]
) -> list[Path | None]:
    """Find where CTC's most probable path emits each phone.

    Parameters
    ----------
    scores : ndarray, shape (tokens, clips, phones)
        Logarithms of probabilities.
    targets : list of list of int
        The phones of each clip.
    lengths : list of int
        The soft tokens of each clip.

    Returns
    -------
    list of (first, last) or None
        For each clip the first and the last soft token of each phone; None if it is too short.
    """
    steps, clips, _ = scores.shape
    states = 2 * max(len(said) for said in targets) + 1
    labels = np.full((clips, states), BLANK)
    for row, said in zip(labels, targets, strict=True):
        row[1 : 2 * len(said) : 2] = said
    skips = np.zeros((clips, states), dtype=bool)
    skips[:, 2:] = (labels[:, 2:] != BLANK) & (labels[:, 2:] != labels[:, :-2])
    emitted = np.take_along_axis(scores, np.broadcast_to(labels, (steps, clips, states)), axis=2)
    best = np.full((clips, states + 2), -np.inf)  # two states before the first that never are
    best[:, 2:4] = emitted[0, :, :2]
    came = np.zeros((steps, clips, states), dtype=np.int8)
    going = np.arange(steps)[:, None] < np.array(lengths)
    for step in range(1, steps):
        ways = np.stack([best[:, 2:], best[:, 1:-1], np.where(skips, best[:, :-2], -np.inf)])
        came[step] = ways.argmax(0)
        moved = ways.max(0) + emitted[step]
        best[:, 2:] = np.where(going[step][:, None], moved, best[:, 2:])
        came[step][~going[step]] = 0
    rows = np.arange(clips)
    ends = 2 * np.array([len(said) for said in targets])
    before = np.maximum(ends - 1, 0)
    state = np.where(best[rows, 2 + ends] >= best[rows, 2 + before], ends, before)
    possible = np.isfinite(best[rows, 2 + state])
    path = np.empty((steps, clips), dtype=int)
    for step in range(steps - 1, -1, -1):
        path[step] = state
        state = np.maximum(state - came[step, rows, state], 0)
    found: list[Path | None] = []
    for clip, said in enumerate(targets):
        if not possible[clip] or not said:
            found.append(None)
            continue
        along = path[: lengths[clip], clip]
        wanted = 2 * np.arange(len(said)) + 1
        found.append(
            (np.searchsorted(along, wanted), np.searchsorted(along, wanted, side="right") - 1)
        )
    return found


class Guide:
    """The part of the attention weights that falls where it should.

    Parameters
    ----------
    model : Gemma4ForConditionalGeneration
        Its full layers are watched from here on, while it trains.
    """

    def __init__(self, model: Any) -> None:
        self._weights: dict[int, torch.Tensor] = {}
        for layer in GUIDED:
            attention = model.model.language_model.layers[layer].self_attn
            attention.register_forward_hook(partial(self._keep, layer))

    def _keep(self, layer: int, module: torch.nn.Module, _: Any, output: Any) -> None:
        if module.training:
            self._weights[layer] = output[1]

    def loss(self, windows: torch.Tensor, first_audio: int) -> torch.Tensor:
        """Return the mean negative logarithm of the weight inside the windows.

        Parameters
        ----------
        windows : Tensor of int, shape (2, clips, answers, 2)
            For `HERE` and `NEXT`, the first soft token to look at and the one past the last;
            `UNKNOWN` where there is no telling.
        first_audio : int
            The place of the first soft token in the sequence.
        """
        answers = windows.shape[2]
        losses = []
        for layer, heads in GUIDED.items():
            weights = self._weights.pop(layer)[:, :, -answers:]
            places = torch.arange(weights.shape[-1], device=weights.device) - first_audio
            for head, goal in heads.items():
                low, high = windows[goal, ..., :1], windows[goal, ..., 1:]
                inside = (places >= low) & (places < high)
                known = low[..., 0] != UNKNOWN
                hit = (weights[:, head] * inside).sum(-1)[known]
                losses.append(-(hit + 1e-4).log())
        together = torch.cat(losses)
        return together.mean() if len(together) else together.sum()


def windows(
    paths: list[Path | None],
    lengths: list[int],
    starts: list[int],
    answers: int,
) -> torch.Tensor:
    """Say where the decoder should look at each place of the answers.

    Parameters
    ----------
    paths : list
        Where each piece of each transcript is heard, or None.
    lengths : list
        Number of soft tokens of each clip.
    starts : list of int
        The place among `answers` at which the first token of each transcript is predicted.
    answers : int
        Places of the answers, of which the rows' own may be fewer.

    Returns
    -------
    Tensor of int, shape (2, clips, answers, 2)
        As `Guide.loss` takes them.
    """
    made = np.full((2, len(paths), answers, 2), UNKNOWN)
    for clip, (path, length, start) in enumerate(zip(paths, lengths, starts, strict=True)):
        if path is None:
            continue
        heard = np.stack([np.maximum(path[0] - 1, 0), np.minimum(path[1] + 2, length)], axis=1)
        end = (min(path[1][-1] + 1, length - 1), length)
        made[NEXT, clip, start : start + len(heard) + 1] = [*heard, end]
        made[HERE, clip, start + 1 : start + len(heard) + 1] = heard
    return torch.from_numpy(made)
