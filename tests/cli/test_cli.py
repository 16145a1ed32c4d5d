"""The command line, run in process: answers, errors, exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from command_line import run
from decoding import random_predictor
from tiny import tiny_model


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and a word-level tokenizer on disk, as from the Hub."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model("qwen2").save_pretrained(folder)
    words = [
        "[PAD]",
        "<bos>",
        "<eos>",
        "[UNK]",
        "<think>",
        "</think>",
        *"abcdefghijklmnopqrstuvwxyz",
        *map(str, range(32)),
    ]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", eos_token="<eos>"
    )
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def predictor_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predictor")
    random_predictor().save_pretrained(folder)
    return folder


BUDGET = ("--budget", 90, "--local-window", 8, "--max-new-tokens", 120)


@pytest.mark.quick
def test_generate_prints_text_and_statistics(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model_folder: Path, predictor_folder: Path
) -> None:
    code, out, _ = run(
        monkeypatch, capsys, "generate", "--model", model_folder, "--predictor", predictor_folder, *BUDGET, "a + b = 3"
    )
    assert code == 0
    assert "peak cache 90 tokens" in out
    assert "120 generated tokens" in out
    assert "compactions" in out


def test_generate_as_json_for_a_file_of_questions(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_folder: Path,
    predictor_folder: Path,
    tmp_path: Path,
) -> None:
    questions = tmp_path / "questions.jsonl"
    questions.write_text('{"id": "first", "question": "a b c"}\n\n{"question": "1 2 3"}\n')
    common = ("generate", "--model", model_folder, "--questions", questions, "--json", *BUDGET)
    code, out, _ = run(monkeypatch, capsys, *common, "--predictor", predictor_folder)
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["id"] for row in rows] == ["first", "line 3"]
    for row in rows:
        assert row["peak_tokens"] == 90
        assert row["generated_tokens"] == 120
        assert row["finished"] is False
        assert all(set(event) == {"step", "before", "after"} for event in row["compactions"])
        assert row["compactions"][0]["before"] == 90
    _, again, _ = run(monkeypatch, capsys, *common, "--predictor", predictor_folder)
    assert [json.loads(line)["text"] for line in again.splitlines()] == [row["text"] for row in rows]
    _, full, _ = run(monkeypatch, capsys, *common, "--method", "full")
    assert json.loads(full.splitlines()[0])["compactions"] == []


def test_generate_reads_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model_folder: Path
) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("a b c"))
    options = ("--method", "window", "--temperature", 0, "--json", *BUDGET)
    code, out, _ = run(monkeypatch, capsys, "generate", "--model", model_folder, *options, "-")
    assert code == 0
    assert json.loads(out)["question"] == "a b c"


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("a b",), "needs --predictor"),
        ((), "either a question"),
        (("--method", "nonsense", "a b"), "unknown method 'nonsense'"),
        (("--method", "window", "--budget", 0, "a b"), "budget must be a whole number of at least 2"),
        (("--method", "window", "--budget", 30, "--local-window", 30, "a b"), "must be smaller than the budget"),
        (("--method", "window", "--budget", 25, "--local-window", 16, "a b c d"), "is too small for a question of"),
        (("--method", "window", "--retention-ratio", 1, "a b"), "retention_ratio must lie between"),
        (("--method", "window", "--granularity", "native", "a b"), "has no option granularity"),
        (("--method", "window", "--temperature", -1, "a b"), "temperature must not be negative"),
        (("--method", "window", "--max-new-tokens", 0, "a b"), "max_new_tokens must be at least 1"),
        (("--method", "window", "  "), "the question is empty"),
        (("--predictor", "no/such/folder", "a b"), "no/such/folder"),
        (("--method", "window", "--gguf-file", "missing.gguf", "a b"), "missing.gguf"),
        (("--method", "window", "--dtype", "float7", "a b"), "float7"),
        (("--method", "window", "--questions", "missing.jsonl"), "cannot read missing.jsonl"),
    ],
)
def test_bad_input_exits_with_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_folder: Path,
    arguments: tuple[object, ...],
    expected: str,
) -> None:
    code, out, err = run(monkeypatch, capsys, "generate", "--model", model_folder, *arguments)
    assert code == 2
    assert expected in err
    assert out == ""


@pytest.mark.parametrize(
    ("content", "expected"),
    [("", "holds no questions"), ('{"question": "a"}\n{"question": ', "line 2"), ('{"text": "a"}', "line 1")],
)
def test_malformed_questions_are_named_by_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    model_folder: Path,
    tmp_path: Path,
    content: str,
    expected: str,
) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(content)
    code, _, err = run(
        monkeypatch, capsys, "generate", "--model", model_folder, "--method", "window", "--questions", path
    )
    assert code == 2
    assert expected in err


def test_missing_model_and_wrong_predictor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model_folder: Path, tmp_path: Path
) -> None:
    code, _, err = run(monkeypatch, capsys, "generate", "--model", tmp_path / "none", "--method", "window", "a b")
    assert code == 2
    assert "none" in err
    random_predictor(hidden_size=16).save_pretrained(tmp_path / "small")
    options = ("--model", model_folder, "--predictor", tmp_path / "small", *BUDGET)
    code, _, err = run(monkeypatch, capsys, "generate", *options, "a b")
    assert code == 2
    assert "16" in err
    assert "32" in err


def test_damaged_gguf(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model_folder: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + bytes(100))
    options = ("--model", tmp_path, "--gguf-file", "damaged.gguf", "--method", "window")
    code, _, err = run(monkeypatch, capsys, "generate", *options, "a b")
    assert code == 2
    assert "damaged.gguf" in err


@pytest.mark.quick
def test_help_and_version_start_without_torch() -> None:
    code = "import sys; import dynts.cli; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    done = subprocess.run([sys.executable, "-m", "dynts", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == __import__("dynts").__version__


def test_an_interruption_exits_with_130_and_promises_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model_folder: Path
) -> None:
    """What commands say that continue: `test_terminal.py`."""

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dynts.models.load_model", interrupted)
    code, _, err = run(monkeypatch, capsys, "generate", "--model", model_folder, "--method", "window", "a b")
    assert code == 130
    assert err.endswith("dynts: interrupted\n")
