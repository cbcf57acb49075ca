"""What quantization-aware training does to weights and activations, and what it stores."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from quant.pack import unpack
from quant.qat.activations import (
    Seen,
    round_activations,
    rounds_activations,
    static_scale,
)
from quant.qat.checkpoint import packed, quantization_config, tensors
from quant.qat.weights import (
    FakeQuantized,
    Plan,
    best_scales,
    code_range,
    is_quantized,
    quantize,
)

PLAN = Plan(
    bits={r"embed_tokens$": 8, r"^table$": 4, r"wide": 2, r"narrow": 4},
    kept=("head_of_phones",),
    groups={"table": 3},
)


class Little(torch.nn.Module):
    """Something with every kind of module that is stored."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.embed_tokens = torch.nn.Embedding(12, 16)
        self.table = torch.nn.Embedding(12, 24)
        self.wide = torch.nn.Linear(16, 8, bias=False)
        self.narrow = torch.nn.Linear(8, 16, bias=False)
        self.head_of_phones = torch.nn.Linear(16, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.head_of_phones(self.narrow(self.wide(self.embed_tokens(ids))))
        return made


@pytest.fixture
def little() -> Little:
    return Little()


IDS = torch.arange(12)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_no_scale_on_the_grid_loses_less_than_the_best_one(bits: int) -> None:
    weight = torch.randn(5, 32, generator=torch.Generator().manual_seed(bits))
    low, high = code_range(bits)

    def loss(scale: torch.Tensor) -> torch.Tensor:
        rounded = (weight / scale[:, None]).round().clamp(low, high) * scale[:, None]
        lost: torch.Tensor = (rounded - weight).square().sum(1)
        return lost

    best = loss(best_scales(weight, bits))
    for fraction in np.linspace(0.3, 1.0, 8):
        assert (best <= loss(weight.abs().amax(1) / high * fraction) * 1.05).all()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_fake_quantized_weight_is_codes_times_scales(bits: int) -> None:
    weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(1))
    fake = FakeQuantized(weight, bits, groups=3)
    codes = fake.codes(weight)
    low, high = code_range(bits)
    assert codes.min() >= low
    assert codes.max() <= high
    want = codes.reshape(6, 3, 8) * fake.scale[..., None]
    assert torch.allclose(fake(weight), want.reshape(6, 24))


def test_the_gradient_passes_over_the_rounding_of_weights() -> None:
    weight = torch.tensor([[0.3, -0.2, 0.1, 40.0]], requires_grad=True)
    fake = FakeQuantized(torch.tensor([[0.3, -0.2, 0.1, 0.4]]), 4)
    fake(weight).sum().backward()
    assert weight.grad.tolist() == [[1.0, 1.0, 1.0, 0.0]]


def test_codes_are_packed_as_the_runtime_unpacks_them() -> None:
    for bits in (2, 4):
        low, high = code_range(bits)
        codes = torch.randint(low, high + 1, (3, 16), generator=torch.Generator().manual_seed(2))
        found = unpack(packed(codes, bits).numpy(), bits).astype(int) + low
        assert found.tolist() == codes.tolist()


def test_stored_codes_times_scales_are_the_trained_weights(little: Little) -> None:
    quantize(little, PLAN)
    trained = little.wide.weight.detach().clone()
    stored = tensors(little, PLAN)
    codes = unpack(stored["wide.weight"].numpy(), 2).astype(np.float32) - 2
    assert np.allclose(codes * stored["wide.weight_scale"].numpy(), trained.numpy())


def test_what_was_quantized_first_keeps_its_scales_when_the_rest_is_stored(little: Little) -> None:
    quantize(little, PLAN, "wide")
    with torch.no_grad():
        little.wide.parametrizations.weight[0].log_scale += 0.3
    scale = little.wide.parametrizations.weight[0].scale.detach().clone()
    stored = tensors(little, PLAN)
    assert torch.equal(stored["wide.weight_scale"], scale)
    assert stored["narrow.weight"].dtype == torch.uint8


def test_the_head_is_a_copy_of_the_token_table(little: Little) -> None:
    stored = tensors(little, PLAN)
    assert torch.equal(stored["lm_head.weight"], stored["embed_tokens.embedding_quantized"])


def test_a_table_has_a_scale_for_each_layer(little: Little) -> None:
    assert tensors(little, PLAN)["table.embedding_scale"].shape == (12, 3)


def test_what_is_kept_is_stored_in_bfloat16(little: Little) -> None:
    stored = tensors(little, PLAN)
    assert stored["head_of_phones.weight"].dtype == torch.bfloat16
    assert "head_of_phones.weight_scale" not in stored


def test_scales_of_activations_that_were_never_seen_are_stored_as_none(little: Little) -> None:
    assert tensors(little, PLAN)["wide.input_activation_scale"] == 0


def calibrated(little: Little) -> dict[tuple[str, str], torch.Tensor]:
    seen = Seen(little, PLAN)
    with seen.watching():
        little(IDS)
    return seen.scales()


def test_calibrated_activations_are_on_the_grid_and_near(little: Little) -> None:
    scales = calibrated(little)
    before = little.wide(little.embed_tokens(IDS)).detach()
    round_activations(little, PLAN, scales)
    step = scales["wide", "output_activation"]
    codes = little.wide(little.embed_tokens(IDS)) / step
    assert torch.allclose(codes, codes.round(), atol=1e-4)
    assert (codes * step - before).abs().max() < 4 * step


def test_activation_scales_are_stored_and_do_not_become_weights(little: Little) -> None:
    scales = calibrated(little)
    quantize(little, PLAN)
    round_activations(little, PLAN, scales)
    stored = tensors(little, PLAN)
    for way in ("input_activation", "output_activation"):
        assert torch.allclose(stored[f"narrow.{way}_scale"], scales["narrow", way])
    assert not [name for name in stored if "log_scale" in name]


def test_a_state_with_learned_scales_can_be_loaded_again(little: Little) -> None:
    scales = calibrated(little)
    quantize(little, PLAN)
    round_activations(little, PLAN, scales)
    again = Little()
    quantize(again, PLAN)
    round_activations(again, PLAN)
    again.load_state_dict(little.state_dict())
    assert is_quantized(again)
    assert rounds_activations(again)
    assert torch.equal(again(IDS), little(IDS))


def test_activation_scales_are_learned(little: Little) -> None:
    round_activations(little, PLAN, calibrated(little))
    little(IDS).square().sum().backward()
    assert little.wide.input_activation.log_scale.grad.abs() > 0
    assert static_scale(little.wide, "input_activation") > 0


def test_cache_scales_are_stored_beside_the_attention(little: Little) -> None:
    scale = {("layers.0.self_attn", "k_cache"): torch.tensor(0.5)}
    assert tensors(little, PLAN, scale)["layers.0.self_attn.k_cache_scale"] == 0.5


def test_the_leftmost_pattern_decides() -> None:
    plan = Plan(bits={r"linear$": 8, r"tower": 2}, kept=())
    assert plan.bits_of("tower.linear") == 2
    with pytest.raises(KeyError, match="no bits"):
        plan.bits_of("table")


def test_the_configuration_is_in_googles_words() -> None:
    made = quantization_config(PLAN)
    assert made["quant_method"] == "gemma"
    assert made["module_quant_configs"]["wide"] == {"num_bits": 2}
