"""Attention of one layer and one new token a row: by lengths, with a mask, and without."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from dynts.bench.machine import seconds
from dynts.models.attention import grouped_step
from dynts.models.cudnn import without_cudnn
from dynts.models.lengths import RowLengths, kernel_by_lengths
from dynts.models.shape import head_size, kv_heads
from gpu_sections.bench import Bench, Case, Row


def attention(bench: Bench) -> Iterator[Case]:
    """One layer's attention of one new token a row, in microseconds of the device, launches left out.

    Keys and values are stored slots before heads. The same ones are read again and again, so small ones stay in the
    chip's cache. "error" is relative to the formula in float64; "floor" the bytes of the live keys and values over the
    read bandwidth. Rows are full, ragged (from 62% on), or short (an eighth).
    """
    for batch in sorted({*bench.sizes.batches[:2], 8}):
        for slots in bench.sizes.slots:
            for filled in ("full", "ragged", "short"):
                yield {"batch": batch, "slots": slots, "rows": filled}, partial(_attention, bench, batch, slots, filled)


@torch.no_grad()
def _attention(bench: Bench, batch: int, slots: int, filled: str) -> Row:
    config, device, dtype = bench.model.config, bench.device, bench.sizes.dtype
    heads, size = kv_heads(config), head_size(config)
    query = torch.randn(batch, config.num_attention_heads, 1, size, dtype=dtype, device=device)
    key, value = (torch.randn(batch, slots, heads, size, dtype=dtype, device=device).transpose(1, 2) for _ in "kv")
    least = {"full": slots - 3, "ragged": 0.62 * slots, "short": slots // 8}[filled]
    most = slots // 8 if filled == "short" else slots - 3
    lengths = torch.linspace(least, most, batch, device=device).to(torch.int32)
    mask = (torch.arange(slots, device=device) < lengths[:, None])[:, None, None]
    grouped = query.view(batch, heads, -1, size).double()
    logits = (grouped @ key.double().transpose(2, 3)) * size**-0.5
    exact = (logits.masked_fill(~mask, -torch.inf).softmax(dim=-1) @ value.double()).view_as(query)
    forms: dict[str, Callable[[], torch.Tensor]] = {
        "masked": lambda: grouped_step(query, key, value, mask)[0].transpose(1, 2)
    }
    if kernel := kernel_by_lengths(device, dtype, size):
        rows = RowLengths(lengths, mask, kernel)
        forms["by lengths"] = lambda: kernel(query, key, value, rows, None)
    if filled == "full":
        live = key[:, :, : slots - 3], value[:, :, : slots - 3]
        forms["without mask, enable_gqa"] = lambda: torch.nn.functional.scaled_dot_product_attention(
            query, *live, enable_gqa=True
        )
    row: Row = {"floor us": 2e6 * int(lengths.sum()) * heads * size * dtype.itemsize / bench.machine.read}
    with without_cudnn(device):
        for name, form in forms.items():
            row[f"{name} us"] = 1e6 * kernel_seconds(form, device)
            row[f"{name} error"] = ((form() - exact).norm() / exact.norm()).item()
    return row


def kernel_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time work on a device without the host's part: on CUDA some calls in one graph, by events; the least of a few.

    Args:
        work: one call.
        device: where it runs.
    """
    if device.type != "cuda":
        return min(seconds(work, device) for _ in range(3))
    calls, times = 10, []
    side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what libraries set up at their first call must not be captured
        work()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        for _ in range(calls):
            work()
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in "ab")
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / calls)
    return min(times)
