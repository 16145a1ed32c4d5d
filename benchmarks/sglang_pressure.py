"""SGLang with and without dynts: little memory for the KV cache, and plenty; and where the time of a step goes.

    PYTHONPATH=tests/engines/sglang_plugin:tests/engines/sglang_plugin/sglang_on_cpu SGLANG_USE_CPU_ENGINE=1 \\
        python benchmarks/sglang_pressure.py --requests 64 --out pressure.json

What is asked, and in which pools: `pressure.py`. On a GPU leave SGLang's variable and the second folder out, and give
`--device cuda`.
"""

import functools
import time
from collections import Counter
from typing import Any

from pressure import Task, measure, options
from sglang_engines import started

from dynts.engines.settings import PluginSettings

ON_CPU = {"attention_backend": "torch_native", "sampling_backend": "pytorch", "disable_cuda_graph": True}


def main() -> None:
    """Command line."""
    parser = options(__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    measure(arguments, 1, [f"{arguments.device}, {arguments.dtype}"], serve)


def serve(task: Task, slots: int, granularity: str | None, engine: str) -> dict[str, Any]:
    """Answer the questions; the figures leave the start of the engine out."""
    device, dtype = engine.split(", ")
    # the tests look for leaks at each step
    settings = {"SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "0", "SGLANG_CHECK_KV_PAGE_INVARIANTS": "0"}
    if granularity is not None:
        given = PluginSettings(task.predictors[granularity], granularity=granularity, **task.config.settings())
        settings |= given.to_environment()
    server = {
        "device": device,
        "dtype": dtype,
        "attention_backend": None,
        "sampling_backend": None,
        "disable_cuda_graph": False,
        **(ON_CPU if device == "cpu" else {}),
        "max_total_tokens": slots,
        "max_running_requests": task.together,
        "context_length": task.longest,
    }
    sampling = {
        "temperature": 0.0,
        "max_new_tokens": task.new_tokens or task.longest - 200,
        "ignore_eos": task.new_tokens is not None,
    }
    with started(task.model, settings, **server) as scheduler:
        scheduler.generate(task.prompts[:1], {**sampling, "max_new_tokens": 8}, return_logprob=False)
        scheduler.call(_watch)
        begun = time.perf_counter()
        asked = scheduler.add(task.prompts, sampling, return_logprob=False, top_logprobs_num=0)
        while not all(result.finish for result in scheduler.results[asked]):
            scheduler.run(200)
        seconds = time.perf_counter() - begun
        told = scheduler.call(_told)
    results = scheduler.results[asked]
    spent = told.pop("spent")
    parts = {
        "step": seconds,
        "forward": spent["run"] - spent["notes"],
        "notes": spent["notes"],
        "eviction": spent["evict"],
        "rest": seconds - spent["run"] - spent["evict"],
    }
    return {
        "retractions": sum(result.retractions for result in results),
        **told,
        "tokens_per_second": sum(len(result.tokens) for result in results) / seconds,
        "milliseconds": {part: 1000 * took / told["steps"] for part, took in parts.items()},
    }


# --- in the scheduler's process


def _watch(scheduler: Any) -> None:
    """Counts steps, and times their parts."""
    scheduler.watched = counts = Counter()
    scheduler.spent = spent = dict.fromkeys(("run", "notes", "evict"), 0.0)

    def timed(owner: Any, name: str, part: str) -> None:
        call = getattr(owner, name)

        @functools.wraps(call)
        def timed_call(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent[part] += time.perf_counter() - begun

        setattr(owner, name, timed_call)

    run = scheduler.run_batch

    def run_batch(batch: Any, *args: Any, **kwargs: Any) -> Any:
        counts["steps"] += 1
        if batch.forward_mode.is_decode():
            counts["decode steps"] += 1
            counts["decoded"] += len(batch.reqs)
            counts["most"] = max(counts["most"], len(batch.reqs))
        else:
            counts["read"] += batch.extend_num_tokens
        return run(batch, *args, **kwargs)

    scheduler.run_batch = run_batch
    timed(scheduler, "run_batch", "run")
    if hasattr(scheduler.tp_worker, "evictor"):
        timed(scheduler.tp_worker.evictor, "take_note", "notes")
        timed(scheduler.tp_worker.evictor, "evict", "evict")


def _told(scheduler: Any) -> dict[str, Any]:
    """What was counted."""
    counts = scheduler.watched
    return {
        "peak_running": counts["most"],
        "mean_running": counts["decoded"] / counts["decode steps"],
        "steps": counts["steps"],
        "computed_tokens": counts["read"] + counts["decoded"],
        "spent": scheduler.spent,
    }


if __name__ == "__main__":
    main()
