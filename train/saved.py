"""The model of a saved state, and what is calibrated before it is written as a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from quant.qat.activations import CACHES, round_activations
from quant.qat.weights import quantize
from train import calibrate
from train.architecture import new_model
from train.batches import TrainingClips
from train.bits import PLAN
from train.schedule import Settings


def read_state(path: Path) -> dict[str, Any]:
    """Read a saved state into memory, wherever its run was."""
    read: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return read


def saved_model(work: Path, name: str = "state.pt") -> Any:
    """Load the model of a saved state; raise FileNotFoundError where there is none."""
    path = work / "run" / name
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: run the stages before (python -m train --help)"
        )
    state = read_state(path)
    model = new_model(0)
    for part in state["quantised"] or ():
        quantize(model, PLAN, part)
    if state["static"]:
        round_activations(model, PLAN)
    model.model.load_state_dict(state["model"])
    return model


def cache_scales(
    work: Path, model: Any, tokenizer: Tokenizer
) -> dict[tuple[str, str], torch.Tensor]:
    """Calibrate the scales of keys and values."""
    clips = TrainingClips(work, tokenizer, Settings())
    found = calibrate.seen(model, clips)
    return {key: scale for key, scale in found.items() if key[1] in CACHES}
