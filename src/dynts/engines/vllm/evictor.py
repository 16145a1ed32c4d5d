"""What a model runner does under the budget, whichever of vLLM's it is: score new tokens, and compact."""

import logging
from collections.abc import Sequence
from itertools import compress
from typing import Any

import numpy as np
import torch
from vllm.distributed import get_tensor_model_parallel_world_size, get_tp_group
from vllm.v1.kv_cache_interface import KVCacheConfig

from dynts.engines.compat import load_predictor
from dynts.engines.ledger import Ledger
from dynts.engines.scorer import Scorer
from dynts.engines.vllm.layouts import LAYOUTS, moves_as_written
from dynts.engines.vllm.plugin import engine_tokenizer
from dynts.engines.vllm.refusals import check_kv_cache
from dynts.engines.vllm.settings import KEY, LOGGER, configured
from dynts.errors import UnsupportedError

logger = logging.getLogger(LOGGER)


class Evictor:
    """The predictor, the ledger, and the keys and values of all layers.

    Made as soon as the model is loaded, so that vLLM's memory profile sees it.

    Args:
        runner: vLLM's model runner, of either kind.

    Raises:
        DyntsError: the predictor was trained for another model.
    """

    def __init__(self, runner: Any) -> None:
        device, rows, model_config = torch.device(runner.device), runner.max_num_reqs, runner.model_config
        settings = configured(runner.vllm_config.additional_config[KEY])
        predictor = load_predictor(settings, device, model_config.hf_config, runner.get_model().model.embed_tokens)
        policy, ranks = settings.policy, get_tp_group()
        self.scorer = Scorer(predictor, policy.granularity == "native", ranks.rank_in_group, ranks.world_size)
        self.native = self.scorer.sets is not None
        scanner = settings.scanner(engine_tokenizer(model_config), predictor) if policy.protect_answer else None
        length, question = runner.max_model_len, policy.protect_question
        self.ledger = Ledger(settings.schedule, scanner, rows, length, device, self.scorer.sets, question)
        logger.info("dynts: %.1f MB for token ids and scores of %d requests", self.ledger.bytes / 1e6, rows)

    def adopt(self, runner: Any, kv_cache_config: KVCacheConfig) -> None:
        """Take charge of keys and values, whose layout must be the expected one.

        Args:
            runner: vLLM's model runner, which has allocated them.
            kv_cache_config: vLLM's.

        Raises:
            UnsupportedError: attention back end or layout unknown, or layers share keys and values.
        """
        check_kv_cache(kv_cache_config)
        layers: dict[str, Any] = runner.compilation_config.static_forward_context
        sharing = [name for name, layer in layers.items() if getattr(layer, "kv_sharing_target_layer_name", None)]
        if sharing:
            raise UnsupportedError(
                f"{len(sharing)} layers of this model use the keys and values of others, which dynts does not support: "
                "use another model, or unset the plugin's settings"
            )
        (group,) = runner.attn_groups[0]
        name = group.backend.get_name()
        if name not in LAYOUTS:
            raise UnsupportedError(
                f"dynts does not know how attention back end {name} lays out keys and values: "
                f"use --attention-backend with one of {', '.join(LAYOUTS)}"
            )
        self.move = LAYOUTS[name]
        own = [layers[layer] for layer in group.layer_names]
        self.caches = [layer.kv_cache for layer in own]

        def write(key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
            own[0].impl.do_kv_cache_update(own[0], key, value, self.caches[0], slots)

        if not moves_as_written(self.move, write, self.caches[0], own[0].head_size):
            raise UnsupportedError(
                f"attention back end {name} lays out this KV cache ({tuple(self.caches[0].shape)}, "
                f"{self.caches[0].dtype}) in another way than dynts knows: use another --attention-backend or dtype"
            )

    def evicted(self, requests: Sequence[str]) -> np.ndarray:
        """Count the tokens that requests no longer hold, int32 [requests]."""
        return np.array([self.ledger.entries[request].evicted for request in requests], dtype=np.int32)

    def take_note(
        self,
        requests: Sequence[str],
        computed: np.ndarray,
        fed: np.ndarray,
        tokens: torch.Tensor,
        positions: torch.Tensor,
        hidden: torch.Tensor,
    ) -> None:
        """Add a step's tokens and their scores to the ledger.

        Args:
            requests: of the step, in the order of their tokens.
            computed: int [requests], tokens that each was fed before.
            fed: int [requests], tokens that it is fed in this step.
            tokens: integers [tokens], their ids.
            positions: int64 [tokens], in the sequences.
            hidden: [tokens, hidden size], last hidden states.
        """
        entries = [self.ledger.entries[request] for request in requests]
        each = np.array([(entry.row, entry.evicted, entry.pinned) for entry in entries]).T
        rows, evicted = self.ledger.upload(np.repeat(each[:2], fed, axis=1))
        self.ledger.note_tokens(rows, positions, tokens)
        # pinned tokens need no scores: they are kept anyway
        at = np.arange(len(tokens)) - np.repeat(np.cumsum(fed) - fed, fed)
        scored = np.flatnonzero(at >= np.repeat(each[2] - computed, fed))
        if not len(scored):
            return
        slots = positions - evicted
        if len(scored) < len(tokens):
            chosen = self.ledger.upload(scored)
            rows, slots, hidden = rows[chosen], slots[chosen], hidden[chosen]
        self.ledger.note_scores(rows, slots, self.scorer.score(hidden))

    def check_due(self, due: Sequence[str], requests: Sequence[str], computed: np.ndarray, fed: np.ndarray) -> None:
        """Compare what the scheduler found with the lengths here: they must agree on who has reached the budget.

        Args:
            due: requests that the scheduler takes to be due for an eviction.
            requests: as for `take_note`, like the others.
            computed: tokens that each was fed before.
            fed: tokens that it was fed in this step.

        Raises:
            RuntimeError: they do not.
        """
        full = computed + fed - self.evicted(requests) >= self.ledger.schedule.budget
        here = set(compress(requests, full))
        if here != set(due):
            raise RuntimeError(f"dynts: requests due for eviction are {sorted(here)} here, {sorted(due)} there")

    def compact(self, due: Sequence[str], blocks: torch.Tensor, block_size: int) -> list[int]:
        """Move the survivors together, in every layer.

        Args:
            due: requests that have reached the budget.
            blocks: int32 [due, blocks], the blocks of each.
            block_size: tokens of a block.

        Returns:
            Blocks that each still needs; the others are no longer its own.
        """
        at_once = self.ledger.at_once
        for first in range(0, len(due), at_once):
            self._move(due[first : first + at_once], blocks[first : first + at_once], block_size)
        return [-(-self.ledger.entries[request].settled // block_size) for request in due]

    def _move(self, due: Sequence[str], blocks: torch.Tensor, block_size: int) -> None:
        kept = self.ledger.choose(due)
        # with sets of its own each rank moves the heads that it has
        if not self.native and get_tensor_model_parallel_world_size() > 1:
            kept = get_tp_group().broadcast(kept)
        moves = self.ledger.evict(due, kept)
        source, target = (
            blocks[which, slot // block_size].long() * block_size + slot % block_size
            for which, slot in (
                (moves.which[:, None] if self.native else moves.which, moves.source),
                (moves.which, moves.target),
            )
        )
        for layer, cache in enumerate(self.caches):
            self.move(cache, source[layer] if self.native else source, target)
