#!/usr/bin/env bash
# sglang 0.5.23: frequency penalties come a token late with the overlap scheduler, and start anew after a retraction.
#
# Guess before running: a frequency penalty of 0.5 takes 0.5 off a token's logit for each time that it was written, the latest
# token included. The overlap scheduler, which is the default, hides the host's work and changes no answer. A request that is
# retracted for lack of memory is computed anew from its prompt and all that it wrote, and goes on as if nothing had happened.
# Seen: with overlap the latest token does not count yet, since its value is still on the device when the penalties of the next
# step are put together, and the last token of the prompt counts as if it had been written. After a retraction (without overlap,
# as all of the second part) penalties count from nothing, so the answer is another one from there on; without a penalty it is
# the same.
#
#   overlap True, penalty 0.0: as by the formula True, one token late True
#   overlap True, penalty 0.5: as by the formula False, one token late True
#   overlap False, penalty 0.0: as by the formula True, one token late True
#   overlap False, penalty 0.5: as by the formula True, one token late False
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

PROMPTS = [[3 + (7 * place) % 50 for place in range(20)], [5 + (11 * place) % 50 for place in range(20)]]
PENALTIES = (0.0, 0.5)


def answers(prompts, tokens, pool=4096, **settings):
    """By penalty, what is written greedily on each prompt and how often it was retracted."""
    engine = Engine(
        model_path="model", skip_tokenizer_init=True, device="cpu", dtype="float32", attention_backend="torch_native",
        sampling_backend="pytorch", disable_cuda_graph=True, context_length=512, max_running_requests=2,
        max_total_tokens=pool, schedule_conservativeness=0.1, disable_radix_cache=True, log_level="error", **settings,
    )  # fmt: skip
    found = {}
    for penalty in PENALTIES:
        sampling = {"max_new_tokens": tokens, "temperature": 0.0, "frequency_penalty": penalty}
        written = engine.generate(input_ids=prompts, sampling_params=sampling)
        found[penalty] = [(answer["output_ids"], answer["meta_info"]["num_retractions"]) for answer in written]
    engine.shutdown()
    return found


def by_formula(model, prompt, tokens, penalty, late):
    """Greedy, less the penalty for each time that a token was written.

    Late: the latest token does not count yet, but the prompt's last does.
    """
    ids, counts = list(prompt), torch.zeros(model.config.vocab_size)
    waiting = [prompt[-1]] if late else []
    with torch.no_grad():
        for _ in range(tokens):
            token = int((model(torch.tensor([ids])).logits[0, -1] - penalty * counts).argmax())
            ids.append(token)
            waiting.append(token)
            counts[waiting.pop(0)] += 1
    return ids[len(prompt) :]


def main():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained("model")
    for overlap in (True, False):
        for penalty, [(tokens, _)] in answers(PROMPTS[:1], 60, disable_overlap_schedule=not overlap).items():
            same = [tokens == by_formula(model, PROMPTS[0], 60, penalty, late) for late in (False, True)]
            print(f"overlap {overlap}, penalty {penalty}: as by the formula {same[0]}, one token late {same[1]}")
            assert same == ([True, True] if not penalty else [not overlap, overlap])
    roomy, tight = (answers(PROMPTS, 150, pool, disable_overlap_schedule=True) for pool in (4096, 240))
    for penalty in PENALTIES:
        for number, ((whole, _), (tokens, times)) in enumerate(zip(roomy[penalty], tight[penalty], strict=True)):
            same = next((at for at in range(150) if whole[at] != tokens[at]), 150)
            print(f"penalty {penalty}, request {number}: retracted {times} times, {same} of 150 tokens the same")
            assert times == number
            assert (same < 150) == bool(times and penalty)


if __name__ == "__main__":
    main()
PYTHON
PYTHONPATH=$folder SGLANG_USE_CPU_ENGINE=1 OMP_NUM_THREADS=1 "$folder/venv/bin/python" written.py
