"""Every numbered notebook runs from top to bottom, and is saved as such a run leaves it.

pytest notebooks/test_notebooks.py
"""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted(Path(__file__).parent.glob("0*.ipynb"))


def printed(cell: nbformat.NotebookNode) -> list[str]:
    """The kinds of output of a code cell, those that are pictures by their format."""
    kinds = []
    for output in cell.get("outputs", []):
        kinds += sorted(output.get("data", {})) or [output["output_type"]]
    return kinds


def test_all_six_are_there():
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_and_was_saved_from_a_run(path):
    saved = nbformat.read(path, as_version=4)
    nbformat.validate(saved)
    code = [cell for cell in saved.cells if cell.cell_type == "code"]
    assert len(code) <= 14
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run it top to bottom, then save"
    fresh = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": path.parent}}
    options = {"timeout": 300, "kernel_name": "python3", "coalesce_streams": True}
    NotebookClient(fresh, resources=place, **options).execute()  # raises at the first cell that fails
    for before, after in zip(saved.cells, fresh.cells):
        assert printed(before) == printed(after), before.source
