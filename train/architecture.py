"""The architecture of the embedded model: everything a Gemma 4 E2B has, in small, but no vision.

The dictionaries are release style: they are what `config.json` of the checkpoint says.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import Gemma4Config, Gemma4ForConditionalGeneration

from train.tokens import CONTROL, EOS_IDS, VOCABULARY

SLIDING, FULL = "sliding_attention", "full_attention"

TEXT: dict[str, Any] = {
    "model_type": "gemma4_text",
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size": 192,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "layer_types": [SLIDING, FULL, SLIDING, FULL, SLIDING, FULL],
    "num_kv_shared_layers": 2,
    "use_double_wide_mlp": True,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "num_global_key_value_heads": None,
    "head_dim": 32,
    "global_head_dim": 64,
    "hidden_size_per_layer_input": 64,
    "sliding_window": 64,
    "attention_k_eq_v": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "enable_moe_block": False,
    "num_experts": None,
    "top_k_experts": None,
    "moe_intermediate_size": None,
    "use_bidirectional_attention": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "final_logit_softcapping": 30.0,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
        FULL: {
            "rope_type": "proportional",
            "rope_theta": 1_000_000.0,
            "partial_rotary_factor": 0.25,
        },
    },
    "max_position_embeddings": 4_096,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "use_cache": True,
    "pad_token_id": CONTROL["<pad>"],
    "eos_token_id": CONTROL["<eos>"],
    "bos_token_id": CONTROL["<bos>"],
}

AUDIO: dict[str, Any] = {
    "model_type": "gemma4_audio",
    "hidden_size": 192,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "hidden_act": "silu",
    "subsampling_conv_channels": [128, 32],
    "conv_kernel_size": 5,
    "residual_weight": 0.5,
    "attention_chunk_size": 12,
    "attention_context_left": 13,
    "attention_context_right": 0,
    "attention_logit_cap": 50.0,
    "attention_invalid_logits_value": -1e9,
    "use_clipped_linears": False,
    "rms_norm_eps": 1e-6,
    "gradient_clipping": 1e10,
    "output_proj_dims": 192,
    "initializer_range": 0.02,
}


def release_config(*, tied: bool = True) -> dict[str, Any]:
    """Write the configuration as the releases do; `tied` is false in the quantised layout."""
    return {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "model_type": "gemma4",
        "dtype": "bfloat16",
        "text_config": {**copy.deepcopy(TEXT), "tie_word_embeddings": tied},
        "audio_config": copy.deepcopy(AUDIO),
        "vision_config": None,
        "vision_soft_tokens_per_image": 280,
        "boi_token_id": CONTROL["<|image>"],
        "image_token_id": CONTROL["<|image|>"],
        "eoi_token_id": CONTROL["<image|>"],
        "video_token_id": CONTROL["<|video|>"],
        "boa_token_id": CONTROL["<|audio>"],
        "audio_token_id": CONTROL["<|audio|>"],
        "eoa_token_id": CONTROL["<audio|>"],
        "eoa_token_index": CONTROL["<audio|>"],
        "eos_token_id": EOS_IDS,
        "initializer_range": 0.02,
        "tie_word_embeddings": tied,
    }


def new_model(seed: int, *, tied: bool = True) -> Gemma4ForConditionalGeneration:
    """Make a model of this architecture with random weights, in float32."""
    torch.manual_seed(seed)
    model = Gemma4ForConditionalGeneration(Gemma4Config(**release_config(tied=tied)))
    model.set_attn_implementation("eager")
    _initialise(model)
    return model


@torch.no_grad()
def _initialise(model: Any) -> None:
    """Start every matrix with a deviation of one over the root of its inputs.

    transformers' 0.02 suits a width of thousands; at 192 it makes steps of a useful size drown what
    is there, and the tower does not get off the ground.
    """
    for parameter in model.parameters():
        if parameter.dim() > 1:
            inputs = parameter[0].numel()
            torch.nn.init.normal_(parameter, std=inputs**-0.5)
    table = model.model.language_model.embed_tokens_per_layer.weight
    torch.nn.init.normal_(table, std=TEXT["hidden_size_per_layer_input"] ** -0.5)
    for name, parameter in model.model.language_model.named_parameters():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            # Scores are not scaled: with weights of one, attention starts as good as one-hot.
            parameter.fill_(len(parameter) ** -0.25)
    stem = model.model.audio_tower.subsample_conv_projection
    for layer in (stem.layer0, stem.layer1):
        # Half of the filters start without a mean: they see contrasts whatever the loudness is.
        half = layer.conv.weight[::2]
        half -= half.mean(dim=(2, 3), keepdim=True)


def parameter_counts(model: torch.nn.Module) -> dict[str, int]:
    """Count the parameters of the parts, the tied head once."""
    counts = {"language_model": 0, "audio_tower": 0, "embed_audio": 0}
    for name, parameter in model.named_parameters():
        for part in counts:
            if f".{part}." in name:
                counts[part] += parameter.numel()
    return counts
