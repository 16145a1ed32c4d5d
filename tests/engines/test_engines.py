"""The back ends: what they draw, when they hand it over, and what they ask vLLM for."""

import asyncio
import re
import shutil
import sys
import threading
import types
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from itertools import product
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from dynts.cache.lengths import cache_lengths
from dynts.chat.prompts import chat_prompt, encode_prompt
from dynts.config import CompressionConfig, ModelSource, Sampling
from dynts.decode.arm import Arm
from dynts.decode.sampling import RowSampling, draws_of
from dynts.engines.engine import FULL_CACHE, Request
from dynts.engines.offline import OfflineSpec
from dynts.engines.settings import PluginSettings
from dynts.engines.sglang.engine_process import _answer
from dynts.engines.sglang.offline import SglangSpec
from dynts.engines.transformers import TransformersEngine, _Handover
from dynts.engines.vllm.offline import VllmEngine, VllmSpec
from dynts.engines.vllm.settings import read_settings
from dynts.errors import DyntsError
from dynts.extras import pip_install
from dynts.grading.grader import Grader
from dynts.methods import METHODS
from dynts.models.shape import ModelShape
from dynts.tiny import WEIGHTS, load_tiny_model, load_tiny_predictor
from dynts.tiny.task import PREDICTOR, make_problem
from dynts.traces.filters import judge
from dynts.traces.problems import Problem

SOURCE = ModelSource("some/model")
SAMPLING = Sampling(max_new_tokens=330)


@pytest.fixture(scope="module")
def tiny() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load_tiny_model()


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader() as opened:
        yield opened


def requests(count: int, arm: Arm = FULL_CACHE, *, sample: int = 0, seed: int = 0) -> list[Request]:
    problems = [make_problem(number, steps=range(4, 5)) for number in PREDICTOR[:count]]
    return [Request(Problem(f"p{i}", p.question, p.answer), sample, seed, arm) for i, p in enumerate(problems)]


def texts(engine: TransformersEngine, wanted: list[Request]) -> dict[str, str]:
    return {done.request.id: done.text for done in engine.generate(wanted)}


def test_rows_are_drawn_from_the_distribution_that_transformers_draws_from() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0, 0.5, -3.0]])
    sampling = Sampling(max_new_tokens=1, temperature=0.7, top_p=0.9, top_k=4)
    rows = 20_000
    samplings = [replace(sampling, seed=seed) for seed in range(rows)]
    draws = [draws_of(sampling)[0] for sampling in samplings]
    drawn = RowSampling(samplings, torch.device("cpu"))(scores.repeat(rows, 1), draws)
    expected = (scores[0] / 0.7).softmax(0)
    expected[[3, 5]] = 0  # top-k keeps 0, 1, 4, 2; of these top-p 0.9 needs the first three
    expected[2] = 0
    expected /= expected.sum()
    frequency = drawn.bincount(minlength=6) / rows
    assert set(drawn.tolist()) == {0, 1, 4}
    torch.testing.assert_close(frequency, expected, atol=0.015, rtol=0)


def test_a_trace_does_not_depend_on_the_batch_that_it_is_in(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    wanted = requests(6)
    together = texts(TransformersEngine(*tiny, SAMPLING, batch=6), wanted)
    joining = texts(TransformersEngine(*tiny, SAMPLING, batch=2), wanted[::-1])
    apart = texts(TransformersEngine(*tiny, SAMPLING, batch=1), wanted[4:] + wanted[:2])
    assert joining == together
    assert {name: together[name] for name in apart} == apart


def test_samples_and_seeds_differ_at_a_high_temperature(tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    engine = TransformersEngine(*tiny, Sampling(max_new_tokens=40, temperature=3.0, top_p=1.0))
    drawn = [
        texts(engine, requests(1, sample=sample, seed=seed))[f"p0#{sample}"] for sample in range(2) for seed in range(2)
    ]
    assert len(set(drawn)) == 4
    assert texts(engine, requests(1, sample=1, seed=1))["p0#1"] == drawn[3]


def test_completions_come_as_rows_end_and_say_how_they_ended(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], grader: Grader
) -> None:
    model, tokenizer = tiny
    problems = [make_problem(0, steps=range(steps, steps + 1)) for steps in (12, 4, 4)]
    wanted = [Request(Problem(f"p{i}", p.question, p.answer), 0, 0) for i, p in enumerate(problems)]
    done = list(TransformersEngine(model, tokenizer, Sampling(600), batch=2).generate(wanted))
    # the third joins when the second has ended, and ends before the first, which began with it
    second, third, first = done
    assert [item.request.id for item in done] == ["p1#0", "p2#0", "p0#0"]
    assert second.generated_tokens + third.generated_tokens < first.generated_tokens == 600
    assert [item.finished for item in done] == [True, True, False]
    assert third.run_seconds is not None
    assert second.run_seconds is not None
    assert third.run_seconds - third.seconds >= second.run_seconds
    for completion in done:
        problem = completion.request.problem
        assert completion.prompt_tokens == len(encode_prompt(tokenizer, chat_prompt(tokenizer, problem.question)))
        reason, correct = judge(completion.text, problem.answer, grader)
        assert (reason is None) == correct == completion.finished
        again = tokenizer(completion.text, add_special_tokens=False)["input_ids"]
        assert len(again) + completion.finished == completion.generated_tokens


@pytest.mark.parametrize("method", ["dynts", "dynts-random", "snapkv"])
def test_collecting_under_compression(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], method: str, grader: Grader
) -> None:
    config = CompressionConfig(budget=170, local_window=50, retention_ratio=0.66)
    arm = Arm(METHODS[method](), config, "answer" if METHODS[method].needs_predictor else None)
    engine = TransformersEngine(*tiny, SAMPLING, (arm,), {"answer": load_tiny_predictor()}, batch=4)
    done = list(engine.generate(requests(6, arm)))
    assert len(done) == 6
    assert {item.lengths.peak for item in done if item.lengths is not None} == {170}
    right = sum(judge(item.text, item.request.problem.answer, grader)[1] for item in done)
    if method == "dynts":
        assert right >= 4
    if method == "dynts-random":
        assert right <= 2


def test_greedy_decoding_has_no_sampler(tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    sampling = Sampling(max_new_tokens=250, temperature=0)
    first = texts(TransformersEngine(*tiny, sampling), requests(2))
    assert first == texts(TransformersEngine(*tiny, sampling), requests(2, seed=5))


def test_stopping_early_ends_the_thread_and_an_error_arrives(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = tiny
    before = threading.active_count()
    running = TransformersEngine(model, tokenizer, Sampling(max_new_tokens=900), batch=4).generate(requests(4))
    next(running)
    running.close()
    assert threading.active_count() == before
    assert "generate" not in model.__dict__, "the compress context must be left"

    def broken(*args: object) -> None:
        raise ZeroDivisionError

    handle = model.get_output_embeddings().register_forward_hook(broken)
    with pytest.raises(ZeroDivisionError):
        list(TransformersEngine(model, tokenizer, SAMPLING).generate(requests(1)))
    handle.remove()

    def unreadable() -> Iterator[Request]:
        yield from requests(1)
        raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        list(TransformersEngine(model, tokenizer, SAMPLING).generate(unreadable()))
    assert threading.active_count() == before


def test_requests_are_pulled_when_there_is_a_row_and_arms_follow_one_another(
    tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], monkeypatch: pytest.MonkeyPatch
) -> None:
    window = Arm(METHODS["window"](), CompressionConfig(90, 20, 0.5))
    ended: list[object] = []
    ended_at_pull: list[int] = []
    put = _Handover.put
    monkeypatch.setattr(_Handover, "put", lambda handover, found: (ended.append(found), put(handover, found)))

    def pulled() -> Iterator[Request]:
        for request in [*requests(5), *requests(3, window)]:
            ended_at_pull.append(len(ended))
            yield request

    engine = TransformersEngine(*tiny, Sampling(60), (FULL_CACHE, window), batch=2)
    running = engine.generate(pulled())
    done = [next(running)]
    before = len(ended_at_pull)
    done += running
    assert before <= 5, "two that run, two that have ended and nobody has taken, and the place of the one taken"
    assert all(number - ended < 2 for number, ended in enumerate(ended_at_pull[:5]))
    # the first of the next arm is seen when one looks for more, and begins when all before it have ended
    assert ended_at_pull[6] >= 5
    assert [item.request.arm for item in done] == [FULL_CACHE] * 5 + [window] * 3
    assert len({item.batch for item in done[:5]}) == len({item.batch for item in done[5:]}) == 1
    assert done[0].batch != done[-1].batch


@pytest.mark.timeout(60)
def test_arms_may_change_with_every_request(tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    arms = [FULL_CACHE, Arm(METHODS["window"](), CompressionConfig(90, 20, 0.5))]
    wanted = [replace(request, arm=arms[number % 2]) for number, request in enumerate(requests(6))]
    assert [done.request for done in TransformersEngine(*tiny, Sampling(3), arms, batch=1).generate(wanted)] == wanted


class FakeVllm:
    """Stands in for the package vllm, and remembers what it was asked for."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> None:
        self.engine_args: dict[str, Any] = {}
        self.added: list[tuple[str, dict[str, Any], Any]] = []
        self.aborted: list[str] = []
        self.most_running = 0
        self.checked: list[dict[str, Any] | None] = []
        self.events: list[tuple[str, int | None]] = []
        fake = self

        @dataclass
        class EngineArgs:
            model: str
            revision: str | None
            tokenizer_revision: str | None
            dtype: str
            max_num_seqs: int
            additional_config: dict[str, Any]
            enable_chunked_prefill: bool = True
            tensor_parallel_size: int = 1

            def __post_init__(self) -> None:
                fake.engine_args = dict(self.__dict__)

            def create_engine_config(self) -> None:
                fake.checked.append(self.additional_config["dynts"])

        @dataclass
        class SamplingParams:
            temperature: float
            top_p: float
            top_k: int
            max_tokens: int
            seed: int
            detokenize: bool
            output_kind: Any
            repetition_penalty: float = 1.0
            stop: list[str] | None = None
            include_stop_str_in_output: bool = False

        class RequestOutputKind(Enum):
            CUMULATIVE = 0
            FINAL_ONLY = 2

        class LLMEngine:
            def __init__(self, settings: dict[str, Any] | None) -> None:
                self.running: dict[str, int] = {}
                self.budget = None if settings is None else settings["budget"]
                self.engine_core = types.SimpleNamespace(
                    shutdown=lambda timeout: fake.events.append(("ended", self.budget))
                )
                self.vllm_config = types.SimpleNamespace(
                    model_config=types.SimpleNamespace(hf_config=config),
                    cache_config=types.SimpleNamespace(cache_dtype="bfloat16"),
                )
                fake.events.append(("started", self.budget))

            @classmethod
            def from_engine_args(cls, arguments: EngineArgs) -> "LLMEngine":
                return cls(arguments.additional_config["dynts"])

            def get_tokenizer(self) -> PreTrainedTokenizerBase:
                return tokenizer

            def add_request(self, name: str, prompt: dict[str, Any], parameters: SamplingParams) -> None:
                fake.added.append((name, prompt, parameters))
                self.running[name] = 2 if name.startswith("p0") else 1
                fake.most_running = max(fake.most_running, len(self.running))

            def step(self) -> list[Any]:
                outputs = []
                for name in list(self.running):
                    self.running[name] -= 1
                    if not self.running[name]:
                        del self.running[name]
                        ids = tokenizer.encode("so 1 + 1 = 2 </think> \\boxed{ 2 } <stop>", add_special_tokens=False)
                        reason = "length" if name.startswith("p1") else "stop"
                        completion = types.SimpleNamespace(token_ids=ids, finish_reason=reason, stop_reason=None)
                        outputs.append(types.SimpleNamespace(request_id=name, finished=True, outputs=[completion]))
                return outputs

            def abort_request(self, names: list[str]) -> None:
                fake.aborted += names

        self.modules = {
            "vllm": types.SimpleNamespace(
                EngineArgs=EngineArgs, LLMEngine=LLMEngine, SamplingParams=SamplingParams, __spec__=object()
            ),
            "vllm.platforms": types.SimpleNamespace(current_platform=types.SimpleNamespace(is_cpu=lambda: True)),
            "vllm.distributed": types.SimpleNamespace(cleanup_dist_env_and_memory=lambda: None),
            "vllm.utils.torch_utils": types.SimpleNamespace(kv_cache_dtype_str_to_dtype=lambda *_: torch.bfloat16),
            "vllm.sampling_params": types.SimpleNamespace(RequestOutputKind=RequestOutputKind),
        }


@pytest.fixture
def vllm(tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase], monkeypatch: pytest.MonkeyPatch) -> FakeVllm:
    fake = FakeVllm(tiny[1], tiny[0].config)
    for name, module in fake.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return fake


def test_what_vllm_is_asked_for(vllm: FakeVllm, tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    spec = VllmSpec(
        ModelSource("some/model", "v1"), Sampling(300, seed=3), (FULL_CACHE,), 2, {"tensor_parallel_size": 2}
    )
    engine = spec.start()
    assert vllm.engine_args == {
        "model": "some/model",
        "revision": "v1",
        "tokenizer_revision": "v1",
        "dtype": "auto",
        "max_num_seqs": 2,
        "additional_config": {"dynts": None},
        "enable_chunked_prefill": False,
        "tensor_parallel_size": 2,
    }
    wanted = requests(5, sample=1, seed=3)
    done = list(engine.generate(iter(wanted)))
    assert [item.request.id for item in done] == ["p1#1", "p0#1", "p2#1", "p3#1", "p4#1"]
    assert vllm.most_running == 2
    assert vllm.aborted == []
    for (name, prompt, parameters), request in zip(vllm.added, wanted, strict=True):
        assert name == request.id
        assert prompt == {"prompt_token_ids": encode_prompt(tiny[1], chat_prompt(tiny[1], request.problem.question))}
        assert (parameters.temperature, parameters.top_p, parameters.top_k) == (0.6, 0.95, 20)
        assert (parameters.max_tokens, parameters.seed) == (300, request.sampling_seed)
        assert parameters.output_kind.name == "FINAL_ONLY"
    assert len({parameters.seed for _, _, parameters in vllm.added}) == 5
    assert [item.finished for item in done] == [False, True, True, True, True]
    assert done[0].text == "so 1 + 1 = 2 </think> \\boxed{ 2 }"
    assert done[0].generated_tokens == len(tiny[1].encode(done[0].text, add_special_tokens=False)) + 1


def test_vllm_follows_the_checkpoint_as_far_as_it_can(
    vllm: FakeVllm, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {
        "repetition_penalty": 1.1,
        "stop_strings": ["###"],
        "num_beams": 4,
        "no_repeat_ngram_size": 3,
        "top_k": 7,
    }
    GenerationConfig(**settings, do_sample=True, eos_token_id=2, num_return_sequences=1).save_pretrained(tmp_path)
    engine = VllmSpec(ModelSource(str(tmp_path)), SAMPLING, (FULL_CACHE,), 2).start()
    assert "vLLM does not follow no_repeat_ngram_size, num_beams of the checkpoint's" in caplog.text
    list(engine.generate(requests(1)))
    [(_, _, parameters)] = vllm.added
    assert (parameters.repetition_penalty, parameters.top_k) == (1.1, SAMPLING.top_k)
    assert (parameters.stop, parameters.include_stop_str_in_output, parameters.detokenize) == (["###"], True, True)


def test_a_budget_reaches_vllm_beside_what_else_is_configured(vllm: FakeVllm) -> None:
    settings = PluginSettings("some/predictor", 300, 100, 0.5)
    arguments = {"additional_config": {"other": 1}, "enable_chunked_prefill": True}
    arm = Arm(METHODS["dynts"](), settings.schedule, settings.predictor)
    VllmSpec(SOURCE, SAMPLING, (arm,), 4, engine_args=arguments).start()
    assert vllm.engine_args["additional_config"]["other"] == 1
    assert read_settings(vllm.engine_args["additional_config"], {}) == settings
    assert vllm.engine_args["enable_chunked_prefill"] is True


def test_each_budget_has_an_engine_of_vllm_of_its_own(
    vllm: FakeVllm, tiny: tuple[PreTrainedModel, PreTrainedTokenizerBase]
) -> None:
    budgets = (CompressionConfig(90, 20, 0.5), CompressionConfig(120, 20, 0.5))
    small, large = (Arm(METHODS["dynts"](), config, "some/predictor") for config in budgets)
    engine = VllmSpec(SOURCE, SAMPLING, (FULL_CACHE, small, large), 2).start()
    assert [item and item["budget"] for item in vllm.checked] == [None, 90, 120]
    assert vllm.events == [], "the model is loaded with the first request"
    wanted = [*requests(3, small), *requests(2, large)]
    done = list(engine.generate(wanted)) + list(engine.generate(requests(2, large, sample=1)))
    assert vllm.events == [("started", 90), ("ended", 90), ("started", 120)]
    assert [item.request.arm for item in done] == [small] * 3 + [large] * 4
    assert [len({item.batch for item in done[:end]}) for end in (3, 5, 7)] == [1, 2, 3]
    width = ModelShape.of(tiny[0].config).kv_bytes_per_token(2)
    for item in done:
        assert item.lengths == cache_lengths(item.prompt_tokens, item.generated_tokens, item.request.arm.schedule)
        assert item.peak_bytes == width * item.lengths.peak
    engine.shut_down()
    engine.shut_down()
    assert vllm.events[3:] == [("ended", 120)]


def test_each_has_its_own_seconds_and_those_of_the_run(vllm: FakeVllm) -> None:
    """So that tokens over those of the last is the throughput, however many follow one another."""
    engine = VllmSpec(SOURCE, SAMPLING, (FULL_CACHE,), 1).start()
    done = list(engine.generate(requests(4)))
    begun = [(item.run_seconds or 0) - item.seconds for item in done]
    for earlier, start in zip(done[:-1], begun[1:], strict=True):
        assert start >= (earlier.run_seconds or 0) > 0, "it begins when there is room, and only then does its time run"


def test_requests_may_be_handed_over_while_long_answers_wait() -> None:
    """As when a batch of answers has reached its limit at once."""
    count, tokens = 100, 20_000

    class Engine:
        tokenizer_manager = types.SimpleNamespace(context_len=tokens)

        async def async_generate(self, **request: Any) -> dict[str, Any]:
            return {"output_ids": [7] * tokens, "meta_info": {"finish_reason": {"type": "length"}}}

    here, there = Pipe()

    def hand_over() -> None:
        for number in range(count):
            here.send((str(number), [7] * 1000, {"max_new_tokens": tokens}))

    threading.Thread(target=asyncio.run, args=(_answer(Engine(), there),), daemon=True).start()
    giver = threading.Thread(target=hand_over, daemon=True)
    giver.start()
    giver.join(30)
    assert not giver.is_alive(), "neither side reads"
    assert [here.recv()[0] for _ in range(count)] == [str(number) for number in range(count)]
    here.close()


@pytest.mark.parametrize("spec", [VllmSpec, SglangSpec])
def test_what_a_plugin_cannot_do_is_refused_before_its_engine_is_looked_for(
    spec: type[OfflineSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynts.extras.find_spec", lambda name: None)
    for name in ("window", "dynts-random", "rkv"):
        with pytest.raises(DyntsError, match=f"the methods full.* dynts.*, got {METHODS[name].__name__}"):
            spec(SOURCE, SAMPLING, (FULL_CACHE, Arm(METHODS[name]())), 4)
    with pytest.raises(DyntsError, match=re.escape(pip_install(spec.package))):
        spec(SOURCE, SAMPLING, (FULL_CACHE,), 4)


def test_a_prompt_that_the_budget_has_no_room_for_is_refused(vllm: FakeVllm) -> None:
    arm = Arm(METHODS["dynts"](), CompressionConfig(30, 10, 0.5), "some/predictor")
    engine = VllmSpec(SOURCE, SAMPLING, (arm,), 4).start()
    with pytest.raises(DyntsError, match="budget 30 is too small for a question of"):
        list(engine.generate(requests(1, arm)))


def test_vllm_requests_are_aborted_when_nobody_waits_for_them(vllm: FakeVllm) -> None:
    running = VllmSpec(SOURCE, SAMPLING, (FULL_CACHE,), 4).start().generate(requests(6))
    next(running)
    running.close()
    assert set(vllm.aborted) >= {"p0#0"}


def test_unknown_engine_arguments_and_a_missing_package(vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DyntsError, match=r"vLLM refuses the engine arguments .*'speed'"):
        VllmEngine(VllmSpec(SOURCE, SAMPLING, (FULL_CACHE,), 4, engine_args={"speed": "fast"}))
    monkeypatch.setattr("dynts.extras.find_spec", lambda name: None)
    with pytest.raises(DyntsError, match=re.escape(f"--engine vllm needs vllm: {pip_install('vllm')}")):
        VllmSpec(SOURCE, SAMPLING, (FULL_CACHE,), 4)


def test_what_sglang_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dynts.extras.find_spec", lambda name: object())
    shutil.copytree(WEIGHTS, tmp_path / "model")
    settings = {"repetition_penalty": 1.1, "min_p": 0.1, "min_new_tokens": 5, "stop_strings": ["###"]}
    GenerationConfig(**settings, do_sample=True, eos_token_id=2).save_pretrained(tmp_path / "model")
    source = ModelSource(str(tmp_path / "model"), "v1")
    engine = SglangSpec(source, Sampling(300), (FULL_CACHE,), 4, {"context_length": 900}).start()
    assert "SGLang does not follow min_p, repetition_penalty of the checkpoint's" in caplog.text
    drawn = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "max_new_tokens": 300}
    assert engine.parameters == {**drawn, "stop": ["###"], "min_new_tokens": 5}
    given = {"model_path": source.name, "revision": "v1", "dtype": "auto", "max_running_requests": 4}
    for accelerated, more in product([True, False], [{}, {"device": "cpu"}, {"enable_deterministic_inference": True}]):
        monkeypatch.setattr("torch.accelerator.is_available", lambda found=accelerated: found)
        seeds = (accelerated and "device" not in more) or "enable_deterministic_inference" in more
        spec = SglangSpec(source, Sampling(300), (FULL_CACHE,), 4, more)
        assert spec.arguments() == {**given, "enable_deterministic_inference": seeds, **more}
    greedy = SglangSpec(source, Sampling(300, temperature=0), (FULL_CACHE,), 4)
    assert greedy.arguments()["enable_deterministic_inference"] is False
