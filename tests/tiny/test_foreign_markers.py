"""`dynts eval` of the embedded model where it writes other models' think markers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import run
from dynts.chat.markers import KNOWN_FORMATS, ThinkFormat
from dynts.evaluate.results import read_results
from dynts.tiny import WEIGHTS
from dynts.tiny.task import HELD_OUT, make_problem
from dynts.traces.folder import TraceFolder

pytest.importorskip("pyarrow", reason="results need pyarrow: pip install 'dynts-kv[collect]'")

PROBLEMS = [make_problem(seed, steps=range(4, 5)) for seed in HELD_OUT[:2]]
OPTIONS = (
    *("--device", "cpu", "--method", "dynts", "--predictor", WEIGHTS / "answer", "--budget", 170, "--local-window", 50),
    *("--retention-ratio", 0.66, "--temperature", 0, "--samples", 1, "--max-new-tokens", 330),
)
OWN = ThinkFormat("(((", ")))")


def copy_with(format: ThinkFormat, folder: Path) -> Path:
    """The embedded model with other markers."""
    shutil.copytree(WEIGHTS, folder)
    for path in (folder / "tokenizer.json", folder / "chat_template.jinja", folder / "tokenizer_config.json"):
        if not path.exists():
            continue
        text = path.read_text(encoding="utf-8")
        quoted = [item if path.suffix == ".jinja" else json.dumps(item)[1:-1] for item in (format.start, format.end)]
        path.write_text(text.replace("<think>", quoted[0]).replace("</think>", quoted[1]), encoding="utf-8")
    return folder


@pytest.fixture
def evaluated(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    write_lines: Callable[..., Path],
) -> Callable[..., tuple[list[tuple[str, str, bool]], str, str]]:
    """Responses, answers and verdicts of a model, then what was shown and said."""
    rows = [{"id": f"p{n}", "question": item.question, "answer": item.answer} for n, item in enumerate(PROBLEMS)]
    benchmark = write_lines(rows, "chains.jsonl")

    def evaluate(model: Path, *options: object) -> tuple[list[tuple[str, str, bool]], str, str]:
        out = tmp_path / f"results of {model.name} {len(options)}"
        command = ("eval", "--model", model, "--benchmark", benchmark, "--out", out, *OPTIONS, *options)
        code, shown, err = run(monkeypatch, capsys, *command)
        assert code == 0, err
        (arm,) = read_results(out)
        found = {row.id: row.response for row in TraceFolder.open(arm.folder).rows()}
        samples = sorted(arm.samples, key=lambda sample: sample.problem_id)
        assert all(sample.compactions for sample in samples)
        return [(found[f"{each.problem_id}#0"], str(each.answer), each.correct) for each in samples], shown, err

    return evaluate


def test_pass_at_1_is_that_of_the_original_markers(
    evaluated: Callable[..., tuple[list[tuple[str, str, bool]], str, str]], tmp_path: Path
) -> None:
    original, shown, err = evaluated(WEIGHTS)
    assert sum(correct for _, _, correct in original) == 2
    assert "WARNING" not in err
    # that each format is found is tested in tests/chat/test_scanner.py
    for number, format in enumerate((KNOWN_FORMATS[1], KNOWN_FORMATS[-1])):
        found, shown_here, err = evaluated(copy_with(format, tmp_path / f"foreign{number}"))
        assert found == original
        assert shown_here.count("1.000") == shown.count("1.000")
        assert "WARNING" not in err


def test_unknown_markers_are_warned_of_and_can_be_told(
    evaluated: Callable[..., tuple[list[tuple[str, str, bool]], str, str]], tmp_path: Path
) -> None:
    model = copy_with(OWN, tmp_path / "own")
    found, shown, err = evaluated(model)
    assert not any(correct for _, _, correct in found)
    assert "0.000" in shown
    assert "WARNING: none of the first 2 answers that the model finished closes its thinking" in err
    assert "--think-start and --think-end" in err
    file = tmp_path / "settings.json"
    schedule = {"method": "dynts", "budget": 170, "local_window": 50, "retention_ratio": 0.66}
    file.write_text(json.dumps({**schedule, "think_start": OWN.start, "think_end": OWN.end}))
    told, _, err = evaluated(model, "--settings", file)
    assert sum(correct for _, _, correct in told) == 2
    assert "WARNING" not in err
