"""What a token costs by the model's own dimensions: int8 products, and bytes by the engine's counters."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgegemma.config import TextConfig
    from edgegemma.engine.model import Model

WEIGHTS = (
    "linear",
    "head",
    "float",
    "vector",
    "experts",
)  # kinds of `Counters.read_bytes` that come from the map


def layer_products(text: TextConfig, layer: int) -> int:
    """Products of a position in the quantized linears of one layer."""
    H, P, inner = text.hidden_size, text.hidden_size_per_layer_input, text.intermediate_of(layer)
    kv_heads, dim = text.heads_of(layer)
    queries = text.num_attention_heads * dim
    projections = 1 if text.values_of_keys(layer) else 2
    own = projections * kv_heads * dim * H if layer < text.first_shared_layer else 0
    experts = 3 * text.top_k_experts * text.moe_intermediate_size * H
    return 2 * queries * H + own + 3 * inner * H + 2 * P * H + experts


def products(text: TextConfig, positions: int, logits: int) -> int:
    """Products of a chunk: layers that own K/V see every position, the others and the head those with logits.

    Attention and what is float in every package (`PerLayerInputs`) are not counted.
    """
    first = text.first_shared_layer
    if first == text.num_hidden_layers:  # nothing is shared: the head alone is cut
        return positions * _layers(text, 0, first) + logits * text.vocab_size * text.hidden_size
    tail = _layers(text, first, text.num_hidden_layers) + text.vocab_size * text.hidden_size
    return positions * _layers(text, 0, first) + logits * tail


def _layers(text: TextConfig, start: int, stop: int) -> int:
    return sum(layer_products(text, layer) for layer in range(start, stop))


class Reads:
    """Counts the weight bytes that a model reads from here on; our engine alone knows them."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._before = Counter(model.counters.read_bytes)

    def weights(self) -> int:
        """Bytes from the map since this was made; 0 if the executor does not count."""
        now = self._model.counters.read_bytes
        return sum(now[kind] - self._before[kind] for kind in WEIGHTS)
