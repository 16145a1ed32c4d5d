"""Which blocks a request holds: those of its cached tokens, which the budget bounds, however long its sequence."""

from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec, replace_as
from vllm.v1.request import Request

from dynts.config import CompressionConfig
from dynts.engines.vllm.settings import KEY


class BudgetSpec(FullAttentionSpec):
    """The cache of a layer with full attention, of which a request fills the budget and no more."""

    def max_memory_usage_bytes(self, vllm_config: Any) -> int:
        """Bytes of the longest request, for which vLLM wants room in the pool.

        Args:
            vllm_config: the engine's `VllmConfig`.
        """
        budget: int = vllm_config.additional_config[KEY]["budget"]
        tokens = min(vllm_config.model_config.max_model_len, budget)
        return cdiv(tokens, self.block_size) * self.page_size_bytes


def budget_specs(specs: dict[str, KVCacheSpec]) -> dict[str, KVCacheSpec]:
    """Put the caches of layers with full attention under the budget.

    Args:
        specs: as vLLM's model runner gives them, by the names of layers.
    """
    return {
        name: replace_as(spec, BudgetSpec) if type(spec) is FullAttentionSpec else spec for name, spec in specs.items()
    }


class BudgetBlocks(KVCacheManager):
    """vLLM's block manager, shown the tokens that a request holds instead of the tokens that it was fed.

    Only blocks that lie in the prompt enter the prefix cache. Nothing ever moves within them, and a block that holds
    generated tokens, be it with the prompt's end, belongs to its request alone. A request is admitted when the pool has
    room for the most that it and the others may ever hold, blocks that they share counted once, so none has to be
    preempted for want of blocks.
    """

    schedule: CompressionConfig
    evicted: dict[str, int]
    reserved: dict[str, int]
    """The most blocks that each running request can come to hold."""

    @classmethod
    def adopt(cls, manager: KVCacheManager, schedule: CompressionConfig) -> "BudgetBlocks":
        """Put the manager that vLLM's scheduler has built for itself under the budget.

        Args:
            manager: as the scheduler made it.
            schedule: the budget.
        """
        manager.__class__ = cls
        manager.schedule = schedule
        manager.evicted, manager.reserved = {}, {}
        # the length that admission has to reckon with
        manager.max_model_len = min(manager.max_model_len, schedule.budget)
        return manager

    def held(self, request: Request) -> int:
        """Cached tokens of a request, those of scheduled steps included."""
        return request.num_computed_tokens - self.evicted.get(request.request_id, 0)

    def room(self, request: Request, computed: int) -> int:
        """Return how many tokens may be fed to a request before it reaches the budget.

        Args:
            request: the request.
            computed: tokens that are computed already.
        """
        return self.schedule.budget - computed + self.evicted.get(request.request_id, 0)

    def most_blocks(self, request: Request) -> int:
        """Return the most blocks that a request can come to hold."""
        tokens = min(request.num_prompt_tokens + request.max_tokens, self.max_model_len)
        return cdiv(tokens, self.coordinator.single_type_managers[0].block_size)

    @property
    def unreserved(self) -> int:
        """Free blocks that no running request can come to need."""
        held = self.coordinator.single_type_managers[0].req_to_blocks
        return self.block_pool.get_num_free_blocks() - sum(
            most - len(held[name]) for name, most in self.reserved.items()
        )

    def evict(self, request: Request) -> int:
        """Take tokens from a request that has reached the budget, and free the blocks at its end that this empties.

        The worker moves tokens when it has computed the step; the freed blocks are first used in a later one.

        Returns:
            How many tokens it gives up.
        """
        kept = self.schedule.kept_tokens(request.num_prompt_tokens)
        dropped = self.held(request) - kept
        self.evicted[request.request_id] = self.evicted.get(request.request_id, 0) + dropped
        manager = self.coordinator.single_type_managers[0]
        blocks = manager.req_to_blocks[request.request_id]
        end = cdiv(kept, manager.block_size)
        self.block_pool.free_blocks(reversed(blocks[end:]))
        del blocks[end:]
        return dropped

    def allocate_slots(
        self,
        request: Request,
        num_new_tokens: int,
        num_new_computed_tokens: int = 0,
        new_computed_blocks: KVCacheBlocks | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> KVCacheBlocks | None:
        """See `KVCacheManager`; None where a request that is not running yet has to wait."""
        name = request.request_id
        if name not in self.reserved:
            shared = sum(block.ref_cnt > 0 for block in new_computed_blocks.blocks[0]) if new_computed_blocks else 0
            if self.most_blocks(request) - shared > self.unreserved:
                return None
        computed = request.num_computed_tokens
        request.num_computed_tokens = self.held(request)
        try:
            blocks = super().allocate_slots(
                request,
                num_new_tokens,
                num_new_computed_tokens,
                new_computed_blocks,
                *args,
                **{**kwargs, "delay_cache_blocks": True},
            )
        finally:
            request.num_computed_tokens = computed
        if blocks is not None:
            self.reserved.setdefault(name, self.most_blocks(request))
            self.cache_blocks(request, computed + num_new_computed_tokens + num_new_tokens)
        return blocks

    def cache_blocks(self, request: Request, num_computed_tokens: int) -> None:
        """Offer the full blocks of the prompt to other requests, and no others.

        Args:
            request: the request.
            num_computed_tokens: of it.
        """
        super().cache_blocks(request, min(num_computed_tokens, request.num_prompt_tokens))

    def get_computed_blocks(self, request: Request, *limit: int | None) -> tuple[KVCacheBlocks, int, int]:
        """Find cached blocks of the prompt. What a preempted request had generated is computed anew.

        Args:
            request: the request.
            limit: from vLLM 0.33 on, most tokens to find; None for all but the last one.
        """
        blocks, tokens, boundary = super().get_computed_blocks(request, *limit)
        size = self.coordinator.single_type_managers[0].block_size
        whole = request.num_prompt_tokens // size * size
        if tokens > whole:
            blocks, tokens = self.truncate_computed_blocks(blocks, whole), whole
        return blocks, tokens, boundary

    def free(self, request: Request) -> None:
        """Free the blocks of a request that has ended, or is preempted: it will be computed from the start."""
        self.evicted.pop(request.request_id, None)
        self.reserved.pop(request.request_id, None)
        super().free(request)
