"""Command line of the recipe: `python -m train {corpus,fit,export,evaluate} --work FOLDER`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer


def _tokenizer(work: Path) -> Tokenizer:
    """Load the tokenizer, or learn it from the transcripts of the training shards."""
    from train.corpus import TRAINING
    from train.features import Shard
    from train.tokens import train_tokenizer

    path = work / "tokenizer.json"
    if not path.exists():
        shards = [
            Shard(p)
            for pattern in TRAINING
            for p in sorted((work / "shards").glob(pattern + ".jsonl"))
        ]
        train_tokenizer(clip.text for shard in shards for clip in shard.clips).save(str(path))
    return Tokenizer.from_file(str(path))


def corpus(options: argparse.Namespace) -> None:
    """Fetch the recordings, let the voices speak, write the shards and the tokenizer."""
    from train.corpus import build

    build(options.work, options.processes)
    _tokenizer(options.work)


def fit(options: argparse.Namespace) -> None:
    """Train, or go on training."""
    from train.loop import Run, Settings

    Run(options.work, _tokenizer(options.work), Settings(minutes=options.minutes)).train()


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
    stage(fit).add_argument("--minutes", type=float, default=85.0, help="training time in all")
    return made


def main() -> None:
    """Run one stage."""
    options = parser().parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
