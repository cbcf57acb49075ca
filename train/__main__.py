"""Command line of the recipe: `python -m train {corpus,fit,export,compare,evaluate,engine,card} --work FOLDER`.

The stages are run in this order; each reads what the one before left in the work folder. `python -m train all` runs
them one after the other, and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from edgegemma.errors import EdgeGemmaError
from train.schedule import OtherRunError, Settings

if TYPE_CHECKING:
    from train.features import Shard


TOKENIZER_SEED, TOKENIZER_TEXTS = 30_000, 40_000


def _built_shards(work: Path) -> list[Shard]:
    """Give the shards to train on, without those that a run itself makes: they bring their phones."""
    from train.corpus import training_shards
    from train.features import Shard
    from train.splices import KIND

    return [Shard(path) for path in training_shards(work) if not path.stem.startswith(KIND)]


def _tokenizer(work: Path) -> Tokenizer:
    """Load the tokenizer, or learn it from the prompts and from sentences like those of the voices."""
    from train.corpus import sentences
    from train.recordings import divided, prompts
    from train.texts import transcript
    from train.tokens import train_tokenizer
    from train.translations import Translations

    path = work / "tokenizer.json"
    if not path.exists():
        training, _ = divided(prompts(work))
        source = sentences(work, TOKENIZER_SEED)
        texts = [recording.transcript for recording in training] * 10
        texts += [transcript(source.draw()) for _ in range(TOKENIZER_TEXTS)]
        pairs = Translations(TOKENIZER_SEED)
        spanish = [pairs.draw()[1] for _ in range(TOKENIZER_TEXTS)]
        train_tokenizer(texts, spanish).save(str(path))
    return Tokenizer.from_file(str(path))


def corpus(options: argparse.Namespace) -> None:
    """Fetch the recordings, let the voices speak, write the shards and the tokenizer."""
    from train import phones
    from train.corpus import PHONES, build

    build(options.work, options.processes)
    shards = _built_shards(options.work)
    phones.write(options.work / PHONES, (clip.text for shard in shards for clip in shard.clips))
    _tokenizer(options.work)


def fit(options: argparse.Namespace) -> None:
    """Train, or go on training."""
    from train import processes

    settings = Settings(cycles=tuple(options.cycles), processes=options.processes)
    processes.fit(options.work, _tokenizer(options.work), settings)


def export(options: argparse.Namespace) -> None:
    """Write the checkpoint from the last saved state of the training."""
    from train import checkpoint, saved

    model, tokenizer = saved.saved_model(options.work), _tokenizer(options.work)
    scales = saved.cache_scales(options.work, model, tokenizer)
    checkpoint.write(options.checkpoint, model, tokenizer, scales)


def compare(options: argparse.Namespace) -> None:
    """Train the model on for a while with its bits, and as long without them."""
    from train import compare

    compare.train(options.work, _tokenizer(options.work), options.processes)


def evaluate(options: argparse.Namespace) -> None:
    """Measure the written checkpoint, pick samples it gets right, draw the losses."""
    from train import report

    made = report.evaluate(options.work, options.checkpoint)
    report.write_samples(options.work, options.checkpoint, made)
    report.draw_losses(options.work, options.work / "losses.png")
    for name, values in made["sets"].items():
        print(name, values)


def engine(options: argparse.Namespace) -> None:
    """Measure a package with the runtime's own engine; what of the recordings is missing is fetched."""
    from train import engine, recordings

    recordings.fetch(options.work)
    for name, values in engine.measure(options.work, options.package):
        print(name, values, flush=True)


def card(options: argparse.Namespace) -> None:
    """Print the model card: `card.md` with what `evaluate` and `engine` found and the run's log says."""
    from train.card import card

    print(card(options.work, options.checkpoint))


def every(options: argparse.Namespace) -> None:
    """Run the stages up to `evaluate`; shards and steps that are there already are not made again."""
    for stage in (corpus, fit, export, compare, evaluate):
        stage(options)


OPTIONS: dict[str, dict[str, Any]] = {
    "--work": {"type": Path, "default": Path("build/demo"), "help": "where everything is kept"},
    "--processes": {"type": int, "default": 2, "choices": range(1, 65), "metavar": "N"},
    "--cycles": {
        "type": int,
        "nargs": "+",
        "default": Settings.cycles,
        "help": "steps of each turn of tower and decoder",
    },
    "--checkpoint": {"type": Path, "required": True, "help": "its folder"},
    "--package": {"default": "demo", "help": "its name or folder; by default the one that ships"},
}
STAGES: dict[str, tuple[Callable[[argparse.Namespace], None], tuple[str, ...]]] = {
    "corpus": (corpus, ("--processes",)),
    "fit": (fit, ("--processes", "--cycles")),
    "export": (export, ("--checkpoint",)),
    "compare": (compare, ("--processes",)),
    "evaluate": (evaluate, ("--checkpoint",)),
    "engine": (engine, ("--package",)),
    "card": (card, ("--checkpoint",)),
    "all": (every, ("--processes", "--cycles", "--checkpoint")),
}
"""What each does, and its options beside `--work`."""


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    made = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    stages = made.add_subparsers(required=True)
    for name, (run, options) in STAGES.items():
        stage = stages.add_parser(name, help=run.__doc__, description=run.__doc__)
        for option in ("--work", *options):
            stage.add_argument(option, **OPTIONS[option])
        stage.set_defaults(run=run)
    return made


def main() -> None:
    """Run one stage."""
    options = parser().parse_args()
    try:
        options.run(options)
    except (FileNotFoundError, OtherRunError, EdgeGemmaError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
