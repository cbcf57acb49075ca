"""Command line of the recipe: `python -m train {corpus,fit,export,evaluate} --work FOLDER`.

The stages are run in this order; each reads what the one before left in the work folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

if TYPE_CHECKING:
    from train.features import Shard


def _training_shards(work: Path) -> list[Shard]:
    from train.corpus import TRAINING
    from train.features import Shard

    paths = [p for name in TRAINING for p in sorted((work / "shards").glob(name + ".jsonl"))]
    return [Shard(path) for path in paths]


def _tokenizer(work: Path) -> Tokenizer:
    """Load the tokenizer, or learn it from the transcripts of the training shards."""
    from train.tokens import train_tokenizer

    path = work / "tokenizer.json"
    if not path.exists():
        shards = _training_shards(work)
        train_tokenizer(clip.text for shard in shards for clip in shard.clips).save(str(path))
    return Tokenizer.from_file(str(path))


def corpus(options: argparse.Namespace) -> None:
    """Fetch the recordings, let the voices speak, write the shards and the tokenizer."""
    from train import phones
    from train.corpus import PHONES, build

    build(options.work, options.processes)
    shards = _training_shards(options.work)
    phones.write(options.work / PHONES, (clip.text for shard in shards for clip in shard.clips))
    _tokenizer(options.work)


def fit(options: argparse.Namespace) -> None:
    """Train, or go on training."""
    from train import loop
    from train.schedule import Settings

    settings = Settings(steps=options.steps, processes=options.processes)
    loop.fit(options.work, _tokenizer(options.work), settings)


def export(options: argparse.Namespace) -> None:
    """Write the checkpoint from the last saved state of the training."""
    from train import checkpoint, loop

    model, tokenizer = loop.saved_model(options.work), _tokenizer(options.work)
    scales = loop.cache_scales(options.work, model, tokenizer)
    checkpoint.write(options.checkpoint, model, tokenizer, scales)


def evaluate(options: argparse.Namespace) -> None:
    """Measure the written checkpoint, pick samples it gets right, draw the losses."""
    from train import report

    made = report.evaluate(options.work, options.checkpoint)
    report.write_samples(options.work, options.checkpoint, made)
    report.draw_losses(options.work, options.work / "losses.png")
    for name, values in made["sets"].items():
        print(name, values)


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    made = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    stages = made.add_subparsers(required=True)

    def stage(run: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        added = stages.add_parser(run.__name__, help=run.__doc__, description=run.__doc__)
        added.add_argument(
            "--work", type=Path, default=Path("build/demo"), help="where everything is kept"
        )
        added.set_defaults(run=run)
        return added

    stage(corpus).add_argument("--processes", type=int, default=2)
    fitting = stage(fit)
    fitting.add_argument("--steps", type=int, default=14_000, help="of the whole run")
    fitting.add_argument("--processes", type=int, default=2)
    for run in (export, evaluate):
        stage(run).add_argument("--checkpoint", type=Path, required=True, help="its folder")
    return made


def main() -> None:
    """Run one stage."""
    options = parser().parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
