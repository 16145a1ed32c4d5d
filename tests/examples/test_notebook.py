"""The notebook runs from its first cell to its last, and its numbers are of this dynts."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "own_method.ipynb"


def printed(notebook: nbformat.NotebookNode) -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "\n".join(output.text for output in outputs if output.get("name") == "stdout")


def shares(text: str) -> dict[str, int]:
    return {name: int(share) for name, share in re.findall(r"^(\w+) +(\d+)% \(", text, re.MULTILINE)}


@pytest.fixture
def notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.mark.timeout(600)
def test_it_runs(notebook: nbformat.NotebookNode, tmp_path: Path) -> None:
    committed = shares(printed(notebook))
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    found = shares(printed(notebook))
    assert found.keys() == committed.keys() == {"conclusions", "random", "window", "dynts"}
    assert found["conclusions"] >= 60
    assert found["dynts"] >= 90
    assert max(found["random"], found["window"]) <= 20
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 1


def test_outputs_tell_nothing_of_the_machine_that_made_them(notebook: nbformat.NotebookNode) -> None:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert outputs
    assert not [output for output in outputs if output.get("name") == "stderr" or output.output_type == "error"]
    assert not re.search(r"/(home|root|work|usr)/", NOTEBOOK.read_text(encoding="utf-8"))
