#!/usr/bin/env bash
# lm_eval 0.4.13: --use_cache gives every repeat the same drawn response, if the task says `temperature` and not `do_sample`.
#
# Guess before the run: lm_eval reads `temperature: 0.6` alone as "draw" (normalize_gen_kwargs sets do_sample), and its cache leaves out
# what is drawn, as it says in a warning; so 8 repeats are 8 responses, whether the evaluation is run once or again.
# Seen: the cache looks at the `do_sample` that the task wrote, not at what it is read as. The second evaluation takes all repeats from the
# cache, where they have one key: 8 times one response. A Pass@k is then that of one sample.
# Output: read as do_sample=True; first: 8 responses, 8 different; again: 8 responses, 1 different; with do_sample: 8 different
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet lm_eval==0.4.13 datasets==5.2.0
echo '{"question": "Name a number.", "answer": "2"}' >"$folder/numbers.jsonl"
cat >"$folder/numbers.yaml" <<'TASK'
task: numbers
dataset_path: json
dataset_kwargs: {data_files: {test: numbers.jsonl}}
test_split: test
output_type: generate_until
repeats: 8
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\n"], temperature: 0.6, max_gen_toks: 4}
filter_list: [{name: all, filter: [{function: take_first_k, k: 8}]}]
metric_list: [{metric: bypass}]
TASK
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/hub" "$folder/venv/bin/python" - <<'PYTHON'
from itertools import count

import lm_eval
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager

numbers = count()
read: list[bool] = []


class Drawing(LM):
    """Every response is another one."""

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        read.extend(bool(normalize_gen_kwargs(dict(request.args[1]))["do_sample"]) for request in requests)
        return [str(next(numbers)) for _ in requests]

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError


def responses(cache: str, gen_kwargs: dict[str, object] | None = None) -> list[str]:
    manager = TaskManager(include_path=".", include_defaults=False)
    found = lm_eval.simple_evaluate(Drawing(), None, ["numbers"], use_cache=cache, task_manager=manager, gen_kwargs=gen_kwargs)
    return [text for sample in found["samples"]["numbers"] for responses in sample["resps"] for text in responses]


first, again = responses("cache"), responses("cache")
responses("other", {"do_sample": True})
right = responses("other", {"do_sample": True})
print(
    f"read as do_sample={all(read)}; first: {len(first)} responses, {len(set(first))} different; again: {len(again)} "
    f"responses, {len(set(again))} different; with do_sample: {len(set(right))} different"
)
assert all(read) and len(set(first)) == 8 and len(set(right)) == 8
assert len(again) == 8 and len(set(again)) == 1, "repeats are told apart now"
PYTHON
