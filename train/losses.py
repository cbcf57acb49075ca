"""What is minimised: phones of known time, CTC, the words of the answer, and where to look for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.models.gemma4.modeling_gemma4 import Gemma4AudioModelOutput

from train.architecture import TEXT
from train.batches import IGNORED, Batch, SoftBatch
from train.guidance import Guide, Path, best_path, windows
from train.phones import BLANK


def phone_scores(ctc_head: nn.Linear, soft_tokens: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the logarithms of the phones' probabilities, shape (tokens, clips, phones)."""
    soft = torch.split(soft_tokens, batch.token_lengths.tolist())
    return ctc_head(nn.utils.rnn.pad_sequence(list(soft))).log_softmax(-1)


def ctc_loss(scores: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the CTC loss per phone."""
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
    return timed, ctc_loss(phone_scores(ctc_head, soft_tokens, batch), batch)


def losses(
    model: Any, ctc_head: nn.Linear, guide: Guide, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the cross entropy of the answers per token, CTC's per phone, and the guide's loss."""
    entropy, soft_tokens = answer_loss(model, batch, batch.features, batch.mask)
    scores = phone_scores(ctc_head, soft_tokens, batch)
    paths = best_path(
        scores.detach().numpy(),
        [part.tolist() for part in batch.targets.split(batch.target_lengths.tolist())],
        batch.token_lengths.tolist(),
    )
    return entropy, ctc_loss(scores, batch), guide_loss(guide, batch, paths)


def listening_losses(
    model: Any, guide: Guide, batch: SoftBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross entropy of the answers and the guide's loss, soft tokens being given."""
    given = Gemma4AudioModelOutput(pooler_output=batch.soft, attention_mask=batch.mask)
    model.model.get_audio_features = lambda *_, **__: given
    try:
        entropy, _ = answer_loss(model, batch, batch.soft, batch.mask)
    finally:
        del model.model.get_audio_features
    return entropy, guide_loss(guide, batch, batch.paths)


def answer_loss(
    model: Any, batch: Batch | SoftBatch, features: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross entropy of the answers per token, and the soft tokens."""
    kept = batch.labels.shape[1] - min(batch.first_answers)
    out = model.model(
        input_ids=batch.input_ids,
        input_features=features,
        input_features_mask=mask,
        use_cache=False,
        logits_to_keep=kept,  # layers that share keys and values see the answers only
    )
    labels = batch.labels[:, -kept:]
    answered = labels != IGNORED
    table = model.model.language_model.embed_tokens.weight
    cap = TEXT["final_logit_softcapping"]
    logits = torch.tanh(functional.linear(out.last_hidden_state[answered], table) / cap) * cap
    entropy = functional.cross_entropy(logits, labels[answered], label_smoothing=0.05)
    return entropy, out.audio_hidden_states


def guide_loss(guide: Guide, batch: Batch | SoftBatch, paths: list[Path | None]) -> torch.Tensor:
    """Return the loss of attention beside the words."""
    starts = batch.first_answers
    kept = batch.labels.shape[1] - min(starts)
    first = [start - min(starts) for start in starts]
    places = windows(paths, batch.spans, batch.token_lengths.tolist(), first, kept)
    return guide.loss(places, batch.first_audio)
