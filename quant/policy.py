"""Which tensor gets which bits: a table of rules for each preset.

A rule names modules by a pattern (searched in the canonical Hugging Face path), and the first rule that
matches decides. Everything about a model that a rule needs comes from its config, never from its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from edgegemma.config import TextConfig
from edgegemma.errors import CheckpointError, InputError

ROW = 0
"""Block of a rule: one scale a row; for the per-layer table, one for each layer's slice of a row."""


@dataclass(frozen=True)
class Rule:
    """Modules whose path matches ``pattern`` get ``bits`` in blocks of ``block``."""

    pattern: str
    bits: int
    block: int = ROW
    layers: range | None = None
    """Layers the rule holds for; None: all, and modules outside of layers."""

    def matches(self, module: str) -> bool:
        """Whether the rule decides for this module."""
        if not re.search(self.pattern, module):
            return False
        if self.layers is None:
            return True
        layer = re.search(r"\.layers\.(\d+)\.", module)
        return layer is not None and int(layer[1]) in self.layers


@dataclass(frozen=True)
class Preset:
    """A named choice for all weights of a package.

    ``method`` is how codes are made: "source" keeps the checkpoint's own, "rtn" rounds to nearest with
    a scale search, "float" keeps the weights as they are.
    """

    name: str
    method: str
    rules: tuple[Rule, ...] = ()

    def rule(self, module: str) -> Rule:
        """Give the first rule that matches."""
        for rule in self.rules:
            if rule.matches(module):
                return rule
        raise CheckpointError(f"{module}: preset {self.name} has no rule for it")


def _mobile(text: TextConfig) -> tuple[Rule, ...]:
    """Google's mobile mix, from the weights of any checkpoint.

    The model with wide shared layers (E2B) has them at 2 bits and its per-layer table at 4; the one
    without (E4B) the other way round. The larger models have no such checkpoint: attention and dense blocks get what
    E4B's have, experts 2 bits, as a token reads few of them and all must be kept. Routers stay float. Rounding without training loses much more at 2 bits than Google's
    trained codes: the report says how much.
    """
    wide = text.use_double_wide_mlp
    shared = range(text.first_shared_layer, text.num_hidden_layers)
    return (
        Rule(r"^lm_head$|language_model\.embed_tokens$", 2),
        Rule(r"language_model\.embed_tokens_per_layer$", 4 if wide else 2),
        Rule(r"language_model\.layers\.\d+\.self_attn\.", 4),
        Rule(r"language_model\.layers\.\d+\.mlp\.", 2 if wide else 4, layers=shared),
        Rule(r"language_model\.layers\.\d+\.mlp\.", 4),
        Rule(r"language_model\.layers\.\d+\.experts\.", 2),
        Rule(r"\.per_layer_(input_gate|projection)$", 8),
        Rule(r"audio_tower\.layers\.\d+\.lconv1d\.linear_start$", 4),
        Rule(r"audio_tower\.", 2),
    )


def _everything(bits: int, block: int = ROW) -> Callable[[TextConfig], tuple[Rule, ...]]:
    return lambda _: (Rule("", bits, block),)


# name: (method, rules)
_PRESETS: dict[str, tuple[str, Callable[[TextConfig], tuple[Rule, ...]]]] = {
    "qat-mobile": ("source", lambda _: ()),
    "mobile": ("rtn", _mobile),
    "q4": ("rtn", _everything(4, 32)),
    "q8": ("rtn", _everything(8)),
    "float": ("float", lambda _: ()),
}
PRESETS = tuple(_PRESETS)


def check_name(name: str | None) -> None:
    """Refuse a name that is no preset's."""
    if name and name not in _PRESETS:
        raise InputError(f"preset {name!r}: want one of {', '.join(PRESETS)}")


def preset(name: str | None, text: TextConfig, source_quantized: bool) -> Preset:
    """Give a preset for a model.

    Parameters
    ----------
    name : str or None
        One of `PRESETS`; None: "qat-mobile" if the source is quantized, else "mobile".
    source_quantized : bool
        The checkpoint holds Google's 2/4/8-bit codes.

    Raises
    ------
    InputError
        No such preset, or it makes no sense for this source.
    """
    check_name(name)
    name = name or ("qat-mobile" if source_quantized else "mobile")
    method, rules = _PRESETS[name]
    if method == "source" and not source_quantized:
        raise InputError(
            f"preset {name}: it keeps the codes of a QAT-mobile checkpoint, and this one has none; "
            "use mobile, q4, q8 or float"
        )
    if method == "rtn" and source_quantized:
        raise InputError(
            f"preset {name}: the checkpoint is quantized already, and rounding it again only loses; "
            "use qat-mobile (or float, to compare)"
        )
    return Preset(name, method, rules(text))
