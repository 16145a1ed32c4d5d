"""Layers that keep a state: what a failed pass leaves, what is refused, and models that forget their state.

That they are compressed exactly is tested beside the others: tests/methods/test_equivalence.py, tests/decode.
"""

from itertools import pairwise
from typing import Any

import pytest
import torch
from transformers import DynamicCache, PreTrainedModel

import dynts
from against_reference import CONFIG, STATES_TOLERANCE, check_row, reference_of
from decoding import converse, padded, random_tokens
from dynts.cache.interface import CACHE
from dynts.decode.call import CHUNKS_GO_ON
from dynts.decode.forward import forced_spans
from dynts.errors import UnsupportedError
from joined_rows import Joining, check_joined, run_joining
from method_table import CASES
from reference import Turn
from tiny import FORGETFUL, STATEFUL, tiny_model


def states_of(cache: Any) -> list[torch.Tensor]:
    """All states that count, copied."""
    return [state.clone() for layer in cache.state_layers for state in layer.tensors()]


@torch.no_grad()
@pytest.mark.quick
@pytest.mark.parametrize("architecture", STATEFUL)
def test_a_pass_that_fails_leaves_the_states_as_they_were(architecture: str) -> None:
    model, ids = tiny_model(architecture), torch.tensor([random_tokens(30, 3)])
    with dynts.compress(model, "full") as session:
        cache = session.new_cache()

        def feed(start: int, stop: int) -> torch.Tensor:
            return model(input_ids=ids[:, start:stop], **{CACHE: cache}).logits[:, -1]

        def failing(*_: Any) -> None:
            raise RuntimeError("after all layers")

        for start, stop in ((0, 11), (11, 12), (12, 16), (16, 30)):
            before = states_of(cache)
            with model.get_decoder().register_forward_hook(failing), pytest.raises(RuntimeError, match="after all"):
                feed(start, stop)
            after = states_of(cache)
            assert [state.tolist() for state in after] == [state.tolist() for state in before]
            logits = feed(start, stop)
    plain = model(input_ids=ids, use_cache=False).logits[:, -1]
    assert cache.lengths == (30,), "nothing was evicted"
    torch.testing.assert_close(logits, plain, atol=2e-5, rtol=0)


@pytest.mark.quick
def test_padding_that_would_enter_a_state_is_refused() -> None:
    model = tiny_model("lfm2")
    short, long = random_tokens(4, 1), random_tokens(7, 2)
    inputs, right = padded(short, long), torch.tensor([[1] * 4 + [0] * 3, [1] * 7])
    with dynts.compress(model, "window", CONFIG) as session:
        with pytest.raises(UnsupportedError, match="pad on the left"):
            model.generate(inputs["input_ids"], attention_mask=right, max_new_tokens=2)
        with pytest.raises(UnsupportedError, match="chunks of 2 columns or more"):
            model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=1)
        cache = session.new_cache()
        model(**inputs, **{CACHE: cache})
        before = states_of(cache)
        mask = torch.cat([inputs["attention_mask"], torch.tensor([[0, 1], [1, 1]])], dim=1)
        with pytest.raises(UnsupportedError, match="turns of different lengths one by one"):
            model(input_ids=torch.tensor([[0, 9], [9, 9]]), attention_mask=mask, **{CACHE: cache})
        hidden = torch.cat([inputs["attention_mask"], torch.ones(2, 2, dtype=torch.long)], dim=1)
        hidden[1, 6] = 0
        with pytest.raises(UnsupportedError, match="cannot take them out of their state"):
            model(input_ids=torch.full((2, 2), 9), attention_mask=hidden, **{CACHE: cache})
        assert all(map(torch.equal, states_of(cache), before))
        cache.check_integrity()


@pytest.mark.quick
def test_no_compiled_steps() -> None:
    with pytest.raises(UnsupportedError, match="layers that keep a state"):
        dynts.compress(tiny_model("qwen3_5"), "window", CONFIG, compile=True)


def test_rows_take_their_states_along() -> None:
    for architecture, name in (("qwen3_next", "dynts, native"), ("granite", "window"), ("falcon_h1", "window")):
        model = tiny_model(architecture)
        stream = [Joining(random_tokens(n, n), at, length) for n, at, length in ((5, 0, 36), (9, 0, 3), (14, 2, 25))]
        run_joining(model, name, stream, rows=2, prefill_tokens=8)
        for each in stream:
            check_joined(model, name, each)


@torch.no_grad()
def forgets(model: PreTrainedModel) -> bool:
    """Whether transformers alone gives something else when later tokens come together."""
    ids, logits = torch.tensor([random_tokens(12, 7)]), []
    for cuts in ((0, 5, 12), (0, *range(5, 13))):
        cache = DynamicCache(config=model.config)
        for start, stop in pairwise(cuts):
            positions = torch.arange(start, stop)[None]
            output = model(input_ids=ids[:, start:stop], position_ids=positions, **{CACHE: cache})
        logits.append(output.logits[0, -1])
    return bool((logits[0] - logits[1]).abs().max() > 1e-3)


@pytest.mark.quick
@pytest.mark.parametrize("architecture", [*STATEFUL, *FORGETFUL])
def test_which_models_forget(architecture: str) -> None:
    assert forgets(tiny_model(architecture)) == (architecture in FORGETFUL)


def test_models_that_forget_are_fed_one_token_at_a_time() -> None:
    # the reference cannot tell the layers of Zamba, which share their attention
    model, prompts = tiny_model("jamba"), [random_tokens(13, 9), random_tokens(4, 10)]
    ids = torch.tensor([random_tokens(30, 3)])
    with torch.no_grad(), dynts.compress(model, "window", CONFIG) as session:
        cache = session.new_cache()
        for start, stop in forced_spans(cache, 7, 30):
            logits = model(input_ids=ids[:, start:stop], **{CACHE: cache}).logits[0, -1]
        with pytest.raises(UnsupportedError, match="prefill_chunk_size=1"):
            model(input_ids=ids[:, :2], **{CACHE: cache})
    run = reference_of(model, "window", [Turn(ids[0, :7].tolist(), 24)], [[*ids[0, 7:].tolist(), 0]])
    torch.testing.assert_close(logits, run.logits[0][-1], atol=2e-5, rtol=0)
    if CHUNKS_GO_ON:
        model.generation_config.prefill_chunk_size = 1
        talk = converse(model, [([prompt], 22) for prompt in prompts], CASES["window"].method, CONFIG)
        turns = [Turn(prompt, 22) for prompt in prompts]
        check_row(
            talk, 0, reference_of(model, "window", turns, [tokens[0] for tokens in talk.tokens]), STATES_TOLERANCE
        )
    stream = [Joining(random_tokens(11, 1), 0, 24)]
    run_joining(model, "window", stream, rows=2, prefill_tokens=4)
    check_joined(model, "window", stream[0])
