"""Training in three parts: the tower by CTC, then the decoder with it, then both quantised.

The budget is a number of minutes, since the schedule must fit whatever machine there is. A run is
saved every few minutes and goes on from there when started again. Each process trains on batches of
its own with one thread and the gradients are averaged: on a busy machine that wastes far less than
threads that wait for each other in every operation.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import distributed, multiprocessing, nn
from torch.nn import functional

from train.architecture import TEXT, new_model
from train.batches import ALIGNED, IGNORED, WEIGHTS, Batch, TrainingClips
from train.evaluate import error_rate, transcribe
from train.fakequant import is_quantised, quantise
from train.features import Shard
from train.lean import speed_up
from train.phones import BLANK

LOG_STEPS = 25


@dataclass(frozen=True)
class Settings:
    """What a run is told."""

    minutes: float = 40.0
    # Shares of the minutes:
    timed_until: float = 0.15  # until when only phones of known time are learnt
    stem_until: float = 0.4  # until when the convolutions are trained, the slowest part
    decoder_from: float = 0.2  # when the decoder joins the tower
    quantised_from: float = 0.65  # when weights are quantised
    peak_rate: float = 1e-3
    warm_up: float = 0.03
    last_rate: float = 0.02  # of the peak
    weight_decay: float = 0.01
    ctc_weight: float = 0.5
    batch_frames: int = 2_600  # of each process
    longest: int = 400  # frames in a clip
    seed: int = 1
    save_minutes: float = 3.0
    evaluate_minutes: float = 8.0
    processes: int = 2


def rate_at(progress: float, settings: Settings) -> float:
    """Give the learning rate after a share of the minutes: warm-up, then a cosine."""
    if progress < settings.warm_up:
        return settings.peak_rate * progress / settings.warm_up
    angle = math.pi * min(1.0, (progress - settings.warm_up) / (1 - settings.warm_up))
    low = settings.last_rate
    return settings.peak_rate * (low + (1 - low) * 0.5 * (1 + math.cos(angle)))


def ctc_loss(ctc_head: nn.Linear, soft_tokens: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the CTC loss per phone of the valid soft tokens, one clip after the other."""
    soft = torch.split(soft_tokens, batch.token_lengths.tolist())
    scores = ctc_head(nn.utils.rnn.pad_sequence(list(soft))).log_softmax(-1)
    loss = functional.ctc_loss(
        scores,
        batch.targets,
        batch.token_lengths,
        batch.target_lengths,
        blank=BLANK,
        reduction="sum",
        zero_infinity=True,
    )
    return loss / batch.target_lengths.sum().clamp_min(1)


def tower_losses(
    model: Any, ctc_head: nn.Linear, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross entropy of phones of known time and the CTC loss, without the decoder."""
    out = model.model.get_audio_features(batch.features, batch.mask)
    soft_tokens = out.pooler_output[out.attention_mask]
    timed = functional.cross_entropy(
        ctc_head(soft_tokens), batch.heard, ignore_index=IGNORED, reduction="sum"
    )
    timed = timed / (batch.heard != IGNORED).sum().clamp_min(1)
    return timed, ctc_loss(ctc_head, soft_tokens, batch)


def losses(model: Any, ctc_head: nn.Linear, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross entropy of the answers per token, and the CTC loss per phone."""
    kept = batch.labels.shape[1] - int((batch.labels != IGNORED).int().argmax(1).min())
    out = model.model(
        input_ids=batch.input_ids,
        input_features=batch.features,
        input_features_mask=batch.mask,
        use_cache=False,
        logits_to_keep=kept,  # layers that share keys and values see the answers only
    )
    labels = batch.labels[:, -kept:]
    answered = labels != IGNORED
    table = model.model.language_model.embed_tokens.weight
    cap = TEXT["final_logit_softcapping"]
    logits = torch.tanh(functional.linear(out.last_hidden_state[answered], table) / cap) * cap
    entropy = functional.cross_entropy(logits, labels[answered], label_smoothing=0.05)
    return entropy, ctc_loss(ctc_head, out.audio_hidden_states, batch)


def averaged(parameters: Sequence[nn.Parameter], values: list[float]) -> list[float]:
    """Average gradients over the processes, and some values on the way."""
    if not distributed.is_initialized():
        return values
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), torch.tensor(values)])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    *parts, means = flat.split([*(gradient.numel() for gradient in gradients), len(values)])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))
    return [float(mean) for mean in means]


class Run:
    """One training run: model, optimiser, and the minutes spent on it.

    Parameters
    ----------
    work : Path
        The work folder; shards are read from it, the state and the log go to its `run` folder.
    """

    def __init__(self, work: Path, tokenizer: Tokenizer, settings: Settings, rank: int = 0) -> None:
        self.rank = rank
        self.settings, self.tokenizer, self.work = settings, tokenizer, work
        self.folder = work / "run"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = new_model(settings.seed)
        speed_up(self.model)
        self.clips = TrainingClips(work, tokenizer, settings.batch_frames, settings.longest)
        self.ctc_head = nn.Linear(TEXT["hidden_size"], len(self.clips.pronunciations))
        self.seconds, self.step = 0.0, 0
        self._started = time.monotonic()
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
        return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)

    def _quantise(self) -> None:
        before = {id(parameter) for parameter in self.model.model.parameters()}
        quantise(self.model)
        scales = [p for p in self.model.model.parameters() if id(p) not in before]
        self.optimiser.add_param_group({"params": scales, "weight_decay": 0.0})

    def _freeze_stem(self, frozen: bool) -> None:
        stem = self.model.model.audio_tower.subsample_conv_projection
        for layer in (stem.layer0, stem.layer1):
            layer.requires_grad_(not frozen)

    def _choose_kinds(self) -> None:
        self.clips.weights = ALIGNED if self.progress < self.settings.timed_until else WEIGHTS

    def save(self) -> None:
        """Write the state; an interrupted write leaves the last one."""
        if self.rank:
            return
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
        if self.rank:
            return
        line = {"step": self.step, "minutes": round(self.seconds / 60, 2), **values}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def update(self, batch: Batch) -> list[float]:
        """Take one step; return the two losses and the seconds, means over the processes.

        The seconds are those since the end of the step before, evaluations left out.
        """
        self.model.train()
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(self.progress, self.settings)
        self._freeze_stem(self.progress >= self.settings.stem_until)
        ctc_weight = self.settings.ctc_weight
        if self.progress < self.settings.decoder_from:
            entropy, ctc = tower_losses(self.model, self.ctc_head, batch)
            if self.progress < self.settings.timed_until:
                ctc_weight = 0.0
        else:
            entropy, ctc = losses(self.model, self.ctc_head, batch)
        self.optimiser.zero_grad(set_to_none=True)
        (entropy + ctc_weight * ctc).backward()
        parameters = [*self.model.model.parameters(), *self.ctc_head.parameters()]
        measured = averaged(
            parameters, [entropy.item(), ctc.item(), time.monotonic() - self._started]
        )
        self._started = time.monotonic()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimiser.step()
        self.step += 1
        self.seconds += measured[2]
        return measured

    def evaluate(self) -> None:
        """Log the word error rate on every second held-out prompt."""
        if self.rank or self.progress < self.settings.decoder_from:
            return
        shard = Shard(self.work / "shards" / "held-out")
        clips = shard.clips[::2]
        said = [transcribe(self.model, self.tokenizer, shard.frames(clip)) for clip in clips]
        rate = error_rate([clip.text for clip in clips], said)
        examples = [f"{clip.text} | {text}" for clip, text in zip(clips[:8], said, strict=False)]
        self.log(held_out_wer=round(rate, 4), quantised=is_quantised(self.model), examples=examples)

    def train(self) -> None:
        """Train until the minutes are spent."""
        self.log(hours=self.clips.hours)
        self.clips.seed(1_000_000 * self.rank + self.settings.seed + self.step)
        self._choose_kinds()
        recent: deque[tuple[float, float, float, int]] = deque(maxlen=LOG_STEPS)
        saved = evaluated = self.seconds
        self._started = time.monotonic()
        for batch in self.clips:
            if self.progress >= self.settings.quantised_from and not is_quantised(self.model):
                self._quantise()
            self._choose_kinds()
            entropy, ctc, spent = self.update(batch)
            recent.append((entropy, ctc, spent, len(batch.mask) * self.settings.processes))
            if self.step % LOG_STEPS == 0:
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
                self._started = time.monotonic()
            if self.seconds - saved > 60 * self.settings.save_minutes or self.progress >= 1:
                saved = self.seconds
                self.save()
            if self.progress >= 1:
                break
        self.evaluate()


def _worker(rank: int, work: Path, tokenizer: str, settings: Settings) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method="tcp://127.0.0.1:29501",
        rank=rank,
        world_size=settings.processes,
        timeout=timedelta(hours=1),
    )
    Run(work, Tokenizer.from_str(tokenizer), settings, rank).train()
    distributed.destroy_process_group()


def fit(work: Path, tokenizer: Tokenizer, settings: Settings) -> None:
    """Train in several processes until the minutes are spent."""
    arguments = (work, tokenizer.to_str(), settings)
    multiprocessing.spawn(_worker, arguments, nprocs=settings.processes)


def saved_model(work: Path) -> Any:
    """Load the model of the last saved state."""
    state = torch.load(work / "run" / "state.pt", weights_only=True)
    model = new_model(0)
    if state["quantised"]:
        quantise(model)
    model.model.load_state_dict(state["model"])
    return model
