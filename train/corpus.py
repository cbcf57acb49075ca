"""The corpus: shards of real prompts, synthetic speech and silence, and the test sets.

Training shards
    `real`: every training prompt as recorded and in changed copies;
    `joined`: short training prompts played one after the other, as a telephone system does;
    `voices-NN`, `more-NN`, `neural-NN`: made-up sentences by the synthetic voices;
    `alone-NN`: single words by all of them;
    `aligned-N`: short ones of these by Hibari, with the times of the phones;
    `silence`: clips without speech, to which the answer is nothing: made, and from the pauses of the prompts;
    `spliced-N`: words of the prompts in another order, made by the run itself (`splices`).

Test shards
    `held-out`: the held-out prompts; `unseen-voice`: made-up sentences that no voice says for training, by one that is never
    trained on, in `unseen-voice-further` more of these, each once, at which nobody looked while the recipe was made, in `unseen-voice-known-texts`
    others, and in `unseen-voice-disorder` words in no order; `translation`: sentences with their Spanish, by that voice and a known one;
    `librivox`: read literature, out of scope; `tux-paint`: animals by another person, out of scope; `no-speech`: silence and noise, made, and from the pauses of the held-out prompts.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from train import augment
from train.features import write_shard
from train.recordings import (
    RECORDED,
    Recording,
    ban_on,
    divided,
    fetch,
    librivox,
    pauses,
    prompts,
    tux_paint,
)
from train.scope import scope, training_scope, within
from train.sources import may_train
from train.split import Ban
from train.texts import ALONE, MEANT, SPOKEN, Sentences, transcript
from train.translations import Translations
from train.voices import (
    ALONE_SHARES,
    MORE_SHARES,
    NEURAL_SHARES,
    SAMPLE_RATE,
    SHARES,
    UNSEEN_VOICE,
    VOICES,
    Samples,
)

TESTS = (
    "held-out",
    "unseen-voice",
    "unseen-voice-further",
    "unseen-voice-known-texts",
    "unseen-voice-disorder",
    "translation",
    "librivox",
    "tux-paint",
    "no-speech",
)
LOOKED_AT, FURTHER = 150, 900
"""Phrases of the unseen voice by which the schedule was chosen, and others."""
PHONES = "phones.json"
CLIPS_PER_SHARD = 1_000
ALIGNED_SHARDS, ALIGNED_CLIPS, LONGEST_ALIGNED = 3, 700, 8
COPIES = 8
JOINED = 2_500
LONGEST_SECONDS = 12.0


class Said(NamedTuple):
    """Shards of made-up sentences."""

    shards: int
    seed: int  # of the first shard
    shares: Mapping[str, float]
    kinds: Mapping[str, int] = SPOKEN


SAID = {
    "voices": Said(12, 0, SHARES),
    "more": Said(6, 50_000, MORE_SHARES),
    "neural": Said(2, 60_000, NEURAL_SHARES),
    "alone": Said(2, 70_000, ALONE_SHARES, ALONE),
}
TRAINING = ("real", "joined", *(f"{kind}-*" for kind in SAID), "silence", "aligned-*", "spliced-*")


def training_shards(work: Path) -> list[Path]:
    """List the training shards that are there."""
    return [p for kind in TRAINING for p in sorted((work / "shards").glob(kind + ".jsonl"))]


Spoken = Iterator[tuple[Samples, str, str, str]]
"""Samples, transcript, source and key of each clip."""


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def training_prompts(work: Path) -> list[Recording]:
    """List the prompts to train on."""
    return divided(prompts(work))[0]


def ban(work: Path) -> Ban:
    """Give what no training clip may say."""
    return ban_on(divided(prompts(work))[1])


def _trimmed(recordings: list[Recording]) -> list[tuple[Recording, Samples]]:
    decoded = [(recording, recording.samples()) for recording in recordings]
    return [(r, samples) for r, samples in decoded if len(samples) <= LONGEST_SECONDS * SAMPLE_RATE]


def real(work: Path) -> Spoken:
    """Give every training prompt as it is, then changed copies of it."""
    training = training_prompts(work)
    generator = _generator("real")
    for recording, samples in _trimmed(training):
        yield samples, recording.transcript, "real", recording.key
        for _ in range(COPIES):
            changed = augment.paced(samples, generator.uniform(0.88, 1.14))
            yield augment.degraded(changed, generator), recording.transcript, "real", recording.key


def joined(work: Path) -> Spoken:
    """Play two to six short training prompts one after the other."""
    training, testing = divided(prompts(work))
    generator, banned, made = _generator("joined"), ban_on(testing), 0
    short = [(r, samples) for r, samples in _trimmed(training) if len(samples) < 3.2 * SAMPLE_RATE]
    while made < JOINED:
        picked = [short[i] for i in generator.integers(0, len(short), generator.integers(2, 7))]
        while len(picked) > 2 and sum(len(samples) for _, samples in picked) > 8 * SAMPLE_RATE:
            picked.pop()
        text = " ".join(recording.transcript for recording, _ in picked)
        if banned.on(text):
            continue
        made += 1
        gap = int(generator.uniform(0, 0.15) * SAMPLE_RATE)
        samples = np.concatenate([np.pad(samples, (0, gap)) for _, samples in picked])
        samples = augment.paced(samples, generator.uniform(0.9, 1.12))
        yield (
            augment.degraded(samples, generator),
            text,
            "joined",
            "+".join(r.key for r, _ in picked),
        )


def sentences(
    work: Path, seed: int, kinds: Mapping[str, int] = SPOKEN, *, testing: bool = False
) -> Sentences:
    """Make the source of synthetic texts, for training or of those kept for testing."""
    training, held_out = divided(prompts(work))
    texts = [recording.text for recording in training]
    words = sorted(scope(texts))
    return Sentences(texts, ban_on(held_out), words, seed, kinds, testing=testing)


def voices(work: Path, said: Said, number: int) -> Spoken:
    """Let synthetic voices say the made-up sentences of a shard, each its share of them."""
    shard, shares = said.seed + number, said.shares
    source, generator = sentences(work, shard, said.kinds), _generator(f"voices-{shard}")
    for clip in range(CLIPS_PER_SHARD):
        voice = str(generator.choice(list(shares), p=list(shares.values())))
        text = source.draw()
        samples = VOICES[voice](text, float(generator.uniform(0.8, 1.25)))
        samples = augment.paced(samples, generator.uniform(0.86, 1.18))
        if 0.2 * SAMPLE_RATE < len(samples) <= LONGEST_SECONDS * SAMPLE_RATE:
            yield augment.degraded(samples, generator), transcript(text), voice, f"{shard}/{clip}"


def aligned(work: Path, shard: int) -> Iterator[tuple[Any, ...]]:
    """Let Hibari say short sentences and tell when each phone ends."""
    from train.aligned import spoken

    source, generator = sentences(work, 20_000 + shard), _generator(f"aligned-{shard}")
    made = 0
    while made < ALIGNED_CLIPS:
        text = source.draw()
        if len(text.split()) > LONGEST_ALIGNED:
            continue
        samples, timed = spoken(text, float(generator.uniform(0.85, 1.2)), made)
        pace, before = generator.uniform(0.92, 1.1), generator.uniform(0, 0.3)
        samples = np.pad(augment.paced(samples, pace), (int(before * SAMPLE_RATE), 0))
        times = tuple((phone, round(end / pace + before, 3)) for phone, end in timed)
        changed = augment.degraded(samples, generator, pad=False)
        yield changed, transcript(text), "aligned", f"{shard}/{made}", times
        made += 1


def silence(name: str, count: int) -> Spoken:
    """Make clips in which nobody speaks."""
    generator = _generator(name)
    for number in range(count):
        yield augment.silence(generator), "", "silence", f"{name}/{number}"


def recorded_silence(recordings: list[Recording], name: str, count: int) -> Spoken:
    """Make clips of what is heard in recordings while nobody speaks."""
    generator = _generator(name)
    quiet = [pause for recording in recordings for pause in pauses(recording.samples())]
    for number in range(count):
        yield augment.room_tone(quiet, generator), "", "silence", f"{name}/{number}"


def unseen_voice(work: Path, kinds: Mapping[str, int], *, testing: bool = True) -> Spoken:
    """Let the voice kept for testing say phrases of the scope that are kept for testing, too, or others, without end."""
    source = sentences(work, 10_000, kinds, testing=testing)
    known, made = training_scope(work), 0
    while True:
        text = source.draw()
        samples, said = VOICES[UNSEEN_VOICE](text, 1.0), transcript(text)
        if within(said, known, len(samples) / SAMPLE_RATE):
            yield samples, said, UNSEEN_VOICE, f"test/{made}"
            made += 1


def further(clips: Spoken, after: int) -> Spoken:
    """Leave out the first clips, and all that say the same as an earlier one."""
    said = set()
    for number, clip in enumerate(clips):
        if clip[1] not in said and number >= after:
            yield clip
        said.add(clip[1])


def translated(count: int) -> Iterator[tuple[Any, ...]]:
    """Let a known and the unseen voice say sentences kept for testing, of which the translation is known."""
    source, drawn = Translations(10_000, testing=True), set()
    while len(drawn) < count:
        english, spanish = source.draw()
        if english not in drawn:
            voice = ("hibari", UNSEEN_VOICE)[len(drawn) % 2]
            yield VOICES[voice](english, 1.0), english, voice, f"test/{len(drawn)}", (), spanish
            drawn.add(english)


def as_recorded(recordings: list[Recording], source: str) -> Spoken:
    """Give recordings unchanged."""
    for recording in recordings:
        yield recording.samples(), recording.transcript, source, recording.key


def clips_for_testing(work: Path, name: str) -> Iterator[tuple[Any, ...]]:
    """Give the clips of a test set: samples, transcript, source, key, and of some phone times and translation."""
    return {
        "held-out": lambda: as_recorded(divided(prompts(work))[1], "held-out"),
        "unseen-voice": lambda: islice(unseen_voice(work, MEANT), LOOKED_AT),
        "unseen-voice-further": lambda: islice(
            further(unseen_voice(work, MEANT), LOOKED_AT), FURTHER
        ),
        "unseen-voice-known-texts": lambda: islice(unseen_voice(work, MEANT, testing=False), 150),
        "unseen-voice-disorder": lambda: islice(
            unseen_voice(work, {"any_words": 1, "spans": 1}), 60
        ),
        "translation": lambda: translated(120),
        "librivox": lambda: as_recorded(librivox(work), "librivox"),
        "tux-paint": lambda: as_recorded(tux_paint(work), "tux-paint"),
        "no-speech": lambda: chain(
            silence("no-speech", 100),
            recorded_silence(divided(prompts(work))[1], "recorded-no-speech", 20),
        ),
    }[name]()


def clips_for_training(work: Path, name: str) -> Iterator[tuple[Any, ...]]:
    """Give the clips of a training shard, likewise."""
    kind, _, number = name.partition("-")
    if kind in SAID:
        return voices(work, SAID[kind], int(number))
    if kind == "aligned":
        return aligned(work, int(number))
    return {
        "real": lambda: real(work),
        "joined": lambda: joined(work),
        "silence": lambda: chain(
            silence("silence", 2_000),
            recorded_silence(training_prompts(work), "recorded-silence", 500),
        ),
    }[name]()


def _write(work: Path, name: str) -> str:
    path = work / "shards" / name
    if not path.with_suffix(".jsonl").exists():
        made = clips_for_testing if name in TESTS else clips_for_training
        write_shard(path, made(work, name))
    return name


def save_held_out(work: Path) -> None:
    """Write the held-out recordings as 16 kHz sound files with their transcripts."""
    folder, references = work / "heldout", []
    folder.mkdir(parents=True, exist_ok=True)
    for recording in divided(prompts(work))[1]:
        file = recording.key.replace("/", "_") + ".wav"
        soundfile.write(folder / file, recording.samples(), SAMPLE_RATE, subtype="PCM_16")
        references.append({"file": file, "key": recording.key, "text": recording.transcript})
    (folder / "refs.json").write_text(json.dumps(references, indent=1))


def build(work: Path, processes: int = 2) -> None:
    """Fetch the recordings and write every shard that is missing."""
    for said in SAID.values():
        may_train(said.shares)
    may_train((*RECORDED, "hibari"))
    fetch(work)
    save_held_out(work)
    names = [f"{kind}-{n:02}" for kind, said in SAID.items() for n in range(said.shards)]
    names.sort(key=lambda name: not name.startswith("neural"))  # the slowest first
    names += [f"aligned-{n}" for n in range(ALIGNED_SHARDS)]
    names += ["joined", "real", "silence", *TESTS]
    with ProcessPoolExecutor(processes) as pool:
        for name in pool.map(_write, [work] * len(names), names):
            print("shard", name, flush=True)
