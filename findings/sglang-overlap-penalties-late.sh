#!/usr/bin/env bash
# sglang 0.5.23: with the overlap scheduler, which is the default, a frequency penalty comes one token late.
#
# Guess before running: the overlap scheduler hides the host's work behind the device's and changes no answer; a frequency
# penalty of 0.5 takes 0.5 off a token's logit for each time that it was written, the latest token included.
# Seen: with overlap the latest token does not count yet, since its value is still on the device when the penalties of the next
# step are put together, and the last token of the prompt counts as if it had been written. Without overlap it is as guessed.
#
#   overlap True, penalty 0.0: as by the formula True, one token late True
#   overlap True, penalty 0.5: as by the formula False, one token late True
#   overlap False, penalty 0.0: as by the formula True, one token late True
#   overlap False, penalty 0.5: as by the formula True, one token late False
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

FOLDER, NEW = "model", 60
PROMPT = [3 + (7 * place) % 50 for place in range(20)]


def written(overlap: bool, penalties: list[float]) -> list[list[int]]:
    engine = Engine(
        model_path=FOLDER, skip_tokenizer_init=True, device="cpu", dtype="float32", attention_backend="torch_native",
        sampling_backend="pytorch", disable_cuda_graph=True, context_length=512, max_running_requests=2,
        max_total_tokens=4096, disable_overlap_schedule=not overlap, log_level="error",
    )  # fmt: skip
    chosen = [{"max_new_tokens": NEW, "temperature": 0.0, "frequency_penalty": penalty} for penalty in penalties]
    answers = [engine.generate(input_ids=PROMPT, sampling_params=one)["output_ids"] for one in chosen]
    engine.shutdown()
    return answers


def by_formula(model: LlamaForCausalLM, penalty: float, late: bool) -> list[int]:
    """Greedy, less the penalty for each time that a token was written.

    Late: the latest token does not count yet, but the prompt's last does.
    """
    ids, counts = list(PROMPT), torch.zeros(model.config.vocab_size)
    waiting = [PROMPT[-1]] if late else []
    with torch.no_grad():
        for _ in range(NEW):
            token = int((model(torch.tensor([ids])).logits[0, -1] - penalty * counts).argmax())
            ids.append(token)
            waiting.append(token)
            counts[waiting.pop(0)] += 1
    return ids[len(PROMPT) :]


def main() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=128, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(FOLDER)
    penalties = [0.0, 0.5]
    seen = {overlap: written(overlap, penalties) for overlap in (True, False)}
    for overlap, answers in seen.items():
        for penalty, tokens in zip(penalties, answers, strict=True):
            same = [tokens == by_formula(model, penalty, late) for late in (False, True)]
            print(f"overlap {overlap}, penalty {penalty}: as by the formula {same[0]}, one token late {same[1]}")
            assert same == ([True, True] if not penalty else [not overlap, overlap])


if __name__ == "__main__":
    main()
PYTHON
PYTHONPATH=$folder SGLANG_USE_CPU_ENGINE=1 OMP_NUM_THREADS=1 "$folder/venv/bin/python" written.py
