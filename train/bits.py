"""The bits of the embedded model's weights: those of Google's mobile checkpoints of E2B.

One difference: the token table and its copy, the head, keep 8 bits instead of 2; they are small here.
"""

from __future__ import annotations

from quant.qat.weights import Plan
from train.architecture import TEXT

FIRST_SHARED = TEXT["num_hidden_layers"] - TEXT["num_kv_shared_layers"]
OWN_KV = f"[0-{FIRST_SHARED - 1}]"

PLAN = Plan(
    bits={
        r"^lm_head$": 8,
        r"audio_tower(?!.*lconv1d\.linear_start)": 2,
        r"audio_tower\.layers\.\d+\.lconv1d\.linear_start\.": 4,
        r"language_model\.embed_tokens$": 8,
        r"language_model\.embed_tokens_per_layer$": 4,
        rf"language_model\.layers\.({OWN_KV})\.mlp\.": 4,
        r"language_model\.layers\.\d+\.mlp\.": 2,
        r"language_model\.layers\.\d+\.per_layer_input_gate$": 8,
        r"language_model\.layers\.\d+\.per_layer_projection$": 8,
        r"language_model\.layers\.\d+\.self_attn\.": 4,
    },
    kept=(
        "model.audio_tower.subsample_conv_projection",
        "model.audio_tower.output_proj",
        "relative_k_proj",
        "model.embed_audio",
        "per_layer_model_projection",
    ),
    groups={"embed_tokens_per_layer": TEXT["num_hidden_layers"]},
)
