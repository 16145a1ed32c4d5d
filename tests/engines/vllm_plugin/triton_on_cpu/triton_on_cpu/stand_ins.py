"""NumPy in place of the Triton kernels that V2 launches in every step, with the kernels' arguments and results.

Not covered: rows of padding (CUDA graphs have them), context parallelism and drafts (both refused by the plugin).
"""

import ctypes
import os
from typing import Any
from unittest import mock

import numpy as np
import torch

GPU = "vllm.v1.worker.gpu"


def register() -> None:
    """Replace the kernels of V2, and those of V1 as vLLM does on CPUs without Triton; vLLM's entry point."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    from vllm.platforms import current_platform
    from vllm.triton_utils import dispatcher

    known = {f"{GPU}.{name}": kernel for name, kernel in STAND_INS.items()}
    if known.keys() <= dispatcher._registry.keys():
        return
    dispatcher.register_kernels(known)
    with mock.patch("vllm.triton_utils.HAS_TRITON", False):
        current_platform.register_triton_kernel_overrides()


def apply_write(
    output: torch.Tensor,
    stride: Any,
    rows: torch.Tensor,
    starts: torch.Tensor,
    contents: torch.Tensor,
    ends: torch.Tensor,
    groups: torch.Tensor | None,
    BLOCK_SIZE: int,
    MULTI_GROUP: bool,
) -> None:
    """Copy each write's contents to its place in a table, or in the table of its group."""
    begin, values = 0, contents.numpy()
    for number, (row, start, end) in enumerate(zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True)):
        if groups is None:
            table, first = output.view(-1).numpy(), row * stride + start
        else:
            group = int(groups[number])
            table, first = _table(output, stride, group, row + 1).reshape(-1), row * int(stride[group]) + start
        table[first : first + end - begin] = values[begin:end]
        begin = end


def gather_block_tables(
    rows: torch.Tensor,
    sources: torch.Tensor,
    targets: torch.Tensor,
    strides: torch.Tensor,
    num_blocks: torch.Tensor,
    num_blocks_stride: int,
    num_reqs: int,
    *windows: torch.Tensor,
    BLOCK_SIZE: int,
    MASK_SLIDING_WINDOW: bool = False,
) -> None:
    """Copy the blocks of the batch's requests to its first rows; vLLM 0.33 adds what sliding windows need."""
    if MASK_SLIDING_WINDOW:
        raise NotImplementedError("sliding windows")
    chosen = rows.numpy()[:num_reqs]
    for group in range(len(sources)):
        source = _table(sources, strides, group, int(chosen.max()) + 1)
        target = _table(targets, strides, group, num_reqs)
        lengths = num_blocks[group].numpy()[chosen]
        held = np.arange(source.shape[1]) < lengths[:, None]
        np.copyto(target, source[chosen], where=held)


def compute_slot_mappings(
    length: int,
    rows: torch.Tensor,
    query_start: torch.Tensor,
    positions: torch.Tensor,
    tables: torch.Tensor,
    strides: torch.Tensor,
    block_sizes: torch.Tensor,
    enabled: torch.Tensor,
    sharded: torch.Tensor,
    slots: torch.Tensor,
    slots_stride: int,
    cp_rank: int,
    CP_SIZE: int,
    CP_INTERLEAVE: int,
    PAD_ID: int,
    TRITON_BLOCK_SIZE: int,
) -> None:
    """Turn positions into slots, and pad what is left of the row."""
    if CP_SIZE != 1:
        raise NotImplementedError("context parallelism")
    starts = query_start.numpy()[: len(rows) + 1]
    tokens = int(starts[-1])
    row = np.repeat(rows.numpy(), np.diff(starts))
    for group, size in enumerate(block_sizes.tolist()):
        mapped = slots[group].numpy()
        mapped[tokens:length] = PAD_ID
        mapped[:tokens] = PAD_ID
        real = row >= 0
        if bool(enabled[group]) and real.any():
            table = _table(tables, strides, group, int(row.max()) + 1)
            position = positions.numpy()[:tokens][real]
            mapped[:tokens][real] = table[row[real], position // size] * size + position % size


def prepare_prefill_inputs(
    input_ids: torch.Tensor,
    following: torch.Tensor,
    following_stride: int,
    lookahead: int,
    rows: torch.Tensor,
    query_start: torch.Tensor,
    token_ids: torch.Tensor,
    token_ids_stride: int,
    prefill_lens: torch.Tensor,
    computed: torch.Tensor,
    BLOCK_SIZE: int,
    LOOKAHEAD_BLOCK: int,
) -> None:
    """Copy the tokens that prompts feed in this step, and those after them."""
    chosen, starts = rows.numpy(), query_start.numpy()
    done, known, fed = computed.numpy()[chosen], prefill_lens.numpy()[chosen], input_ids.numpy()
    for number in np.flatnonzero(done < known).tolist():
        row, start, end = int(chosen[number]), int(starts[number]), int(starts[number + 1])
        first = int(done[number])
        last = first + end - start
        fed[start:end] = token_ids[row, first:last].numpy()
        after = token_ids[row, last : min(last + lookahead, int(known[number]))].numpy()
        column = following[:, row].numpy()
        column[:] = 0
        column[: len(after)] = after


def prepare_pos_seq_lens(
    positions: torch.Tensor,
    seq_lens: torch.Tensor,
    rows: torch.Tensor,
    query_start: torch.Tensor,
    computed: torch.Tensor,
    max_num_reqs: int,
    BLOCK_SIZE: int,
) -> None:
    """Count on from what is computed of each request."""
    starts = query_start.numpy()[: len(rows) + 1]
    done, lengths = computed.numpy()[rows.numpy()], np.diff(starts)
    seq_lens.numpy()[: len(rows)] = done + lengths
    seq_lens.numpy()[len(rows) : max_num_reqs] = 0
    positions.numpy()[starts[0] : starts[-1]] = np.arange(starts[0], starts[-1]) + np.repeat(
        done - starts[:-1], lengths
    )


def combine_sampled_and_draft_tokens(
    input_ids: torch.Tensor,
    rows: torch.Tensor,
    sampled: torch.Tensor,
    query_start: torch.Tensor,
    seq_lens: torch.Tensor,
    prefill_lens: torch.Tensor,
    drafts: torch.Tensor,
    drafts_stride: int,
    logits_start: torch.Tensor,
    logits_indices: torch.Tensor,
    BLOCK_SIZE: int,
    NUM_NEW_SAMPLED_TOKENS: int = 1,
) -> None:
    """Feed each request its latest token, and say which tokens give logits."""
    chosen = rows.numpy()
    first = logits_start.numpy()[: len(chosen) + 1]
    logits = np.diff(first)
    if (logits > NUM_NEW_SAMPLED_TOKENS).any():
        raise NotImplementedError("draft tokens")
    begin = query_start.numpy()[1 : len(chosen) + 1] - logits
    where = np.repeat(begin - first[:-1], logits) + np.arange(first[0], first[-1])
    logits_indices.numpy()[first[0] : first[-1]] = where
    lengths, known = seq_lens.numpy()[: len(chosen)], prefill_lens.numpy()[chosen]
    if NUM_NEW_SAMPLED_TOKENS:
        generating = (lengths > known) & (lengths - logits >= known)
        input_ids.numpy()[begin[generating]] = sampled.view(-1).numpy()[chosen[generating]]


def get_num_sampled_and_rejected(
    sampled: torch.Tensor,
    rejected: torch.Tensor,
    seq_lens: torch.Tensor,
    logits_start: torch.Tensor,
    rows: torch.Tensor,
    prefill_lens: torch.Tensor,
) -> None:
    """Count no token for requests whose prompt goes on."""
    count = len(rows)
    prompt = seq_lens.numpy()[:count] < prefill_lens.numpy()[rows.numpy()]
    sampled.numpy()[:count][prompt] = 0
    logits = np.diff(logits_start.numpy()[: count + 1])
    rejected.numpy()[:count] = np.where(prompt, 0, logits - sampled.numpy()[:count])


def post_update(
    rows: torch.Tensor,
    computed: torch.Tensor,
    last: torch.Tensor,
    bin_counts: torch.Tensor | None,
    bin_counts_stride: int,
    tokens: torch.Tensor,
    tokens_stride: int,
    sampled: torch.Tensor,
    rejected: torch.Tensor,
    query_start: torch.Tensor | None,
    token_ids: torch.Tensor,
    token_ids_stride: int,
    total: torch.Tensor,
    *drafts: Any,
    num_warps: int = 1,
) -> None:
    """Append sampled tokens to their requests (vLLM 0.33 adds drafts), and count what is computed."""
    lengths = [0] * len(rows) if query_start is None else np.diff(query_start.numpy()).tolist()
    ids, totals, latest, done = token_ids.numpy(), total.numpy(), last.view(-1).numpy(), computed.numpy()
    new = tokens.numpy()
    counts, dropped = sampled.tolist(), rejected.tolist()
    for number, row in enumerate(rows.tolist()):
        if row < 0:
            continue
        if count := counts[number]:
            start = int(totals[row])
            ids[row, start : start + count] = new[number, :count]
            latest[row] = new[number, count - 1]
            totals[row] = start + count
            if bin_counts is not None:
                np.add.at(bin_counts[row].numpy(), new[number, :count], 1)
        done[row] += lengths[number] - dropped[number]


def temperature(
    logits: torch.Tensor,
    logits_stride: int,
    rows: torch.Tensor,
    temperatures: torch.Tensor,
    vocabulary: int,
    BLOCK_SIZE: int,
) -> None:
    """Divide logits by temperatures that are neither 0 nor 1."""
    chosen = temperatures[rows.long()]
    logits.div_(torch.where(chosen == 0, 1.0, chosen)[:, None])


def gumbel_sample(
    argmax: torch.Tensor,
    argmax_stride: int,
    maximum: torch.Tensor,
    maximum_stride: int,
    cache: torch.Tensor | None,
    cache_stride_0: int,
    cache_stride_1: int,
    cache_column: torch.Tensor | None,
    cache_source: torch.Tensor | None,
    cache_source_stride: int,
    logits: torch.Tensor,
    logits_stride: int,
    rows: torch.Tensor,
    seeds: torch.Tensor,
    positions: torch.Tensor,
    temperatures: torch.Tensor,
    vocabulary: int,
    BLOCK_SIZE: int,
    IS_DRAFTING: bool,
    APPLY_TEMPERATURE: bool,
    USE_FP64: bool,
    PER_TOKEN_COL: bool,
) -> None:
    """Draw by the Gumbel-max trick with the kernel's own noise; the result is the best token of each block."""
    if cache is not None or IS_DRAFTING or USE_FP64:
        raise NotImplementedError("drafts, and noise in float64")
    count, blocks = argmax.shape
    padded = np.full((count, blocks * BLOCK_SIZE), -np.inf, dtype=np.float32)
    noised = padded[:, :vocabulary]
    noised[:] = logits.float().numpy()
    row = rows.numpy()
    heat = np.where(row >= 0, temperatures.numpy()[row], 0).astype(np.float32)
    if (drawn := np.flatnonzero(heat)).size:
        values = noised[drawn] / heat[drawn, None] if APPLY_TEMPERATURE else noised[drawn]
        noised[drawn] = values + _gumbel(seeds.numpy()[row[drawn]], positions.numpy()[drawn], vocabulary)
    by_block = padded.reshape(count, blocks, BLOCK_SIZE)
    best = by_block.argmax(-1)
    argmax.numpy()[:] = best + np.arange(blocks) * BLOCK_SIZE
    maximum.numpy()[:] = np.take_along_axis(by_block, best[..., None], -1)[..., 0]


def topk_log_softmax(
    output: torch.Tensor,
    logits: torch.Tensor,
    logits_stride: int,
    ids: torch.Tensor,
    ids_stride: int,
    topk: int,
    vocabulary: int,
    BLOCK_SIZE: int,
    TOPK_BLOCK_SIZE: int,
) -> None:
    """Write the log-probabilities of the given tokens."""
    output.copy_(logits.float().log_softmax(-1).gather(-1, ids))


def ranks(
    output: torch.Tensor,
    logits: torch.Tensor,
    logits_stride: int,
    ids: torch.Tensor,
    vocabulary: int,
    BLOCK_SIZE: int,
) -> None:
    """Count the tokens that are as likely as the given one or likelier."""
    output.copy_((logits >= logits.gather(-1, ids[:, None].long())).sum(-1))


def apply_grammar_bitmask(
    logits: torch.Tensor,
    logits_stride: int,
    indices: torch.Tensor,
    cu_num_logits: torch.Tensor,
    bitmask: torch.Tensor,
    bitmask_stride: int,
    vocab_size: int,
    MASK_STRIDE: int,
    BLOCK_SIZE: int,
) -> None:
    """Bar tokens whose bit is not set. Triton 3.9's interpreter fails on the kernel: mask has unsupported dtype."""
    rows = cu_num_logits.numpy()[indices.numpy() // MASK_STRIDE]
    allowed = np.unpackbits(bitmask.numpy().view(np.uint8), axis=1, bitorder="little")[:, :vocab_size]
    values = logits.numpy()
    values[rows, :vocab_size] = np.where(allowed, values[rows, :vocab_size], -np.inf)


STAND_INS = {
    "buffer_utils._apply_write_kernel": apply_write,
    "block_table._gather_block_tables_kernel": gather_block_tables,
    "block_table._compute_slot_mappings_kernel": compute_slot_mappings,
    "input_batch._prepare_prefill_inputs_kernel": prepare_prefill_inputs,
    "input_batch._prepare_pos_seq_lens_kernel": prepare_pos_seq_lens,
    "input_batch._combine_sampled_and_draft_tokens_kernel": combine_sampled_and_draft_tokens,
    "input_batch._get_num_sampled_and_rejected_kernel": get_num_sampled_and_rejected,
    "input_batch._post_update_kernel": post_update,
    "sample.gumbel._temperature_kernel": temperature,
    "structured_outputs._apply_grammar_bitmask_kernel": apply_grammar_bitmask,
    "sample.gumbel._gumbel_sample_kernel": gumbel_sample,
    "sample.logprob._topk_log_softmax_kernel": topk_log_softmax,
    "sample.logprob._ranks_kernel": ranks,
}


def _table(pointers: torch.Tensor, strides: torch.Tensor, group: int, rows: int) -> np.ndarray:
    """The first rows of a group's int32 table [rows, stride], which a kernel gets as an address."""
    width = int(strides[group])
    memory = (ctypes.c_int32 * (rows * width)).from_address(int(pointers[group]))
    return np.ctypeslib.as_array(memory).reshape(rows, width)


def _gumbel(seeds: np.ndarray, positions: np.ndarray, vocabulary: int) -> np.ndarray:
    """Gumbel noise [requests, vocabulary] in float32: murmur3 of seed, position and token, as the kernel has it."""
    low, high, position = (
        (words.astype(np.int64) & 0xFFFFFFFF).astype(np.uint32)[:, None] for words in (seeds, seeds >> 32, positions)
    )
    words = np.zeros_like(low)
    for key in (low, high, position, np.arange(vocabulary, dtype=np.uint32)[None]):
        words = _mixed(words, key)
    words ^= np.uint32(16)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        words ^= words >> np.uint32(shift)
        words *= np.uint32(factor)
    words ^= words >> np.uint32(16)
    uniform = (words >> np.uint32(16)).astype(np.float32) * np.float32(1.52587890625e-05)
    uniform += ((words & np.uint32(0xFFFF)).astype(np.float32) + np.float32(0.5)) * np.float32(2.3283064365386963e-10)
    return -np.log(-_log1p_neg(uniform))


def _mixed(words: np.ndarray, key: np.ndarray) -> np.ndarray:
    """One round of murmur3."""
    words = words ^ (_rotated(key * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593))
    return _rotated(words, 13) * np.uint32(5) + np.uint32(0xE6546B64)


def _rotated(words: np.ndarray, shift: int) -> np.ndarray:
    return (words << np.uint32(shift)) | (words >> np.uint32(32 - shift))


def _log1p_neg(value: np.ndarray) -> np.ndarray:
    """log(1 - value): a series where value is small, as the kernel has it."""
    series = np.full_like(value, 1 / 8)
    for divisor in range(7, 0, -1):
        series *= value
        series += np.float32(1 / divisor)
    series *= -value
    direct = np.log(np.maximum(1 - value, np.float32(5.960464477539063e-08)))
    return np.where(value < 0.25, series, direct)
