"""Training: cross entropy of the decoder and CTC on the soft tokens, quantised in the second part.

The budget is a number of minutes, since the schedule must fit whatever machine there is. A run is
saved every few minutes and goes on from there when started again.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

from train.architecture import TEXT, new_model
from train.batches import IGNORED, Batch, TrainingClips
from train.evaluate import error_rate, transcribe
from train.fakequant import is_quantised, quantise
from train.features import Shard
from train.stem import speed_up
from train.tokens import CONTROL, VOCABULARY


@dataclass(frozen=True)
class Settings:
    """What a run is told."""

    minutes: float = 85.0
    quantised_from: float = 0.5  # share of the minutes after which weights are quantised
    peak_rate: float = 2e-3
    warm_up: float = 0.03
    last_rate: float = 0.02  # of the peak
    weight_decay: float = 0.01
    ctc_weight: float = 0.5
    batch_frames: int = 5_000
    seed: int = 1
    save_minutes: float = 3.0
    evaluate_minutes: float = 8.0
    threads: int = 2


def rate_at(progress: float, settings: Settings) -> float:
    """Give the learning rate after a share of the minutes: warm-up, then a cosine."""
    if progress < settings.warm_up:
        return settings.peak_rate * progress / settings.warm_up
    angle = math.pi * min(1.0, (progress - settings.warm_up) / (1 - settings.warm_up))
    low = settings.last_rate
    return settings.peak_rate * (low + (1 - low) * 0.5 * (1 + math.cos(angle)))


def losses(model: Any, ctc_head: nn.Linear, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross entropy of the answers and the CTC loss, both per target token."""
    out = model.model(
        input_ids=batch.input_ids,
        input_features=batch.features,
        input_features_mask=batch.mask,
        use_cache=False,
    )
    answered = batch.labels != IGNORED
    table = model.model.language_model.embed_tokens.weight
    cap = TEXT["final_logit_softcapping"]
    logits = torch.tanh(functional.linear(out.last_hidden_state[answered], table) / cap) * cap
    entropy = functional.cross_entropy(logits, batch.labels[answered], label_smoothing=0.05)
    soft = torch.split(out.audio_hidden_states, batch.token_lengths.tolist())
    scores = ctc_head(nn.utils.rnn.pad_sequence(list(soft))).log_softmax(-1)
    ctc = functional.ctc_loss(
        scores,
        batch.targets,
        batch.token_lengths,
        batch.target_lengths,
        blank=CONTROL["<pad>"],
        reduction="sum",
        zero_infinity=True,
    )
    return entropy, ctc / batch.target_lengths.sum().clamp_min(1)


class Run:
    """One training run: model, optimiser, and the minutes spent on it.

    Parameters
    ----------
    work : Path
        The work folder; shards are read from it, the state and the log go to its `run` folder.
    """

    def __init__(self, work: Path, tokenizer: Tokenizer, settings: Settings) -> None:
        self.settings, self.tokenizer, self.work = settings, tokenizer, work
        self.folder = work / "run"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = new_model(settings.seed)
        speed_up(self.model)
        self.ctc_head = nn.Linear(TEXT["hidden_size"], VOCABULARY)
        self.seconds, self.step = 0.0, 0
        self.optimiser = self._new_optimiser()
        if (self.folder / "state.pt").exists():
            self._load()

    @property
    def progress(self) -> float:
        """The share of the minutes that is spent."""
        return self.seconds / (60 * self.settings.minutes)

    def _new_optimiser(self) -> torch.optim.AdamW:
        parameters = [*self.model.model.parameters(), *self.ctc_head.parameters()]
        decayed = [p for p in parameters if p.dim() > 1]
        others = [p for p in parameters if p.dim() <= 1]
        groups = [
            {"params": decayed, "weight_decay": self.settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98))

    def _quantise(self) -> None:
        before = {id(parameter) for parameter in self.model.model.parameters()}
        quantise(self.model)
        scales = [p for p in self.model.model.parameters() if id(p) not in before]
        self.optimiser.add_param_group({"params": scales, "weight_decay": 0.0})

    def save(self) -> None:
        """Write the state; an interrupted write leaves the last one."""
        state = {
            "model": self.model.model.state_dict(),
            "ctc_head": self.ctc_head.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "quantised": is_quantised(self.model),
            "seconds": self.seconds,
            "step": self.step,
        }
        torch.save(state, self.folder / "state.new")
        (self.folder / "state.new").replace(self.folder / "state.pt")

    def _load(self) -> None:
        state = torch.load(self.folder / "state.pt", weights_only=True)
        if state["quantised"]:
            self._quantise()
        self.model.model.load_state_dict(state["model"])
        self.ctc_head.load_state_dict(state["ctc_head"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.seconds, self.step = state["seconds"], state["step"]

    def log(self, **values: Any) -> None:
        """Append a line to the log."""
        line = {"step": self.step, "minutes": round(self.seconds / 60, 2), **values}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def update(self, batch: Batch) -> tuple[float, float]:
        """Take one step; return the two losses."""
        self.model.train()
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(self.progress, self.settings)
        entropy, ctc = losses(self.model, self.ctc_head, batch)
        self.optimiser.zero_grad(set_to_none=True)
        (entropy + self.settings.ctc_weight * ctc).backward()
        nn.utils.clip_grad_norm_([*self.model.model.parameters(), *self.ctc_head.parameters()], 1.0)
        self.optimiser.step()
        self.step += 1
        return entropy.item(), ctc.item()

    def evaluate(self) -> None:
        """Log the word error rate on every second held-out prompt."""
        shard = Shard(self.work / "shards" / "held-out")
        clips = shard.clips[::2]
        said = [transcribe(self.model, self.tokenizer, shard.frames(clip)) for clip in clips]
        rate = error_rate([clip.text for clip in clips], said)
        examples = [f"{clip.text} | {text}" for clip, text in zip(clips[:8], said, strict=False)]
        self.log(held_out_wer=round(rate, 4), quantised=is_quantised(self.model), examples=examples)

    def train(self) -> None:
        """Train until the minutes are spent."""
        torch.set_num_threads(self.settings.threads)
        clips = TrainingClips(
            self.work, self.tokenizer, self.settings.batch_frames, self.settings.seed + self.step
        )
        self.log(hours=clips.hours)
        recent: deque[tuple[float, float, float, int]] = deque(maxlen=50)
        saved = evaluated = self.seconds
        for batch in clips:
            started = time.monotonic()
            if self.progress >= self.settings.quantised_from and not is_quantised(self.model):
                self._quantise()
            entropy, ctc = self.update(batch)
            spent = time.monotonic() - started
            self.seconds += spent
            recent.append((entropy, ctc, spent, len(batch.mask)))
            if self.step % 50 == 0:
                entropies, ctcs, seconds, counts = map(sum, zip(*recent, strict=True))
                self.log(
                    entropy=round(entropies / len(recent), 4),
                    ctc=round(ctcs / len(recent), 4),
                    clips_per_second=round(counts / seconds, 2),
                    rate=rate_at(self.progress, self.settings),
                )
            if self.seconds - evaluated > 60 * self.settings.evaluate_minutes:
                evaluated = self.seconds
                self.evaluate()
            if self.seconds - saved > 60 * self.settings.save_minutes or self.progress >= 1:
                saved = self.seconds
                self.save()
            if self.progress >= 1:
                break
        self.evaluate()
