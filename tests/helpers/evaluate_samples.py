"""Samples made in memory."""

from dynts.evaluate.results import Sample


def sample(number: int = 0, **values: object) -> Sample:
    made: dict[str, object] = {
        "problem_id": "a",
        "sample": number,
        "correct": False,
        "answer": None,
        "finished": True,
        "closed": True,
        "prompt_tokens": 5,
        "generated_tokens": 10,
        "batch": "0",
        "run_seconds": 1.0,
        "seconds": 1.0,
        "compactions": 0,
        "peak_tokens": 14,
        "mean_tokens": 10.0,
        "peak_bytes": 100,
        "cache_lengths": (),
    }
    return Sample(**{**made, **values})  # type: ignore[arg-type]
