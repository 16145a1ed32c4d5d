#!/usr/bin/env bash
# sglang 0.5.23: a request that is retracted under memory pressure forgets what it had written for its penalties.
#
# Guess before running: a retracted request is computed anew from its prompt and all that it wrote, and goes on as if nothing
# had happened; its frequency penalty counts what it wrote, as before.
# Seen: without a penalty it does go on so. With one, penalties count from nothing after the retraction, and the answer is
# another one from there on. meta_info tells of the retraction only.
#
#   penalty 0.0, request 0: retracted 0 times, 150 of 150 tokens the same
#   penalty 0.0, request 1: retracted 1 times, 150 of 150 tokens the same
#   penalty 0.5, request 0: retracted 0 times, 150 of 150 tokens the same
#   penalty 0.5, request 1: retracted 1 times, 104 of 150 tokens the same
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0
"$folder/venv/bin/pip" install --quiet --no-deps sglang==0.5.23 compressed-tensors==0.18.0 xgrammar==0.2.7
"$folder/venv/bin/pip" install --quiet transformers==5.19.0 tokenizers==0.23.2 sentencepiece==0.2.1 triton==3.9.0 \
  apache-tvm-ffi==0.1.11 openai==2.8.0 numpy==2.3.5 accelerate==1.12.0 aiohttp dill einops fastapi gguf ipython loguru msgspec \
  ninja orjson packaging partial_json_parser pillow prometheus-client psutil pybase64 pydantic python-multipart pyzmq requests \
  scipy setproctitle tiktoken tqdm uvicorn uvloop xxhash zstandard jsonschema soundfile
cd "$folder"
# no registry has SGLang's kernels for CPUs. Without their operators it takes its own PyTorch code; the names that it imports
# are not called here
cat > sgl_kernel.py <<'PYTHON'
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return None
PYTHON
cat > torchvision.py <<'PYTHON'
import sys
from unittest.mock import MagicMock

__version__ = "0.28"
for name in ("io", "transforms", "transforms.functional", "transforms.v2", "transforms.v2.functional"):
    sys.modules[f"torchvision.{name}"] = MagicMock()
PYTHON
cat > written.py <<'PYTHON'
import torch
from sglang import Engine
from transformers import LlamaConfig, LlamaForCausalLM

FOLDER, NEW = "model", 150
PROMPTS = [[3 + (7 * place) % 50 for place in range(20)], [5 + (11 * place) % 50 for place in range(20)]]


def written(pool: int, penalty: float) -> list[tuple[list[int], int]]:
    engine = Engine(
        model_path=FOLDER, skip_tokenizer_init=True, device="cpu", dtype="float32", attention_backend="torch_native",
        sampling_backend="pytorch", disable_cuda_graph=True, context_length=512, max_running_requests=2,
        max_total_tokens=pool, schedule_conservativeness=0.1, disable_radix_cache=True, disable_overlap_schedule=True, log_level="error",
    )  # fmt: skip
    sampling = {"max_new_tokens": NEW, "temperature": 0.0, "frequency_penalty": penalty}
    answers = engine.generate(input_ids=PROMPTS, sampling_params=sampling)
    engine.shutdown()
    return [(answer["output_ids"], answer["meta_info"]["num_retractions"]) for answer in answers]


def main() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(FOLDER)
    seen = {}
    for penalty in (0.0, 0.5):
        roomy, tight = written(4096, penalty), written(240, penalty)
        for number, ((whole, _), (tokens, times)) in enumerate(zip(roomy, tight, strict=True)):
            same = next((at for at in range(NEW) if whole[at] != tokens[at]), NEW)
            seen[penalty, number] = times, same
            print(f"penalty {penalty}, request {number}: retracted {times} times, {same} of {NEW} tokens the same", flush=True)
    retracted = [(penalty, same) for (penalty, _), (times, same) in seen.items() if times]
    assert {penalty for penalty, _ in retracted} == {0.0, 0.5}, "a retraction is missing"
    assert all(same == NEW for penalty, same in retracted if not penalty)
    assert all(same < NEW for penalty, same in retracted if penalty)


if __name__ == "__main__":
    main()
PYTHON
PYTHONPATH=$folder SGLANG_USE_CPU_ENGINE=1 OMP_NUM_THREADS=1 "$folder/venv/bin/python" written.py
