"""A full-size package of random weights: a random checkpoint, exported."""

from __future__ import annotations

import shutil
from pathlib import Path

from bench import shapes, synth
from edgegemma.console import Report


def write(
    config: shapes.Config,
    out: Path,
    preset: str,
    seed: int = 0,
    tokenizer: Path | None = None,
    report: Report = lambda _what, _done, _total: None,
) -> Path:
    """Write a package; the checkpoint it is made from lies beside it meanwhile.

    Parameters
    ----------
    config : dict
        From `synth.config_of`.
    preset : str
        One of `quant.policy.PRESETS`; "qat-mobile" wants a config of that format.
    """
    from export.pipeline import export

    place = out.with_name(out.name + ".checkpoint")
    source = synth.write(config, place, seed=seed, tokenizer=tokenizer, report=report)
    try:
        return export(source, out, preset, progress=report)
    finally:
        shutil.rmtree(source, ignore_errors=True)
