"""A batch under several methods: which of them still answer with half of the cache?

    python examples/batch.py

solves 20 short problems with the embedded model, all at a time. For a model of your own change the names in capitals:
MODEL and PREDICTOR to folders or Hub ids, PROBLEMS to pairs of a question and its right answer, BUDGET and LIMIT to
numbers that fit them.
"""

import dynts
from dynts.grading.grader import Grader
from dynts.methods import H2O, SnapKV
from dynts.models import load_model
from dynts.tiny import WEIGHTS
from dynts.tiny.task import make_problem

MODEL, PREDICTOR = WEIGHTS, WEIGHTS / "future"
PROBLEMS = [(problem.question, problem.answer) for problem in (make_problem(n, range(4, 8)) for n in range(20))]
BUDGET, LIMIT = dynts.CompressionConfig(budget=200, local_window=60, retention_ratio=0.67), 600
METHODS = {
    "full": "full",
    "dynts": "dynts",
    "h2o, native": H2O(granularity="native", protect_question=True),
    "snapkv, native": SnapKV(granularity="native", protect_question=True),
    "random, native": "random",
    "question-window": "question-window",
}
INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."

model, tokenizer = load_model(MODEL)
predictor = dynts.ImportancePredictor.from_pretrained(PREDICTOR)
chats = [[{"role": "user", "content": question + INSTRUCTION}] for question, _ in PROBLEMS]
inputs = tokenizer.apply_chat_template(
    chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
).to(model.device)

print(f"{'method':<16}{'right':>10}{'mean length':>13}{'most cached':>13}{'compactions':>13}")
with Grader() as grader:
    for name, method in METHODS.items():
        with dynts.compress(model, method, BUDGET, predictor) as session:
            output = model.generate(**inputs, max_new_tokens=LIMIT, do_sample=False)
        written = output[:, inputs["input_ids"].shape[1] :]
        length = (written != tokenizer.pad_token_id).sum().item() / len(PROBLEMS)
        answers = [text.rpartition("</think>")[2] for text in tokenizer.batch_decode(written)]
        right = sum(grader.grade(text, gold) == "correct" for text, (_, gold) in zip(answers, PROBLEMS, strict=True))
        stats = session.stats[-1]
        result = f"{right} of {len(PROBLEMS)}"
        print(f"{name:<16}{result:>10}{length:>13.0f}{stats.peak_tokens:>13}{len(stats.compactions):>13}")
