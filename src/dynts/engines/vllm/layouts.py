"""Where a token's key and value lie in vLLM's paged caches, by attention back end.

Tensor functions, no engine in sight.

A slot is a token's place as vLLM counts them: `block id * block size + offset in the block`.
"""

from collections.abc import Callable

import torch

Move = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]
"""Copies the content of slots of one layer's cache: `move(cache, source, target)`.

The source is int64 [slots], or [slots, KV heads] where each head has its own, the target int64 [slots]. They may
overlap.
"""


def move_slots(cache: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> None:
    """FlashAttention, FlashInfer and Triton: a slot's key and value stand side by side, whatever the strides.

    Args:
        cache: [blocks, KV heads, block size, 2 * head size], in any physical order.
        source: int64 [n] or [n, KV heads], slots to read.
        target: int64 [n], slots to write, no two equal.
    """
    size, heads = cache.shape[2], _heads(cache, source)
    # the right side is gathered before anything is written
    cache[target // size, :, target % size] = cache[source // size, heads, source % size]


def move_slots_cpu(cache: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> None:
    """vLLM's CPU attention ("vec").

    In a block, keys are stored [head size, block size], then values [block size, head size].

    Args:
        cache: [blocks, KV heads, block size, 2 * head size], contiguous.
        source: int64 [n] or [n, KV heads], slots to read.
        target: int64 [n], slots to write, no two equal.
    """
    blocks, heads, size, width = cache.shape
    keys, values = cache.view(blocks, heads, size * width).chunk(2, dim=-1)
    keys = keys.unflatten(-1, (width // 2, size))
    values = values.unflatten(-1, (size, width // 2))
    from_block, from_offset, to_block, to_offset = source // size, source % size, target // size, target % size
    read = _heads(cache, source)
    keys[to_block, :, :, to_offset] = keys[from_block, read, :, from_offset]
    values[to_block, :, to_offset] = values[from_block, read, from_offset]


def _heads(cache: torch.Tensor, source: torch.Tensor) -> slice | torch.Tensor:
    """What reads the source slots of all KV heads; a slice is quicker, and does where they are the same for all."""
    return slice(None) if source.dim() == 1 else torch.arange(cache.shape[1], device=cache.device)


LAYOUTS: dict[str, Move] = {
    "FLASH_ATTN": move_slots,
    "FLASHINFER": move_slots,
    "TRITON_ATTN": move_slots,
    "CPU_ATTN": move_slots_cpu,
}
"""By the name of vLLM's attention back end."""


def moves_as_written(
    move: Move, write: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None], cache: torch.Tensor, head_size: int
) -> bool:
    """Say whether moving slots, for all heads and head by head, equals writing the same keys and values there.

    The cache is left as it was.

    Args:
        move: of the layout that the cache is believed to have.
        write: the back end's own writer: key and value [n, KV heads, head size], slots int64 [n].
        cache: [blocks, KV heads, block size, 2 * head size], of at least three blocks.
        head_size: of a key.
    """
    blocks, heads, size, _ = cache.shape
    if blocks < 3:
        return False
    before = cache[:3].clone()
    source = torch.arange(size - 2, size + 2, device=cache.device)
    target = torch.tensor([1, 2 * size, size, 3 * size - 1], device=cache.device)
    generator = torch.Generator().manual_seed(0)
    key, value = torch.randn(2, len(source), heads, head_size, generator=generator).to(cache.device, cache.dtype)
    head = torch.arange(heads, device=cache.device)
    together = torch.arange(len(source), device=cache.device)
    apart = (together[:, None] + head) % len(source)  # each head takes from another slot
    same = True
    for order in (together, apart):
        cache[:3] = 0
        write(key, value, source)
        move(cache, source[order], target)
        moved = cache[:3].clone()
        cache[:3] = 0
        write(key, value, source)
        chosen = order.view(len(source), -1)
        write(key[chosen, head], value[chosen, head], target)
        same &= torch.equal(moved, cache[:3])
    cache[:3] = before
    return same
