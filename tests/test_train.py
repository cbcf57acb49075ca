"""The rules of the training recipe: what may be learnt from, and that a run can be stopped and gone on with."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("hibari")

import torch

from tests.two_devices import two_devices
from train import bank, batches, compare, listening, losses, phones, splices
from train.evaluate import heard, transcribe
from train.features import MELS, Clip
from train.guidance import NEXT, UNKNOWN, best_path, windows
from train.loop import DECODER, TOWER, Run, quantized_parts
from train.processes import fit
from train.recordings import Recording, chosen_keys, divided
from train.schedule import WEIGHTS, Settings
from train.sources import may_train
from train.split import Ban, held_out_keys
from train.texts import Sentences, transcript
from train.tokens import train_tokenizer


def test_recordings_are_divided_by_key_and_by_what_they_say() -> None:
    key, *_ = sorted(held_out_keys())
    said = {key: "Hold the line.", "one": "Hold the door.", "other": "Please, hold the line!"}
    training, testing = divided(Recording(key, text, Path(key)) for key, text in said.items())
    assert [[r.key for r in part] for part in (training, testing)] == [["one"], [key]]


def test_other_takes_of_held_out_sentences_are_held_out_too() -> None:
    keys = [f"take-{number}" for number in range(40)]
    chosen = chosen_keys(Recording(key, "please say this", Path(key)) for key in keys)
    assert chosen == set(keys)


@pytest.mark.parametrize("name", ["fillets-ng-data", "tuxpaint-stamps-default", "unheard-of"])
def test_a_source_without_such_a_licence_is_refused(name: str) -> None:
    with pytest.raises(PermissionError, match=name):
        may_train([name])


def test_no_sentence_contains_a_banned_transcript() -> None:
    prompts = ["please hold the line", "hold the line please", "goodbye now"]
    banned = "hold the line"
    source = Sentences(prompts, Ban({banned}), ["apple", "river"], seed=3)
    said = [transcript(source.draw()) for _ in range(300)]
    assert not [text for text in said if banned in text]


def brute_force(scores: np.ndarray, said: list[int]) -> float:
    """The logarithm of the probability of the best path, by trying all."""
    best = -np.inf
    for path in itertools.product(range(scores.shape[1]), repeat=len(scores)):
        heard = [k for i, k in enumerate(path) if k and (i == 0 or path[i - 1] != k)]
        if heard == said:
            best = max(best, float(sum(scores[i, k] for i, k in enumerate(path))))
    return best


@pytest.mark.parametrize("said", [[1], [1, 2], [1, 1], [2, 1, 2]])
def test_the_best_path_is_the_best_of_all(said: list[int]) -> None:
    scores = np.log(np.random.default_rng(len(said)).dirichlet(np.ones(3), 6))
    (found,) = best_path(scores[:, None], [said], [6])
    assert found is not None
    path = np.zeros(6, dtype=int)
    for phone, first, last in zip(said, *found, strict=True):
        path[first : last + 1] = phone
    assert scores[np.arange(6), path].sum() == pytest.approx(brute_force(scores, said))


def test_a_clip_in_a_batch_has_the_path_it_has_alone() -> None:
    scores = np.log(np.random.default_rng(5).dirichlet(np.ones(4), (9, 2)))
    together = best_path(scores, [[1, 2, 3], [2, 2]], [9, 6])
    alone = best_path(scores[:6, 1:], [[2, 2]], [6])
    assert together[1] is not None
    assert alone[0] is not None
    assert np.array_equal(together[1], alone[0])


def test_a_clip_too_short_for_its_phones_has_no_path() -> None:
    scores = np.log(np.full((2, 1, 3), 1 / 3))
    assert best_path(scores, [[1, 1]], [2]) == [None]


def test_the_answer_is_told_where_its_words_are_and_then_the_end() -> None:
    scores = np.full((8, 1, 3), -9.0)
    for step, phone in enumerate([0, 1, 1, 0, 2, 0, 0, 0]):
        scores[step, 0, phone] = 0.0
    paths = best_path(scores, [[1, 2]], [8])
    found = windows(paths, [8], [1], 5)
    assert found[NEXT, 0].tolist() == [[UNKNOWN] * 2, [0, 4], [3, 6], [5, 8], [UNKNOWN] * 2]


NOTHING = Ban(())
SAID = ["please hold", "two one", "press three", "goodbye now"]
SHORT = Settings(
    cycles=(10, 6),
    batch_frames=240,
    timed_until=0.1,
    tower_from=0.3,
    listen_from=0.4,
    quantised_from=0.6,
    static_from=0.7,
)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder whose clips are noise."""
    for module in (listening, splices):
        monkeypatch.setattr(
            module,
            "sentences",
            lambda work, seed, *_: Sentences(SAID, NOTHING, ["two"], seed, {"spans": 1}),
        )
    for module in (batches, listening):
        monkeypatch.setattr(module, "ban", lambda _: NOTHING)
    monkeypatch.setattr(splices, "COUNT", 5)
    generator = np.random.default_rng(11)
    for name in ("real", "joined", "voices-00", "neural-00", "alone-00", "silence", "aligned-0"):
        frames = generator.standard_normal((len(SAID) * 60, MELS))
        clips = [
            Clip(60 * place, 60, "" if name == "silence" else text, source, f"{name}/{place}")
            for place, text in enumerate(SAID)
            for source in (["hibari", "pico-us"] if name == "voices-00" else [name])
        ]
        path = tmp_path / "shards" / name
        path.parent.mkdir(exist_ok=True)
        np.save(path.with_suffix(".npy"), frames.astype(np.float16))
        path.with_suffix(".jsonl").write_text(
            "\n".join(json.dumps(clip.__dict__) for clip in clips) + "\n"
        )
    phones.write(tmp_path / "phones.json", ["", *SAID])
    return tmp_path


def trained(run: Run, steps: int) -> None:
    """Take some steps."""
    for batch in itertools.islice(run.batches(), steps):
        run.update(batch)


def test_a_run_that_was_stopped_ends_where_one_in_one_piece_does(work: Path) -> None:
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(SAID * 5)
    whole = Run(work, tokenizer, SHORT)
    trained(whole, SHORT.steps)
    for made in whole.folder.glob("bank-*"):
        made.unlink()
    first = Run(work, tokenizer, SHORT)
    trained(first, 8)  # weights and activations are quantised by then
    first.save()
    second = Run(work, tokenizer, SHORT)
    trained(second, SHORT.steps - 8)
    want = whole.model.model.state_dict()
    found = second.model.model.state_dict()
    assert want.keys() == found.keys()
    assert not [name for name in want if not torch.equal(want[name], found[name])]


@pytest.fixture
def any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch asks whether it knows a device, it is told that it does."""
    torch.set_num_threads(1)
    for module in (bank, losses, splices):
        monkeypatch.setattr(module, "short", lambda _: contextlib.nullcontext())
    adam = importlib.import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda *_: None)


@pytest.mark.usefixtures("any_device")
def test_a_whole_run_can_be_on_another_device(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Run, "save", lambda *_: None)  # tensors of the stand-in cannot be written
    tokenizer = train_tokenizer(SAID * 5)
    frames = np.random.default_rng(12).standard_normal((60, MELS), np.float32)
    with two_devices() as elsewhere:
        run = Run(work, tokenizer, SHORT, device=elsewhere)
        trained(run, SHORT.steps)
        assert isinstance(transcribe(run.model, tokenizer, frames), str)
        assert isinstance(heard(run.model, tokenizer, frames, run._word_table), str)


@pytest.mark.usefixtures("any_device")
@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")  # it does copy
@pytest.mark.parametrize("begun", [1, 14])  # in the tower's turn, and in the decoder's second
def test_a_step_on_another_device_is_the_same(work: Path, begun: int) -> None:
    tokenizer = train_tokenizer(SAID * 5)
    here = Run(work, tokenizer, SHORT)
    trained(here, begun)
    here.save()
    trained(here, 1)
    with two_devices() as elsewhere:
        there = Run(work, tokenizer, SHORT, device=elsewhere)
        trained(there, 1)
        found = {n: p.grad.cpu() for n, p in there.model.named_parameters() if p.grad is not None}
    want = {n: p.grad for n, p in here.model.named_parameters() if p.grad is not None}
    assert found.keys() == want.keys()
    assert not [n for n in want if not torch.allclose(found[n], want[n], rtol=1e-3, atol=1e-5)]


def test_a_later_tower_learns_the_words_that_the_first_one_did(work: Path) -> None:
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(SAID * 5)
    run = Run(work, tokenizer, SHORT)
    trained(run, 4)  # the tower's turn
    learnt = run._word_table.detach().clone()
    trained(run, 7)  # the decoder's, and a step of the tower's next
    assert not torch.equal(run.model.model.language_model.embed_tokens.weight, learnt)
    assert torch.equal(run._word_table, learnt)
    run.save()
    assert torch.equal(Run(work, tokenizer, SHORT)._word_table, learnt)


def test_a_run_goes_on_with_its_own_settings_only(work: Path) -> None:
    tokenizer = train_tokenizer(SAID * 5)
    Run(work, tokenizer, SHORT).save()
    replace(SHORT, cycles=(*SHORT.cycles, 4)).check_goes_on(asdict(SHORT))
    with pytest.raises(ValueError, match=r"cycles: got \(10,\); this run has --cycles 10 6"):
        fit(work, tokenizer, replace(SHORT, cycles=(10,)))
    with pytest.raises(ValueError, match="processes: got 3; this run has 2"):
        fit(work, tokenizer, replace(SHORT, processes=3))


def test_a_run_of_another_version_of_the_recipe_is_named_as_such() -> None:
    newer, older = asdict(SHORT) | {"dropout": 0.1}, asdict(SHORT)
    del older["seed"]
    for before, other in ((newer, "dropout"), (older, "seed")):
        with pytest.raises(ValueError, match=f"{other}: this run is of another version"):
            SHORT.check_goes_on(before)


def test_a_run_that_is_not_over_has_no_twins(work: Path) -> None:
    Run(work, train_tokenizer(SAID * 5), SHORT).save()
    with pytest.raises(ValueError, match="is at step 0; want one that is over"):
        compare.prepare(work, compare.BITS)


def test_a_held_out_key_in_a_shard_is_refused(work: Path) -> None:
    path = work / "shards" / "joined.jsonl"
    lines = path.read_text().splitlines()
    clip = json.loads(lines[0])
    clip["key"] = f"vm-goodbye+{min(held_out_keys())}"
    path.write_text("\n".join([json.dumps(clip), *lines[1:]]) + "\n")
    with pytest.raises(ValueError, match="held-out"):
        Run(work, train_tokenizer(SAID * 5), SHORT)


def test_the_twins_start_from_the_weights_behind_the_codes_and_one_stays_without_bits(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(compare, "STEPS", 4)
    tokenizer = train_tokenizer(SAID * 5)
    run = Run(work, tokenizer, replace(SHORT, static_from=math.inf))
    trained(run, run.settings.steps)
    run.save()
    behind = compare.without_bits(run.model.model.state_dict())
    given = compare.settings
    monkeypatch.setattr(
        compare, "settings", lambda *which: replace(given(*which), batch_frames=240)
    )
    for name, parts in ((compare.FLOAT, []), (compare.BITS, [TOWER, DECODER])):
        settings = compare.settings(name)
        assert settings.kinds(0) == WEIGHTS  # from the first batch on
        one = Run(compare.prepare(work, name), tokenizer, settings)
        found = compare.without_bits(one.model.model.state_dict())
        assert behind.keys() == found.keys()
        assert not [key for key in behind if not torch.equal(behind[key], found[key])]
        trained(one, 3)
        assert quantized_parts(one.model) == parts


def test_a_process_waits_for_the_others_as_often_whether_its_bank_is_there_or_not(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    run = Run(work, train_tokenizer(SAID * 5), SHORT)
    met: list[int] = []
    monkeypatch.setattr(run, "_meet", lambda: met.append(run.step))
    run.step = 5  # the decoder's turn
    for _ in range(2):
        run._splice()
        run._listening()
    assert len(met) == 4
