"""Which tokens of the running requests stay cached in SGLang.

With a page for each token, evicting copies nothing, unless each layer and KV head keeps tokens of its own: then what a
head keeps is copied into the first slots of the request.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.runtime_context import get_parallel, get_schedule

from dynts.cache.selection import left_align
from dynts.engines.compat import load_predictor
from dynts.engines.ledger import Ledger, Moves
from dynts.engines.scorer import Scorer
from dynts.engines.settings import PluginSettings
from dynts.errors import UnsupportedError

logger = logging.getLogger(__name__)


class SlotEvictor:
    """The predictor, and the ledger of what it said.

    Args:
        settings: the plugin's.
        runner: SGLang's model runner, which has loaded the model.
        tokenizer: the model's; None for a server without one.

    Raises:
        DyntsError: the predictor cannot be read, or was trained for another model.
    """

    def __init__(self, settings: PluginSettings, runner: Any, tokenizer: Any) -> None:
        device, config = torch.device(runner.device), runner.model_config
        predictor = load_predictor(settings, device, config.hf_config, input_embedding(runner.model))
        ranks, rows = get_parallel(), get_schedule().max_running_requests
        self.scorer = Scorer(predictor, settings.granularity == "native", ranks.attn_tp_rank, ranks.attn_tp_size)
        scanner = settings.scanner(tokenizer, predictor)
        self.ledger = Ledger(settings.schedule, scanner, rows, config.context_len, device, self.scorer.sets)
        logger.info("dynts: %.1f MB for token ids and scores of %d requests", self.ledger.bytes / 1e6, rows)

    def take_note(self, batch: ScheduleBatch, hidden: torch.Tensor) -> None:
        """Add a decode step's tokens and their scores to the ledger.

        Args:
            batch: of the step, which has been run.
            hidden: [requests, hidden size], last hidden states.
        """
        ledger, running = self.ledger, {req.rid for req in batch.reqs}
        # all that run are in every decode step: the others have ended, or were retracted
        for name in ledger.entries.keys() - running:
            ledger.finish(name)
        for req in batch.reqs:
            if not req.noted:
                ledger.start(req.rid, req.origin_input_ids)
                req.noted = True
        rows = ledger.upload([ledger.entries[req.rid].row for req in batch.reqs])
        ledger.note_tokens(rows, batch.orig_seq_lens - 1, batch.input_ids)
        ledger.note_scores(rows, batch.seq_lens - 1, self.scorer.score(hidden))

    def evict(self, batch: ScheduleBatch, due: Sequence[int]) -> int:
        """Drop what requests that have reached the budget do not keep.

        Args:
            batch: of the running requests; it is changed.
            due: which of them.

        Returns:
            How many tokens were dropped.
        """
        at_once, dropped = self.ledger.at_once, torch.zeros_like(batch.seq_lens_cpu)
        for first in range(0, len(due), at_once):
            part = due[first : first + at_once]
            dropped[part] = self._drop(batch, part)
        # new tensors, for the step under way still has the old ones
        batch.seq_lens_cpu = batch.seq_lens_cpu - dropped
        batch.seq_lens = batch.seq_lens - self.ledger.upload(dropped.numpy())
        for number in due:
            req, count = batch.reqs[number], int(dropped[number])
            req.kv.kv_committed_len -= count
            req.kv.kv_allocated_len -= count
            # the radix tree would take what is left for the first tokens of the sequence
            req.skip_radix_cache_insert = True
        return int(dropped.sum())

    def _drop(self, batch: ScheduleBatch, due: Sequence[int]) -> torch.Tensor:
        """Give back the slots of dropped tokens: how many for each request, on the host."""
        reqs = [batch.reqs[number] for number in due]
        names, budget = [req.rid for req in reqs], self.ledger.schedule.budget
        kept = self.ledger.choose(names)
        # with sets of its own each rank moves the heads that it has
        if self.scorer.sets is None and get_parallel().tp_size > 1:
            kept = get_parallel().tp_group.broadcast(kept)
        moves = self.ledger.evict(names, kept)
        rows = self.ledger.upload([req.kv.req_pool_idx for req in reqs])
        table, allocator = batch.req_to_token_pool.req_to_token, batch.token_to_kv_pool_allocator
        slots = table[rows, :budget]
        if self.scorer.sets is None:
            # kept slots first, in their order, then the others
            slots = slots.gather(1, left_align(kept[:, 0], budget))
            table[rows, :budget] = slots
        else:
            copy_kept(allocator.get_kvcache(), slots.long(), moves)
        settled = [self.ledger.entries[name].settled for name in names]
        gone = [row[count:] for row, count in zip(slots, settled, strict=True)]
        allocator.free(torch.cat(gone).long())
        return budget - torch.tensor(settled)


def copy_kept(pool: MHATokenToKVPool, slots: torch.Tensor, moves: Moves) -> None:
    """Copy what each layer and KV head keeps into the first slots of its request; those of the prompt stay as they are.

    Args:
        pool: keys and values.
        slots: int64 [requests, budget], those of each request, in the order of its tokens.
        moves: of a ledger with a set of tokens for each layer and KV head.
    """
    target = slots[moves.which, moves.target]
    source = slots[moves.which[:, None], moves.source]
    head = torch.arange(source.shape[2], device=slots.device)
    for caches in (pool.k_buffer, pool.v_buffer):
        for cache, read in zip(caches, source, strict=True):
            # the right side is gathered before anything is written
            cache[target] = cache[read, head]


def check_layout(pool: Any) -> None:
    """Refuse pools in which `copy_kept` would not find a head's keys and values.

    Args:
        pool: SGLang's.

    Raises:
        UnsupportedError: names the kind of pool.
    """
    if type(pool) is not MHATokenToKVPool or pool.kv_cache_layout != "nhd" or pool.is_quantized_kv_cache:
        raise UnsupportedError(
            f"granularity native does not know how {type(pool).__name__} lays out keys and values "
            f"({getattr(pool, 'kv_cache_layout', 'unknown')}): use granularity shared, or unset SGLANG_USE_HND_KVCACHE"
        )


def input_embedding(model: torch.nn.Module) -> torch.nn.Module:
    """Return what looks up the vectors of input tokens, whatever its name in SGLang's model.

    Raises:
        UnsupportedError: there is nothing of the kind.
    """
    kinds = (VocabParallelEmbedding, torch.nn.Embedding)
    found = next((module for module in model.modules() if type(module) in kinds), None)
    if found is None:
        raise UnsupportedError(f"dynts finds no input embedding in SGLang's {type(model).__name__}: use another model")
    return found
