"""Memory, measured from the tensors: a budget of slots, allocated once, written and compacted in place."""

from collections.abc import Iterable, Mapping
from functools import cache as cache_once
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

import dynts
from decoding import random_predictor, random_tokens
from dynts.cache.cache import BudgetCache
from dynts.cache.interface import CACHE
from dynts.cache.lengths import GenerationStats
from dynts.config import Sampling
from dynts.decode.continuous import ContinuousBatch
from dynts.decode.tasks import RowTask, RowToken
from dynts.methods import METHODS, Method, SepLLM
from tiny import SLIDING_WINDOW, tiny_model

BUDGET = 40
CONFIG = dynts.CompressionConfig(budget=BUDGET, local_window=8, retention_ratio=0.4)
PROMPT = 8
SLOT_BYTES = 2 * 2 * 8 * 4
"""Keys and values of one token in one layer: 2 KV heads of size 8 in float32."""
COMPRESSED = [name for name in METHODS if name != "full"]


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama")


def compress(model: PreTrainedModel, name: str | Method) -> dynts.Session:
    """A session of that method; SepLLM must be told its separators, as there is no tokenizer."""
    method = SepLLM(separators=(10, 20, 30)) if name == "sepllm" else name
    return dynts.compress(model, method, CONFIG, random_predictor())


def generate(model: PreTrainedModel, name: str | Method, new: int, rows: int = 1) -> tuple[Any, BudgetCache]:
    """Statistics and cache of a batch that has fed `PROMPT + new` tokens a row."""
    ids = torch.tensor([random_tokens(PROMPT, seed) for seed in range(rows)])
    with compress(model, name) as session:
        out = model.generate(ids, do_sample=False, max_new_tokens=new + 1, return_dict_in_generate=True)
    return session.stats[0], out[CACHE]


@cache_once
def full_cache(rows: int, new: int) -> GenerationStats:
    """Statistics of a full cache that has fed so many tokens."""
    return generate(tiny_model("llama"), "full", new, rows)[0]


def stored(cache: BudgetCache) -> int:
    """Bytes of the storages behind the keys and values of the compacted layers, each counted once."""
    tensors = [tensor for layer in cache.budget_layers for tensor in (layer.keys, layer.values)]
    return sum({part.data_ptr(): part.nbytes() for part in (tensor.untyped_storage() for tensor in tensors)}.values())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("rows", [1, pytest.param(3, marks=pytest.mark.quick)])
def test_peak_bytes_are_those_of_the_budget(model: PreTrainedModel, name: str, rows: int) -> None:
    fed = PROMPT + 110
    stats, cache = generate(model, name, 110, rows)
    full = full_cache(rows, 110)
    # a full cache grows by a sixteenth, or 16 slots, at a time
    assert fed <= full.peak_bytes / (rows * 2 * SLOT_BYTES) <= fed + max(16, fed // 16)
    assert stored(cache) == cache.allocated_bytes == stats.peak_bytes
    for layer in cache.budget_layers:
        for tensor in (layer.keys, layer.values):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
    if name == "full":
        assert stats.peak_tokens == fed
        return
    assert stats.peak_tokens == BUDGET
    assert stats.peak_bytes == rows * BUDGET * 2 * SLOT_BYTES
    # no more than the budget's share of the full cache, and less by the full cache's spare slots only
    assert BUDGET / (fed + 16) <= stats.peak_bytes / full.peak_bytes <= BUDGET / fed
    assert len(stats.compactions) > 4


@pytest.mark.quick
@pytest.mark.parametrize("name", ["dynts", "h2o", "window"])
def test_sliding_window_layers_are_counted(name: str) -> None:
    stats, cache = generate(tiny_model("gemma3"), name, 150)
    # one of the three layers slides; it holds what the last query saw
    assert stats.peak_bytes == (2 * BUDGET + SLIDING_WINDOW) * SLOT_BYTES
    assert cache.allocated_bytes == stats.peak_bytes


@pytest.mark.quick
def test_a_row_has_its_share_of_what_all_rows_have_room_in() -> None:
    shares: list[int] = []

    def tell(token: RowToken) -> bool:
        shares.append(batch.bytes_per_row)
        return len(shares) == 90

    with compress(tiny_model("gemma3"), "window") as session:
        batch = ContinuousBatch(session, rows=5)
        batch.add(RowTask(random_tokens(PROMPT, 1), Sampling(90, 0.0), tell, pytest.fail))
        while not batch.idle:
            batch.step()
    # slots for five rows, one of which is used, and windows for that one
    assert shares[-1] == max(shares) == (2 * BUDGET + SLIDING_WINDOW) * SLOT_BYTES


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_longer_text_takes_no_more_memory(name: str) -> None:
    model = tiny_model("gemma3")
    short, _ = generate(model, name, 50)
    long, cache = generate(model, name, 80)
    assert len(long.compactions) > len(short.compactions) >= 2
    assert long.peak_bytes == short.peak_bytes
    assert long.peak_tokens == short.peak_tokens == BUDGET
    assert stored(cache) == BUDGET * 2 * SLOT_BYTES


@pytest.mark.quick
def test_a_short_text_takes_less_than_the_budget(model: PreTrainedModel) -> None:
    stats, cache = generate(model, "window", 5)
    assert stats.peak_tokens == PROMPT + 5
    assert stats.peak_bytes == stored(cache) < BUDGET * 2 * SLOT_BYTES


@pytest.mark.quick
@pytest.mark.parametrize("name", COMPRESSED)
def test_padding_beyond_the_budget_is_not_stored(model: PreTrainedModel, name: str) -> None:
    rows = [random_tokens(PROMPT, 1), random_tokens(3, 2)]
    with compress(model, name) as session:
        model.generate(
            torch.tensor([[0] * (100 - len(row)) + row for row in rows]),
            attention_mask=torch.tensor([[0] * (100 - len(row)) + [1] * len(row) for row in rows]),
            do_sample=False,
            max_new_tokens=80,
        )
    assert session.stats[0].peak_tokens == BUDGET
    assert session.stats[0].peak_bytes == 2 * BUDGET * 2 * SLOT_BYTES


class Loop:
    """A decode loop that looks at the cache after every step."""

    def __init__(self, model: PreTrainedModel, session: dynts.Session, rows: list[list[int]]) -> None:
        width = max(map(len, rows))
        self.model, self.cache = model, session.new_cache()
        self.inputs = {
            "input_ids": torch.tensor([[0] * (width - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
        }

    def step(self) -> None:
        """Feed the prompt, then one token at a time."""
        with torch.no_grad():
            logits = self.model(**self.inputs, **{CACHE: self.cache}).logits
        self.inputs = {"input_ids": logits[:, -1:].argmax(-1)}


@pytest.mark.quick
@pytest.mark.parametrize("name", [*COMPRESSED, "h2o, native"])
@pytest.mark.parametrize("lengths", [(8,), (3, 8)])
def test_slots_stay_where_they_are(model: PreTrainedModel, name: str, lengths: tuple[int, ...]) -> None:
    method = dynts.methods.H2O(granularity="native") if name == "h2o, native" else name
    with compress(model, method) as session:
        loop = Loop(model, session, [random_tokens(length, length) for length in lengths])
        # references are kept, so that no address is given out twice
        tensors: list[list[Tensor]] = []
        lengths_seen = []
        for _ in range(100):
            loop.step()
            cache = loop.cache
            tensors.append([tensor for layer in cache.budget_layers for tensor in (layer.keys, layer.values)])
            lengths_seen.append(cache.occupancy.length)
            assert cache.occupancy.length < BUDGET
            assert all(tensor.shape[2] <= BUDGET for tensor in tensors[-1])
    addresses = [[tensor.data_ptr() for tensor in step] for step in tensors]
    grown = next(step for step, current in enumerate(tensors) if current[0].shape[2] == BUDGET)
    assert grown < BUDGET - max(lengths)
    assert addresses[grown:] == [addresses[grown]] * (100 - grown)
    # until then the slots grew a few times, not at every step
    assert len({tuple(step) for step in addresses}) <= 3
    assert sum(after < before for before, after in pairwise(lengths_seen)) >= 4


@pytest.mark.quick
@pytest.mark.parametrize("name", [*COMPRESSED, "h2o, native"])
def test_a_compaction_moves_and_scores_its_own_rows_only(
    model: PreTrainedModel, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = dynts.methods.H2O(granularity="native") if name == "h2o, native" else name
    with compress(model, method) as session:
        loop = Loop(model, session, [random_tokens(length, length) for length in (3, 8, 8)])
        loop.step()
        cache, scored = loop.cache, []
        plain = cache.method.score
        monkeypatch.setattr(
            cache.method, "score", lambda slots: (scored.append(slots.columns.shape[1]), plain(slots))[1]
        )
        evictions = []
        for _ in range(90):
            before, keys = list(cache.lengths), [layer.keys.clone() for layer in cache.budget_layers]
            loop.step()
            evicting = [row for row, (old, new) in enumerate(zip(before, cache.lengths, strict=True)) if new <= old]
            if evicting:
                evictions.append(evicting)
            for old, layer in zip(keys, cache.budget_layers, strict=True):
                for row in {0, 1, 2} - set(evicting):
                    assert torch.equal(layer.keys[row, :, : before[row]], old[row, :, : before[row]])
    assert evictions.count([0]) >= 2
    assert evictions.count([1, 2]) >= 2
    assert scored == [len(evicting) for evicting in evictions]


@pytest.mark.quick
def test_a_full_cache_grows_in_steps(model: PreTrainedModel) -> None:
    with compress(model, "full") as session:
        loop = Loop(model, session, [random_tokens(PROMPT, 1)])
        keys: list[Tensor] = []
        for _ in range(300):
            loop.step()
            keys.append(loop.cache.budget_layers[0].keys)
    assert len({tensor.data_ptr() for tensor in keys}) <= 300 // 16 + 1
    for count, tensor in enumerate(keys, start=PROMPT):
        assert count <= tensor.shape[2] <= count + max(16, count // 16)


class Concatenations(TorchDispatchMode):
    """Notes concatenations along the tokens of [batch, heads, tokens, size]."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run the operation."""
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.cat and result.ndim == 4 and result.shape[2] > 1:
            self.tokens.append(result.shape[2])
        return result


@pytest.mark.quick
@pytest.mark.parametrize("name", METHODS)
def test_a_decode_step_concatenates_nothing(model: PreTrainedModel, name: str) -> None:
    with compress(model, name) as session:
        loop = Loop(model, session, [random_tokens(3, 1), random_tokens(8, 2)])
        loop.step()
        for _ in range(70):
            before = loop.cache.occupancy.length
            with Concatenations() as seen:
                loop.step()
            # a compaction may put the last queries together
            if loop.cache.occupancy.length > before:
                assert seen.tokens == []


@pytest.mark.quick
def test_concatenations_would_be_seen(model: PreTrainedModel) -> None:
    with Concatenations() as seen, torch.no_grad():
        cache = model(input_ids=torch.tensor([random_tokens(8, 1)]))[CACHE]
        seen.tokens.clear()
        model(input_ids=torch.tensor([[9]]), **{CACHE: cache})
    # keys and values of two layers
    assert seen.tokens == [9] * 4


def tensors_in(value: object) -> Iterable[Tensor]:
    """All tensors in nested containers; modules, such as a predictor, belong to others."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, Iterable) and not isinstance(value, str | torch.nn.Module):
        for item in value:
            yield from tensors_in(item)


def held_bytes(holder: object) -> int:
    """Bytes of the storages that an object keeps alive."""
    storages = [tensor.untyped_storage() for tensor in tensors_in(vars(holder))]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("name", METHODS)
def test_bookkeeping_is_a_few_bytes_a_token(model: PreTrainedModel, name: str) -> None:
    with compress(model, name) as session:
        loop = Loop(model, session, [random_tokens(PROMPT, 1), random_tokens(PROMPT, 2)])
        held = []
        for step in range(120):
            loop.step()
            # measured at the same point between two compactions: one comes every 15 steps
            if step in (53, 113):
                cache = loop.cache
                held.append(held_bytes(cache.method) + held_bytes(cache.history))
    # token, position and at most one score, for 2 rows and 60 tokens more
    assert held[1] - held[0] <= 2 * 60 * (8 + 8 + 4)
