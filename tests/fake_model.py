"""A model of a few lines with the engine's interface: causal, deterministic, rows independent of each other."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgegemma.config import FULL, AudioConfig, ModelConfig, TextConfig, TokenConfig
from tests.tiny_tokenizer import write_tokenizer

F32 = NDArray[np.float32]

VOCABULARY = 1024
HIDDEN = 6
LAYERS = 2
WIDTH = 3
TOKENS = TokenConfig(
    bos=2,
    pad=0,
    eos=(1, 106, 50),
    audio=504,
    boa=503,
    eoa=505,
    image=501,
    boi=500,
    eoi=502,
    video=506,
)
AFTER_SOUND = 6  # tokens of "<audio|><turn|>\n<|turn>model\n"
TEXT = TextConfig(
    vocab_size=VOCABULARY,
    hidden_size=HIDDEN,
    num_hidden_layers=LAYERS,
    layer_types=(FULL,) * LAYERS,
    num_attention_heads=1,
    num_key_value_heads=1,
    num_global_key_value_heads=1,
    head_dim=4,
    global_head_dim=4,
    intermediate_size=8,
    use_double_wide_mlp=False,
    num_kv_shared_layers=0,
    hidden_size_per_layer_input=WIDTH,
    sliding_window=8,
    max_position_embeddings=4096,
    rms_norm_eps=1e-6,
    final_logit_softcapping=30.0,
    sliding_rope_theta=1e4,
    full_rope_theta=1e6,
    full_partial_rotary_factor=0.25,
)
AUDIO = AudioConfig(
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    subsampling_conv_channels=(4, 2),
    conv_kernel_size=5,
    residual_weight=0.5,
    window=12,
    attention_logit_cap=50.0,
    rms_norm_eps=1e-6,
    output_proj_dims=8,
)


@dataclass
class FakePackage:
    """A folder with a tokenizer and a chat template."""

    path: Path
    config: ModelConfig = field(default_factory=lambda: ModelConfig(TEXT, TOKENS, AUDIO))
    prompts: dict[str, str] = field(default_factory=lambda: {"transcribe": "the speech"})

    def file(self, name: str) -> Path:
        return self.path / name


@dataclass
class FakeCache:
    """Remembers every row it was given."""

    embeds: list[F32] = field(default_factory=list)
    per_layer: list[F32] = field(default_factory=list)
    limit: int = TEXT.max_position_embeddings
    prompt: int = 0  # positions before the answer, once it has begun

    @property
    def length(self) -> int:
        return len(self.embeds)

    def truncate(self, length: int) -> None:
        del self.embeds[length:], self.per_layer[length:]


class FakeModel:
    """Writes `script` token by token after each prompt; without a script, what its cache's rows ask for."""

    def __init__(self, package: FakePackage, script: list[int] | None = None) -> None:
        self.package, self.config = package, package.config
        self.script = script
        self.best = 9.0  # logit of the script's token; 19 makes the model sure of itself
        self.forwards: list[int] = []  # positions in each call
        self.encoded: list[int] = []  # soft tokens in each call
        self.last_cache = FakeCache()

    def embed(self, ids: NDArray[np.int64]) -> tuple[F32, F32]:
        rows = np.sin(np.outer(ids + 1, np.arange(1, HIDDEN + 1))).astype(np.float32)
        layers = np.cos(np.outer(ids + 1, np.arange(1, LAYERS * WIDTH + 1))).astype(np.float32)
        return rows, layers.reshape(len(ids), LAYERS, WIDTH)

    def new_cache(self, capacity: int | None = None, slack: int | None = None) -> FakeCache:
        self.last_cache = FakeCache()
        self.last_cache.limit = capacity or self.last_cache.limit
        return self.last_cache

    def forward(self, embeds: F32, per_layer: F32, cache: FakeCache, num_logits: int = 1) -> F32:
        self.forwards.append(len(embeds))
        cache.embeds.extend(embeds)
        cache.per_layer.extend(per_layer)
        logits = np.zeros((num_logits, VOCABULARY), np.float32)
        for row in range(num_logits):
            length = cache.length - num_logits + row + 1
            if self.script is not None:
                at = length - self._prompt_length(cache, length)
                best = self.script[min(at, len(self.script) - 1)]
                logits[row, best : best + 2] = self.best, 8.0
            else:
                total = np.sum(np.stack(cache.embeds[:length]), axis=0, dtype=np.float64).sum()
                logits[row] = np.sin(np.arange(VOCABULARY) * (total + 1.0)) * 4
        return logits

    def decode(self, token: int, cache: FakeCache) -> F32:
        rows, layers = self.embed(np.array([token]))
        return self.forward(rows, layers, cache).reshape(VOCABULARY)

    def _prompt_length(self, cache: FakeCache, length: int) -> int:
        """Where the answer begins: behind what follows the last sound, or where logits were first asked for."""
        (end_of_sound,), _ = self.embed(np.array([TOKENS.eoa]))
        for at in range(length - AFTER_SOUND, -1, -1):
            if cache.prompt:
                break
            if np.array_equal(cache.embeds[at], end_of_sound):
                return at + AFTER_SOUND
        cache.prompt = cache.prompt or length
        return cache.prompt

    def new_audio_state(self) -> F32:
        return np.zeros(HIDDEN, np.float32)

    def encode_audio(self, features: F32, mask: F32, state: F32) -> F32:
        assert len(features) % 4 == 0
        assert (features.shape[1:], mask.shape) == ((128,), (len(features),))
        self.encoded.append(len(features) // 4)
        soft = np.empty((len(features) // 4, HIDDEN), np.float32)
        for t in range(len(soft)):  # row by row: no sum may depend on the number of rows
            block = (features[4 * t : 4 * t + 4] * mask[4 * t : 4 * t + 4, None]).reshape(4, 128)
            state *= np.float32(0.5)
            state += np.array([block[:, i::HIDDEN].sum() for i in range(HIDDEN)], np.float32)
            soft[t] = state
        return soft


def fake_package(folder: Path) -> FakePackage:
    """Write the files that a package of the tiny tokenizer has."""
    write_tokenizer(folder, VOCABULARY)
    return FakePackage(folder)
