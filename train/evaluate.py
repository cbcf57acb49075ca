"""Greedy transcripts in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from train.features import FRAMES_PER_TOKEN
from train.phones import BLANK
from train.tokens import EOS_IDS, INSTRUCTION, prompt_ids

TOKENS_PER_SECOND = 25


@torch.no_grad()
def transcribe(
    model: Any, tokenizer: Tokenizer, frames: np.ndarray, instruction: str = INSTRUCTION
) -> str:
    """Answer the instruction on one clip greedily, given its valid frames, shape (frames, 128)."""
    model.eval()
    soft_tokens = -(-len(frames) // FRAMES_PER_TOKEN)
    most = 16 + 12 * soft_tokens // TOKENS_PER_SECOND
    features, mask = _alone(frames, model.device)
    inputs = {"input_features": features, "input_features_mask": mask}
    ids = torch.tensor([prompt_ids(tokenizer, soft_tokens, instruction)], device=model.device)
    written: list[int] = []
    cache = None
    while len(written) < most:
        out = model.model(input_ids=ids, past_key_values=cache, use_cache=True, **inputs)
        table = model.model.language_model.embed_tokens.weight
        token = int(functional.linear(out.last_hidden_state[0, -1], table).argmax())
        if token in EOS_IDS:
            break
        written.append(token)
        cache, inputs = out.past_key_values, {}
        ids = torch.tensor([[token]], device=model.device)
    return tokenizer.decode(written).strip()


@torch.no_grad()
def heard(model: Any, tokenizer: Tokenizer, frames: np.ndarray, table: torch.Tensor) -> str:
    """Write down what the tower alone hears: in each soft token the most probable piece of a table."""
    model.eval()
    soft = model.model.get_audio_features(*_alone(frames, model.device)).pooler_output[0]
    best = torch.unique_consecutive(functional.linear(soft, table).argmax(-1))
    return tokenizer.decode([piece for piece in best.tolist() if piece != BLANK]).strip()


def _alone(frames: np.ndarray, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the features and the mask of a batch of one clip."""
    features = torch.from_numpy(np.ascontiguousarray(frames))[None].to(device)
    return features, torch.ones(1, len(frames), dtype=torch.bool, device=device)
