"""Cached tokens of each sample: what is computed from lengths is what a cache really does, row by row."""

from collections import defaultdict
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dynts.cache.cache import BudgetCache
from dynts.cache.lengths import CacheLengths, cache_lengths
from dynts.chat.prompts import chat_prompt, encode_prompt
from dynts.config import CompressionConfig, Sampling
from dynts.decode.arm import Arm
from dynts.decode.tasks import RowToken
from dynts.engines.engine import Completion, Request
from dynts.engines.transformers import TransformersEngine, _Sample
from dynts.errors import DyntsError
from dynts.methods import H2O, Full, Method, StreamingLLM, Window
from dynts.tiny import load_tiny_model
from dynts.traces.problems import Problem
from tiny import tiny_model

SETTINGS = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@st.composite
def schedules(draw: st.DrawFn) -> CompressionConfig:
    budget = draw(st.integers(4, 60))
    return CompressionConfig(budget, draw(st.integers(0, budget - 1)), draw(st.floats(0.05, 0.95)))


def fits(schedule: CompressionConfig, question: int) -> bool:
    try:
        schedule.check_question(question)
    except DyntsError:
        return False
    return True


@given(question=st.integers(1, 30), generated=st.integers(0, 300), schedule=st.none() | schedules())
@settings(max_examples=300, **SETTINGS)
def test_lengths_step_by_step(question: int, generated: int, schedule: CompressionConfig | None) -> None:
    assume(schedule is None or fits(schedule, question))
    length, seen, compactions = question, [], []
    for step in range(1, generated):
        length += 1
        seen.append(length)
        if schedule is not None and length == schedule.budget:
            length = schedule.kept_tokens(question)
            compactions.append((step, schedule.budget, length))
    found = cache_lengths(question, generated, schedule)
    assert found.compactions == tuple(compactions)
    assert found.peak == max([question, *seen])
    assert found.mean == (sum(seen) / len(seen) if seen else question)


def test_the_full_cache_holds_all_but_the_last_token() -> None:
    assert cache_lengths(7, 4, None) == CacheLengths((), 10, 9.0)
    assert cache_lengths(7, 1, None) == CacheLengths((), 7, 7.0)


class Recorder:
    """Writes down, at every token of a sample, how many tokens and bytes its row of a real cache holds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lengths: defaultdict[str, list[int]] = defaultdict(list)
        self.bytes: dict[str, int] = {}
        commit, tell = BudgetCache.commit, _Sample.tell

        def recorded(cache: BudgetCache, *args: Any) -> None:
            commit(cache, *args)
            # as many slots hold a token as the lengths say
            assert cache.live().sum(dim=1).tolist() == list(cache.lengths)
            slots = [slots for layer in cache.budget_layers for slots in (layer.keys, layer.values)]
            self.bytes_per_row = sum(each.nbytes // len(each) for each in slots)

        def told(sample: _Sample, token: RowToken) -> bool:
            self.lengths[sample.request.id].append(token.cached)
            self.bytes[sample.request.id] = self.bytes_per_row
            return tell(sample, token)

        monkeypatch.setattr(BudgetCache, "commit", recorded)
        monkeypatch.setattr(_Sample, "tell", told)

    def expect(self, name: str) -> CacheLengths:
        """What the sample's row did before its last token."""
        seen = self.lengths[name]
        compactions, attended = [], []
        for step, (before, after) in enumerate(pairwise(seen), start=1):
            attended.append(before + 1)
            if after != before + 1:
                compactions.append((step, before + 1, after))
        mean = sum(attended) / len(attended) if attended else float(seen[0])
        return CacheLengths(tuple(compactions), max([seen[0], *attended]), mean)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tiny_model()[1]


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A random model that ends its turn now and then, so that rows end at different times."""
    model = tiny_model("qwen2", vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = [30, 31, 32]
    return model


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, words: list[int], arm: Arm, seed: int
) -> list[Completion]:
    """Complete prompts with so many words each, at most three at a time."""
    engine = TransformersEngine(model, tokenizer, Sampling(60, 1.0, 1.0, 50), (arm,), batch=3)
    problems = [Problem(str(row), " ".join(["so"] * count), "1") for row, count in enumerate(words)]
    return list(engine.generate(Request(problem, 0, seed, arm) for problem in problems))


METHODS = (Full(), Window(), StreamingLLM(protect_question=True), H2O(granularity="native"))


@given(
    words=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    schedule=schedules(),
    method=st.sampled_from(METHODS),
    seed=st.integers(0, 9),
)
@settings(max_examples=25, **SETTINGS)
def test_every_sample_is_measured_by_itself(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    words: list[int],
    schedule: CompressionConfig,
    method: Method,
    seed: int,
) -> None:
    questions = [len(encode_prompt(tokenizer, chat_prompt(tokenizer, " ".join(["so"] * count)))) for count in words]
    assume(fits(schedule, max(questions)))
    with pytest.MonkeyPatch.context() as patched:
        recorder = Recorder(patched)
        done = generate(model, tokenizer, words, Arm(method, schedule), seed)
    assert len(done) == len(words)
    assert len({item.batch for item in done}) == 1
    for item in done:
        assert item.prompt_tokens == questions[int(item.request.problem.id)]
        assert item.lengths == recorder.expect(item.request.id)
        assert item.peak_bytes == recorder.bytes[item.request.id]


def test_rows_really_end_and_compact_at_different_times(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    done = generate(model, tokenizer, [2, 5, 9, 12], Arm(Window(), CompressionConfig(30, 8, 0.5)), 3)
    assert len({item.generated_tokens for item in done}) >= 3
    assert len({len(item.lengths.compactions) for item in done if item.lengths is not None}) >= 2
    assert len({item.batch for item in done + generate(model, tokenizer, [2], Arm(), 3)}) == 2
    assert [item.run_seconds for item in done] == sorted(item.run_seconds or 0 for item in done)
    # the fourth begins when one of the others has ended
    last = next(item for item in done if item.request.problem.id == "3")
    assert last.run_seconds is not None
    assert last.run_seconds - last.seconds > min(item.seconds for item in done)
