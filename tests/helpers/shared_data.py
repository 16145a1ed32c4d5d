"""Data that lies beside a checkout, and is not part of it: tests that use it skip where it is absent."""

from pathlib import Path

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
BENCHMARKS = SHARED_DATA / "benchmarks"
R1_TRACES = SHARED_DATA / "traces" / "r1-distill-qwen-1.5b-gsm8k.jsonl"
R1_TOKENIZER = SHARED_DATA / "r1-distill-qwen-7b-tokenizer.gguf"
