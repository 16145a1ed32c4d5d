"""Rows of a data set: on the Hub, in a local folder, or in a file; and the gold answer inside its answer column."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from dynts.errors import DyntsError
from dynts.extras import need
from dynts.grading.boxed import closing_brace
from dynts.store.data_files import Rows, file_rows, is_data_file, plain_rows

if TYPE_CHECKING:
    import datasets


def _whole(text: str) -> str | None:
    return text.strip() or None


def _boxed(text: str) -> str | None:
    r"""Return what the last `\boxed{}` holds, braces matched; MATH writes `\boxed 5` too."""
    _, found, rest = text.rpartition("\\boxed")
    rest = rest.lstrip()
    if not found or not rest:
        return None
    if not rest.startswith("{"):
        return rest.split("$")[0].split()[0] if rest.split("$")[0].split() else None
    end = closing_brace(rest, 0)
    return None if end is None else rest[1:end].strip() or None


def _hashes(text: str) -> str | None:
    _, found, rest = text.rpartition("####")
    return (rest.strip() or None) if found else None


GOLD: dict[str, Callable[[str], str | None]] = {"whole": _whole, "boxed": _boxed, "hashes": _hashes}
"""Ways to write a gold answer: the whole column, in the last \\boxed{} (MATH), after the last #### (GSM8K)."""


def check_gold(name: str) -> None:
    """Refuse an unknown way.

    Raises:
        DyntsError: names the choices.
    """
    if name not in GOLD:
        raise DyntsError(f"unknown form of gold answers {name!r}: choose from {', '.join(GOLD)}")


@dataclass(frozen=True, slots=True)
class ProblemSource:
    """Where problems come from, and which columns hold what.

    Args:
        dataset: id of a data set on the Hub, a folder that `datasets` can load, or a file, see
            `dynts.store.data_files`.
        split: of a data set.
        configs: of a data set, read one after another; none takes the data set's default.
        revision: branch, tag or commit of a data set on the Hub.
        question_column: holds the question.
        answer_column: holds the gold answer, or a solution with it.
        gold: how the answer column holds it, one of `dynts.traces.source.GOLD`.
        id_column: holds a unique id; None takes a column `id` if there is one, else a hash of the content.
        keep_columns: columns to keep with every trace, for example to look at results by subject.
        wrong_columns: columns with wrong options, which make a multiple-choice question; the answer column holds the
            right one, and the gold answer becomes its letter.

    Raises:
        DyntsError: an unknown way to hold the gold answer.
    """

    dataset: str
    split: str = "train"
    configs: tuple[str, ...] = ()
    revision: str | None = None
    question_column: str = "question"
    answer_column: str = "answer"
    gold: str = "whole"
    id_column: str | None = None
    keep_columns: tuple[str, ...] = ()
    # None and not (), so that folders from before there were such questions have the same settings
    wrong_columns: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_gold(self.gold)

    def rows(self) -> Rows:
        """Yield where a row stands, for messages, and its columns.

        Raises:
            DyntsError: the data set cannot be read.
        """
        if is_file_name(self.dataset):
            yield from file_rows(Path(self.dataset))
        else:
            for config in self.configs or (None,):
                yield from self._dataset_rows(config)

    def _dataset_rows(self, config: str | None) -> Rows:
        need("datasets", "collect", f"data set {self.dataset}")
        import datasets

        name = f"{self.dataset}{f' ({config})' if config else ''}, split {self.split}"
        try:
            builder = datasets.load_dataset_builder(self.dataset, config, revision=self.revision)
            files = _plain_files(builder, self.split)
        except Exception as error:  # the Hub, the network and every file format have exceptions of their own
            raise DyntsError(
                f"cannot load data set {name}: {_reason(error)}; check its id, --config and --split, and that the Hub "
                "can be reached (or download it, and give the folder or file)"
            ) from error
        if files:
            for file in files:
                yield from file_rows(Path(file))
            return
        try:
            builder.download_and_prepare()
            loaded = builder.as_dataset(self.split)
        except Exception as error:
            # datasets says that it failed, and the cause of it why
            raise DyntsError(f"cannot read data set {name}: {_reason(error.__cause__ or error)}") from error
        for number, row in enumerate(plain_rows(loaded, loaded.features.arrow_schema)):
            yield f"{name}, row {number}", row


def is_file_name(dataset: str) -> bool:
    """Say whether a data set is a file, or can only be meant as one."""
    return Path(dataset).is_file() or is_data_file(dataset)


def _plain_files(builder: "datasets.DatasetBuilder", split: str) -> Sequence[str]:
    """Return the files of a split, on this machine, if they can be read as they are.

    There are none if only `datasets` can read them, which guesses the types of columns: of "007" and 8 it makes 7 and
    8.
    """
    import datasets

    config = builder.config
    usual = type(config)(**{field.name: getattr(config, field.name) for field in fields(datasets.BuilderConfig)})
    if config != usual or split not in (config.data_files or {}):
        return []
    files: list[str] = datasets.DownloadManager().download(list(config.data_files[split]))
    return files if all(map(is_data_file, files)) else []


def _reason(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
