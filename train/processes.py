"""A run in several processes.

Each trains on batches of its own with one thread and the gradients are averaged: on a busy machine that wastes far less
than threads that wait for each other in every operation.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import distributed, multiprocessing

from train.children import end_with_parent
from train.loop import CPU, Run
from train.saved import read_state
from train.schedule import Settings


def _device(rank: int) -> torch.device:
    """Give a process its GPU where there are any, in turn; `CUDA_VISIBLE_DEVICES=` hides them."""
    gpus = torch.cuda.device_count()
    return torch.device("cuda", rank % gpus) if gpus else CPU


def _worker(rank: int, work: Path, tokenizer: str, settings: Settings) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=(work / "run" / "meeting").absolute().as_uri(),
        rank=rank,
        world_size=settings.processes,
        timeout=timedelta(hours=1),
    )
    Run(work, Tokenizer.from_str(tokenizer), settings, rank, _device(rank)).train()
    distributed.destroy_process_group()


def fit(work: Path, tokenizer: Tokenizer, settings: Settings) -> None:
    """Train in several processes until the steps are done; raise OtherRunError if the run has other settings."""
    folder = work / "run"
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "state.pt").exists():
        settings.check_goes_on(read_state(folder / "state.pt")["settings"])
    (folder / "meeting").unlink(missing_ok=True)  # where the processes find each other
    arguments = (work, tokenizer.to_str(), settings)
    multiprocessing.spawn(_worker, arguments, nprocs=settings.processes)
