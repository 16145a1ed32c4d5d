"""Attention of one query a row to the first keys of its row, by the rows' lengths: no mask, no keys expanded.

A row's tokens fill its slots from the first one on, so its length says all that a mask would. Kernels that take lengths
split the keys over the whole chip and cost what the live keys cost; with a mask, sdpa takes one that does neither.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, slots=True, eq=False)
class RowLengths:
    """What a decode step of rows with different lengths attends to, told in two ways.

    Attributes:
        lengths: int32 [batch], how many of its first slots each row attends to.
        mask: the same as layers get it for a mask. The lengths count only in a layer that gets this very tensor:
            another may have a window of its own.
        attend: the kernel that takes the lengths.
    """

    lengths: torch.Tensor
    mask: torch.Tensor
    attend: "ByLengths"
    _starts: dict[int, torch.Tensor] = field(default_factory=dict)

    def starts(self, apart: int) -> torch.Tensor:
        """Return where rows begin that lie so far apart, int32 [batch + 1]; made once for all layers."""
        if apart not in self._starts:
            row = torch.arange(len(self.lengths) + 1, device=self.lengths.device, dtype=torch.int32)
            self._starts[apart] = row * apart
        return self._starts[apart]


ByLengths = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, RowLengths, float | None], torch.Tensor]
"""`flash_by_lengths`, or what computes the same."""


@functools.cache
def kernel_by_lengths(device: torch.device, dtype: torch.dtype, head_size: int) -> ByLengths | None:
    """Choose the kernel that attends by lengths; None where there is none, and a mask is as good.

    torch's paged variant, and cuDNN's on compute capability 10, are not among them: both have been wrong without a word
    (https://github.com/pytorch/pytorch/issues/194167, https://github.com/pytorch/pytorch/issues/193893).

    Args:
        device: of the keys.
        dtype: likewise.
        head_size: likewise.
    """
    fits = dtype in (torch.float16, torch.bfloat16) and head_size % 8 == 0 and head_size <= 256
    if device.type != "cuda" or not fits or torch.version.hip is not None:
        return None
    return flash_by_lengths if torch.cuda.get_device_capability(device) >= (8, 0) else None


def flash_by_lengths(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rows: RowLengths, scaling: float | None
) -> torch.Tensor:
    """Return the attention of one new token a row, by torch's FlashAttention with `seqused_k`.

    The operator is what `torch.nn.attention.varlen.varlen_attn` calls, which has grouped heads from torch 2.12 on only.

    Args:
        query: [batch, query heads, 1, head size], half precision.
        key: [batch, KV heads, slots, head size], stored slots before heads (another layout is copied).
        value: likewise.
        rows: their lengths.
        scaling: factor on the dot products; None is one over the root of the head size.

    Returns:
        [batch, query heads, 1, head size].
    """
    batch, heads, slots, size = key.shape
    # rows may have more slots than are shown; those of the last one end with what is shown
    apart = key.stride(0) // (heads * size)
    shape, strides = ((batch - 1) * apart + slots, heads, size), (heads * size, size, 1)
    if batch == 1 or key.stride() != (apart * heads * size, size, heads * size, 1) or key.stride() != value.stride():
        apart, shape = slots, (batch * slots, heads, size)
        key, value = (states.transpose(1, 2).contiguous() for states in (key, value))
    flash: Any = torch.ops.aten._flash_attention_forward
    attended = flash(
        query.reshape(batch, query.shape[1], size),
        key.as_strided(shape, strides),
        value.as_strided(shape, strides),
        rows.starts(1),
        rows.starts(apart),
        1,
        slots,
        0.0,  # dropout
        False,  # causal
        False,  # debug mask
        scale=scaling,
        seqused_k=rows.lengths,
    )[0]
    return attended.reshape(batch, query.shape[1], 1, size)
