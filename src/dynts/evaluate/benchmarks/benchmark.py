"""What a benchmark is: problems with gold answers, from a pinned data set or a file."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from dynts.cells import cell_text
from dynts.collect.gold import GOLD
from dynts.collect.source import ProblemSource
from dynts.errors import DyntsError


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Problems to evaluate on. All are asked in the model's chat template with the instruction of `dynts.prompts`.

    Args:
        name: names its folder in the results.
        source: where the problems are.
        version: changes whenever the same model would get other problems, prompts or gold answers.
    """

    name: str
    source: ProblemSource
    version: int = 1

    def from_file(self, path: str | Path) -> Self:
        """The same with the problems of a local file.

        Args:
            path: a file, see `dynts.collect.data_files`, with the data set's own columns, or with `question`, `answer` (the
                gold answer alone) and an optional `id`.

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
        """Whether a row has the data set's own columns, and a gold answer as it writes them."""
        source = self.source
        needed = {source.question_column, source.answer_column, *source.keep_columns, *(source.wrong_columns or ())}
        if source.id_column:
            needed.add(source.id_column)
        if not needed <= row.keys():
            return False
        return GOLD[source.gold](cell_text(row[source.answer_column], where) or "") is not None
