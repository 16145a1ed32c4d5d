"""`dynts bench --mode serve`: streams are what they are said to be, and what is told of them is what happened."""

import asyncio
import json
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

import pytest
from transformers import PreTrainedModel

from command_line import run
from dynts.bench.client import OpenAIServer, ask_server
from dynts.bench.engines import TimedDynTS
from dynts.bench.latency import Percentiles, summarize_stream
from dynts.bench.serving import Served, serve_stream
from dynts.bench.stream import Arrival, Lengths, Reception, poisson_stream
from dynts.config import CompressionConfig
from dynts.errors import DyntsError
from dynts.models import load_tokenizer
from dynts.tiny import WEIGHTS
from html_elements import Elements
from served import Served as Server
from served import endless_model
from tiny import tiny_model

CONFIG = CompressionConfig(budget=40, local_window=8, retention_ratio=0.5)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama")


def test_a_stream_is_poisson_and_log_normal() -> None:
    stream = poisson_stream(4.0, 4000, Lengths(20), Lengths(200, 0.9, 1640), seed=3)
    gaps = [after.at - before.at for before, after in pairwise(stream)]
    assert fmean(gaps) == pytest.approx(1 / 4, rel=0.05)
    # of an exponential gap exp(-1) are longer than the mean
    assert sum(gap > 1 / 4 for gap in gaps) / len(gaps) == pytest.approx(math.exp(-1), abs=0.03)
    lengths = [asked.generated for asked in stream]
    assert median(lengths) == pytest.approx(200, rel=0.05)
    # one standard deviation above the median, on the logarithm, lie 15.87%
    assert sum(length > 200 * math.exp(0.9) for length in lengths) / len(lengths) == pytest.approx(0.1587, abs=0.02)
    assert max(lengths) == 1640
    assert {asked.prompt for asked in stream} == {20}
    assert stream == poisson_stream(4.0, 4000, Lengths(20), Lengths(200, 0.9, 1640), seed=3)
    assert {asked.at for asked in poisson_stream(math.inf, 9, Lengths(2), Lengths(3))} == {0.0}


@pytest.mark.parametrize("method", ["full", "window"])
def test_dead_rows_are_those_of_the_formula(model: PreTrainedModel, method: str) -> None:
    """Six requests at once on three rows: two static batches whose rows stay until the longest one ends."""
    lengths = [5, 60, 12, 33, 7, 20]
    stream = [Arrival(0.0, 10, tokens, number) for number, tokens in enumerate(lengths)]
    engine = TimedDynTS(method, model, CONFIG, method)
    static = serve_stream(engine, stream, "static", rows=3, prefill_tokens=64)
    assert [one.tokens for one in static.receptions] == lengths
    # the first token of each comes from its prompt, not from a decode step
    live = sum(tokens - 1 for tokens in lengths)
    assert static.dead_rows == pytest.approx(1 - live / (3 * (60 - 1) + 3 * (33 - 1)))
    assert min(one.first for one in static.receptions[3:]) > max(one.last for one in static.receptions[:3])

    continuous = serve_stream(engine, stream, "continuous", rows=3, prefill_tokens=64)
    assert [one.tokens for one in continuous.receptions] == lengths
    assert continuous.dead_rows == 0
    assert all(one.first < continuous.receptions[1].last for one in continuous.receptions)
    assert continuous.budget == (None if method == "full" else 40)


def test_a_request_waits_for_its_time(model: PreTrainedModel) -> None:
    stream = [Arrival(0.0, 4, 2, 0), Arrival(0.3, 4, 2, 1)]
    done: list[int] = []
    found = serve_stream(TimedDynTS("full", model, CONFIG, "full"), stream, "continuous", 2, 64, lambda: done.append(1))
    assert found.receptions[1].first >= 0.3
    assert found.receptions[1].first_seconds < 0.3
    assert len(done) == 2


def test_a_forward_pass_that_fails_is_counted(model: PreTrainedModel) -> None:
    calls = iter(range(1000))

    def fail_later(*_: object) -> None:
        if next(calls) == 15:
            raise RuntimeError("out of memory")

    engine = TimedDynTS("full", model, CONFIG, "full")
    stream = [Arrival(0.0, 4, 30, 0), Arrival(0.0, 4, 3, 1)]
    hook = model.lm_head.register_forward_pre_hook(fail_later)
    try:
        found = serve_stream(engine, stream, "static", 2, 64)
    finally:
        hook.remove()
    row = summarize_stream(found)
    assert row.failures == {"out of memory": 1}
    assert row.got_tokens == 3
    assert row.remarks() == ["full: 1 requests failed: out of memory"]


def test_percentiles_and_groups() -> None:
    assert Percentiles.of([*range(101), None]) == Percentiles(50, 95, 99)
    assert Percentiles.of([None]) is None
    receptions = [Reception(Arrival(1.0, 5, tokens, 0)) for tokens in (4, 8, 100, 100)]
    for number, one in enumerate(receptions):
        for token in range(one.asked.generated):
            one.take(2.0 + number + 0.5 * token)
    receptions[3].failure = "429 too many"
    row = summarize_stream(Served("x", "static", 40, 2, receptions, 0.25))
    assert {name: group.requests for name, group in row.waiting.items()} == {"all": 4, "short": 2, "long": 2}
    assert row.waiting["short"].first_seconds == Percentiles(1.5, pytest.approx(1.95), pytest.approx(1.99))
    assert row.waiting["all"].token_seconds == Percentiles(0.5, 0.5, 0.5)
    assert row.seconds == 2 + 3 + 0.5 * 99
    assert row.requests_per_second == pytest.approx(3 / row.seconds)
    assert row.tokens_per_second == pytest.approx(212 / row.seconds)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One row, one place in the queue; the model never ends by itself."""
    options = ("--max-batch", 1, "--max-waiting", 1, "--served-model-name", "endless")
    with Server(*options, model=endless_model(tmp_path_factory.mktemp("model"))) as started:
        yield started


def test_a_server_is_asked_in_words_that_it_takes(server: Server) -> None:
    """dynts serve refuses `ignore_eos`, and requests beyond its queue: these are counted, not dropped."""
    stream = [Arrival(0.0, 20, tokens, number) for number, tokens in enumerate((40, 30, 20, 10))]
    found = ask_server(f"{server.url}/v1", load_tokenizer(WEIGHTS), stream)
    assert found.engine == "endless"
    assert "token ids to /completions, which may end earlier; tokens by the server's usage" in str(found.remark)
    row = summarize_stream(found)
    [(reason, refused)] = row.failures.items()
    assert reason.startswith("429")
    assert 0 < refused < 4
    answered = [one for one in found.receptions if one.failure is None]
    assert all(one.tokens == one.asked.generated and one.first < one.last for one in answered)
    assert server.metric('dynts_requests_total{status="429"}') == refused


def test_a_server_that_takes_nothing_is_named(server: Server) -> None:
    with pytest.raises(DyntsError, match=r"takes no request for another: .*404 the model 'another'"):
        ask_server(f"{server.url}/v1", load_tokenizer(WEIGHTS), [Arrival(0.0, 2, 2, 0)], model="another")
    with pytest.raises(DyntsError, match="is it running"):
        ask_server("http://127.0.0.1:9/v1", load_tokenizer(WEIGHTS), [Arrival(0.0, 2, 2, 0)])


def test_prompts_hold_no_special_tokens() -> None:
    async def ids() -> list[int]:
        async with OpenAIServer("http://127.0.0.1:9/v1", load_tokenizer(WEIGHTS)) as unused:
            return unused.ids

    tokenizer = load_tokenizer(WEIGHTS)
    drawn = Arrival(0.0, 500, 1, 7).prompt_ids(asyncio.run(ids()))
    assert len(drawn) == 500
    assert not set(drawn) & set(tokenizer.all_special_ids)
    assert max(drawn) < len(tokenizer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: PreTrainedModel) -> Path:
    path = tmp_path_factory.mktemp("configuration")
    model.config.save_pretrained(path)
    return path


def test_the_command_writes_what_it_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, folder: Path
) -> None:
    out, markdown = tmp_path / "s.json", tmp_path / "s.md"
    arguments = ["--model", folder, "--random-weights", "--mode", "serve", "--requests", 8, "--rate", "inf"]
    arguments += ["--batch", 4, "--generated", 20, "--generated-sigma", 0.9, "--generated-most", 100, "--prompt", 10]
    arguments += ["--budget", 40, "--method", "dynts", "--out", out, "--markdown", markdown]
    page = tmp_path / "s.html"
    arguments += ["--page", page]
    code, printed, _ = run(monkeypatch, capsys, "bench", *arguments)
    assert code == 0
    assert "GB/s" in printed
    record = json.loads(out.read_text())
    assert (record["rate"], record["generated_sigma"], record["machine"]["device"]) == (None, 0.9, "cpu")
    assert [(row["engine"], row["batching"], row["rows"]) for row in record["rows"]] == [
        ("dynts", "continuous", 4),
        ("dynts", "static", 4),
    ]
    for row in record["rows"]:
        assert row["got_tokens"] == row["asked_tokens"]
        assert [one["tokens"] for one in row["receptions"]] == [one["asked"]["generated"] for one in row["receptions"]]
    assert record["rows"][0]["dead_rows"] == 0 < record["rows"][1]["dead_rows"]
    assert markdown.read_text().count("| dynts, static") == 4
    assert printed.splitlines()[-1] == f"page: {page}"
    cells = Elements(page.read_text()).texts("td")
    assert sum(cell.startswith("dynts, static") for cell in cells) == 4
    assert f"{record['rows'][0]['tokens_per_second']:.1f}" in cells


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rate", 3), "--rate is for --mode serve, not profile"),
        (("--mode", "generate", "--url", "http://x/v1"), "--url is for --mode serve, not generate"),
        (("--mode", "serve", "--rounds", 3), "--rounds is for the other modes"),
        (("--mode", "serve", "--figure", "f.png"), "--mode profile"),
        (("--mode", "serve", "--api-key", "k"), "--api-key is for a server by --url"),
        (("--mode", "serve", "--url", "http://x/v1", "--method", "full"), "--method is for a model in this process"),
        (("--mode", "serve", "--rate", 0), "rate must be above 0, got 0"),
        (("--mode", "serve", "--generated-sigma", -1), "0 or more, got -1"),
        (("--mode", "serve", "--generated-most", 3), "cut at 3, below their median"),
        (("--mode", "serve", "--budget", 100), "use a budget of at least"),
    ],
)
def test_bad_input_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    folder: Path,
    arguments: tuple[object, ...],
    message: str,
) -> None:
    code, _, err = run(monkeypatch, capsys, "bench", "--model", folder, *arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
