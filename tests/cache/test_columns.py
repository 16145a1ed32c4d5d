"""Tables that grow by a column a step."""

import torch

from dynts.cache.columns import Columns, rows_of, upload


def test_a_table_goes_back_to_what_it_was() -> None:
    table = Columns().appended(torch.arange(6).view(2, 3))
    longer = table.appended(torch.full((2, 1), 7))
    assert longer.values.tolist() == [[0, 1, 2, 7], [3, 4, 5, 7]]
    assert table.values.tolist() == [[0, 1, 2], [3, 4, 5]]
    other = table.appended(torch.full((2, 1), 8))
    assert other.memory is longer.memory, "nothing is copied"
    assert other.values.tolist() == [[0, 1, 2, 8], [3, 4, 5, 8]]
    assert other.first(1).values.tolist() == [[0], [3]]


def test_a_table_outgrows_its_memory() -> None:
    table, expected = Columns(), torch.randn(2, 500, 3)
    for column in expected.split(1, dim=1):
        table = table.appended(column)
    assert torch.equal(table.values, expected)
    assert table.memory is not None
    assert table.memory.shape[1] < 1.3 * 500 + 64


def test_numbers_arrive_as_integers() -> None:
    there = upload(((1, 2), (3, 4)), torch.device("cpu"))
    assert there.dtype == torch.int64
    assert there.tolist() == [[1, 2], [3, 4]]


def itself(table: torch.Tensor) -> torch.Tensor:
    return table


def test_rows_of_tables_of_other_widths() -> None:
    one, other = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[7], [8], [9]])
    rows = [(one, 1), None, (other, 1), (other, 2), (one, 0)]
    assert rows_of(rows, itself, 2).tolist() == [[5, 6], [0, 0], [0, 8], [0, 9], [2, 3]]
    assert rows_of(rows, itself, 2, at_end=False, fill=-1).tolist() == [[4, 5], [-1, -1], [8, -1], [9, -1], [1, 2]]
    assert rows_of([(one.unsqueeze(1), 0)], itself, 4, dim=2).tolist() == [[[0, 1, 2, 3]]]
    assert rows_of([None, (one, 0)], itself).tolist() == [[0, 0, 0], [1, 2, 3]]
