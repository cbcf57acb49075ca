"""decoder.onnx: one step over any number of positions, keys and values in and out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto

from edgegemma.config import SLIDING, ModelConfig, TextConfig
from export import embed
from export.builder import LAST, Attribute, Graph
from export.calls import code_shape, weights
from export.functions import needed
from export.functions_text import HEAD, LAYERS
from export.source import F32, WeightSource

NAME = "decoder"
MODULE = "model.language_model"
S, PAST, TOTAL, KEEP = (
    "sequence_length",
    "past_sequence_length",
    "total_sequence_length",
    "num_logits",
)


def build_decoder(config: ModelConfig, source: WeightSource, folder: Path) -> None:
    """Write ``decoder.onnx`` and its data into a folder that has ``embed_tokens.onnx``.

    A tied head takes its bytes from the data of ``embed_tokens.onnx``. Only the last
    ``num_logits_to_keep`` positions (0: all) pass the layers that own no K/V: what the others would
    give there is never read, so this is exact.
    """
    text = config.text
    decoder = _Decoder(Graph(NAME, folder), source, text)
    for layer in range(text.first_shared_layer):
        decoder.own_layer(layer)
    decoder.keep_tail()
    for layer in range(text.first_shared_layer, text.num_hidden_layers):
        decoder.shared_layer(layer)
    decoder.head()
    decoder.g.save(needed(decoder.g.nodes, source.quantized), config.to_json())


def function_of(text: TextConfig, layer: int) -> str:
    """Name the function of a layer."""
    if text.hidden_size_per_layer_input:
        return "DecoderLayer" if layer < text.first_shared_layer else "DecoderLayerShared"
    kind = "Experts" if text.num_experts else "Plain"
    return f"DecoderLayer{kind}{'Tied' if text.values_of_keys(layer) else ''}"


def inverse_frequencies(text: TextConfig, kind: str) -> F32:
    """Give the angular step a position of each rotated pair; 0 where a pair does not rotate.

    A full layer rotates only its first pairs, with exponents over the whole head.

    Returns
    -------
    float32 [D/2]
    """
    sliding = kind == SLIDING
    width = text.head_dim if sliding else text.global_head_dim
    theta = text.sliding_rope_theta if sliding else text.full_rope_theta
    rotated = width // 2 if sliding else int(text.full_partial_rotary_factor * width / 2)
    steps = np.zeros(width // 2, np.float32)
    steps[:rotated] = theta ** (-2.0 * np.arange(rotated) / width)
    return steps


class _Decoder:
    """The graph so far: the running hidden states and what every layer takes beside them."""

    def __init__(self, g: Graph, source: WeightSource, text: TextConfig) -> None:
        self.g, self.source, self.text = g, source, text
        self.hidden = g.input("inputs_embeds", [1, S, text.hidden_size])
        layers, width = text.num_hidden_layers, text.hidden_size_per_layer_input
        per_layer = g.input("per_layer_inputs", [1, S, layers, width]) if width else ""
        self.positions = g.input("position_ids", [1, S], TensorProto.INT64)
        self.keep = g.input("num_logits_to_keep", [], TensorProto.INT64)
        g.output("logits", [1, KEEP, text.vocab_size])
        self.present: dict[int, tuple[str, str]] = {}
        self.tables = {kind: self._table(kind) for kind in dict.fromkeys(text.layer_types)}
        self.per_layer = self._split_owned(self._per_layer_inputs(per_layer)) if width else []

    def own_layer(self, layer: int) -> None:
        """Add a layer that owns K/V."""
        heads, width = self.text.heads_of(layer)
        past = f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"
        present = f"present.{layer}.key", f"present.{layer}.value"
        for name in past:
            self.g.input(name, [1, heads, PAST, width])
        for name in present:
            self.g.output(name, [1, heads, TOTAL, width])
        self.present[layer] = present
        self._layer(layer, past, present)

    def shared_layer(self, layer: int) -> None:
        """Add a layer that reads the K/V of an earlier one."""
        self._layer(layer, self.present[self.text.kv_source(layer)], ())

    def keep_tail(self) -> None:
        """Cut everything that the rest takes to the last positions."""
        start = self.g.op(
            "Reshape", [self.g.op("Neg", [self.keep]), self.g.integers(1)], allowzero=0
        )

        def tail(value: str) -> str:
            ends = [self.g.integers(LAST), self.g.integers(1)]
            return self.g.op("Slice", [value, start, *ends], f"tail.{value}")

        self.hidden = tail(self.hidden)
        count = self.text.num_kv_shared_layers
        if count:
            self.positions = tail(self.positions)
            kinds = dict.fromkeys(self.text.layer_types[self.text.first_shared_layer :])
            self.tables |= {k: (tail(self.tables[k][0]), tail(self.tables[k][1])) for k in kinds}
            self.per_layer[-1:] = self._split(tail(self.per_layer[-1]), [1] * count)

    def head(self) -> None:
        """Add the final norm and the logits."""
        text, g = self.text, self.g
        if self.source.tied_head:
            other = g.folder / f"{embed.NAME}.onnx"
            head = self.source.linear("lm_head")
            g.refer("lm_head.weight", other, f"{embed.TABLE}.weight", code_shape(head))
            scales = (head.rows, head.scale_columns) if head.block else (1, 1)
            g.refer("lm_head.weight_scale", other, f"{embed.TABLE}.weight_scale", scales)
        inputs, attributes = weights(g, self.source, "", HEAD)
        norm = g.tensor(f"{MODULE}.norm.weight", self.source.vector(f"{MODULE}.norm.weight"))
        own: dict[str, Attribute] = {
            "softcap": text.final_logit_softcapping,
            "eps": text.rms_norm_eps,
        }
        g.call("Head", [self.hidden, norm, *inputs], own | attributes, ["logits"], "lm_head")

    def _layer(self, layer: int, cache: tuple[str, str], present: tuple[str, ...]) -> None:
        text, module = self.text, f"{MODULE}.layers.{layer}"
        function = function_of(text, layer)
        inputs, linears = weights(self.g, self.source, f"{module}.", LAYERS[function])
        kv_heads, head_dim = text.heads_of(layer)
        key_scale, value_scale = self.source.cache_scales(text.kv_source(layer))
        attributes: dict[str, Attribute] = {
            "heads": text.num_attention_heads,
            "kv_heads": kv_heads,
            "head_dim": head_dim,
            "window": text.window_of(layer),
            "eps": text.rms_norm_eps,
            "k_cache_scale": float(key_scale),
            "v_cache_scale": float(value_scale),
        }
        if text.num_experts:
            attributes |= {"experts": text.num_experts, "top_k": text.top_k_experts}
        own = self.per_layer[layer : layer + 1]
        state = [self.hidden, *own, *self.tables[text.layer_types[layer]]]
        self.hidden = self.g.call(
            function,
            [*state, self.positions, *cache, *inputs],
            attributes | linears,
            [f"{module}.hidden_states", *present],
            module,
        )[0]

    def _table(self, kind: str) -> tuple[str, str]:
        name = f"{MODULE}.rotary_emb.{kind}"
        steps = self.g.tensor(f"{name}_inv_freq", inverse_frequencies(self.text, kind))
        outputs = [f"{name}.cos", f"{name}.sin"]
        cos, sin = self.g.call("RotaryTable", [self.positions, steps], {}, outputs, name)
        return cos, sin

    def _per_layer_inputs(self, per_layer: str) -> str:
        text, module = self.text, f"{MODULE}.per_layer_model_projection"
        weight = self.g.floats(module, self.source.rows(module))
        norm = f"{MODULE}.per_layer_projection_norm.weight"
        inputs = [self.hidden, per_layer, weight, self.g.tensor(norm, self.source.vector(norm))]
        attributes: dict[str, Attribute] = {
            "layers": text.num_hidden_layers,
            "width": text.hidden_size_per_layer_input,
            "hidden_size": text.hidden_size,
            "eps": text.rms_norm_eps,
        }
        return self.g.call("PerLayerInputs", inputs, attributes, [f"{MODULE}.per_layer"], module)[0]

    def _split_owned(self, per_layer: str) -> list[str]:
        """Give each owner's slice and, last and whole, those of the rest."""
        rest = [self.text.num_kv_shared_layers] if self.text.num_kv_shared_layers else []
        return self._split(per_layer, [1] * self.text.first_shared_layer + rest)

    def _split(self, value: str, sizes: list[int]) -> list[str]:
        outputs = [f"{value}.{i}" for i in range(len(sizes))]
        return list(self.g.add("Split", [value, self.g.integers(*sizes)], outputs, {"axis": 2}))
