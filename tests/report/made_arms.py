"""Arms made in memory: answers drawn at random, cache lengths as the schedule makes them."""

import re
from pathlib import Path
from random import Random
from typing import Any

from dynts.config import CompressionConfig
from dynts.evaluate.results import ArmResults, Sample
from dynts.methods import METHODS

PROMPT = 60


def make_sample(problem: str, number: int, generated: int, config: CompressionConfig | None, **values: Any) -> Sample:
    """A sample whose cache follows the schedule, one step after the other."""
    cached, lengths, corners = PROMPT, [], []
    for step in range(1, generated):
        cached += 1
        lengths.append(cached)
        if config is not None and cached >= config.budget:
            corners.append((step, cached, config.kept_tokens(PROMPT)))
            cached = config.kept_tokens(PROMPT)
    made: dict[str, Any] = {
        "problem_id": problem,
        "sample": number,
        "correct": True,
        "answer": "1",
        "finished": True,
        "closed": True,
        "prompt_tokens": PROMPT,
        "generated_tokens": generated,
        "batch": "0",
        "seconds": generated / 50,
        "run_seconds": generated / 50,
        "compactions": len(corners),
        "peak_tokens": max([PROMPT, *lengths]),
        "mean_tokens": sum(lengths) / max(1, len(lengths)),
        "peak_bytes": 2048 * max([PROMPT, *lengths]),
        "cache_lengths": tuple(corners),
    }
    return Sample(**{**made, **values})


def make_arm(
    method: str,
    config: CompressionConfig | None,
    accuracy: float,
    *,
    questions: int = 40,
    samples: int = 1,
    benchmark: str = "aime24",
    seed: int = 0,
    folder: str = "results",
    mean_length: int = 900,
    **settings: Any,
) -> ArmResults:
    """An arm, named as reports show it, of `questions` times `samples` samples, right with probability `accuracy`."""
    kind = METHODS.get(re.split(r",| \(", method)[0])
    source = Random(f"{method} {config} {seed}")
    made = []
    for question in range(questions):
        for number in range(samples):
            right = source.random() < accuracy
            made.append(
                make_sample(
                    f"{question:03d}",
                    number,
                    source.randint(mean_length // 2, 3 * mean_length // 2),
                    config,
                    correct=right,
                    answer=f"{question}" if right else source.choice([None, "1000", f"{1000 + question}"]),
                    finished=source.random() < 0.9,
                    batch=f"{question // 10}",
                )
            )
    manifest = {
        "settings": {
            "model": "no-such/model",
            "sampling": {"max_new_tokens": 2000, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "seed": 0},
            "data_sha256": "0123456789abcdef",
            "method": {"name": method if kind is None else kind.__name__},
            **settings,
        },
        "total": questions * samples,
        "versions": {"dynts": "0.1.0", "torch": "2.13.0"},
    }
    return ArmResults(benchmark, method, kind, method.count(","), config, made, manifest, Path(folder))
