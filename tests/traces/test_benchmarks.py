"""The benchmarks: where their problems are, local files, multiple choice, the paper's settings."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dynts.config import CompressionConfig
from dynts.errors import DyntsError
from dynts.evaluate.arms import PAPER_SETTINGS, paper_config
from dynts.grading.compare import is_correct
from dynts.traces.benchmarks import BENCHMARKS, resolve_benchmark
from dynts.traces.problems import INSTRUCTION, Problem, read_problems, survey
from shared_data import BENCHMARKS as DATA


def read(text: str) -> list[Problem]:
    source = resolve_benchmark(text).source
    problems = list(read_problems(source))
    found = survey(source)
    assert (found.available, found.repeated) == (len(problems), 0)
    return problems


@pytest.mark.skipif(not DATA.exists(), reason="the benchmark files are not part of the repository")
@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("aime24", "aime24", 30),
        ("aime25", "aime25", 30),
        ("amc23", "amc23", 40),
        ("gk23en", "gaokao2023en", 385),
        ("math500", "math500", 500),
        ("gsm8k", "gsm8k", 1319),
    ],
)
def test_a_local_copy_has_all_problems(name: str, file: str, count: int) -> None:
    problems = read(f"{name}={DATA / file}.jsonl")
    # the answers of two problems of GK23EN stand in their questions
    assert len(problems) == count - 2 * (name == "gk23en")
    assert all(item.question.strip() and item.answer.strip() for item in problems)
    if name == "math500":
        assert Counter(item.extra["level"] for item in problems)["5"] == 134
    assert resolve_benchmark(f"{name}={DATA / file}.jsonl").name == name


def test_a_file_may_have_the_columns_of_the_data_set(write_lines: Callable[..., Path]) -> None:
    rows = [{"question": "2 * 3 = ?", "answer": "2 * 3 = 6\n#### 6"}]
    assert [item.answer for item in read(f"gsm8k={write_lines(rows)}")] == ["6"]
    rows = [{"problem": "2 * 3 = ?", "answer": "6", "unique_id": "a/1", "level": 2, "subject": "Algebra"}]
    assert read(f"math500={write_lines(rows)}") == [
        Problem("a/1", "2 * 3 = ?", "6", {"level": "2", "subject": "Algebra"})
    ]
    rows = [{"question": "2 * 3 = ?", "answer": 6, "subject": "Algebra"}]
    [problem] = read(f"math500={write_lines(rows)}")
    assert (problem.answer, problem.extra) == ("6", {"subject": "Algebra"})


def gpqa_rows(count: int) -> list[dict[str, str]]:
    wrong = {f"Incorrect Answer {number}": f"wrong {number}" for number in (1, 2, 3)}
    return [
        {
            "Record ID": f"rec{index}",
            "Question": f"Which one, {index}?",
            "Correct Answer": "right\n",
            "High-level domain": "Physics",
            "Explanation": "because",
            **wrong,
        }
        for index in range(count)
    ]


def test_options_are_shuffled_once_for_each_question(write_lines: Callable[..., Path]) -> None:
    problems = read(f"gpqa-diamond={write_lines(gpqa_rows(400))}")
    for item in problems:
        question, _, options = item.question.partition("\n\n")
        assert question == f"Which one, {item.id.removeprefix('rec')}?"
        *lines, empty, last = options.split("\n")
        assert [line[:3] for line in lines] == ["A) ", "B) ", "C) ", "D) "]
        assert sorted(line[3:] for line in lines) == ["right", "wrong 1", "wrong 2", "wrong 3"]
        assert lines["ABCD".index(item.answer)] == f"{item.answer}) right"
        assert (empty, last) == ("", INSTRUCTION)
        assert item.extra == {"High-level domain": "Physics"}
    letters = Counter(item.answer for item in problems)
    assert all(60 <= letters[letter] <= 140 for letter in "ABCD"), letters
    backwards = read(f"gpqa-diamond={write_lines(reversed(gpqa_rows(400)))}")
    assert sorted(backwards, key=str) == sorted(problems, key=str)


@pytest.mark.parametrize("given", ["B", "(B)", "B) right", r"\text{B}", "b"])
def test_the_letter_is_what_counts(given: str) -> None:
    assert is_correct(rf"so \boxed{{{given}}}", "B") is True
    assert is_correct(rf"so \boxed{{{given}}}", "C") is False


def test_a_missing_option_is_refused(write_lines: Callable[..., Path]) -> None:
    rows = gpqa_rows(2)
    del rows[1]["Incorrect Answer 3"]
    with pytest.raises(DyntsError, match=r"line 2: there is no column 'Incorrect Answer 3'"):
        read(f"gpqa-diamond={write_lines(rows)}")


def test_files_of_ones_own(write_lines: Callable[..., Path]) -> None:
    path = write_lines([{"question": "1 + 1 = ?", "answer": 2}], "sums.jsonl")
    assert resolve_benchmark(str(path)).name == "sums"
    assert [item.answer for item in read(str(path))] == ["2"]
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist([{"question": "1 + 1 = ?", "answer": "2"}])
    pytest.importorskip("pyarrow.parquet").write_table(table, path.with_suffix(".parquet"))
    assert read(str(path)) == read(str(path.with_suffix(".parquet")))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "math50",
            r"unknown benchmark 'math50': choose from aime24, aime25, amc23, gk23en, math500, gpqa-diamond, gsm8k",
        ),
        ("math50=sums.jsonl", r"unknown benchmark 'math50=sums.jsonl': choose from"),
        ("math500=absent.jsonl", r"absent.jsonl does not exist"),
    ],
)
def test_what_cannot_be_read_is_refused(text: str, problem: str) -> None:
    with pytest.raises(DyntsError, match=problem):
        resolve_benchmark(text)


def test_an_empty_file_is_refused(write_lines: Callable[..., Path]) -> None:
    with pytest.raises(DyntsError, match=r"is empty: benchmark gsm8k needs problems"):
        resolve_benchmark(f"gsm8k={write_lines([])}")


def test_every_benchmark_is_pinned_and_named_after_its_key() -> None:
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.name == name
        assert benchmark.source.revision is not None or name == "gpqa-diamond"


def test_the_paper_has_a_budget_for_each_of_its_benchmarks() -> None:
    for family in PAPER_SETTINGS.values():
        assert set(family) == set(BENCHMARKS) - {"gsm8k"}
    assert paper_config("r1-llama-8b", "gpqa-diamond") == CompressionConfig(5000, 2500, 0.3)
    assert paper_config("r1-qwen-7b", "math500") == CompressionConfig(3000, 1500, 0.4)
    with pytest.raises(DyntsError, match=r"unknown paper settings 'r1': choose from r1-qwen-7b, r1-llama-8b"):
        paper_config("r1", "math500")
    with pytest.raises(DyntsError, match=r"no settings for benchmark 'gsm8k', only for aime24"):
        paper_config("r1-qwen-7b", "gsm8k")
