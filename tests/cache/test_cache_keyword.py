"""The cache under both of its names, `past_key_values` and from transformers 5.24 on `cache`."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import dynts
from decoding import random_tokens
from dynts.cache.interface import CACHE
from tiny import tiny_model

pytestmark = pytest.mark.quick

CONFIG = dynts.CompressionConfig(budget=24, local_window=5, retention_ratio=0.4)
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 20}
NAMES = sorted({"past_key_values", CACHE})
IDS = torch.tensor([random_tokens(8, seed=1)])


def as_transformers_does(name: str) -> AbstractContextManager[object]:
    """transformers warns of its old name, and dynts leaves that to it."""
    return nullcontext() if name == CACHE else pytest.warns(FutureWarning, match=name)


@pytest.mark.parametrize("name", NAMES)
def test_generate_takes_the_names_that_transformers_takes(name: str) -> None:
    model = tiny_model("llama")
    with dynts.compress(model, "window", CONFIG) as session, as_transformers_does(name):
        cache = session.new_cache()
        first = model.generate(IDS, **{name: cache}, **GREEDY)
        more = torch.cat([first, torch.tensor([[9, 10]])], dim=1)
        second = model.generate(more, **{name: cache}, **GREEDY)
        output = model.generate(IDS, return_dict_in_generate=True, **GREEDY)
        assert torch.equal(output.sequences, first)
        assert torch.equal(model.generate(more, **{CACHE: output[CACHE]}, **GREEDY), second)
    assert cache.occupancy.length <= 24
    assert cache.get_seq_length() == 49


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", ["model", "decoder"])
def test_forward_passes_take_the_names_that_transformers_takes(name: str, part: str) -> None:
    model = tiny_model("llama")
    whole = model if part == "model" else model.get_decoder()
    with dynts.compress(model, "window", CONFIG) as session, torch.no_grad(), as_transformers_does(name):
        cache, expected = session.new_cache(), session.new_cache()
        for start in range(8, 40):
            step = IDS if start == 8 else torch.tensor([[start]])
            given = whole(input_ids=step, **{name: cache})[0]
            assert torch.equal(given, whole(input_ids=step, **{CACHE: expected})[0])
    assert cache.occupancy.length < 24 < cache.get_seq_length()


@pytest.mark.parametrize("name", NAMES)
def test_a_cache_of_another_kind_is_refused_under_either_name(name: str) -> None:
    model = tiny_model("llama")
    with (
        dynts.compress(model, "window", CONFIG),
        pytest.raises(dynts.UnsupportedError, match=f"^{name} of type DynamicCache"),
    ):
        model.generate(IDS, **{name: DynamicCache()}, **GREEDY)


def test_of_both_names_transformers_takes_its_own() -> None:
    if CACHE == "past_key_values":
        pytest.skip("this transformers knows one name")
    model = tiny_model("llama")
    with dynts.compress(model, "window", CONFIG) as session:
        used, ignored = session.new_cache(), session.new_cache()
        with pytest.warns(FutureWarning, match="ignoring"):
            model.generate(IDS, cache=used, past_key_values=ignored, **GREEDY)
    assert used.get_seq_length() == 27
    assert ignored.get_seq_length() == 0
