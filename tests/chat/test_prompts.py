"""Prompts as chat templates write them: thinking opened, opened with more, closed, or left to the model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from command_line import run
from dynts.chat.markers import ThinkFormat
from dynts.chat.options import ChatOptions
from dynts.chat.prompts import render_prompt, user_message
from dynts.chat.thinking import normalise
from dynts.chat.written import FIRST, ClosingWatch, decode_text
from dynts.config import CompressionConfig, Settings, load_settings, save_settings
from dynts.errors import DyntsError
from dynts.options import build
from dynts.tiny import WEIGHTS
from dynts.traces.tokens import tokenize_trace
from dynts.traces.traces import Trace
from made_tokenizers import byte_level

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
CHOICE = (
    TURNS + "{% if add_generation_prompt %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
OPENINGS = {
    "leaves it": ("", None),
    "opens it": ("<think>\n", True),
    "opens it with more": ("<think>\nOkay, ", True),
    "closes it": ("<think>\n\n</think>\n\n", False),
    "closes it with more": ("<think></think>So: ", False),
}


def with_opening(opening: str) -> PreTrainedTokenizerFast:
    return byte_level(template=TURNS + "{% if add_generation_prompt %}<|assistant|>" + opening + "{% endif %}")


@pytest.mark.quick
@pytest.mark.parametrize("question", ["1 + 1?", "what is <think>?", "what is </think>?"])
@pytest.mark.parametrize("name", OPENINGS)
def test_the_prompt_is_taken_as_it_is(name: str, question: str) -> None:
    opening, thinks = OPENINGS[name]
    tokenizer, messages = with_opening(opening), [user_message(question)]
    plain = render_prompt(tokenizer, messages)
    assert plain.text.endswith(f"<|assistant|>{opening}")
    assert plain.thinks is thinks
    if thinks is False:
        with pytest.raises(DyntsError, match="template closes the thinking"):
            render_prompt(tokenizer, messages, ChatOptions(open_thinking=True))
        return
    opened = render_prompt(tokenizer, messages, ChatOptions(open_thinking=True))
    assert opened == (plain.text if thinks else f"{plain.text}<think>\n", True)
    trace = Trace("1", question, "so 2.</think>2", "2")
    tokens = tokenize_trace(tokenizer, trace)
    assert tokenizer.decode(tokens.ids[: tokens.question_end]) == opened.text
    assert tokenizer.decode(tokens.ids[tokens.question_end : tokens.thinking_end]).startswith("so 2")


@pytest.mark.quick
def test_template_arguments() -> None:
    tokenizer, messages = byte_level(template=CHOICE), [user_message("1 + 1?")]
    assert render_prompt(tokenizer, messages).thinks is None
    closed = render_prompt(tokenizer, messages, build(ChatOptions, {"template_arg": ["enable_thinking=false"]}))
    assert closed.thinks is False
    assert closed.text.endswith("<think>\n\n</think>\n\n")
    for text, value in (("a=[1, 2]", [1, 2]), ("a=low", "low"), ('a="1"', "1"), ("a=", ""), ("a=b=c", "b=c")):
        assert build(ChatOptions, {"template_arg": [text]}).template_args == {"a": value}
    with pytest.raises(DyntsError, match="never looks at 'enable_thinkin'"):
        render_prompt(tokenizer, messages, ChatOptions(template_args={"enable_thinkin": False}))
    with pytest.raises(DyntsError, match="no chat template that could look at 'a'"):
        render_prompt(byte_level(template=""), messages, ChatOptions(template_args={"a": 1}))
    deep = "[" * 100_000
    assert build(ChatOptions, {"template_arg": [f"a={deep}"]}).template_args == {"a": deep}  # no JSON that can be read
    for wrong, message in ((["a"], "NAME=VALUE"), (["=1"], "NAME=VALUE"), (["a=1", "a=2"], "gives 'a' twice")):
        with pytest.raises(DyntsError, match=message):
            build(ChatOptions, {"template_arg": wrong})
    with pytest.raises(DyntsError, match="'messages' is what dynts itself gives"):
        ChatOptions(template_args={"messages": []})
    with pytest.raises(DyntsError, match="'' is no name"):
        ChatOptions(template_args={"": 1})


@pytest.mark.quick
def test_what_is_no_text_is_refused() -> None:
    half = "\udc80"
    tokenizer = byte_level(template="{{ messages[0].content }}{{ extra }}")
    for question, arguments in ((half, {}), ("1 + 1?", {"extra": half})):
        with pytest.raises(DyntsError, match=r"the prompt: .* is half of a surrogate pair"):
            render_prompt(tokenizer, [user_message(question)], ChatOptions(template_args=arguments))
    with pytest.raises(DyntsError, match=r"think markers: .* is half of a surrogate pair"):
        ChatOptions(think_start=half, think_end="b")


@pytest.mark.quick
def test_a_marker_given_alone_is_not_left_out() -> None:
    for start, end in (("", None), (None, ""), (None, "(B)")):
        with pytest.raises(DyntsError, match=r"the think marker .* is not known here"):
            ChatOptions(think_start=start, think_end=end).format(byte_level())


@pytest.mark.quick
def test_all_is_the_answer_after_a_closed_prompt() -> None:
    assert normalise("2", ThinkFormat(), False) == "</think>2"
    assert normalise("[THINK]so[/THINK]2", ThinkFormat("[THINK]", "[/THINK]"), None) == "so</think>2"
    assert normalise("so[/THINK]2", ThinkFormat("[THINK]", "[/THINK]"), True) == "so</think>2"


@pytest.mark.quick
def test_markers_of_special_tokens_are_shown_and_others_left_out() -> None:
    control = ["<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|return|>"]
    tokenizer = byte_level(control)
    text = "<|channel|>analysis<|message|>so<|end|><|start|>assistant<|channel|>final<|message|>2"
    ids = tokenizer.encode(f"{text}<|return|><eos>", add_special_tokens=False)
    assert decode_text(tokenizer, ids) == text
    assert decode_text(byte_level(control, "<think>"), ids) == "analysissoassistantfinal2"


@pytest.mark.quick
def test_settings_file_keeps_how_the_model_is_talked_to(tmp_path: Path) -> None:
    file = tmp_path / "settings.json"
    plain = Settings(CompressionConfig())
    save_settings(file, plain)
    assert "think_start" not in file.read_text()
    assert load_settings(file) == plain
    chosen = Settings(CompressionConfig(), "snapkv", None, None, "(", ")", {"enable_thinking": False})
    save_settings(file, chosen)
    assert load_settings(file) == chosen
    file.write_text(file.read_text().replace('"("', "3"))
    with pytest.raises(DyntsError, match="think_start must be a text or null, got 3"):
        load_settings(file)


def test_bad_options_end_before_a_model_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], write_lines: Callable[..., Path]
) -> None:
    code, _, err = run(
        monkeypatch, capsys, "generate", "--model", "./nowhere", "--method", "full", "--template-arg", "x", "question"
    )
    assert (code, "NAME=VALUE" in err) == (2, True)
    code, _, err = run(
        monkeypatch,
        capsys,
        "generate",
        "--model",
        "./no",
        "--method",
        "full",
        "--think-start",
        "(",
        "--think-end",
        "(",
        "q",
    )
    assert (code, "two different texts" in err) == (2, True)
    code, _, err = run(
        monkeypatch, capsys, "generate", "--model", WEIGHTS, "--method", "full", "--template-arg", "depth=3", "question"
    )
    assert (code, "never looks at 'depth'" in err, "Loading weights" in err) == (2, True, False)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([(True, False)] * (FIRST - 1) + [(True, True)], 0),
        ([(True, False)] * FIRST, 1),
        ([(True, False)] * 3, 1),
        ([(False, False)] * 30, 0),
        ([(True, False)] * FIRST + [(True, True)], 1),
        ([], 0),
    ],
)
def test_the_warning_comes_once_and_early(samples: list[tuple[bool, bool]], said: int) -> None:
    lines: list[str] = []
    watch = ClosingWatch(lines.append, "do this")
    for sample in samples:
        watch.note(*sample)
    if len(samples) >= FIRST:
        assert len(lines) == said, "before the end"
    watch.conclude()
    watch.conclude()
    assert len(lines) == said


@pytest.mark.quick
@pytest.mark.parametrize("command", ["label", "tune", "view", "analyze importance", "analyze pareto"])
def test_arguments_are_checked_before_traces_are_read_or_a_model_is_loaded(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, traces, out = tmp_path / "model", tmp_path / "traces.jsonl", tmp_path / "out"
    byte_level(template=CHOICE).save_pretrained(folder)  # no weights
    traces.write_text(json.dumps({"question": "1 + 1?", "response": "so 2.</think>\\boxed{2}", "answer": "2"}))
    options = ("--model", folder, "--traces", traces, "--out", out)
    options += ("--method", "window") if command in ("tune", "view") else ()
    for argument, problem in (
        ("enable_thinking=false", "closes the thinking in the prompt"),
        ("a=1", "never looks at 'a'"),
    ):
        code, _, err = run(monkeypatch, capsys, *command.split(), *options, "--template-arg", argument)
        assert (code, err.count("\n")) == (2, 1)
        assert problem in err


@pytest.mark.quick
def test_import_knows_partners_and_says_when_nothing_closes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "traces.jsonl"
    file.write_text(json.dumps({"question": "1 + 1?", "response": "[THINK]so[/THINK] two", "answer": "2"}))
    code, out, err = run(monkeypatch, capsys, "import", file, "--out", tmp_path / "plain")
    assert (code, "unfit: unfinished 1" in out) == (0, True)
    assert "WARNING: no response closes its thinking by </think>" in err
    code, out, err = run(monkeypatch, capsys, "import", file, "--out", tmp_path / "named", "--think-end", "[/THINK]")
    assert (code, "unfit: ungradable 1" in out, err) == (0, True, "")
    code, _, err = run(monkeypatch, capsys, "import", file, "--out", tmp_path / "alone", "--think-start", "<reasoning>")
    assert (code, "give both --think-start and --think-end" in err) == (2, True)
