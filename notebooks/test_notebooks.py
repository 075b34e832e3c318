"""Every lesson runs from top to bottom, is saved as such a run leaves it, and accepts its own solutions.

pytest notebooks/test_notebooks.py
"""

from __future__ import annotations

import base64
import re
import textwrap
from pathlib import Path

import clumps
import nbformat
import pytest
import torch
from nbclient import NotebookClient

PICTURES = sorted(Path(__file__).parent.glob("pictures/*.png"))
LESSONS = sorted(Path(__file__).parent.glob("0*.ipynb"))
BLANK = re.compile(r"^( *)(return|\w+ =) None.*$", re.MULTILINE)  # what an exercise asks to replace


def solve(notebook: nbformat.NotebookNode) -> set[int]:
    """Write the folded solutions over the `None` in the cells below them; the places of these cells."""
    changed = set()
    for k, (text, exercise) in enumerate(zip(notebook.cells, notebook.cells[1:]), 1):
        *_, folded = text.source.partition("<summary>Solution</summary>")
        for answer in re.findall(r"```python\n(.*?)```", folded, re.DOTALL):
            blank = BLANK.search(exercise.source)
            exercise.source = exercise.source.replace(blank[0], textwrap.indent(answer, blank[1]), 1)
            changed.add(k)
    code = (cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert not any(map(BLANK.search, code)), "without a solution"
    return changed


def printed(cell: nbformat.NotebookNode) -> list[str]:
    """The kinds of output of a code cell, those that are pictures by their format; of a table its text."""
    outputs = cell.get("outputs", [])
    shown = (output.get("data") or {output["output_type"]: ""} for output in outputs)
    return [data[kind] if kind == "text/markdown" else kind for data in shown for kind in sorted(data)]


def listings(cell: nbformat.NotebookNode) -> list[str]:
    """The source code that a cell shows (`drawing.source`)."""
    shown = (output.get("data", {}) for output in cell.get("outputs", []))
    return [data["text/plain"] for data in shown if "text/latex" in data]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_runs_as_it_was_saved_and_its_solutions_are_right(path):
    saved = nbformat.read(path, as_version=4)
    nbformat.validate(saved)
    code = [cell for cell in saved.cells if cell.cell_type == "code"]
    assert len(code) <= 15
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run it top to bottom, then save"
    fresh = nbformat.read(path, as_version=4)
    exercises = solve(fresh)
    place = {"metadata": {"path": path.parent}}
    options = {"timeout": 300, "kernel_name": "python3", "coalesce_streams": True}
    NotebookClient(fresh, resources=place, **options).execute()  # raises at the first cell that fails
    for before, after in zip(saved.cells, fresh.cells):
        assert printed(before) == printed(after) and listings(before) == listings(after), before.source
    for k in exercises:
        text = "".join(output.get("text", "") for output in fresh.cells[k].outputs)
        assert "right" in text and not any(word in text for word in ("not yet", "wrong", ": no")), text


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_the_gallery_shows_what_its_notebook_does(picture):
    cells = nbformat.read(picture.parent.parent / f"{picture.stem}.ipynb", as_version=4).cells
    drawn = [output.get("data", {}).get("image/png", "") for cell in cells for output in cell.get("outputs", ())]
    assert picture.read_bytes() in map(base64.b64decode, drawn)


def test_the_exact_flow_to_one_clump_is_linear():
    """To a single Gaussian, noise moves along mode t + noise sqrt((1 - t)^2 + (spread t)^2)."""
    mode, spread = torch.tensor([[0.3, -0.8]]).double(), 0.2
    generator = torch.Generator().manual_seed(0)
    noise, times = torch.randn(50, 2, generator=generator).double(), torch.rand(2, 50, 1, generator=generator).double()
    r, t = times.sort(0).values

    def place(s):
        return mode * s + noise * ((1 - s) ** 2 + (spread * s) ** 2).sqrt()

    def velocity(a, s):
        return clumps.v_mean(a, s, mode, spread)

    u = clumps.mean_velocity(velocity, place(r), r, t)
    torch.testing.assert_close(u, (place(t) - place(r)) / (t - r), rtol=1e-6, atol=1e-6)
    modes = torch.cat([mode, -mode, 2 * mode])
    start = clumps.v_mean(noise, torch.zeros_like(r), modes, spread)  # where nothing is known of the clump yet
    torch.testing.assert_close(start, modes.mean(0) - noise)
    assert clumps.rms(torch.tensor([[3.0, 4.0], [0.0, 0.0]])) == pytest.approx(12.5**0.5)
