"""vLLM with and without dynts: little memory for the KV cache, and plenty.

    python benchmarks/vllm_pressure.py --requests 64 --out pressure.json
    python benchmarks/vllm_pressure.py --model DIR --predictor DIR --questions FILE --new-tokens 600 --out pressure.json

Every engine answers the same questions greedily, each in a process of its own, one after the other: held-out problems
of the embedded model to their ends, or questions from a file (JSON Lines, column "question") with a fixed number of
tokens each. The small pool holds a share of what the requests that may run together would need with the full cache.
"""

import argparse
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
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
        predictor: folder of its predictor.
        config: the budget of the engines that have one.
        prompts: token ids of each request.
        new_tokens: of each request; None lets it end by itself.
        mean_length: tokens of a sequence on average, prompt included.
        longest: most tokens of a sequence.
        together: most requests at a time.
    """

    model: str
    predictor: str
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
    for blocks in (small, 4 * demand):
        for budgeted in (False, True):
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                found = pool.submit(serve, task, blocks, budgeted).result()
            rows.append({"budget": task.config.budget if budgeted else None, "slots": blocks * BLOCK, **found})
    record = {
        "requests": len(task.prompts),
        "together": task.together,
        "mean_length": task.mean_length,
        "engines": rows,
    }
    write_text_whole(arguments.out, json.dumps(record, indent=1) + "\n")
    table = Table(*(name.replace("_", " ") for name in rows[0]))
    for row in rows:
        table.add_row(str(row.pop("budget") or "full"), *(f"{value:.5g}" for value in row.values()))
    Console().print(table)


def _embedded(arguments: argparse.Namespace) -> Task:
    tokenizer = load_tokenizer(WEIGHTS)
    return Task(
        model=str(WEIGHTS),
        predictor=str(WEIGHTS / "answer"),
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
        predictor=arguments.predictor,
        config=CompressionConfig(budget, round(0.3 * budget), 0.4),
        prompts=prompts,
        new_tokens=arguments.new_tokens,
        mean_length=mean_length,
        longest=max(map(len, prompts)) + arguments.new_tokens,
        together=arguments.together,
    )


def serve(task: Task, blocks: int, budgeted: bool) -> dict[str, Any]:
    """Answer the questions; the figures leave the start of the engine out."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # so that the scheduler can be watched
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    additional: dict[str, Any] = {"dynts": None}
    if budgeted:
        additional["dynts"] = {"predictor": task.predictor, **asdict(task.config)}
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
    }


if __name__ == "__main__":
    main()
