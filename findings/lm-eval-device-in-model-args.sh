#!/usr/bin/env bash
# lm_eval 0.4.13: on the command line no model can be given its device among --model_args.
#
# Guess before the run: --model_args is handed to the model, whose constructors have a `device` (hf, vllm, ...); --device is another way to
# say the same, and is not said. So `--model_args device=cpu` takes the CPU, as `simple_evaluate("hf", {"device": "cpu"}, ...)` does.
# Seen: the command ends with a TypeError, for it always gives a device, "cuda:0" where none is asked for, beside that of --model_args.
# In Python the same arguments work, for there the default is none.
# Output: Python: cpu; command: TypeError: __main__.Two() got multiple values for keyword argument 'device'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet lm_eval==0.4.13 datasets==5.2.0
echo '{"question": "1 + 1 =", "answer": "2"}' >"$folder/additions.jsonl"
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
import sys

import lm_eval
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.tasks import TaskManager

devices: list[object] = []


@register_model("two")
class Two(LM):
    """Has the arguments that lm_eval gives its own models."""

    def __init__(self, device: str | None = None, batch_size: object = 1, max_batch_size: int | None = None) -> None:
        super().__init__()
        devices.append(device)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return ["2"] * len(requests)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError


manager = TaskManager(include_path=".", include_defaults=False)
lm_eval.simple_evaluate("two", {"device": "cpu"}, ["additions"], task_manager=manager)
sys.argv = ["lm_eval", "--model", "two", "--tasks", "additions", "--include_path", ".", "--model_args", "device=cpu"]
try:
    cli_evaluate()
    seen = f"{devices[-1]}"
except TypeError as error:
    seen = f"TypeError: {error}"
print(f"Python: {devices[0]}; command: {seen}")
assert devices == ["cpu"] and "multiple values for keyword argument 'device'" in seen, "the command follows it now"
PYTHON
