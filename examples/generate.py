"""Compress and generate: a model thinks with a KV cache of fixed size, inside transformers' own `generate`.

    python examples/generate.py

runs on the embedded model, on any machine. For a model of your own change the names in capitals:

    MODEL, PREDICTOR = "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "path/to/predictor"
    QUESTION = "How many primes lie below 100?"
    BUDGET = dynts.CompressionConfig(budget=5000, local_window=2000)
    SAMPLING = {"max_new_tokens": 16384, "do_sample": True, "temperature": 0.6, "top_p": 0.95}

Without a predictor take a method that needs none: `dynts.compress(model, "snapkv", BUDGET)`.
"""

from transformers import AutoModelForCausalLM, AutoTokenizer

import dynts
from dynts.tiny import WEIGHTS

MODEL, PREDICTOR = WEIGHTS, WEIGHTS / "future"
QUESTION = "d:= c - a , e:= d - b , b= 0 , g:= e + a , a= 7 , f:= b + c , c:= a + b find f? c? d? g? ."
BUDGET = dynts.CompressionConfig(budget=180, local_window=50, retention_ratio=0.67)
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
SAMPLING = {"max_new_tokens": 1000, "do_sample": False}

tokenizer = AutoTokenizer.from_pretrained(MODEL)
model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto", device_map="auto")
predictor = dynts.ImportancePredictor.from_pretrained(PREDICTOR)

messages = [{"role": "user", "content": f"{QUESTION} {INSTRUCTION}"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
with dynts.compress(model, "dynts", BUDGET, predictor) as session:
    output = model.generate(**inputs.to(model.device), **SAMPLING)

stats = session.stats[-1]
print(tokenizer.decode(output[0, stats.prompt_tokens :]))
print(f"{stats.prompt_tokens} tokens read, {stats.generated_tokens} written, at most {stats.peak_tokens} cached")
first = stats.compactions[0]
print(f"{len(stats.compactions)} compactions, the first from {first.before} to {first.after} tokens")
