#!/usr/bin/env bash
# lighteval 0.13.0 (litellm 1.84): a request that fails is an answer that is wrong, and is remembered as one.
#
# Guess before the run: a model whose server gives errors ends the evaluation with an error, or is reported with how many requests failed;
# the next evaluation asks again for what failed.
# Seen: with a server that is overloaded (503 for everything) the command exits with 0 and a score of 0, after its retries. An evaluation
# after that, with the server well and right, has a score of 0 too: the empty answers are taken from the cache, and nothing is asked.
# Output: overloaded: exit 0, score 0.0; well again: exit 0, score 0.0, asked 0 times; well with a new cache: exit 0, score 1.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet 'lighteval[litellm]==0.13.0' 'litellm[caching]<1.85' 'transformers<5' 'huggingface_hub<1' 'xxhash<4'
# data of a task that is not asked for, which every start downloads unless it is there
touch "$(echo "$folder"/venv/lib/python3*/site-packages/lighteval/tasks/tasks)/tinyBenchmarks.pkl"
mkdir "$folder/additions"
echo '{"question": "1 + 1 =", "answer": "2"}' >"$folder/additions/test.jsonl"
cat >"$folder/additions.py" <<'TASK'
import numpy as np
from lighteval.metrics.metrics_sample import SampleLevelComputation
from lighteval.metrics.utils.metric_utils import SampleLevelMetric
from lighteval.tasks.lighteval_task import LightevalTaskConfig
from lighteval.tasks.requests import Doc, SamplingMethod


class Same(SampleLevelComputation):
    def compute(self, doc, model_response, **_):
        return float(model_response.final_text[0].strip() == doc.choices[0])


def ask(line, task_name):
    return Doc(task_name=task_name, query=line["question"], choices=[line["answer"]], gold_index=0)


SAME = SampleLevelMetric("same", True, SamplingMethod.GENERATIVE, Same(), np.mean)
TASKS_TABLE = [
    LightevalTaskConfig(
        name="additions", prompt_function=ask, hf_repo="additions", hf_subset="default", hf_avail_splits=["test"],
        evaluation_splits=["test"], metrics=[SAME], generation_size=10, stop_sequence=[],
    )
]
TASK
cd "$folder"
HF_HUB_OFFLINE=1 HF_HOME="$folder/hub" "$folder/venv/bin/python" - <<'PYTHON'
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

well, asked = False, 0
ANSWER = {"role": "assistant", "content": "2"}


class Server(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        global asked
        asked += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        answer = {"id": "0", "object": "chat.completion", "created": 0, "model": "m"}
        answer["choices"] = [{"index": 0, "message": ANSWER, "finish_reason": "stop"}]
        answer["usage"] = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        body = json.dumps(answer if well else {"error": {"message": "overloaded", "type": "server_error"}}).encode()
        self.send_response(200 if well else 503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()


def evaluate(name: str, cache: str) -> tuple[int, float]:
    url = f"http://127.0.0.1:{server.server_port}/v1"
    model = f"model_name=openai/m,base_url={url},api_key=none,max_model_length=100,api_max_retry=2,cache_dir={cache}"
    command = [str(Path(sys.executable).parent / "lighteval"), "endpoint", "litellm", model, "additions|0"]
    command += ["--custom-tasks", "additions.py", "--output-dir", name]
    ended = subprocess.run(command, capture_output=True, text=True)
    found = list(Path(name).rglob("results_*.json"))
    assert found, ended.stderr[-3000:] + ended.stdout[-3000:]
    return ended.returncode, json.loads(found[0].read_text())["results"]["all"]["same"]


overloaded = evaluate("overloaded", "cache")
well, before = True, asked
again = evaluate("again", "cache")
times = asked - before
new = evaluate("new", "new-cache")
print(
    f"overloaded: exit {overloaded[0]}, score {overloaded[1]}; well again: exit {again[0]}, score {again[1]}, "
    f"asked {times} times; well with a new cache: exit {new[0]}, score {new[1]}"
)
assert overloaded == again == (0, 0.0) and times == 0 and before > 0, "failed requests are told from answers now"
assert new == (0, 1.0)
PYTHON
