"""Benchmarks and named data sets: problems with gold answers, each from a pinned data set or a file."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from dynts.errors import DyntsError
from dynts.store.cells import cell_text
from dynts.store.data_files import KINDS
from dynts.traces.source import GOLD, ProblemSource, is_file_name


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Problems to evaluate on. All are asked in the model's chat template with the instruction of `dynts.chat.prompts`.

    Args:
        name: names its folder in the results.
        source: where the problems are.
        version: changes whenever the same model would get other problems, prompts or gold answers.
    """

    name: str
    source: ProblemSource
    version: int = 1

    def from_file(self, path: str | Path) -> Self:
        """Return the benchmark with the problems of a local file.

        Args:
            path: a file, see `dynts.store.data_files`, with the data set's own columns, or with `question`, `answer`
                (the gold answer alone) and an optional `id`.

        Raises:
            DyntsError: the file is missing, cannot be read or is empty.
        """
        plain = ProblemSource(str(path))
        where, row = next(plain.rows(), ("", None))
        if row is None:
            raise DyntsError(f"{path} is empty: benchmark {self.name} needs problems")
        if self._own_form(row, where):
            return replace(self, source=replace(self.source, dataset=str(path), configs=(), revision=None))
        kept = tuple(column for column in self.source.keep_columns if column in row)
        return replace(self, source=replace(plain, keep_columns=kept))

    def _own_form(self, row: dict[str, Any], where: str) -> bool:
        """Return whether a row has the data set's own columns, and a gold answer as it writes them."""
        source = self.source
        needed = {source.question_column, source.answer_column, *source.keep_columns, *(source.wrong_columns or ())}
        if source.id_column:
            needed.add(source.id_column)
        if not needed <= row.keys():
            return False
        return GOLD[source.gold](cell_text(row[source.answer_column], where) or "") is not None


_BENCHMARKS = (
    # AIME 2024, I and II: 30 problems of the American Invitational Mathematics Examination; answers are whole numbers.
    Benchmark(
        "aime24",
        ProblemSource(
            "HuggingFaceH4/aime_2024",
            split="train",
            revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
            question_column="problem",
            answer_column="answer",
            id_column="id",
        ),
    ),
    # AIME 2025, I and II: 30 problems of the American Invitational Mathematics Examination; answers are whole numbers.
    Benchmark(
        "aime25",
        ProblemSource(
            "math-ai/aime25",
            split="test",
            revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
            question_column="problem",
            answer_column="answer",
            id_column="id",
        ),
    ),
    # AMC 2023: 40 problems of the American Mathematics Competitions, asked without their options.
    Benchmark(
        "amc23",
        ProblemSource(
            "math-ai/amc23",
            split="test",
            revision="80815d37005feb82cd7f8fbc6901d5d3eff43057",
            question_column="question",
            answer_column="answer",
        ),
    ),
    # GK23EN: 385 problems of the Chinese college entrance examinations of 2023, in English (Gaokao2023-Math-En).
    Benchmark(
        "gk23en",
        ProblemSource(
            "MARIO-Math-Reasoning/Gaokao2023-Math-En",
            split="train",
            revision="6c7bdecd205ed623b5e6c92335deb4f13a7cdd9b",
            question_column="question",
            answer_column="answer",
        ),
    ),
    # MATH-500: 500 problems of the test set of MATH, chosen for arXiv 2305.20050; level and subject are kept.
    Benchmark(
        "math500",
        ProblemSource(
            "HuggingFaceH4/MATH-500",
            split="test",
            revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
            question_column="problem",
            answer_column="answer",
            id_column="unique_id",
            keep_columns=("level", "subject"),
        ),
    ),
    # GPQA-Diamond: 198 multiple-choice questions of biology, physics and chemistry (arXiv 2311.12022).
    #
    # The data set is gated: its terms have to be accepted on the Hub, and the download uses the token of `hf auth
    # login`. Its authors ask that the questions are not published again.
    Benchmark(
        "gpqa-diamond",
        ProblemSource(
            "Idavidrein/gpqa",
            split="train",
            configs=("gpqa_diamond",),
            question_column="Question",
            answer_column="Correct Answer",
            wrong_columns=("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"),
            id_column="Record ID",
            keep_columns=("High-level domain",),
        ),
    ),
    # GSM8K: the 1,319 grade-school problems of its test split (arXiv 2110.14168).
    Benchmark(
        "gsm8k",
        ProblemSource(
            "openai/gsm8k",
            split="test",
            configs=("main",),
            revision="740312add88f781978c0658806c59bc2815b9866",
            question_column="question",
            answer_column="answer",
            gold="hashes",
        ),
    ),
)

BENCHMARKS = {benchmark.name: benchmark for benchmark in _BENCHMARKS}

PRESETS = {
    "math-train": ProblemSource(
        "EleutherAI/hendrycks_math",
        split="train",
        configs=(
            "algebra",
            "counting_and_probability",
            "geometry",
            "intermediate_algebra",
            "number_theory",
            "prealgebra",
            "precalculus",
        ),
        question_column="problem",
        answer_column="solution",
        gold="boxed",
        keep_columns=("level", "type"),
    ),
    "gsm8k-train": ProblemSource(
        "openai/gsm8k",
        split="train",
        configs=("main",),
        question_column="question",
        answer_column="answer",
        gold="hashes",
    ),
}


def resolve_benchmark(text: str) -> Benchmark:
    """Find the benchmark of a name, of `math500=problems.jsonl` (a name with its problems), or of a file alone.

    Raises:
        DyntsError: an unknown name, or a file that cannot be read.
    """
    if text in BENCHMARKS:
        return BENCHMARKS[text]
    name, given, path = text.partition("=")
    if given and name in BENCHMARKS:
        return BENCHMARKS[name].from_file(path)
    if is_file_name(text) and (not given or Path(text).exists()):
        return Benchmark(Path(text).stem, ProblemSource(text))
    raise DyntsError(
        f"unknown benchmark {text!r}: choose from {', '.join(BENCHMARKS)}, or give a {KINDS} file "
        "with `question` and `answer`, alone or as NAME=FILE"
    )
