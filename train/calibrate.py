"""Calibration: the ranges of activations, keys and values on training clips."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch

from quant.qat.activations import Seen
from train.architecture import TEXT
from train.batches import TrainingClips
from train.bits import PLAN
from train.schedule import WEIGHTS

BATCHES = 24
OWN = 1_000  # in place of the rank of a process: batches that none of them sees


def seen(model: Any, clips: TrainingClips) -> dict[tuple[str, str], torch.Tensor]:
    """Find the scales of all activations, keys and values on some batches."""
    watched = Seen(model, PLAN)
    owning = TEXT["num_hidden_layers"] - TEXT["num_kv_shared_layers"]
    model.eval()
    with torch.no_grad(), watched.watching():
        for drawn in islice(clips.stream(OWN, 0, lambda _: WEIGHTS), BATCHES):
            batch = drawn.to(model.device)
            out = model.model(
                input_ids=batch.input_ids,
                input_features=batch.features,
                input_features_mask=batch.mask,
                use_cache=True,
            )
            for layer in range(owning):
                cached = out.past_key_values.layers[layer]
                name = f"model.language_model.layers.{layer}.self_attn"
                watched.cache(name, cached.keys, cached.values)
    return watched.scales()
