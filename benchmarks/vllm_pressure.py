"""vLLM with and without dynts: little memory for the KV cache, and plenty; and where the time of a step goes.

    python benchmarks/vllm_pressure.py --runners v1 v2 --requests 64 --out pressure.json
    python benchmarks/vllm_pressure.py --model DIR --predictor DIR --native DIR --questions FILE --new-tokens 600 \\
        --out pressure.json

What is asked, and in which pools: `pressure.py`. vLLM's V2 runner needs a GPU, or
`tests/engines/vllm_plugin/triton_on_cpu` on PYTHONPATH and TRITON_INTERPRET=1.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from pressure import Task, measure, options

BLOCK = 32


def main() -> None:
    """Command line."""
    parser = options(__doc__)
    parser.add_argument("--runners", nargs="+", choices=("v1", "v2"), default=["v1"], help="vLLM's model runners")
    arguments = parser.parse_args()
    measure(arguments, BLOCK, arguments.runners, serve)


def serve(task: Task, blocks: int, granularity: str | None, runner: str) -> dict[str, Any]:
    """Answer the questions; the figures leave the start of the engine out."""
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = str(int(runner == "v2"))
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # so that the scheduler can be watched
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    additional: dict[str, Any] = {"dynts": None}
    if granularity is not None:
        given = {"predictor": task.predictors[granularity], "granularity": granularity}
        additional["dynts"] = {**given, **task.config.settings()}
    llm = LLM(
        model=task.model,
        dtype="float32",
        max_model_len=task.longest,
        enforce_eager=True,
        max_num_seqs=task.together,
        block_size=BLOCK,
        num_gpu_blocks_override=blocks,
        disable_log_stats=False,
        additional_config=additional,
    )
    engine = llm.llm_engine
    scheduler = engine.engine_core.engine_core.scheduler
    parameters = SamplingParams(
        temperature=0,
        max_tokens=task.new_tokens or task.longest - 200,
        ignore_eos=task.new_tokens is not None,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    for number, ids in enumerate(task.prompts):
        engine.add_request(str(number), {"prompt_token_ids": ids}, parameters)
    computed: list[int] = []
    after_schedule = scheduler._update_after_schedule

    def count(output: Any) -> None:
        computed.append(output.total_num_scheduled_tokens)
        after_schedule(output)

    scheduler._update_after_schedule = count
    stopwatch = watched(engine)
    tokens, peak, running, steps, started = 0, 0, 0, 0, time.perf_counter()
    while engine.has_unfinished_requests():
        for output in engine.step():
            tokens += len(output.outputs[0].token_ids)
        peak, running, steps = max(peak, len(scheduler.running)), running + len(scheduler.running), steps + 1
    seconds = time.perf_counter() - started
    (preemptions,) = [metric.value for metric in llm.get_metrics() if metric.name == "vllm:num_preemptions"]
    return {
        "preemptions": preemptions,
        "peak_running": peak,
        "mean_running": running / steps,
        "steps": steps,
        "computed_tokens": sum(computed),
        "tokens_per_second": tokens / seconds,
        "milliseconds": {name: 1000 * spent / steps for name, spent in stopwatch(seconds)},
    }


def watched(engine: Any) -> Callable[[float], Iterator[tuple[str, float]]]:
    """Time the parts of an engine's steps.

    Returns:
        What tells the seconds of each part, given those of all; parts do not overlap.
    """
    core = engine.engine_core.engine_core
    runner = core.model_executor.driver_worker.worker.model_runner
    parts = [("schedule", core.scheduler, ("schedule", "update_from_output"))]
    parts += [("forward", runner, ("execute_model",)), ("sample", runner, ("sample_tokens",))]
    if hasattr(runner, "evictor"):
        parts += [("notes", runner.evictor, ("take_note",)), ("compact", runner.evictor, ("compact",))]
        parts += [("predictor", runner.evictor.scorer.predictor, ("forward",))]
    spent: Counter[str] = Counter()

    def timed(part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed_call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                spent[part] += time.perf_counter() - started

        return timed_call

    for part, owner, names in parts:
        for name in names:
            setattr(owner, name, timed(part, getattr(owner, name)))

    def told(seconds: float) -> Iterator[tuple[str, float]]:
        yield "step", seconds
        yield "forward", spent["forward"] - spent["notes"] - spent["compact"]
        yield "predictor", spent["predictor"]
        yield "notes", spent["notes"] - spent["predictor"]
        yield from ((part, spent[part]) for part in ("compact", "sample", "schedule"))
        yield "rest", seconds - spent["forward"] - spent["sample"] - spent["schedule"]

    return told


if __name__ == "__main__":
    main()
