"""What the bits cost: the finished model trained on with its bits, and just as long without them.

Both twins start from the weights behind the model's codes, with fresh optimisers, and see the same batches at the same rates. The
one without bits is rounded at the end, too: that is what quantisation after training would make of it.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from quant.qat.weights import quantize
from train.bits import PLAN
from train.loop import DECODER, TOWER
from train.processes import fit
from train.saved import read_state, saved_model
from train.schedule import OtherRunError, Settings

STEPS = 800
FLOAT, BITS = "float", "bits"
ORIGINAL, SCALE = "parametrizations.weight.original", "parametrizations.weight.0."
ROWS = {
    "float": (FLOAT, False),
    "rounded after training": (FLOAT, True),
    "trained with its bits": (BITS, False),
}
"""Which twin each row of the table is measured on, and whether it is rounded first."""


def twin(work: Path, name: str) -> Path:
    """Give the work folder of a twin: everything in it is that of the model, except for the run."""
    return work / "twins" / name


def without_bits(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give the weights behind the codes under their plain names."""
    return {
        name.replace(ORIGINAL, "weight"): value
        for name, value in weights.items()
        if SCALE not in name
    }


def prepare(work: Path, name: str, processes: int = 2) -> Path:
    """Make the work folder of a twin, unless it is there and of the same state of the run."""
    folder = twin(work, name)
    (folder / "run").mkdir(parents=True, exist_ok=True)
    for shared in ("packages", "shards", "phones.json", "tokenizer.json"):
        if not (folder / shared).is_symlink():
            (folder / shared).symlink_to((work / shared).absolute())
    state = read_state(work / "run" / "state.pt")
    if state["step"] != sum(state["settings"]["cycles"]):
        raise OtherRunError(f"compare: the run is at step {state['step']}; want one that is over")
    source, told = folder / "source", str(state["step"])
    if not source.exists() or source.read_text() != told:
        shutil.rmtree(folder / "run", ignore_errors=True)
        (folder / "run").mkdir()
        if name == FLOAT:
            state |= {"model": without_bits(state["model"]), "quantised": []}
        state |= {"optimisers": [], "step": 1, "seconds": 0.0}
        state["settings"] = asdict(settings(name, processes))
        torch.save(state, folder / "run" / "state.pt")
        source.write_text(told)
    return folder


def settings(name: str, processes: int = 2) -> Settings:
    """Give the schedule of a twin: one turn of tower and decoder such as the model's second, in its mixtures of clips."""
    never = math.inf
    cycles = (1, STEPS)  # the first is over when a twin begins, and its mixtures of clips are, too
    bits = Settings(cycles=cycles, processes=processes, timed_until=0.0, spliced_from=0.0)
    return bits if name == BITS else replace(bits, tower_from=never, quantised_from=never)


def train(work: Path, tokenizer: Tokenizer, processes: int) -> None:
    """Train both twins, or go on training them."""
    for name in (FLOAT, BITS):
        fit(prepare(work, name, processes), tokenizer, settings(name, processes))


def model(work: Path, row: str) -> Any:
    """Load what a row of the table is measured on."""
    name, rounded = ROWS[row]
    loaded = saved_model(twin(work, name))
    if rounded:
        for part in (TOWER, DECODER):
            quantize(loaded, PLAN, part)
    return loaded
