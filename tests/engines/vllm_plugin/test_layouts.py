"""Moving slots in vLLM's KV cache layouts, against a plain gather of keys and values: no vLLM needed."""

import pytest
import torch

from dynts.engines.scorer import own_heads
from dynts.engines.vllm.layouts import LAYOUTS, Move, move_slots, move_slots_cpu, moves_as_written

BLOCKS, HEADS, SIZE, WIDTH = 5, 2, 16, 8
# physical orders of [blocks, heads, block size, key and value], as vLLM names them for one layer
ORDERS = {"HND": (0, 1, 2, 3), "NHD": (0, 2, 1, 3), "heads outermost": (1, 0, 2, 3)}


def plain(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The cache as FlashAttention, FlashInfer and Triton see it; key and value are [slots, heads, head size]."""
    return torch.cat([key, value], dim=-1).view(BLOCKS, SIZE, HEADS, 2 * WIDTH).transpose(1, 2)


def cpu(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """As vLLM's CPU attention stores it: in each block and head, first keys [head size, block size], then values."""
    shape = (BLOCKS, SIZE, HEADS, WIDTH)
    keys, values = key.view(shape).permute(0, 2, 3, 1), value.view(shape).permute(0, 2, 1, 3)
    return torch.cat([keys.flatten(2), values.flatten(2)], dim=-1).view(BLOCKS, HEADS, SIZE, 2 * WIDTH).contiguous()


def made(form: str, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    if form == "cpu":
        return cpu(key, value)
    order = ORDERS[form]
    physical = plain(key, value).permute(order).contiguous()
    return physical.permute(*(order.index(axis) for axis in range(4)))


@pytest.mark.parametrize(("form", "move"), [*((order, move_slots) for order in ORDERS), ("cpu", move_slots_cpu)])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("apart", [False, True], ids=["all heads", "head by head"])
def test_moving_equals_a_copy_of_each_slot_and_head(form: str, move: Move, apart: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    key, value = torch.randn(2, BLOCKS * SIZE, HEADS, WIDTH, generator=generator)
    target, *sources = (torch.randperm(BLOCKS * SIZE, generator=generator)[:30] for _ in range(1 + HEADS))
    cache = made(form, key, value)
    move(cache, torch.stack(sources, dim=1) if apart else sources[0], target)
    before = key.clone(), value.clone()
    for head in range(HEADS):
        for read, written in zip(sources[head if apart else 0].tolist(), target.tolist(), strict=True):
            key[written, head], value[written, head] = before[0][read, head], before[1][read, head]
    assert torch.equal(cache, made(form, key, value))


def test_every_backend_has_a_layout() -> None:
    assert set(LAYOUTS) == {"FLASH_ATTN", "FLASHINFER", "TRITON_ATTN", "CPU_ATTN"}


@pytest.mark.parametrize("move", [move_slots, move_slots_cpu])
def test_a_cache_that_is_laid_out_otherwise_is_noticed(move: Move) -> None:
    cache = torch.randn(BLOCKS, HEADS, SIZE, 2 * WIDTH)
    before = cache.clone()

    def write(key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
        cache[slots // SIZE, :, slots % SIZE] = torch.cat([key, value], dim=-1)

    assert moves_as_written(move, write, cache, WIDTH) == (move is move_slots)
    assert torch.equal(cache, before), "the check leaves the cache as it was"


def test_a_move_that_does_not_tell_heads_apart_is_noticed() -> None:
    cache = torch.randn(BLOCKS, HEADS, SIZE, 2 * WIDTH)

    def write(key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
        cache[slots // SIZE, :, slots % SIZE] = torch.cat([key, value], dim=-1)

    def first_head_only(cache: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> None:
        move_slots(cache, source if source.dim() == 1 else source[:, 0], target)

    assert moves_as_written(move_slots, write, cache, WIDTH)
    assert not moves_as_written(first_head_only, write, cache, WIDTH)


@pytest.mark.parametrize(
    ("heads", "size", "expected"),
    [
        (8, 1, [[0, 1, 2, 3, 4, 5, 6, 7]]),
        (8, 4, [[0, 1], [2, 3], [4, 5], [6, 7]]),
        (2, 2, [[0], [1]]),
        (2, 8, [[0], [0], [0], [0], [1], [1], [1], [1]]),
    ],
)
def test_each_rank_has_the_heads_that_vllm_gives_it(heads: int, size: int, expected: list[list[int]]) -> None:
    assert [list(range(heads))[own_heads(rank, size, heads)] for rank in range(size)] == expected
