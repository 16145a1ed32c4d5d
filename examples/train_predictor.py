"""Label traces and train a predictor for a model, then decode with it.

    python examples/train_predictor.py

lets the embedded model solve 40 problems, labels what it wrote with its own attention, trains on it, and tries the
predictor on other problems. All of it stays in the folder `my-predictor`; the same command again takes what is there.

For a model of your own: `dynts collect --model MODEL --dataset math-train --out my-predictor/traces` writes traces.
Then change MODEL and TRACES, leave SETTINGS at `TrainConfig(label="future-native")` and `future_window` out, and go on
with `batch.py` or `dynts eval` instead of the last lines, which pose problems of the embedded model.
"""

import json
from pathlib import Path

import dynts
from dynts.methods import DynTS
from dynts.models import load_model
from dynts.tiny import WEIGHTS
from dynts.tiny.solve import solve
from dynts.tiny.task import make_problem
from dynts.training.labelling import label_traces
from dynts.training.train import TrainConfig, save_predictor, train_predictor

MODEL, FOLDER = WEIGHTS, Path("my-predictor")
TRACES = FOLDER / "traces.jsonl"
SETTINGS = TrainConfig(label="future-native", transform="linear", batch_traces=1, learning_rate=1e-3)

model, tokenizer = load_model(MODEL)
if not TRACES.exists():
    FOLDER.mkdir(exist_ok=True)
    problems = [make_problem(number) for number in range(100, 140)]
    with dynts.compress(model, "full"):  # keeps everything, and is faster than a cache that is copied to grow
        solutions = solve(model, tokenizer, problems)
    rows = [
        {"question": problem.question, "response": solution.text, "answer": problem.answer}
        for problem, solution in zip(problems, solutions, strict=True)
    ]
    TRACES.write_text("".join(json.dumps(row) + "\n" for row in rows))

shards = label_traces(model, tokenizer, TRACES, FOLDER / "shards", labels=[SETTINGS.label], future_window=75)
dropped = {reason: count for reason, count in shards.manifest["dropped"].items() if count}
print(f"labelled {len(shards.indices)} traces, dropped: {dropped or 'none'}")

result = train_predictor(shards, SETTINGS)
for name, metrics in result.metrics.items():
    print(f"Kendall tau on {result.held_out_traces} held-out traces, {name}: {metrics['kendall_tau']:.2f}")
save_predictor(result.predictor, FOLDER / "predictor", overwrite=True)

predictor = dynts.ImportancePredictor.from_pretrained(FOLDER / "predictor")
budget = dynts.CompressionConfig(budget=246, local_window=75, retention_ratio=0.67)
for method in (DynTS(granularity="native"), "random"):
    with dynts.compress(model, method, budget, predictor) as session:
        solutions = solve(model, tokenizer, [make_problem(number) for number in range(20)])
    right = sum(solution.correct for solution in solutions)
    print(f"{method}: {right} of 20 right, at most {session.stats[-1].peak_tokens} tokens cached")
