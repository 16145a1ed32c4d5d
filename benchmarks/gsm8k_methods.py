"""Answer GSM8K questions with every method under one budget: writes a table and its raw numbers.

    python benchmarks/gsm8k_methods.py --model DIR --gguf-file FILE --predictor DIR --questions FILE --out docs/results

Questions are decoded greedily in one left-padded batch. Time includes prefill, scoring and compaction; tokens that a finished
row was fed do not count. SmolLM2-135M is no reasoning model: the table shows that every method runs, and what it costs.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import dynts
from dynts.grading.grader import Grader, Verdict
from dynts.methods import METHODS
from dynts.models import load_model
from dynts.prompts import chat_prompt


def main() -> None:
    """Parse arguments, run all methods, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("model", "predictor", "questions", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--gguf-file")
    parser.add_argument("--future-predictor", help="a second predictor, trained on the future label")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=300)
    parser.add_argument("--budget", type=int, default=240)
    parser.add_argument("--local-window", type=int, default=48)
    parser.add_argument("--retention-ratio", type=float, default=0.4)
    arguments = parser.parse_args()

    rows = [json.loads(line) for line in Path(arguments.questions).read_text().splitlines() if line.strip()]
    rows = rows[: arguments.count]
    model, tokenizer = load_model(arguments.model, gguf_file=arguments.gguf_file)
    tokenizer.padding_side = "left"
    prompts = [chat_prompt(tokenizer, row["question"]) for row in rows]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    config = dynts.CompressionConfig(arguments.budget, arguments.local_window, arguments.retention_ratio)
    predictors = {"answer": dynts.ImportancePredictor.from_pretrained(arguments.predictor)}
    if arguments.future_predictor:
        predictors["future"] = dynts.ImportancePredictor.from_pretrained(arguments.future_predictor)

    results = []
    for label, method, predictor in _runs(predictors):
        with dynts.compress(model, method, config, predictor, tokenizer=tokenizer) as session:
            started = time.perf_counter()
            output = model.generate(**inputs, max_new_tokens=arguments.max_new_tokens, do_sample=False)
            seconds = time.perf_counter() - started
        results.append(_row(label, output, inputs["input_ids"].shape[1], rows, tokenizer, seconds, session.stats[-1]))
        print(json.dumps({name: value for name, value in results[-1].items() if name != "compactions"}), flush=True)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        "questions": len(rows),
        "max_new_tokens": arguments.max_new_tokens,
        "budget": config.budget,
        "local_window": config.local_window,
        "retention_ratio": config.retention_ratio,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    (out / "gsm8k_methods.json").write_text(json.dumps({"settings": settings, "results": results}, indent=1) + "\n")
    (out / "gsm8k_methods.md").write_text(_table(settings, results))


def _runs(predictors: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    runs: list[tuple[str, Any, Any]] = [(name, name, predictors["answer"]) for name in METHODS]
    if "future" in predictors:
        runs.insert(2, ("dynts, future label", "dynts", predictors["future"]))
    native = [(f"{name}, native", METHODS[name](granularity="native"), None) for name in ("h2o", "snapkv", "rkv")]
    return runs + native


def _row(
    label: str, output: Any, prompt: int, rows: list[Any], tokenizer: Any, seconds: float, stats: Any
) -> dict[str, Any]:
    generated = output[:, prompt:]
    ended = generated == tokenizer.eos_token_id
    lengths = [int(row.float().argmax()) + 1 if row.any() else len(row) for row in ended]
    texts = [
        tokenizer.decode(row[:length], skip_special_tokens=True) for row, length in zip(generated, lengths, strict=True)
    ]
    with Grader() as grader:
        verdicts = list(grader.grade_all(zip(texts, (row["answer"] for row in rows), strict=True)))
    return {
        "method": label,
        "correct": verdicts.count(Verdict.CORRECT),
        "mean_length": sum(lengths) / len(lengths),
        "truncated": sum(not bool(row.any()) for row in ended),
        "peak_tokens": stats.peak_tokens,
        "peak_mib": stats.peak_bytes / 2**20,
        "compaction_count": len(stats.compactions),
        "tokens_per_second": sum(lengths) / seconds,
        "prompt_tokens": stats.prompt_tokens,
        "generated_tokens": stats.generated_tokens,
        "compactions": stats.compactions,
    }


def _table(settings: dict[str, Any], results: list[dict[str, Any]]) -> str:
    lines = [
        "| method | correct | mean length | truncated | peak tokens | peak KV, MiB | compactions | tokens/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['method']} | {row['correct']} / {settings['questions']} | {row['mean_length']:.0f} | {row['truncated']} "
        f"| {row['peak_tokens']} | {row['peak_mib']:.1f} | {row['compaction_count']} | {row['tokens_per_second']:.1f} |"
        for row in results
    ]
    return "\n".join([*lines, "", ", ".join(f"{name} {value}" for name, value in settings.items()), ""])


if __name__ == "__main__":
    main()
