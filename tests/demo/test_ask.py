"""What `dynts demo --ask` shows: evicted tokens are dim or dots, and nothing else is."""

import re
from io import StringIO
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.text import Text
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import dynts
from dynts.cache.lengths import Compaction, GenerationStats
from dynts.chat.prompts import chat_prompt
from dynts.config import CompressionConfig
from dynts.decode.arm import Arm
from dynts.demo import ask as asking
from dynts.demo.trace_view import DOT, ShownTrace
from dynts.errors import DyntsError
from dynts.methods import Method, SnapKV, resolve_method
from dynts.tiny.question import parse_question
from recipes.embedded_model.pretrain import build_model
from recipes.embedded_model.tokenizer import build_tokenizer

PROBLEM = parse_question("a=3, b=5, c:=a+b, d:=c-a find c, d.")
CONFIG = CompressionConfig(budget=60, local_window=8, retention_ratio=0.5)
NEW_TOKENS = 90
METHODS = ["question-window", "window", SnapKV(granularity="native")]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    torch.manual_seed(0)
    return build_model(tokenizer).eval()


def shown(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, console: Console, method: str | Method) -> str:
    """What `ask` writes to the console."""
    asking.ask(
        PROBLEM,
        model,
        tokenizer,
        arm=Arm(resolve_method(method)),
        config=CONFIG,
        console=console,
        max_new_tokens=NEW_TOKENS,
    )
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def run_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, method: str | Method
) -> tuple[int, list[str], list[tuple[int, set[int]]]]:
    """The same run without a display: prompt tokens, all words, and (tokens fed, positions evicted) of each
    compaction."""
    prompt = chat_prompt(tokenizer, PROBLEM.question)
    inputs: Any = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    with dynts.compress(model, method, CONFIG, tokenizer=tokenizer, record=True) as session:
        generate: Any = model.generate
        ids = generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)[0].tolist()
    length = inputs["input_ids"].shape[1]
    evictions = []
    for compaction, kept in zip(session.stats[0].compactions, session.kept_positions, strict=True):
        fed = length + compaction.step
        evictions.append((fed, {position for position in range(fed) if not bool((kept == position).any())}))
    assert len(evictions) > 1
    assert tokenizer.eos_token_id not in ids, "the tests below count on a run to the limit"
    return length, [str(tokenizer.decode([token])) for token in ids], evictions


def marked(words: list[str], evicted: set[int], start: int) -> list[tuple[str, bool]]:
    """Pieces without spaces (the instruction is one token of several words), and whether they are evicted."""
    return [(piece, position in evicted) for position in range(start, len(words)) for piece in words[position].split()]


def dimmed(output: str) -> list[tuple[str, bool]]:
    """Words of terminal output outside frames, and whether they are dim."""
    text, console = Text.from_ansi(output), Console()
    words = re.finditer(r"[^\s│╭╮╰╯─]+", text.plain)
    return [(word[0], bool(text.get_style_at_offset(console, word.start()).dim)) for word in words]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_plain_text_has_a_dot_for_every_evicted_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, method: str | Method
) -> None:
    output = shown(model, tokenizer, Console(file=StringIO(), width=60), method)
    length, words, evictions = run_alone(model, tokenizer, method)
    evicted = evictions[-1][1]
    _, full, compressed = output.split("\n\n---")
    assert "\x1b" not in output
    assert DOT not in full
    dotted = [DOT if position in evicted else word for position, word in enumerate(words)]
    body = compressed.split("---\n")[1].split("\n\n")[0].split("evicted by the end.")[1]
    question_lost = any(position < length for position in evicted)
    expected = ["question:", *dotted] if question_lost else dotted[length:]
    assert body.split() == " ".join(expected).split()
    assert f"peak {CONFIG.budget} " in compressed
    assert f"generated tokens: {NEW_TOKENS}, compactions: {len(evictions)}" in compressed
    assert f"cached tokens: {length + NEW_TOKENS - 1} at the end" in full


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_terminal_dims_every_evicted_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, method: str | Method
) -> None:
    console = Console(file=StringIO(), width=60, height=30, force_terminal=True, color_system="standard")
    output = shown(model, tokenizer, console, method)
    length, words, evictions = run_alone(model, tokenizer, method)
    live, final = output.split("\x1b[?1049l")  # the end of the alternate screen
    assert "full cache" in live
    pieces = dimmed(final)
    evicted = evictions[-1][1]
    question = marked(words[:length], evicted, 0)
    assert question == pieces[3 : 3 + len(question)]  # after "question, N tokens"
    trace = marked(words, evicted, length)
    start = pieces.index(("budget", False)) + 2
    assert trace == pieces[start : start + len(trace)]
    assert not any(dim for _, dim in pieces[start + len(trace) :])


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_evictions_show_from_the_next_token_on(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, method: str | Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames: list[tuple[int, set[int]]] = []

    def recorded(traces: list[ShownTrace], console: Console) -> Text:
        frames.append((len(traces[1].words), set(traces[1].evicted)))
        return Text()

    monkeypatch.setattr(asking, "live_view", recorded)
    monkeypatch.setattr(asking, "_FRAME_SECONDS", 0.0)
    shown(model, tokenizer, Console(file=StringIO(), force_terminal=True), method)
    length, words, evictions = run_alone(model, tokenizer, method)
    assert {count for count, _ in frames} == set(range(length, len(words) + 1))
    for count, evicted in frames:
        # the newest word has not been fed yet
        before = [gone for fed, gone in evictions if fed < count]
        assert evicted == (before[-1] if before else set())


def test_frames_are_few(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[None] = []

    def counted(traces: list[ShownTrace], console: Console) -> Text:
        drawn.append(None)
        return Text()

    monkeypatch.setattr(asking, "live_view", counted)
    monkeypatch.setattr(asking, "_FRAME_SECONDS", 1e9)
    shown(model, tokenizer, Console(file=StringIO(), force_terminal=True), "question-window")
    assert len(drawn) < 10


def test_the_end_token_is_counted_but_not_shown(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model.generation_config, "forced_eos_token_id", tokenizer.eos_token_id)
    output = shown(model, tokenizer, Console(file=StringIO()), "question-window")
    assert str(tokenizer.eos_token) not in output
    assert output.count(f"generated tokens: {NEW_TOKENS},") == 2


@pytest.mark.parametrize(
    ("written", "verdict"),
    [
        (r"c:= a + b </think> \boxed{ ( 8 , 5 ) }", "answer ( 8 , 5 ): right"),
        (r"c:= a + b </think> \boxed{ ( 5 , 8 ) }", "answer ( 5 , 8 ): wrong, ( 8 , 5 ) is right"),
        (r"c:= a + b </think> c= 8", "no answer; ( 8 , 5 ) is right"),
        (r"c:= a + b \boxed{ ( 8 , 5 ) }", "no answer; ( 8 , 5 ) is right"),  # the thinking was not closed
    ],
)
def test_the_footer_says_whether_the_answer_is_right(written: str, verdict: str) -> None:
    trace = ShownTrace("compressed", ["<think>", *written.split()], 1)
    stats = GenerationStats(6, 12, [Compaction(9, 15, 10)], peak_tokens=15, peak_bytes=15 * 2048)
    assert asking.footer(trace, PROBLEM, stats, 12).splitlines() == [
        verdict,
        "generated tokens: 12, compactions: 1",
        "cached tokens: 12 at the end, peak 15 (30 KiB)",
    ]


@pytest.mark.parametrize(
    ("method", "budget", "message"),
    [
        ("full", 60, "'full'"),
        ("dynts", 60, "predictor"),
        ("window", 20, "too small"),
    ],
)
def test_refusals_come_before_anything_is_generated(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, method: str, budget: int, message: str
) -> None:
    console = Console(file=StringIO())
    with pytest.raises(DyntsError, match=message):
        asking.ask(
            PROBLEM,
            model,
            tokenizer,
            arm=Arm(resolve_method(method)),
            config=CompressionConfig(budget, local_window=8),
            console=console,
        )


def test_a_warning_comes_first(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    console = Console(file=StringIO())
    asking.ask(
        parse_question("a=3 find a."),
        model,
        tokenizer,
        arm=Arm(resolve_method("window")),
        config=CONFIG,
        console=console,
        max_new_tokens=4,
    )
    assert console.file.getvalue().startswith("Note: the model has not been trained on")  # type: ignore[attr-defined]
