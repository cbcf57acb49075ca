"""The model in plain numpy: no cache, no kernels, no graph. The witness of the exported graphs.

Written from the arithmetic, in float64 where rounding is not the point. Positions are rows of 2-D arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgegemma.config import AudioConfig, ModelConfig, TextConfig
from tests.fake_source import FakeSource, Weight

F = npt.NDArray[Any]
LM, TOWER = "model.language_model", "model.audio_tower"
EPS = 1e-6


def rms(x: F, weight: F | float = 1.0) -> F:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + EPS) * weight)


def gelu(x: F) -> F:
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


def sigmoid(x: F) -> F:
    return np.asarray(1 / (1 + np.exp(-x)))


def softmax(x: F) -> F:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def round_static(x: F, scale: float) -> F:
    if scale == 0:
        return x
    step = np.float32(scale)
    return np.asarray(np.clip(np.rint(x.astype(np.float32) / step), -128, 127) * step)


def round_by_block(x: F, block: int) -> F:
    parts = x.astype(np.float32).reshape(len(x), -1, block)
    top = np.abs(parts).max(-1, keepdims=True)
    codes = np.rint(parts * (np.float32(127) / np.where(top > 0, top, 1)))
    return np.asarray((codes * (top / np.float32(127))).reshape(x.shape))


def linear(x: F, weight: Weight) -> F:
    low_in, high_in, low_out, high_out = (
        weight.clip if weight.clip is not None else [-np.inf, np.inf] * 2
    )
    x = round_static(np.clip(x, low_in, high_in), weight.activation[0])
    if weight.block:
        x = round_by_block(x, weight.block)
    y = x.astype(np.float64) @ weight.dense.astype(np.float64).T
    return np.clip(round_static(y, weight.activation[1]), low_out, high_out)


def inv_freq(text: TextConfig, width: int, sliding: bool) -> F:
    if sliding:
        return np.array([text.sliding_rope_theta ** (-2 * i / width) for i in range(width // 2)])
    turning = int(text.full_partial_rotary_factor * width / 2)
    rates = [text.full_rope_theta ** (-2 * i / width) for i in range(turning)]
    return np.array(rates + [0.0] * (width // 2 - turning))


def rotate(x: F, angles: F) -> F:
    """x [S, heads, D], angles [S, D/2]."""
    a, b = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def attend(q: F, k: F, v: F, window: int, start: int = 0) -> F:
    """q [S, heads, D] at positions start…, k and v [T, kv_heads, D]."""
    out = np.zeros_like(q)
    share = q.shape[1] // k.shape[1]
    for s in range(q.shape[0]):
        p = start + s
        first = max(0, p - window + 1) if window else 0
        for h in range(q.shape[1]):
            keys, values = k[first : p + 1, h // share], v[first : p + 1, h // share]
            out[s, h] = softmax(keys @ q[s, h]) @ values
    return out


def per_layer_inputs(x: F, rows: F, projection: F, norm: F) -> F:
    context = (x @ projection.T * x.shape[1] ** -0.5).reshape(rows.shape)
    return (rms(context, norm) + rows) * 2**-0.5


def decoder(
    config: ModelConfig, source: FakeSource, x: F, rows: F
) -> tuple[F, dict[int, tuple[F, F]]]:
    """Give logits [S, V] of embeddings [S, H] and rows [S, L, P], and each owner's K and V [S, kv, D]."""
    text = config.text
    projection = source.dense(f"{LM}.per_layer_model_projection")
    ple = per_layer_inputs(
        x, rows, projection, source.vector(f"{LM}.per_layer_projection_norm.weight")
    )
    kv: dict[int, tuple[F, F]] = {}
    for i in range(text.num_hidden_layers):
        x = _decoder_layer(text, source, i, x, ple[:, i], kv)
    z = linear(rms(x, source.vector(f"{LM}.norm.weight")), source.weight("lm_head"))
    return text.final_logit_softcapping * np.tanh(z / text.final_logit_softcapping), kv


def _decoder_layer(
    text: TextConfig, source: FakeSource, i: int, x: F, ple: F, kv: dict[int, tuple[F, F]]
) -> F:
    name = f"{LM}.layers.{i}"
    kv_heads, width = text.heads_of(i)
    window = text.window_of(i)
    angles = np.arange(len(x))[:, None] * inv_freq(text, width, window > 0)

    def lin(path: str, y: F) -> F:
        return linear(y, source.weight(f"{name}.{path}"))

    def norm(path: str, y: F) -> F:
        return rms(y, source.vector(f"{name}.{path}.weight"))

    y = norm("input_layernorm", x)
    heads = (len(x), -1, width)
    q = rotate(norm("self_attn.q_norm", lin("self_attn.q_proj", y).reshape(heads)), angles)
    if i < text.first_shared_layer:
        k = rotate(norm("self_attn.k_norm", lin("self_attn.k_proj", y).reshape(heads)), angles)
        kv[i] = k, rms(lin("self_attn.v_proj", y).reshape(heads))
        assert k.shape[1] == kv_heads
    seen = attend(q, *kv[text.kv_source(i)], window)
    x = x + norm("post_attention_layernorm", lin("self_attn.o_proj", seen.reshape(len(x), -1)))
    y = norm("pre_feedforward_layernorm", x)
    y = lin("mlp.down_proj", gelu(lin("mlp.gate_proj", y)) * lin("mlp.up_proj", y))
    x = x + norm("post_feedforward_layernorm", y)
    y = lin("per_layer_projection", gelu(lin("per_layer_input_gate", x)) * ple)
    x = x + norm("post_per_layer_input_norm", y)
    return x * source.vector(f"{name}.layer_scalar")


def convolve(x: F, weight: F) -> F:
    """3×3, stride 2, zero padding 1: [C, T, M] → [N, T/2, M/2]."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros((weight.shape[0], x.shape[1] // 2, x.shape[2] // 2))
    for t in range(out.shape[1]):
        for m in range(out.shape[2]):
            patch = padded[:, 2 * t : 2 * t + 3, 2 * m : 2 * m + 3]
            out[:, t, m] = np.tensordot(weight, patch, 3)
    return out


def subsample(x: F, mask: F, convs: list[F], norms: list[F], projection: F) -> F:
    """[4n, 128] → [n, C]."""
    y = x[None]
    for weight, norm in zip(convs, norms, strict=True):
        y = convolve(y * mask[:, None], weight)
        y = (y - y.mean(0)) / np.sqrt(y.var(0) + EPS) * norm[:, None, None]
        y, mask = np.maximum(y, 0), mask[::2]
    return y.transpose(1, 2, 0).reshape(y.shape[1], -1) @ projection.T


def audio(config: ModelConfig, source: FakeSource, features: F, mask: F) -> F:
    """Encode [4n, 128] in one pass: [n, H]."""
    assert config.audio is not None
    front = f"{TOWER}.subsample_conv_projection"
    convs = [source.vector(f"{front}.layer{i}.conv.weight") for i in (0, 1)]
    norms = [source.vector(f"{front}.layer{i}.norm.weight") for i in (0, 1)]
    x = subsample(features, mask, convs, norms, source.dense(f"{front}.input_proj_linear"))
    for i in range(config.audio.num_hidden_layers):
        x = _audio_layer(config.audio, source, f"{TOWER}.layers.{i}", x)
    bias = source.vector(f"{TOWER}.output_proj.bias")
    y = rms(x @ source.dense(f"{TOWER}.output_proj").T + bias)
    return np.asarray(y @ source.dense("model.embed_audio.embedding_projection").T)


def _audio_layer(audio: AudioConfig, source: FakeSource, name: str, x: F) -> F:
    def lin(path: str, y: F) -> F:
        return linear(y, source.weight(f"{name}.{path}"))

    def norm(path: str, y: F) -> F:
        return rms(y, source.vector(f"{name}.{path}.weight"))

    def feed_forward(path: str, y: F) -> F:
        z = lin(f"{path}.ffw_layer_1", norm(f"{path}.pre_layer_norm", y))
        z = lin(f"{path}.ffw_layer_2", z * sigmoid(z))
        return y + audio.residual_weight * norm(f"{path}.post_layer_norm", z)

    x = feed_forward("feed_forward1", x)
    y = norm("norm_pre_attn", x)
    shape = (len(x), audio.num_attention_heads, audio.head_dim)
    q, k, v = (lin(f"self_attn.{part}_proj", y).reshape(shape) for part in "qkv")
    seen = _windowed(audio, source, f"{name}.self_attn", (q, k, v))
    x = x + norm("norm_post_attn", lin("self_attn.post", seen.reshape(len(x), -1)))

    a, b = np.split(lin("lconv1d.linear_start", norm("lconv1d.pre_layer_norm", x)), 2, axis=-1)
    taps = source.vector(f"{name}.lconv1d.depthwise_conv1d.weight")[:, 0]
    past = np.pad(a * sigmoid(b), ((audio.conv_kernel_size - 1, 0), (0, 0)))
    shifted = [past[i : i + len(x)] * taps[:, i] for i in range(audio.conv_kernel_size)]
    z = norm("lconv1d.conv_norm", np.sum(shifted, axis=0))
    x = x + lin("lconv1d.linear_end", z * sigmoid(z))
    return norm("norm_out", feed_forward("feed_forward2", x))


def _windowed(audio: AudioConfig, source: FakeSource, name: str, qkv: tuple[F, F, F]) -> F:
    q, k, v = qkv
    width, half = audio.head_dim, audio.hidden_size // 2
    per_dim = source.vector(f"{name}.per_dim_scale")
    q = q * (width**-0.5 / np.log(2)) * np.log1p(np.exp(per_dim))
    k = k * (np.log(1 + np.e) / np.log(2))
    rates = np.exp(-np.arange(half) * np.log(10000) / (half - 1))
    projection = source.dense(f"{name}.relative_k_proj")
    out = np.zeros_like(q)
    for t in range(len(q)):
        at = np.arange(max(0, t - audio.window + 1), t + 1)
        angles = (t - at)[:, None] * rates
        table = np.concatenate([np.sin(angles), np.cos(angles)], -1)
        r = (table @ projection.T).reshape(len(at), audio.num_attention_heads, width)
        logits = np.einsum("hd,uhd->hu", q[t], k[at] + r)
        logits = audio.attention_logit_cap * np.tanh(logits / audio.attention_logit_cap)
        out[t] = np.einsum("hu,uhd->hd", softmax(logits), v[at])
    return np.asarray(out)
