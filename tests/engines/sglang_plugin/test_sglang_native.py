"""SGLang with a set of tokens for each layer and KV head, beside the transformers path."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from budget_cases import (
    CONFIG,
    LENGTHS,
    POOL,
    PROMPTS,
    SYSTEM,
    TOLERANCE,
    compactions,
    counted,
    dispatch,
    expect,
    free_slots,
    furthest,
)
from sglang_engines import budget, needs_sglang, sampling, started

from dynts.errors import UnsupportedError
from dynts.methods import DynTS

pytestmark = needs_sglang


def test_logprobs_equal_the_transformers_path(random_model: Callable[[str], Path]) -> None:
    """Queueing, shared prompts, a second turn, and retractions: before an eviction, after some, and in a replay."""
    folder = random_model("llama")
    settings = budget(CONFIG, folder / "native", granularity="native")
    with started(folder, settings, skip_tokenizer_init=True, max_total_tokens=POOL) as scheduler:
        results = scheduler.generate(PROMPTS, [sampling(length) for length in LENGTHS])
        assert scheduler.call(counted)["compactions"] == compactions(PROMPTS, results) >= 30
        assert sum(result.cached >= len(SYSTEM) for result in results) >= 8, "the system prompt must be shared"
        turn = [*PROMPTS[1], *results[1].tokens[:60], 7]
        asked = scheduler.add([*PROMPTS[:2], turn], sampling(250))
        for steps in (50, 170, 30):
            scheduler.run(steps)
            scheduler.call(dispatch, "PauseGenerationReqInput", mode="retract")
            scheduler.run(2)
            scheduler.call(dispatch, "ContinueGenerationReqInput")
        scheduler.run()
        retracted = scheduler.results[asked]
        assert scheduler.call(free_slots) == POOL
    assert all(result.retractions == 3 for result in retracted)
    prompts, all_results = [*PROMPTS, *PROMPTS[:2], turn], [*results, *retracted]
    native, shared = (expect(folder, prompts, all_results, "native", DynTS(kind)) for kind in ("native", "shared"))
    assert furthest(all_results, native) < TOLERANCE
    assert furthest(all_results, shared) > 100 * TOLERANCE, "other sets must show"


def test_pools_whose_layout_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

    from dynts.engines.sglang.evictor import check_layout

    def pool(**changes: Any) -> Any:
        usual = {"size": 8, "page_size": 1, "dtype": torch.float8_e5m2, "head_num": 2, "head_dim": 4, "layer_num": 1}
        return MHATokenToKVPool(**{**usual, "device": "cpu", "enable_memory_saver": False, **changes})

    check_layout(pool())
    monkeypatch.setenv("SGLANG_USE_HND_KVCACHE", "1")
    with pytest.raises(UnsupportedError, match=r"how MHATokenToKVPool lays out .* \(hnd\).*unset SGLANG_USE_HND"):
        check_layout(pool())
    with pytest.raises(UnsupportedError, match="how object lays out"):
        check_layout(object())


def test_the_input_embedding_has_another_name_in_each_model() -> None:
    from torch import nn

    from dynts.engines.sglang.evictor import input_embedding

    tokens, places = nn.Embedding(64, 8), nn.Embedding(32, 8)
    model = nn.ModuleDict({"transformer": nn.ModuleDict({"wte": tokens, "wpe": places}), "lm_head": nn.Linear(8, 64)})
    assert input_embedding(model) is tokens
    with pytest.raises(UnsupportedError, match="no input embedding in SGLang's Linear"):
        input_embedding(model["lm_head"])
