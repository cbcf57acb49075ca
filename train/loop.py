"""Training: a run of steps that can be stopped and gone on with.

A run is saved every few minutes; started again, it goes on from there with the batches it would have
seen.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import distributed, nn

from quant.qat.activations import round_activations, rounds_activations
from quant.qat.weights import is_quantized, quantize
from train import calibrate, splices
from train.architecture import TEXT, new_model
from train.bank import Bank, fill
from train.batches import Batch, SoftBatch, TrainingClips
from train.bits import PLAN
from train.evaluate import heard, transcribe
from train.features import Shard
from train.gradients import averaged
from train.guidance import Guide
from train.lean import speed_up
from train.listening import Listening, mix
from train.losses import listening_losses, tower_losses
from train.muon import Muon
from train.saved import read_state
from train.schedule import Settings
from train.scores import error_rate

LOG_STEPS = 25
CPU = torch.device("cpu")
TOWER, DECODER = "audio_tower", "language_model"


def quantized_parts(model: Any) -> list[str]:
    """List the parts of a model that are quantized."""
    parts = {TOWER: model.model.audio_tower, DECODER: model.model.language_model}
    return [name for name, part in parts.items() if is_quantized(part)]


class Run:
    """One training run: model, optimiser, and the steps and minutes spent on it.

    Parameters
    ----------
    work : Path
        The work folder; shards are read from it, the state and the log go to its `run` folder.
    rank : int
        The process.
    device : torch.device
        Where the model is and steps are taken.
    """

    def __init__(
        self,
        work: Path,
        tokenizer: Tokenizer,
        settings: Settings,
        rank: int = 0,
        device: torch.device = CPU,
    ) -> None:
        self.rank, self.device = rank, device
        self.settings, self.tokenizer, self.work = settings, tokenizer, work
        self.folder = work / "run"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = new_model(settings.seed).to(device)
        speed_up(self.model)
        self.guide = Guide(self.model)
        self.clips = TrainingClips(work, tokenizer, settings)
        self.ctc_head = nn.Linear(TEXT["hidden_size"], len(self.clips.pronunciations)).to(device)
        self.seconds, self.step = 0.0, 0
        self._learnt_table: torch.Tensor | None = None
        self._started = time.monotonic()
        self.optimisers = self._new_optimisers()
        if (self.folder / "state.pt").exists():
            self._load()

    def _reached(self, share: float) -> bool:
        return self.settings.reached(share, self.step)

    @property
    def _done(self) -> bool:
        return self.step >= self.settings.steps

    @property
    def _word_table(self) -> torch.Tensor:
        """The token table to which the tower is trained: the decoder's, until the decoder takes its turn and changes it.

        A tower that had to follow the changed one would spend its turn on that, and the decoder would have to learn it anew.
        """
        if self._learnt_table is None:
            return self.model.model.language_model.embed_tokens.weight
        return self._learnt_table

    def _new_optimisers(self) -> tuple[torch.optim.Optimizer, torch.optim.AdamW]:
        """Divide the parameters: Muon takes the matrices between layers, AdamW all else."""
        decay = self.settings.weight_decay
        matrices, decayed, others = [], list(self.ctc_head.parameters()), []
        for name, parameter in self.model.model.named_parameters():
            between = parameter.dim() == 2 and "embed_tokens" not in name
            (matrices if between else decayed if parameter.dim() > 1 else others).append(parameter)
        groups = [
            {"params": decayed, "weight_decay": decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return Muon(matrices, decay), torch.optim.AdamW(
            groups, lr=0.0, betas=(0.9, 0.98), fused=True
        )

    def _quantize(self, part: str) -> None:
        with self._new_parameters():
            quantize(self.model, PLAN, part)

    def _round_activations(self, scales: dict[tuple[str, str], torch.Tensor] | None) -> None:
        with self._new_parameters():
            round_activations(self.model, PLAN, scales)

    @contextmanager
    def _new_parameters(self) -> Iterator[None]:
        """Hand the scales that are added meanwhile to the optimiser."""
        before = {id(parameter) for parameter in self.model.model.parameters()}
        yield
        scales = [p for p in self.model.model.parameters() if id(p) not in before]
        self.optimisers[1].add_param_group({"params": scales, "weight_decay": 0.0})

    def _choose_precision(self) -> None:
        """Quantize the tower, the decoder, and activations, when it is time."""
        for part, share, name in (
            (TOWER, self.settings.tower_from, "float.pt"),
            (DECODER, self.settings.quantised_from, "listening.pt"),
        ):
            if self._reached(share) and part not in quantized_parts(self.model):
                self.save(name)
                self._quantize(part)
        if self._reached(self.settings.static_from) and not rounds_activations(self.model):
            scales = calibrate.seen(self.model, self.clips)
            shared = [scales if self.rank == 0 else None]
            if distributed.is_initialized():
                distributed.broadcast_object_list(shared)
            self._round_activations(shared[0])

    def _freeze_stem(self, frozen: bool) -> None:
        stem = self.model.model.audio_tower.subsample_conv_projection
        for layer in (stem.layer0, stem.layer1):
            layer.requires_grad_(not frozen)

    def save(self, name: str = "state.pt") -> None:
        """Write the state; an interrupted write leaves the last one."""
        if self.rank:
            return
        state = {
            "model": self.model.model.state_dict(),
            "ctc_head": self.ctc_head.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "quantised": quantized_parts(self.model),
            "static": rounds_activations(self.model),
            "learnt_table": self._learnt_table,
            "seconds": self.seconds,
            "step": self.step,
            "settings": asdict(self.settings),
        }
        torch.save(state, self.folder / "state.new")
        (self.folder / "state.new").replace(self.folder / name)

    def _load(self) -> None:
        state = read_state(self.folder / "state.pt")
        for part in state["quantised"] or ():
            self._quantize(part)
        if state["static"]:
            self._round_activations(None)
        self.model.model.load_state_dict(state["model"])
        self.ctc_head.load_state_dict(state["ctc_head"])
        if state["learnt_table"] is not None:
            self._learnt_table = state["learnt_table"].to(self.device)
        if state["optimisers"]:  # none: they begin anew
            for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
                optimiser.load_state_dict(saved)
        self.seconds, self.step = state["seconds"], state["step"]

    def log(self, **values: Any) -> None:
        """Append a line to the log."""
        if self.rank:
            return
        line = {"step": self.step, "minutes": round(self.seconds / 60, 2), **values}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def batches(self) -> Iterator[Batch | SoftBatch]:
        """Give the batches from the present step on, those a run in one piece would see."""
        while True:
            spliced = self._splices
            if spliced:
                self._splice()
            clips = self.clips.stream(self.rank, self.step, self.settings.kinds)
            while self.settings.stage(self.step) == "tower" and self._splices == spliced:
                yield next(clips).to(self.device)
            if self.settings.stage(self.step) == "decoder":
                heard = self._listening().stream(self.rank, self.step)
                while self.settings.stage(self.step) == "decoder":
                    yield next(heard).to(self.device)

    @property
    def _splices(self) -> bool:
        return self._reached(self.settings.spliced_from)

    def _splice(self) -> None:
        """Cut the recordings into words and put these in other orders, unless that is done."""
        splices.write(self.work, self.model, self.ctc_head, self.clips, self.rank)
        self._meet()
        self.clips = TrainingClips(self.work, self.tokenizer, self.settings)
        self.log(hours=self.clips.hours, cycles=self.settings.cycles)
        self._started = time.monotonic()

    def _listening(self) -> Listening:
        """Read the bank of soft tokens; if there is none for this tower, fill it first."""
        processes = distributed.get_world_size() if distributed.is_initialized() else 1
        cycle, _ = self.settings.place(self.step)
        shares = [self.folder / f"bank-{cycle}-{rank}" for rank in range(processes)]
        own, told = shares[self.rank], mix(cycle)
        self._learnt_table = self._word_table.detach().clone()
        if not own.with_suffix(".npy").exists():
            self.save(f"tower-{cycle}.pt")
            drawn = self.clips.once(told.clips, self.rank, processes)
            fill(self.model, self._learnt_table, drawn, own)
        self._meet()
        self._started = time.monotonic()
        bank = Bank.read(shares)
        return Listening(self.work, bank, told, self.tokenizer, self.settings.seed)

    def _meet(self) -> None:
        """Wait for the other processes; all of them do, whatever of their own is there, or one would wait in vain."""
        if distributed.is_initialized():
            distributed.barrier()

    def update(self, batch: Any) -> list[float]:
        """Take one step; return the three losses and the seconds, means over the processes.

        The seconds are those since the end of the step before, evaluations left out.
        """
        self._choose_precision()
        self.model.train()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = self.settings.rate(self.step)
        self._freeze_stem(self._reached(self.settings.stem_until))
        entropy, ctc, guidance = self._losses(batch)
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        (entropy + ctc + self.settings.guide_weight * guidance).backward()
        parameters = [*self.model.model.parameters(), *self.ctc_head.parameters()]
        measured = averaged(
            parameters,
            [entropy.item(), ctc.item(), guidance.item(), time.monotonic() - self._started],
        )
        self._started = time.monotonic()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
        self.step += 1
        self.seconds += measured[3]
        return measured

    def _losses(self, batch: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return cross entropy, CTC's and the guide's loss, each where it is part of the stage.

        CTC's is the sum of that of the phones and that of the pieces of words.
        """
        none = torch.zeros((), device=self.device)
        if self.settings.stage(self.step) == "decoder":
            entropy, guidance = listening_losses(self.model, self.guide, batch)
            return entropy, none, guidance
        timed, phones, words = tower_losses(self.model, self.ctc_head, self._word_table, batch)
        if not self._reached(self.settings.timed_until):
            return timed, none, none
        return timed, phones + words, none

    def evaluate(self) -> None:
        """Log the word error rate on every fourth held-out prompt, and on some of the unseen voice's sentences.

        Before the decoder is trained it is that of what the tower alone hears.
        """
        if self.rank or not self._reached(self.settings.timed_until):
            return
        listens = self.settings.stage(self.step) == "decoder"
        written = transcribe if listens else partial(heard, table=self._word_table)
        rates, examples = {}, []
        for name in ("held-out", "unseen-voice"):
            shard = Shard(self.work / "shards" / name)
            clips = shard.clips[::4]
            said = [written(self.model, self.tokenizer, shard.frames(clip)) for clip in clips]
            rates[name] = round(error_rate([clip.text for clip in clips], said), 4)
            examples += [
                f"{clip.text} | {text}" for clip, text in zip(clips[:6], said, strict=False)
            ]
        self.log(
            held_out_wer=rates["held-out"],
            unseen_wer=rates["unseen-voice"],
            by="decoder" if listens else "tower",
            quantised=quantized_parts(self.model),
            examples=examples,
        )

    def train(self) -> None:
        """Train until the steps are done."""
        if self._done:
            return
        self.log(hours=self.clips.hours, cycles=self.settings.cycles)
        recent: deque[tuple[float, float, float, float, int]] = deque(maxlen=LOG_STEPS)
        saved = self.seconds
        self._started = time.monotonic()
        for batch in self.batches():
            entropy, ctc, guidance, spent = self.update(batch)
            counted = len(batch.mask) * self.settings.processes
            recent.append((entropy, ctc, guidance, spent, counted))
            if self.step % LOG_STEPS == 0:
                entropies, ctcs, guidances, seconds, counts = map(sum, zip(*recent, strict=True))
                self.log(
                    entropy=round(entropies / len(recent), 4),
                    ctc=round(ctcs / len(recent), 4),
                    guidance=round(guidances / len(recent), 4),
                    clips_per_second=round(counts / seconds, 2),
                    rate=self.settings.rate(self.step),
                )
            if self.seconds - saved > 60 * self.settings.save_minutes or self._done:
                saved = self.seconds
                self.save()
            if (cycle := self.settings.ended(self.step)) is not None:
                self.save(f"cycle-{cycle}.pt")
            if self.step % self.settings.evaluate_steps == 0 or self._done:
                self.evaluate()
                self._started = time.monotonic()
            if self._done:
                return
