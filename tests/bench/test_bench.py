"""`dynts bench`: what it adds up is what a generation does, and the command writes what it measured."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import dynts
from command_line import run
from decoding import cached_tokens, random_predictor
from dynts.bench.engines import TimedDynTS, TimedEngine, TimedStatic, TimedTransformers
from dynts.bench.generation import generate
from dynts.bench.grid import Effort, baselines, engines, measure
from dynts.bench.machine import Busy, Machine, Stopwatch, gpu_work, measure_machine
from dynts.bench.profile import Work, lengths_to_measure, profile, profile_once
from dynts.bench.summary import summarize
from dynts.cache.interface import CACHE
from dynts.cache.lengths import attended_tokens, cache_lengths
from dynts.config import CompressionConfig
from dynts.errors import DyntsError
from dynts.models.costs import step_cost
from dynts.report.bench import bench_table
from html_elements import Elements
from tiny import COMMON, tiny_model

CONFIG = CompressionConfig(budget=40, local_window=8, retention_ratio=0.5)
MACHINE = Machine("cpu", 2, "float32", read=1e9, copy=2e9, flops=1e10)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama")


@pytest.mark.parametrize("prompt", [1, 20, 40, 50])
def test_cached_tokens_are_those_of_a_generation(model: PreTrainedModel, prompt: int) -> None:
    config = CompressionConfig(budget=64, local_window=8, retention_ratio=0.5)
    seen: list[int] = []
    with dynts.compress(model, "question-window", config) as session:
        cache = session.new_cache()
        watch = model.get_decoder().register_forward_hook(lambda *_: seen.append(cache.occupancy.length), prepend=True)
        tokens = torch.full((1, prompt), 9)
        model.generate(tokens, attention_mask=torch.ones_like(tokens), **{CACHE: cache}, max_new_tokens=100)
        watch.remove()
    compactions = cache_lengths(prompt, 100, config).compactions
    live = attended_tokens(prompt, 100, compactions).tolist()
    assert [length + 1 for length in seen[1:]] == live  # the hook runs before the step's own token is counted
    assert len(compactions) == len(session.stats[0].compactions) > 0


def test_without_a_budget_the_cache_grows_by_one() -> None:
    assert cache_lengths(5, 4, None).compactions == ()
    assert attended_tokens(5, 4, ()).tolist() == [6, 7, 8]


def test_a_question_that_does_not_fit_is_refused() -> None:
    with pytest.raises(DyntsError, match="too small"):
        cache_lengths(60, 10, CONFIG)


class Linear(TimedEngine):
    """Steps take as many seconds as they attend to tokens."""

    @contextmanager
    def running(self) -> Iterator[None]:
        yield

    def new_cache(self, tokens: int | None = None) -> Any:
        return [0]

    def fill(self, cache: Any, prompt: int, tokens: int, batch: int) -> None:
        assert tokens >= cache[0], "lengths only grow"
        cache[0] = tokens

    def step(self, cache: Any, batch: int) -> float:
        cache[0] += 1
        if self.schedule is not None:
            assert cache[0] < self.schedule.budget, "no step that is timed compacts"
        return float(cache[0])

    def prefill(self, prompt: int, batch: int) -> float:
        return 0.5

    def compaction(self, prompt: int, batch: int) -> dict[str, float]:
        return {"scoring": 1.0, "moving": 2.0}

    def kv_bytes(self, cache: Any) -> int:
        return cache[0]


@pytest.mark.parametrize("schedule", [None, CONFIG], ids=["full", "budget"])
@pytest.mark.parametrize("generated", [30, 200])
def test_what_is_interpolated_adds_up(
    model: PreTrainedModel, schedule: CompressionConfig | None, generated: int
) -> None:
    work = Work(batch=2, prompt=10, generated=generated)
    found = profile_once(Linear("linear", model, schedule), work, steps=1, points=3)
    live, compactions = cached_tokens(10, generated, schedule)
    lowest, highest = found.lengths[0], found.lengths[-1]
    # beyond the lengths measured the nearest one counts
    expected = sum(min(max(length, lowest), highest) for length in live)
    assert found.decode_seconds == pytest.approx(expected)
    assert found.compactions == compactions
    evicting = 3.0 * compactions if schedule else 0.0
    assert found.total_seconds == pytest.approx(expected + evicting)
    assert found.tokens_per_second == pytest.approx(2 * (generated - 1) / (expected + evicting))


def test_lengths_leave_room_for_the_steps() -> None:
    assert lengths_to_measure(range(11, 101), 4, 3) == [15, 55, 95]
    assert lengths_to_measure(range(11, 13), 4, 3) == [15]


def test_rounds_alternate_and_keep_their_order(model: PreTrainedModel) -> None:
    order: list[str] = []

    class Noted(Linear):
        def prefill(self, prompt: int, batch: int) -> float:
            order.append(self.name)
            return 0.0

    compared = [Noted("a", model), Noted("b", model)]
    rounds = profile(compared, Work(1, 4, 20), rounds=3, steps=1, points=2, done=lambda: None)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [[found.engine for found in one] for one in rounds] == [["a", "b"]] * 3


def test_a_filled_cache_decodes_like_one_that_was_read(model: PreTrainedModel) -> None:
    """The bookkeeping of a filled cache is that of a generation: same lengths, positions and compactions."""
    engine = TimedDynTS("dynts", model, CONFIG, "dynts", random_predictor())
    with engine.running():
        cache = engine.new_cache()
        engine.fill(cache, 10, 38, 2)
        assert (cache.lengths, cache.questions, cache.next_positions) == ((38, 38), (10, 10), (38, 38))
        engine.step(cache, 2)
        assert cache.lengths == (39, 39)
        engine.step(cache, 2)
        assert cache.lengths == (CONFIG.kept_tokens(10),) * 2
        assert cache.next_positions == (40, 40)
        engine.fill(cache, 10, 39, 2)
        assert cache.lengths == (39, 39)
        assert engine.kv_bytes(cache) == step_cost(model).token_bytes * 40 * 2


@pytest.mark.parametrize("method", ["dynts", "snapkv", "h2o", "rkv", "window"])
def test_every_part_of_a_compaction_takes_time(model: PreTrainedModel, method: str) -> None:
    engine = TimedDynTS(method, model, CompressionConfig(100, 40, 0.5), method, random_predictor())
    with engine.running():
        parts = engine.compaction(prompt=10, batch=2)
        again = engine.compaction(prompt=10, batch=2)
    assert list(parts) == list(again) == ["scoring", "selection", "moving"]
    assert all(taken > 0 for taken in parts.values())


def test_transformers_engine_fills_and_restores(model: PreTrainedModel) -> None:
    before = model.config._attn_implementation
    engine = TimedTransformers("eager", model, "eager")
    with engine.running():
        assert model.config._attn_implementation == "eager"
        cache = engine.new_cache()
        engine.fill(cache, 4, 20, 3)
        assert engine.step(cache, 3) > 0
        assert cache.get_seq_length() == 21
        assert engine.kv_bytes(cache) == step_cost(model).token_bytes * 21 * 3
    assert model.config._attn_implementation == before


def test_a_static_cache_decodes_as_one_that_grows(model: PreTrainedModel) -> None:
    engine = TimedStatic("static", model, "sdpa")
    with engine.running():
        cache = engine.new_cache(50)
        for length in (20, 30):
            engine.fill(cache, 4, length, 3)
            assert engine.step(cache, 3) > 0
            assert int(cache.get_seq_length()) == length + 1
        assert engine.kv_bytes(cache) == step_cost(model).token_bytes * 50 * 3
        found = profile_once(engine, Work(2, 10, 50), steps=1, points=2)
    assert found.kv_bytes == step_cost(model).token_bytes * 60 * 2
    assert found.first_seconds > 0


def test_baselines_on_a_gpu_say_whether_cudnn_takes_part(model: PreTrainedModel) -> None:
    def told(device: str, eager: bool = False) -> list[tuple[str, bool]]:
        found = baselines(model, torch.device(device), eager)
        return [(type(engine).__name__, engine.cudnn) for engine in found if isinstance(engine, TimedTransformers)]

    assert told("cpu") == [("TimedTransformers", True)]
    assert told("cuda") == [("TimedTransformers", False), ("TimedTransformers", True), ("TimedStatic", True)]
    assert len(told("cuda", eager=True)) == 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU's work is watched")
def test_kernels_of_a_gpu_are_counted() -> None:
    device = torch.device("cuda")
    matrix = torch.ones(2048, 2048, device=device)
    with gpu_work(device) as found:
        for _ in range(3):
            matrix.add_(1)
    assert found[0].kernels == 3
    assert 0 < found[0].seconds < 1


def test_other_devices_have_no_kernels() -> None:
    with gpu_work(torch.device("cpu")) as found:
        torch.ones(8).sum()
    assert found == []


@pytest.mark.parametrize("tied", [False, True])
def test_step_cost_counts_what_is_read(tied: bool) -> None:
    model = tiny_model("llama", tie_word_embeddings=tied)
    cost = step_cost(model)
    size, inner, vocabulary, layers = 32, 64, COMMON["vocab_size"], 2
    layer = size * 32 + 2 * size * 16 + 32 * size + 3 * size * inner + 2 * size
    weights = layers * layer + size + vocabulary * size
    assert cost.weight_bytes == 4 * weights
    assert cost.weight_flops == 2 * weights
    assert cost.token_bytes == 4 * layers * 2 * 16
    assert cost.token_flops == 4 * layers * 32
    assert cost.read_bytes(3, 10) == 4 * weights + 30 * cost.token_bytes
    assert cost.flops(3, 10) == 3 * (2 * weights + 10 * cost.token_flops)


def test_the_floor_is_the_slower_of_the_two() -> None:
    assert MACHINE.floor(2e9, 1e10) == 2.0
    assert MACHINE.floor(1e9, 3e10) == 3.0


def test_machine_is_measured() -> None:
    machine = measure_machine(torch.device("cpu"), torch.float32)
    assert 1e8 < machine.copy < 1e13
    assert 1e8 < machine.read < 1e13
    assert 1e8 < machine.flops < 1e16


def test_stopwatch_times_methods_and_lets_go() -> None:
    class Owner:
        def double(self, value: int) -> int:
            return 2 * value

    owner, watch = Owner(), Stopwatch(torch.device("cpu"))
    with watch.watching(owner, double="doubling"):
        assert owner.double(2) == 4
        assert owner.double(3) == 6
    assert watch.spent["doubling"] > 0
    assert "double" not in vars(owner)


def test_speed_ups_are_medians_of_paired_rounds(model: PreTrainedModel) -> None:
    class Slow(Linear):
        def step(self, cache: Any, batch: int) -> float:
            return 4 * super().step(cache, batch)

    compared = [Slow("slow", model), Linear("fast", model, CONFIG)]
    rows = summarize(profile(compared, Work(1, 10, 200), 3, 1, 2, lambda: None), MACHINE, step_cost(model))
    assert [row.engine for row in rows] == ["slow", "fast"]
    assert rows[0].speedup.median == 1
    assert rows[1].speedup.median > 4
    assert rows[1].details["compactions"] == cached_tokens(10, 200, CONFIG)[1]
    step = rows[0].details["steps"][0]
    assert step["over_floor"] == pytest.approx(step["seconds"]["median"] / step["floor"])
    assert bench_table(rows).markdown().splitlines()[2].startswith("| slow |  | 1 | 200 |")
    assert "ker-" not in bench_table(rows).columns
    watched = bench_table([replace(row, busy=Busy(0.0062, 1311)) for row in rows])
    assert "| 6.2 | 1311 |" in watched.markdown().splitlines()[2]


def test_generation_mode_generates_what_was_asked(model: PreTrainedModel) -> None:
    compared = [*engines(model, ["full", "question-window"], CONFIG), TimedStatic("static", model, "sdpa")]
    rounds = generate(compared, Work(2, 10, 50), rounds=1, done=lambda: None)
    by_name = {found.engine: found for found in rounds[0]}
    token = 2 * step_cost(model).token_bytes
    assert by_name["transformers, sdpa"].kv_bytes == token * 59
    assert by_name["question-window"].kv_bytes == token * 40
    assert by_name["static"].kv_bytes == token * 59
    assert all(found.first_seconds and not found.busy for found in rounds[0])
    rows = next(measure([compared], [Work(2, 10, 50)], Effort("generate", rounds=1), MACHINE))
    assert [row.budget for row in rows] == [None, None, None, 40, None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: PreTrainedModel) -> Path:
    path = tmp_path_factory.mktemp("model")
    model.config.save_pretrained(path)
    return path


@pytest.mark.parametrize("mode", ["profile", "generate"])
def test_the_command_writes_what_it_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: Path, mode: str
) -> None:
    out, markdown, figure = tmp_path / "b.json", tmp_path / "b.md", tmp_path / "b.png"
    arguments = ["--model", folder, "--random-weights", "--mode", mode, "--rounds", 1, "--steps", 1, "--no-eager"]
    arguments += ["--batch", 1, "--batch", 2, "--generated", 60, "--budget", 40, "--prompt", 10, "--out", out]
    page = tmp_path / "b.html"
    arguments += ["--page", page]
    arguments += ["--method", "dynts", "--markdown", markdown, *(["--figure", figure] if mode == "profile" else [])]
    code, printed, _ = run(monkeypatch, capsys, "bench", *arguments)
    assert code == 0
    record = json.loads(out.read_text())
    assert [(row["engine"], row["batch"]) for row in record["rows"]] == [
        ("transformers, sdpa", 1),
        ("dynts", 1),
        ("transformers, sdpa", 2),
        ("dynts", 2),
    ]
    assert record["machine"]["read"] > 0
    assert all(row["first_seconds"] > 0 and row["busy"] is None for row in record["rows"])
    assert "GB/s" in printed
    assert markdown.read_text().count("| dynts |") == 2
    assert printed.splitlines()[-1] == f"page: {page}"
    elements = Elements(page.read_text())
    assert elements.texts("td").count("dynts") == 2
    assert f"{record['rows'][3]['tokens_per_second']['median']:.1f}" in elements.texts("td")
    assert len(elements.texts("img")) == (mode == "profile")
    assert figure.exists() == (mode == "profile")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "nonsense"), "unknown method"),
        (("--budget", 100), "use a budget of at least"),
        (("--budget", 1000, "--local-window", 1000), "must be smaller than the budget"),
        (("--out", "missing/b.json"), "does not exist"),
        (("--figure", "f.png", "--mode", "generate"), "profile"),
        (("--figure", "f.xyz"), "cannot draw"),
        (("--model", "./nowhere"), "configuration of ./nowhere"),
        (("--gguf-file", "weights.gguf"), "weights.gguf would not be used"),
    ],
)
def test_bad_input_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    arguments: tuple[object, ...],
    message: str,
) -> None:
    code, _, err = run(monkeypatch, capsys, "bench", "--model", folder, "--random-weights", *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
