"""The settings file: what is saved comes back, what is wrong is named, and options given explicitly win over it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from command_line import run
from dynts.chat.options import ChatOptions
from dynts.cli import ANALYSES, PANELS
from dynts.cli.command import add_command, options_type
from dynts.config import CompressionConfig, ModelSource, Sampling, Settings, load_settings, save_settings
from dynts.errors import DyntsError
from dynts.options import build, option, options_of, part, read_settings
from dynts.tiny import WEIGHTS

VALUES: dict[str, Any] = {"method": "window", "budget": 60, "local_window": 20, "retention_ratio": 0.5}
ASK = ("a=3, b=5, c:=a+b find c.", "--model", WEIGHTS, "--device", "cpu", "--max-new-tokens", 100, "--json")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(VALUES))
    return path


@pytest.mark.quick
def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    for settings in (
        Settings(CompressionConfig(5000, 2000, 0.4), "dynts", "some/predictor"),
        Settings(CompressionConfig(5000, 2000, 0.4), "dynts", "some/predictor", "native"),
        Settings(CompressionConfig(300, 0, 0.3), "snapkv"),
    ):
        save_settings(path, settings)
        assert load_settings(path) == settings
    assert json.loads(path.read_text()) == {
        "method": "snapkv",
        "predictor": None,
        "granularity": None,
        "budget": 300,
        "local_window": 0,
        "retention_ratio": 0.3,
    }
    assert [entry.name for entry in tmp_path.iterdir()] == ["settings.json"]


@pytest.mark.quick
def test_predictor_and_granularity_may_be_left_out(file: Path) -> None:
    assert load_settings(file) == Settings(CompressionConfig(60, 20, 0.5), "window", None, None)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["not valid JSON"]),
        ("[1]", ["expected a JSON object", "list"]),
        (json.dumps({**VALUES, "budgt": 1}), ["unknown setting budgt", "retention_ratio"]),
        (json.dumps({"method": "window", "budget": 60}), ["local_window, retention_ratio is missing"]),
        (json.dumps({**VALUES, "method": 3}), ["method", "3"]),
        (json.dumps({**VALUES, "granularity": "head"}), ["granularity", "shared, native or null", "'head'"]),
        (json.dumps({**VALUES, "predictor": ["a"]}), ["predictor", "['a']"]),
        (json.dumps({**VALUES, "budget": 60.5}), ["budget", "whole number", "60.5"]),
        (json.dumps({**VALUES, "local_window": "20"}), ["local_window", "'20'"]),
        (json.dumps({**VALUES, "retention_ratio": True}), ["retention_ratio", "True"]),
        (json.dumps({**VALUES, "local_window": 60}), ["local_window (60)", "budget (60)"]),
    ],
)
def test_wrong_files_are_refused_by_name(text: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(DyntsError) as caught:
        load_settings(path)
    for word in ["mine.json", *words]:
        assert word in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DyntsError, match=r"cannot read .*none\.json"):
        load_settings(tmp_path / "none.json")


def generate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: object) -> dict[str, Any]:
    code, out, err = run(monkeypatch, capsys, "generate", *ASK, *options)
    assert code == 0, err
    return json.loads(out)


def test_generate_takes_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = generate(monkeypatch, capsys, "--settings", file)
    assert (found["method"], found["peak_tokens"]) == ("Window", 60)
    question = found["prompt_tokens"]
    kept = CompressionConfig(60, 20, 0.5).kept_tokens(question)
    assert {(before, after) for before, after in ((row["before"], row["after"]) for row in found["compactions"])} == {
        (60, kept)
    }


@pytest.mark.parametrize("options", [("--budget", 50, "--settings"), ("--settings",)])
def test_explicit_options_win_wherever_they_stand(
    options: tuple[object, ...], file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    after = () if "--budget" in options else ("--budget", 50)
    found = generate(monkeypatch, capsys, *options, file, *after, "--method", "question-window")
    assert (found["method"], found["peak_tokens"]) == ("QuestionWindow", 50)


def test_collect_takes_the_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = tmp_path / "problems.jsonl"
    problems.write_text(json.dumps({"question": "a= 3 , b= 5 , c:= a + b find c? .", "answer": "8"}) + "\n")
    command = ("--model", WEIGHTS, "--dataset", problems, "--out", tmp_path / "traces", "--max-new-tokens", 80)
    code, _, err = run(monkeypatch, capsys, "collect", *command, "--settings", file, "--retention-ratio", 0.3)
    assert code == 0, err
    settings = json.loads((tmp_path / "traces" / "manifest.json").read_text())["settings"]
    assert settings["method"]["name"] == "Window"
    assert settings["config"] == {"budget": 60, "local_window": 20, "retention_ratio": 0.3}


def test_the_granularity_of_the_file_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {}
    for granularity in ("shared", "native"):
        file, out = tmp_path / f"{granularity}.json", tmp_path / granularity
        file.write_text(json.dumps({**VALUES, "method": "snapkv", "granularity": granularity}))
        problems = tmp_path / "problems.jsonl"
        problems.write_text(json.dumps({"question": "a= 3 , b= 5 , c:= a + b find c? .", "answer": "8"}) + "\n")
        command = ("--model", WEIGHTS, "--dataset", problems, "--out", out, "--max-new-tokens", 80, "--settings", file)
        code, _, err = run(monkeypatch, capsys, "collect", *command)
        assert code == 0, err
        kept[granularity] = json.loads((out / "manifest.json").read_text())["settings"]["method"]["granularity"]
        generate(monkeypatch, capsys, "--settings", file)
    assert kept == {"shared": "shared", "native": "native"}


@dataclass(kw_only=True)
class Several:
    method: tuple[str, ...] = option(help="Methods.")
    budget: tuple[str, ...] = option((), help="Budgets.")
    predictor: tuple[str, ...] = option((), help="Predictors.")
    local_window: int | None = option(None, help="Window.")


def test_repeatable_options_take_the_file_too(file: Path) -> None:
    app = typer.Typer()
    seen = []

    def several(given: Several) -> None:
        seen.append(given)

    def other(given: Other) -> None: ...

    add_command(app, several, "several")
    add_command(app, other, "other")
    values = {"method": ["window", "rkv"], "budget": 60, "local_window": 20}
    file.write_text(json.dumps({**values, "number": 3}))  # an option of another command
    command = ["several", "--settings", str(file)]
    assert CliRunner().invoke(app, command).exit_code == 0
    assert CliRunner().invoke(app, [*command, "--method", "full", "--budget", "9", "--method", "h2o"]).exit_code == 0
    assert seen == [
        Several(method=("window", "rkv"), budget=("60",), local_window=20),
        Several(method=("full", "h2o"), budget=("9",), local_window=20),
    ]


@dataclass(kw_only=True)
class Other:
    number: int = option(1, help="A number.")
    share: float = option(0.5, help="A share.")
    choice: Literal["a", "b"] = option("a", help="A choice.")
    switch: bool = option(False, help="A switch.")
    names: tuple[str, ...] = option((), help="Names.")
    source: ModelSource = part()
    sampling: Sampling = part(seed={"default": 7}, top_k=None)


def test_any_option_may_be_set(file: Path) -> None:
    app = typer.Typer()
    seen: list[Other] = []

    def other(given: Other) -> None:
        seen.append(given)

    add_command(app, other, "other")
    values = {"number": 3, "share": 1, "choice": "b", "switch": True, "names": "x", "model": "m", "temperature": 0}
    file.write_text(json.dumps({**values, "template_arg": {"deep": [1, "2"]}, "think_end": None, "device": "cpu"}))
    assert CliRunner().invoke(app, ["--settings", str(file), "--number", "4"]).exit_code == 0
    chat = ChatOptions(template_args={"deep": [1, "2"]})
    source = ModelSource("m", device="cpu", chat=chat)
    assert seen == [
        Other(
            number=4,
            share=1.0,
            choice="b",
            switch=True,
            names=("x",),
            source=source,
            sampling=Sampling(temperature=0, seed=7),
        )
    ]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"number": "3"}, "number must be a whole number, got '3'"),
        ({"number": True}, "number must be a whole number, got True"),
        ({"number": None}, "number must be a whole number, got None"),
        ({"share": "1"}, "share must be a number, got '1'"),
        ({"choice": "c"}, "choice must be a, b, got 'c'"),
        ({"switch": 1}, "switch must be true or false, got 1"),
        ({"names": [True]}, "names must be a text, or a list of such or null, got [True]"),
        ({"names": True}, "names must be a text, or a list of such or null, got True"),
        ({"model": 3}, "model must be a text, got 3"),
        ({"think_end": 3}, "think_end must be a text or null, got 3"),
        ({"template_arg": ["a=1"]}, "template_arg must be an object or null, got ['a=1']"),
        ({"top_k": 3}, "unknown setting top_k: the settings are number, share, choice,"),
    ],
)
def test_wrong_types_are_refused_by_name(values: dict[str, Any], words: str, file: Path) -> None:
    file.write_text(json.dumps(values))
    with pytest.raises(DyntsError) as caught:
        read_settings(file, options_of(Other))
    assert words in str(caught.value)


@pytest.mark.quick
@pytest.mark.parametrize("name", [*(name for panel in PANELS.values() for name in panel), *ANALYSES])
def test_what_tune_finds_is_a_file_for_every_command(name: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    settings = Settings(CompressionConfig(300, 100, 0.3), "snapkv", None, "native", "(", ")", {"a": 1})
    save_settings(path, settings)
    function = next(panel[name] for panel in [*PANELS.values(), ANALYSES] if name in panel)
    options = options_of(options_type(function))
    found = read_settings(path, options, settings.values().keys())
    assert found.keys() == options.keys() & (settings.values().keys() - {"predictor"})
    assert {"local_window", "template_arg"} & found.keys() or name in NO_DECODING


NO_DECODING = {"doctor", "import", "status", "train", "report", "demo", "predictor"}


@pytest.mark.quick
def test_options_of_all_commands_may_be_set_too(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(json.dumps({"debug": True, "method": "nonsense", "json": True}))
    code, _, err = run(monkeypatch, capsys, "generate", *ASK, "--settings", file)
    assert code == 2
    assert err.startswith("Traceback")
    file.write_text(json.dumps({"settings": "other.json"}))
    code, _, err = run(monkeypatch, capsys, "generate", *ASK, "--settings", file)
    assert "unknown setting settings" in " ".join(err.replace("│", " ").split())


@pytest.mark.quick
def test_parts_say_what_differs() -> None:
    @dataclass
    class Wrong:
        sampling: Sampling = part(top_q="help")

    with pytest.raises(TypeError, match="Sampling has no options top_q"):
        options_of(Wrong)

    @dataclass
    class Maybe:
        source: ModelSource | None = part(name="The model.", attention=None)

    options = options_of(Maybe)
    assert (options["model"].help, options["model"].default, "attention" in options) == ("The model.", None, False)
    values = {name: own.default for name, own in options.items()}
    assert build(Maybe, values) == Maybe(None)
    assert build(Maybe, {**values, "model": "m"}) == Maybe(ModelSource("m", device="auto"))


def test_a_wrong_file_ends_the_command(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(json.dumps({**VALUES, "size": 3}))
    code, _, err = run(monkeypatch, capsys, "generate", *ASK, "--settings", file)
    assert code == 2
    assert "--settings" in err
    assert "unknown setting size" in " ".join(err.replace("│", " ").split())
