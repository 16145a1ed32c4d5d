"""Rows whose logits are no numbers end by themselves, are named and counted.

The others of their batch are as without them.
"""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import dynts
from command_line import run
from dynts.chat.prompts import chat_prompt, encode_prompt
from dynts.config import Sampling
from dynts.decode.answers import answer_questions
from dynts.decode.sampling import FiniteRows
from dynts.engines.engine import Completion, Request
from dynts.engines.transformers import TransformersEngine
from dynts.serve.batching import Batcher
from dynts.serve.metrics import Metrics
from dynts.serve.protocol import ApiError
from dynts.serve.running import Ended, Event, Piece, Row
from dynts.tiny import WEIGHTS, load_tiny_model
from dynts.tiny.task import HELD_OUT, make_problem
from dynts.traces.problems import Problem

pytestmark = pytest.mark.quick

QUESTIONS = [make_problem(HELD_OUT[number], steps=range(4, 5)).question for number in range(3)]
TOKENS, FAILS_AT = 20, 7
SAMPLINGS = pytest.mark.parametrize("temperature", [0.0, 1.0], ids=["greedy", "sampled"])


@pytest.fixture(scope="module")
def tiny() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_tiny_model()


@contextmanager
def failing(model: PreTrainedModel, row: int, value: float = float("nan")) -> Iterator[None]:
    """One logit of a row is no number at its eighth token."""
    calls = iter(range(10**6))

    def spoil(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        if next(calls) == FAILS_AT:
            logits[row, -1, 3] = value
        return logits

    handle = model.get_output_embeddings().register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


def test_what_counts_as_failed() -> None:
    nan, inf = float("nan"), float("inf")
    scores = torch.tensor([[0.0, 1.0], [nan, 1.0], [-inf, 1.0], [inf, 1.0], [-inf, -inf]])
    finite = FiniteRows(5, torch.device("cpu"))
    out = finite(torch.zeros(5, 1), scores.clone())  # type: ignore[arg-type]
    assert finite.failed.tolist() == [False, True, False, True, True]
    assert out.isnan().sum() == 0
    assert torch.equal(out[[0, 2]], scores[[0, 2]])
    finite(torch.zeros(5, 1), torch.zeros(5, 2))  # type: ignore[arg-type]
    assert finite.failed.tolist() == [False, True, False, True, True]


@SAMPLINGS
def test_collecting_goes_on_with_the_other_rows(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], temperature: float, caplog: pytest.LogCaptureFixture
) -> None:
    def collected() -> dict[str, Completion]:
        engine = TransformersEngine(*tiny, Sampling(TOKENS, temperature, top_p=1.0))
        wanted = [Request(Problem(f"p{index}", text, "1"), 0, 0) for index, text in enumerate(QUESTIONS)]
        return {done.request.id: done for done in engine.generate(wanted)}

    alone = collected()
    with failing(tiny[0], 1):
        together = collected()
    (broken,) = (name for name, done in together.items() if done.generated_tokens != alone[name].generated_tokens)
    assert together[broken].generated_tokens == FAILS_AT
    assert not together[broken].finished
    assert alone[broken].text.startswith(together[broken].text)
    assert all(together[name].text == alone[name].text for name in alone if name != broken)
    (line,) = caplog.messages
    assert f"{broken}: the model's logits are not finite" in line
    assert f"after {FAILS_AT} tokens" in line


@SAMPLINGS
def test_serving_tells_whom_it_concerns(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], temperature: float
) -> None:
    model, tokenizer = tiny

    def served(metrics: Metrics) -> list[list[Event]]:
        told: list[SimpleQueue[Event]] = [SimpleQueue() for _ in QUESTIONS]
        rows = [
            Row(
                0,
                encode_prompt(tokenizer, chat_prompt(tokenizer, text)),
                Sampling(TOKENS, temperature, top_p=1.0, seed=index),
                (),
                told[index].put,
            )
            for index, text in enumerate(QUESTIONS)
        ]
        with dynts.compress(model, "full") as session:
            batcher = Batcher(session, tokenizer, 3, 3, metrics)
            batcher.submit(rows)
            events = [_all(queue) for queue in told]
            assert batcher.stop(30)
        return events

    alone = served(Metrics())
    metrics = Metrics()
    with failing(model, 1):
        together = served(metrics)
    assert together[0] == alone[0]
    assert together[2] == alone[2]
    *pieces, error = together[1]
    assert isinstance(error, ApiError)
    assert error.status == 500
    assert f"not finite (NaN or infinite) after {FAILS_AT} tokens" in error.message
    assert pieces == alone[1][: len(pieces)]
    assert metrics.registry.get_sample_value("dynts_failed_completions_total") == 1


def _all(told: "SimpleQueue[Event]") -> list[Event]:
    events = [told.get(timeout=60)]
    while isinstance(events[-1], Piece):
        events.append(told.get(timeout=60))
    return events


def test_a_row_that_cannot_be_written_is_that_rows_failure(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong in one row's text."""
    model, tokenizer = tiny
    told: list[SimpleQueue[Event]] = [SimpleQueue(), SimpleQueue()]
    rows = [Row(0, [1, 2, 3], Sampling(5, 0.0), (), queue.put) for queue in told]
    monkeypatch.setattr("dynts.serve.running.StopStrings.feed", _fail_for_the_first())
    with dynts.compress(model, "full") as session:
        batcher = Batcher(session, tokenizer, 2, 2, Metrics())
        batcher.submit(rows)
        (error,), others = (_all(queue) for queue in told)
        assert batcher.stop(30)
    assert isinstance(error, ApiError)
    assert error.status == 500
    assert "unlucky" not in error.message
    assert isinstance(others[-1], Ended)


def _fail_for_the_first() -> Any:
    first: list[Any] = []

    def feed(self: Any, text: str) -> str:
        first.append(self)
        if self is first[0]:
            raise RuntimeError("unlucky")
        return text

    return feed


@SAMPLINGS
def test_answers_stop_there(tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], temperature: float) -> None:
    with dynts.compress(tiny[0], "full") as session:
        sampling = Sampling(TOKENS, temperature)
        asked = [(str(index), text) for index, text in enumerate(QUESTIONS[:2])]
        alone = list(answer_questions(session, tiny[1], asked, sampling))
        answers = answer_questions(session, tiny[1], asked, sampling)
        with failing(tiny[0], 0):
            first = next(answers)
        second = next(answers)
    assert first.failed
    assert not first.finished
    assert alone[0].text.startswith(first.text)
    assert len(first.text) < len(alone[0].text)
    assert not second.failed
    assert second.text == alone[1].text


def test_the_command_says_so_and_does_not_succeed(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    monkeypatch.setattr("dynts.models.load_model", lambda *_, **__: tiny)
    options = ("--method", "full", "--max-new-tokens", TOKENS, "--temperature", 0, "--json")
    with failing(tiny[0], 0):
        code, out, err = run(monkeypatch, capsys, "generate", "--model", WEIGHTS, *options, QUESTIONS[0])
    assert code == 2
    assert "1 of 1 answers broke off (question): the model's logits are not finite" in err
    assert json.loads(out)["failed"] is True


@pytest.fixture(autouse=True)
def _heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)


def test_logits_are_looked_at_where_the_input_is(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], tmp_path: Path
) -> None:
    """A model whose first weights are offloaded to disk is on the device "meta" by its own word."""
    model, tokenizer = load_tiny_model()
    places = {name: "cpu" for name, _ in model.named_children()} | {"model.embed_tokens": "disk"}
    places.pop("model")
    places |= {f"model.{name}": "cpu" for name, _ in model.model.named_children() if name != "embed_tokens"}
    offloaded = dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path)
    assert offloaded.device.type == "meta"
    wanted = [Request(Problem("p", QUESTIONS[0], "1"), 0, 0)]
    sampling = Sampling(TOKENS, 0.0)
    [found] = TransformersEngine(offloaded, tokenizer, sampling).generate(wanted)
    [expected] = TransformersEngine(*tiny, sampling).generate(wanted)
    assert found.text == expected.text
