"""A token that is decoded in one step, on either executor: what comes of it, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from edgegemma.engine.model import EXECUTORS, Model, open_model
from edgegemma.errors import InputError
from tests import packages
from tests.fake_source import CONFIG

TEXT = CONFIG.text
IDS = np.random.default_rng(4).integers(0, TEXT.vocab_size, 20)


@pytest.fixture(scope="module", params=EXECUTORS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = packages.small(tmp_path_factory.mktemp("package") / "small", "codes")
    return open_model(folder, request.param, threads=1)


@pytest.mark.parametrize("token", [-1, TEXT.vocab_size])
def test_a_decoded_id_beyond_the_vocabulary_is_refused(model: Model, token: int) -> None:
    cache = model.new_cache()
    with pytest.raises(InputError, match="decode: got an id beyond the vocabulary; want 0 to 191"):
        model.decode(token, cache)
    assert cache.length == 0


def test_a_token_beyond_the_context_is_refused_before_it_is_decoded(model: Model) -> None:
    cache = model.new_cache(capacity=20)
    model.forward(*model.embed(IDS), cache, num_logits=0)
    with pytest.raises(InputError, match="got 21 positions; want at most 20; shorten"):
        model.decode(3, cache)
    assert cache.length == 20


def test_decoding_is_looking_up_and_reading(model: Model) -> None:
    one, other = model.new_cache(), model.new_cache()
    for n in range(6):
        found = model.decode(int(IDS[n]), one)
        want = model.forward(*model.embed(IDS[n : n + 1]), other)
        np.testing.assert_array_equal(found[None], want)
