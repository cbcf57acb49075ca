"""Make the golden files: transformers' outputs on the tiny checkpoints, in float32.

    python tests/golden/make.py [mel] [VARIANT …]            (torch 2.13, transformers 5.23, safetensors, tokenizers)

Run by hand from the repository's root; never from our own output. See README.md beside this file.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import DynamicCache, Gemma4AudioFeatureExtractor, Gemma4ForConditionalGeneration
from transformers.integrations import gemma_quant

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests import tiny

HERE = Path(__file__).parent
RATE = 16000
STEPS = 12


def load(folder: Path) -> Any:
    """Load a checkpoint in float32, eager attention."""
    text = json.loads((folder / "config.json").read_text())["text_config"]
    table = text["num_hidden_layers"] * text["hidden_size_per_layer_input"]
    original = gemma_quant.QuantizedEmbedding.__init__

    def widened(self: Any, num_embeddings: int, embedding_dim: int, **kw: Any) -> None:
        # transformers 5.23 allocates [V, 1] scales; the per-layer table has one for each layer
        original(self, num_embeddings, embedding_dim, **kw)
        if embedding_dim == table:
            scales = torch.ones(num_embeddings, text["num_hidden_layers"])
            self.embedding_scale = torch.nn.Parameter(scales)

    gemma_quant.QuantizedEmbedding.__init__ = widened
    try:
        model = Gemma4ForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
    finally:
        gemma_quant.QuantizedEmbedding.__init__ = original
    return model.eval()


def waves() -> list[np.ndarray]:
    """Two chirps with noise, rounded to 16 bits so that a file holds them exactly."""
    rng = np.random.default_rng(42)
    found = []
    for seconds, f0, f1 in ((1.0, 200, 3000), (2.37, 4000, 100)):
        t = np.arange(int(seconds * RATE)) / RATE
        x = 0.4 * np.sin(2 * np.pi * (f0 + (f1 - f0) * t / seconds / 2) * t)
        found.append(np.rint((x + 0.02 * rng.standard_normal(t.size)) * 32767).astype(np.int16))
    return found


def text_and_decode(model: Any) -> dict[str, Any]:
    """Logits of a whole prompt, then of greedy steps with a cache past the sliding window."""
    rng = np.random.default_rng(7)
    ids = [2, *rng.integers(110, 490, size=39).tolist()]
    whole = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    cache = DynamicCache(config=model.config.text_config)
    prompt = ids[:28]
    out = model(
        input_ids=torch.tensor([prompt]), past_key_values=cache, use_cache=True, logits_to_keep=1
    )
    tokens, logits = [], [out.logits[0, -1]]
    for _ in range(STEPS):
        tokens.append(int(logits[-1].argmax()))
        out = model(input_ids=torch.tensor([tokens[-1:]]), past_key_values=cache, use_cache=True)
        logits.append(out.logits[0, -1])
    return {
        "input_ids": np.array(ids), "logits": whole.numpy(), "prompt_length": np.array(len(prompt)),
        "greedy_tokens": np.array(tokens), "step_logits": torch.stack(logits).numpy(),
        "sensitivity": sensitivity(model, ids, whole),
    }  # fmt: skip


def round_by_block(x: torch.Tensor) -> torch.Tensor:
    """Round to int8 for each position and block of 128 inputs (or 64, 32, 16): what the ABI says of linears
    without a static scale (docs/functions.md)."""
    block = next(b for b in (128, 64, 32, 16) if x.shape[-1] % b == 0)
    parts = x.reshape(*x.shape[:-1], -1, block)
    scale = parts.abs().amax(-1, keepdim=True) / 127
    return (torch.round(parts / scale.clamp_min(1e-30)) * scale).reshape(x.shape)


def sensitivity(model: Any, ids: list[int], whole: torch.Tensor) -> np.ndarray:
    """How far the reference's own logits move under what any int8 implementation does.

    Rounding activations to int8 is discontinuous: a difference of one unit in the last place can flip a code,
    and the flip travels on. So the embeddings get noise of one part in a million. And where a linear has no
    static scale, its inputs are rounded as the ABI says, where the reference keeps them in float. No implementation
    can be asked to agree better with the reference than that: the largest difference in each of 16 trials.
    """
    rng = torch.Generator().manual_seed(3)
    language = model.model.language_model
    uncalibrated = [
        module
        for module in [*language.modules(), model.lm_head]
        if getattr(module, "input_activation_scale", 1) == 0
    ]
    hooks = [
        language.embed_tokens.register_forward_hook(
            lambda _m, _a, out: out * (1 + 1e-6 * torch.randn(out.shape, generator=rng))
        ),
        *(m.register_forward_pre_hook(lambda _m, a: (round_by_block(a[0]),)) for m in uncalibrated),
    ]
    found = []
    for _ in range(16):
        noisy = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        found.append(float((noisy - whole).abs().max()))
    for hook in hooks:
        hook.remove()
    return np.array(found)


def audio_and_mixed(model: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Soft tokens of two clips and the logits of a prompt that holds both between text."""
    extractor = Gemma4AudioFeatureExtractor()
    found: dict[str, Any] = {}
    features = []
    for i, wave in enumerate(waves()):
        f = extractor([wave.astype(np.float32) / 32767], return_tensors="pt")
        out = model.model.get_audio_features(
            f["input_features"], f["input_features_mask"], return_dict=True
        )
        tower = out.pooler_output
        tower = tower if tower.dim() == 2 else tower[out.attention_mask]
        features.append(tower)
        found[f"soft_tokens{i}"] = tower.numpy()
    boa, audio, eoa = (config[f"{k}_token_id"] for k in ("boa", "audio", "eoa"))
    rng = np.random.default_rng(9)
    ids = [2, 105, *rng.integers(110, 490, size=5).tolist()]
    for tower in features:
        ids += [boa, *[audio] * len(tower), eoa, *rng.integers(110, 490, size=3).tolist()]
    both = extractor([w.astype(np.float32) / 32767 for w in waves()], return_tensors="pt")
    logits = model(
        input_ids=torch.tensor([ids]), input_features=both["input_features"],
        input_features_mask=both["input_features_mask"], use_cache=False,
    ).logits[0]  # fmt: skip
    return found | {"mixed_ids": np.array(ids), "mixed_logits": logits[-24:].numpy()}


def mel() -> dict[str, Any]:
    """Mel features of the clips and of lengths around every edge of the framing."""
    extractor = Gemma4AudioFeatureExtractor()
    found: dict[str, Any] = {"filters": extractor.mel_filters}
    for i, wave in enumerate(waves()):
        f = extractor([wave.astype(np.float32) / 32767], return_tensors="np")
        found |= {
            f"wave{i}": wave,
            f"features{i}": f["input_features"][0],
            f"mask{i}": f["input_features_mask"][0],
        }
    rows = []
    for n in (161, 320, 321, 640, 641, 1000, 3200, 16000, 16001, 37920, 80000, 479999, 480000):
        mask = extractor([np.zeros(n, np.float32)], return_tensors="np")["input_features_mask"][0]
        rows.append((n, len(mask), int(mask.sum())))
    found["counts"] = np.array(rows)  # samples, frames, valid frames
    return found


@torch.no_grad()
def main() -> None:
    """Write one npz for each variant and one for the features, or those that are named, and what made them."""
    torch.set_num_threads(1)
    chosen = sys.argv[1:] or ["mel", *tiny.VARIANTS]
    if "mel" in chosen:
        np.savez_compressed(HERE / "mel.npz", **mel())
    for variant in (v for v in tiny.VARIANTS if v in chosen):
        with tempfile.TemporaryDirectory() as folder:
            tiny.write_checkpoint(variant, Path(folder))
            model = load(Path(folder))
        raw = tiny.config(variant)
        found = text_and_decode(model)
        if variant in tiny.HEARING:
            found |= audio_and_mixed(model, raw)
        np.savez_compressed(HERE / f"{variant}.npz", **found)
        print(variant, {k: v.shape for k, v in found.items()}, "logit std", found["logits"].std())
    versions = {m.__name__: m.__version__ for m in (torch, transformers, np)}
    (HERE / "versions.json").write_text(json.dumps(versions, indent=1))


if __name__ == "__main__":
    main()
