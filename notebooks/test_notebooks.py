"""Every numbered notebook runs from top to bottom, and is saved as such a run leaves it.

pytest notebooks/test_notebooks.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

sys.path.insert(0, str(Path(__file__).parent))

import clumps  # noqa: E402

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
