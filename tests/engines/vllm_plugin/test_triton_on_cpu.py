"""V2's model runner on a CPU: what stands in for its Triton kernels computes what these compute."""

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from vllm_engines import needs_vllm

pytestmark = needs_vllm

REQUESTS, ROWS, LENGTH, VOCABULARY = 5, 9, 70, 2500


@pytest.fixture(autouse=True)
def _replaced() -> None:
    """As in an engine: vLLM's changes for CPUs, and the replacements."""
    import vllm.v1.worker.cpu.shm  # noqa: F401
    from triton_on_cpu.stand_ins import register

    register()


def tensors(number: int) -> dict[str, torch.Tensor]:
    """A batch of requests in the middle of things: some with prompts to go on with, some that generate."""
    random = torch.Generator().manual_seed(number)

    def integers(low: int, high: int, *shape: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=random, dtype=dtype)

    computed, prefill = integers(1, 30, ROWS), integers(5, 40, ROWS)
    generating = computed >= prefill
    rows = torch.randperm(ROWS, generator=random)[:REQUESTS].int()
    lengths = torch.where(generating[rows.long()], 1, integers(1, 12, REQUESTS))
    tables = integers(1, 99, ROWS, 8)
    return {
        "rows": rows,
        "computed": computed,
        "prefill": prefill,
        "query_start": torch.cat((torch.zeros(1), lengths.cumsum(0))).int(),
        "tokens": integers(0, VOCABULARY, ROWS, LENGTH),
        "last": integers(0, VOCABULARY, ROWS, 1, dtype=torch.int64),
        "tables": tables,
        "seeds": integers(-(2**62), 2**62, ROWS, dtype=torch.int64),
        "logits": torch.randn(REQUESTS, VOCABULARY, generator=random),
        "temperatures": torch.tensor([0.0, 1.0, 0.6, 0.0, 1.3, 0.6, 1.0, 2.0, 0.0]),
        "positions": integers(0, 2**20, REQUESTS, dtype=torch.int64),
        "sampled": integers(0, VOCABULARY, REQUESTS, 1, dtype=torch.int64),
        "counts": integers(0, 2, REQUESTS),
    }


def block_tables(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    from vllm.v1.worker.gpu.block_table import BlockTables

    tables = BlockTables([32, 16], ROWS, LENGTH, [8, 6], torch.device("cpu"))
    for row, blocks in enumerate(batch["tables"].tolist()):
        tables.append_block_ids(row, (blocks[:5], blocks[:6]), overwrite=True)
    tables.apply_staged_writes()
    tables.append_block_ids(2, ([7, 8], []), overwrite=False)
    tables.append_block_ids(4, ([3], [9, 1]), overwrite=True)
    tables.apply_staged_writes()
    gathered = tables.gather_block_tables(batch["rows"], REQUESTS)
    start = batch["query_start"]
    slots = tables.compute_slot_mappings(batch["rows"], start, torch.arange(LENGTH) % 90, LENGTH)
    return [*(table.gpu for table in tables.block_tables), *gathered, slots]


def staged_writes(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    from vllm.v1.worker.gpu.buffer_utils import StagedWriteTensor

    flat, floats = (StagedWriteTensor(ROWS, dtype, torch.device("cpu")) for dtype in (torch.int32, torch.float32))
    for row in range(4):
        flat.stage_write_elem(row * 2, int(batch["computed"][row]))
        floats.stage_write_elem(row * 2, float(batch["temperatures"][row]))
    flat.apply_write()
    floats.apply_write()
    return [flat.gpu, floats.gpu]


def inputs(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    from vllm.v1.worker.gpu import input_batch as kernels

    ids, following = torch.zeros(LENGTH, dtype=torch.int32), torch.full((2, ROWS), 7, dtype=torch.int32)
    rows, start, computed, prefill = (batch[name] for name in ("rows", "query_start", "computed", "prefill"))
    kernels.prepare_prefill_inputs(ids, following, rows, start, batch["tokens"], prefill, computed)
    positions, lengths = torch.zeros(LENGTH, dtype=torch.int64), torch.full((ROWS,), 3, dtype=torch.int32)
    kernels.prepare_pos_seq_lens(rows, start, computed, positions, lengths)
    logits = torch.arange(REQUESTS + 1, dtype=torch.int32)
    none = torch.zeros(ROWS, 0, dtype=torch.int64)
    where = kernels.combine_sampled_and_draft_tokens(
        ids, rows, batch["last"], start, lengths, prefill, none, logits, REQUESTS
    )
    sampled = torch.ones(REQUESTS, dtype=torch.int32)
    rejected = kernels.get_num_sampled_and_rejected(sampled, lengths, logits, rows, prefill)
    return [ids, following, positions, lengths, where, *rejected]


def updates(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    from vllm.v1.worker.gpu.input_batch import post_update

    rows = batch["rows"].clone()
    rows[1] = -1
    counts, total = torch.zeros(ROWS, VOCABULARY, dtype=torch.int32), batch["computed"] + 5
    rejected = torch.zeros(REQUESTS, dtype=torch.int32)
    changed = [batch["computed"], batch["last"], counts, batch["tokens"], total]
    for bins, start in ((counts, batch["query_start"]), (None, None)):
        post_update(
            rows, *changed[:2], bins, batch["sampled"], batch["counts"], rejected, start, batch["tokens"], total
        )
    return changed


def samples(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    from vllm.v1.worker.gpu.sample.gumbel import apply_temperature, gumbel_sample

    logits, heat = batch["logits"], batch["temperatures"]
    drawn = [
        gumbel_sample(logits, batch["rows"], heat, batch["seeds"], batch["positions"], applied, is_drafting=False)
        for applied in (True, False)
    ]
    apply_temperature(logits, batch["rows"], heat)
    return [*drawn, logits]


def logprobs(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    from vllm.v1.worker.gpu.sample.logprob import compute_topk_scores

    scores = compute_topk_scores(batch["logits"], 5, batch["sampled"].view(-1))
    return [scores.logprob_token_ids, scores.logprobs, scores.selected_token_ranks]


@pytest.mark.parametrize("step", [block_tables, staged_writes, inputs, updates, samples, logprobs])
def test_stand_ins_equal_interpreted_kernels(
    step: Callable[[dict[str, torch.Tensor]], list[torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton_on_cpu.stand_ins import GPU, STAND_INS
    from vllm.triton_utils import dispatcher

    results = [step(tensors(number)) for number in range(3)]
    for name in STAND_INS:
        original: Any = dispatcher._registry[f"{GPU}.{name}"][0]
        module, _, kernel = name.rpartition(".")
        monkeypatch.setattr(importlib.import_module(f"{GPU}.{module}"), kernel, original)
    for number, result in enumerate(results):
        for got, expected in zip(result, step(tensors(number)), strict=True):
            assert got.dtype == expected.dtype
            if got.is_floating_point():
                torch.testing.assert_close(got, expected, rtol=1e-6, atol=2e-6)
            else:
                assert torch.equal(got, expected)


def test_noise_is_the_kernels_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton_on_cpu.stand_ins import GPU
    from vllm.triton_utils import dispatcher
    from vllm.v1.worker.gpu.sample import gumbel

    batch = tensors(7)
    original: Any = dispatcher._registry[f"{GPU}.sample.gumbel._gumbel_sample_kernel"][0]
    best = []
    for kernel in (gumbel._gumbel_sample_kernel, original):
        blocks = torch.empty(REQUESTS, 3, dtype=torch.int64), torch.empty(REQUESTS, 3)
        kernel[(REQUESTS, 3)](
            *(blocks[0], 3, blocks[1], 3, None, 0, 0, None, None, 0, batch["logits"], VOCABULARY, batch["rows"]),
            *(batch["seeds"], batch["positions"], batch["temperatures"], VOCABULARY),
            BLOCK_SIZE=1024,
            IS_DRAFTING=False,
            APPLY_TEMPERATURE=True,
            USE_FP64=False,
            PER_TOKEN_COL=False,
        )
        best.append(blocks)
    assert torch.equal(best[0][0], best[1][0])
    assert torch.equal(best[0][1], best[1][1])
