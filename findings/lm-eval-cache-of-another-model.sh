#!/usr/bin/env bash
# lm_eval 0.4.13: what one model answered, --use_cache hands to every other model.
#
# Guess before the run: the cache knows whose answer it holds, by the model's name and arguments at least, or refuses a file of another
# model; two models that share one file are evaluated each by its own answers.
# Seen: the key is the kind of request with its prompt and generation arguments. The second model is asked nothing, and gets the score of
# the first: a model that is always wrong is right in 2 of 2, one that differs in its arguments alone (a budget, a quantisation) as well.
# Output: right alone: 1.0; wrong alone: 0.0; wrong after right with the same cache: 1.0, asked 0 times
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet lm_eval==0.4.13 datasets==5.2.0
cat >"$folder/additions.jsonl" <<'DATA'
{"question": "1 + 1 =", "answer": "2"}
{"question": "2 + 3 =", "answer": "5"}
DATA
cat >"$folder/additions.yaml" <<'TASK'
task: additions
dataset_path: json
dataset_kwargs: {data_files: {test: additions.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\n"], do_sample: false, max_gen_toks: 4}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
TASK
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/hub" "$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null
import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.tasks import TaskManager

asked: list[str] = []


@register_model("adder")
class Adder(LM):
    """Adds two numbers, and what its argument says."""

    def __init__(self, more: int = 0, **other: object) -> None:
        super().__init__()
        self.more = more

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        asked.extend(request.args[0] for request in requests)
        sums = (request.args[0].removesuffix(" =").split(" + ") for request in requests)
        return [str(sum(map(int, numbers)) + self.more) for numbers in sums]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError


def score(more: int, cache: str | None) -> float:
    asked.clear()
    manager = TaskManager(include_path=".", include_defaults=False)
    found = lm_eval.simple_evaluate("adder", {"more": more}, ["additions"], use_cache=cache, task_manager=manager)
    return found["results"]["additions"]["exact_match,none"]


right, wrong = score(0, None), score(1, None)
score(0, "answers")
both = score(1, "answers")
print(f"right alone: {right}; wrong alone: {wrong}; wrong after right with the same cache: {both}, asked {len(asked)} times")
assert (right, wrong) == (1.0, 0.0)
assert both == 1.0 and not asked, "the cache knows its model now"
PYTHON
