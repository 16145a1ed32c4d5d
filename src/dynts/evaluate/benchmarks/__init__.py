"""Benchmarks, one file each."""

from pathlib import Path

from dynts.collect.data_files import KINDS
from dynts.collect.source import ProblemSource, is_file_name
from dynts.errors import DyntsError
from dynts.evaluate.benchmarks.aime24 import AIME24
from dynts.evaluate.benchmarks.aime25 import AIME25
from dynts.evaluate.benchmarks.amc23 import AMC23
from dynts.evaluate.benchmarks.benchmark import Benchmark
from dynts.evaluate.benchmarks.gk23en import GK23EN
from dynts.evaluate.benchmarks.gpqa_diamond import GPQA_DIAMOND
from dynts.evaluate.benchmarks.gsm8k import GSM8K
from dynts.evaluate.benchmarks.math500 import MATH500

BENCHMARKS = {benchmark.name: benchmark for benchmark in (AIME24, AIME25, AMC23, GK23EN, MATH500, GPQA_DIAMOND, GSM8K)}


def resolve_benchmark(text: str) -> Benchmark:
    """The benchmark of a name, of a name with a file of its problems (`math500=problems.jsonl`), or of a file alone.

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


__all__ = ["BENCHMARKS", "Benchmark", "resolve_benchmark"]
