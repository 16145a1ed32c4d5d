"""What is not a step: compactions, labels, and the drawing of tokens."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from dynts.bench.engines import TimedDynTS
from dynts.bench.machine import seconds
from dynts.config import Sampling
from dynts.decode.sampling import RowSampling, draws_of
from dynts.models.costs import step_cost
from dynts.traces.tokens import TokenizedTrace
from dynts.training.labels import label_trace
from gpu_sections.bench import Bench, Case, Row

_STEPS = 8
"""Tokens that are drawn for each row."""


def compaction(bench: Bench) -> Iterator[Case]:
    """One compaction in the long run, by part, in ms.

    "moving floor" is the bytes of all tokens that are kept, read and written once, over the copy bandwidth.
    """
    for name in ("dynts", "snapkv", "rkv"):
        for batch in bench.sizes.batches[:2]:
            yield {"method": name, "batch": batch}, partial(_compaction, bench, name, batch)


def _compaction(bench: Bench, name: str, batch: int) -> Row:
    schedule, prompt = bench.sizes.schedule, bench.sizes.prompt
    engine = TimedDynTS(name, bench.model, schedule, name, bench.predictor if name == "dynts" else None)
    with engine.running():
        parts = engine.compaction(prompt, batch)
    moved = 2 * batch * schedule.kept_tokens(prompt) * step_cost(bench.model).token_bytes
    return {
        **{f"{part} ms": 1e3 * taken for part, taken in parts.items()},
        "moving floor ms": 1e3 * moved / bench.machine.copy,
    }


def labels(bench: Bench) -> Iterator[Case]:
    """Labelling of one trace beside a plain forward pass of its tokens, least of two; memory beyond what was there."""
    yield {"labels": "none, a forward pass"}, partial(_labels, bench, ())
    for name in ("answer", "future", "answer-native"):
        yield {"labels": name}, partial(_labels, bench, (name,))


@torch.no_grad()
def _labels(bench: Bench, names: tuple[str, ...]) -> Row:
    tokens, answer = bench.sizes.trace, bench.sizes.trace - bench.sizes.answer
    trace = TokenizedTrace((1,) * tokens, bench.sizes.prompt, answer - 1, answer)
    ids = torch.ones(1, tokens, dtype=torch.long, device=bench.device)
    on_cuda, before = bench.device.type == "cuda", 0

    def work() -> None:
        if names:
            label_trace(bench.model, trace, names)
        else:
            bench.model.get_decoder()(input_ids=ids, use_cache=False)

    if on_cuda:
        torch.cuda.reset_peak_memory_stats(bench.device)
        before = torch.cuda.memory_allocated(bench.device)
    taken = min(seconds(work, bench.device) for _ in range(2))
    extra = (torch.cuda.max_memory_allocated(bench.device) - before) / 1e9 if on_cuda else None
    return {"seconds": taken, "extra GB": extra}


def sampling(bench: Bench) -> Iterator[Case]:
    """Drawing a token for each row from its logits, ms a step, least of three runs; and as transformers does it."""
    rows, vocabulary = bench.sizes.sampled
    for name, sampler in (("dynts", _own_sampler), ("transformers", _sampler_of_transformers)):
        yield {"sampler": name, "rows": rows, "vocabulary": vocabulary}, partial(_sampling, bench, sampler)


Sampler = Callable[[Any, Any], torch.Tensor]
"""From token ids and scores to the drawn tokens."""


def _sampling(bench: Bench, make: Callable[[int, torch.device], Sampler]) -> Row:
    scores, ids = torch.randn(bench.sizes.sampled, device=bench.device), torch.zeros(1, 1, dtype=torch.long)
    times = []
    for _ in range(3):
        sampler, given = (
            make(len(scores), bench.device),
            [scores.clone() for _ in range(_STEPS)],
        )  # they may be written to
        times.append(seconds(lambda: [sampler(ids, each) for each in given], bench.device) / _STEPS)  # noqa: B023
    return {"ms": 1e3 * min(times)}


def _own_sampler(rows: int, device: torch.device) -> Sampler:
    samplings = [Sampling(max_new_tokens=_STEPS, seed=seed) for seed in range(rows)]
    draw, steps = RowSampling(samplings, device), zip(*map(draws_of, samplings), strict=True)
    return lambda ids, scores: draw(scores, next(steps))


def _sampler_of_transformers(rows: int, device: torch.device) -> Sampler:
    how = Sampling(max_new_tokens=_STEPS)
    warpers = LogitsProcessorList(
        [TemperatureLogitsWarper(how.temperature), TopKLogitsWarper(how.top_k), TopPLogitsWarper(how.top_p)]
    )
    return lambda ids, scores: torch.multinomial(warpers(ids, scores).softmax(dim=-1), 1)
