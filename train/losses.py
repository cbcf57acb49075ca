"""What is minimised: phones of known time, CTC, the words of the answer, and where to look for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers.models.gemma4.modeling_gemma4 import Gemma4AudioModelOutput

from train.architecture import TEXT
from train.batches import IGNORED, Batch, SoftBatch
from train.guidance import Guide, windows
from train.phones import BLANK


def short(device: torch.device) -> torch.autocast:
    """Let matrix products be taken in bfloat16, which halves the time where the processor has it."""
    return torch.autocast(device.type, dtype=torch.bfloat16)


def phone_scores(ctc_head: nn.Linear, soft_tokens: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the logarithms of the phones' probabilities, shape (tokens, clips, phones)."""
    soft = torch.split(soft_tokens, batch.token_lengths.tolist())
    return ctc_head(nn.utils.rnn.pad_sequence(list(soft))).log_softmax(-1)


def word_scores(table: torch.Tensor, soft_tokens: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the logarithms of the pieces' probabilities, shape (tokens, clips, pieces).

    The decoder's own token table tells the pieces, so that a soft token in which a word ends looks to the
    decoder like this word; `<pad>` is the blank.
    """
    soft = torch.split(soft_tokens, batch.token_lengths.tolist())
    return functional.linear(nn.utils.rnn.pad_sequence(list(soft)), table).log_softmax(-1)


def ctc_loss(
    scores: torch.Tensor, targets: torch.Tensor, tokens: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """Return the CTC loss per target: `tokens` and `lengths` are those of the sound and of what is said."""
    loss = functional.ctc_loss(
        scores, targets, tokens, lengths, blank=BLANK, reduction="sum", zero_infinity=True
    )
    return loss / lengths.sum().clamp_min(1)


def tower_losses(
    model: Any, ctc_head: nn.Linear, table: torch.Tensor, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the cross entropy of phones of known time, and the CTC losses of phones and of the table's pieces."""
    with short(model.device):
        out = model.model.get_audio_features(batch.features, batch.mask)
    soft_tokens = out.pooler_output[out.attention_mask].float()
    timed = functional.cross_entropy(
        ctc_head(soft_tokens), batch.heard, ignore_index=IGNORED, reduction="sum"
    )
    timed = timed / (batch.heard != IGNORED).sum().clamp_min(1)
    phones = phone_scores(ctc_head, soft_tokens, batch)
    words = word_scores(table, soft_tokens, batch)
    return (
        timed,
        ctc_loss(phones, batch.targets, batch.token_lengths, batch.target_lengths),
        ctc_loss(words, batch.words, batch.token_lengths, batch.word_lengths),
    )


def listening_losses(
    model: Any, guide: Guide, batch: SoftBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross entropy of the answers and the guide's loss, soft tokens being given."""
    given = Gemma4AudioModelOutput(pooler_output=batch.soft, attention_mask=batch.mask)
    model.model.get_audio_features = lambda *_, **__: given
    try:
        entropy = answer_loss(model, batch)
    finally:
        del model.model.get_audio_features
    return entropy, guide_loss(guide, batch)


def answer_loss(model: Any, batch: SoftBatch) -> torch.Tensor:
    """Return the cross entropy of the answers per token."""
    kept = batch.labels.shape[1] - min(batch.first_answers)
    with short(model.device):
        out = model.model(
            input_ids=batch.input_ids,
            input_features=batch.soft,
            input_features_mask=batch.mask,
            use_cache=False,
            logits_to_keep=kept,  # layers that share keys and values see the answers only
        )
    labels = batch.labels[:, -kept:]
    answered = labels != IGNORED
    table = model.model.language_model.embed_tokens.weight
    cap = TEXT["final_logit_softcapping"]
    logits = (
        torch.tanh(functional.linear(out.last_hidden_state[answered].float(), table) / cap) * cap
    )
    return functional.cross_entropy(logits, labels[answered], label_smoothing=0.05)


def guide_loss(guide: Guide, batch: SoftBatch) -> torch.Tensor:
    """Return the loss of attention beside the words."""
    starts = batch.first_answers
    kept = batch.labels.shape[1] - min(starts)
    first = [start - min(starts) for start in starts]
    places = windows(batch.paths, batch.token_lengths.tolist(), first, kept)
    return guide.loss(places.to(batch.labels.device), batch.first_audio)
