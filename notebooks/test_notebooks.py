"""Every numbered notebook runs from top to bottom, is saved as such a run leaves it, and accepts the right answers.

pytest notebooks/test_notebooks.py
"""

from __future__ import annotations

import base64
from pathlib import Path

import clumps
import nbformat
import pytest
import torch
from nbclient import NotebookClient

PICTURES = sorted(Path(__file__).parent.glob("pictures/*.png"))
ANSWERS = {  # to the exercises: what stands in the notebook, and what a reader may write there
    "01": {
        "return None  # your formula": "return v_t - (t - r) * du_dt",
        "point = None": "point = [-0.14, 0.0]",
        "return None  # your actions (B, 2)": """zero = torch.zeros(len(noise), 1)
    half = zero + 0.5
    middle = noise + half * policy(obs, noise, zero, half)
    return (middle + half * policy(obs, middle, half, 2 * half)).clamp(-1, 1)""",
    },
    "02": {
        "share = None": "share = 3 / 4",
        "xi2 = None": "xi2 = 1.2",
        "return None  # (B, 2)": """v, k = v_mean(a, r), (1 - 2 * r) ** 2
    on_line, dw_dr = torch.func.jvp(
        lambda a, r: (1 - (1 - 2 * r) ** 2) * v_mean(a, r) + (1 - 2 * r) ** 2 * (GOAL - a),
        (a, r),
        (v, torch.ones_like(r)),
    )
    return on_line + (r + t - 1) * ((2 * r - 1) * (v + a - GOAL) - dw_dr)""",
    },
    "03": {
        "return None  # your line here": [
            """ahead = policy(obs, a_r + delta_r / 2 * v, r + delta_r / 2, t)
    return (ahead - policy(obs, a_r - delta_r / 2 * v, r - delta_r / 2, t)) / delta_r""",
            "return (2 * 2**0.5 * rounding / curvature) ** 0.5",
            """tangents = (v, torch.ones_like(r), -torch.ones_like(t))
    return torch.func.jvp(lambda *x: policy(obs, *x), (a_r, r, t), tangents)[1]""",
        ]
    },
    "04": {
        "return None  # your line here": ["return 1 - (1 - rho) ** k", "return eta / dq_da.norm(dim=-1).mean()"],
        "return None  # your lines here": """policy, critics = agent.target_policy, agent.target_critics
    actions = torch.stack([policy.act(obs, noise[:, k]) for k in range(noise.shape[1])])
    q = torch.stack([(critics[0](obs, a) + critics[1](obs, a))[:, 0] / 2 for a in actions])
    return actions[q.argmax(0), torch.arange(len(obs))]""",
    },
    "05": {
        "return None": """low = meta["random_return"]
    return 100 * (value - low) / (meta["expert_return"] - low)""",
    },
    "06": {
        "return None": [
            "return statistics.stdev(x - y for x, y in zip(a, b)) / math.sqrt(len(a))",
            """ended = [row for row in rows if row["last"] == "1"]
    above = [row for row in ended if float(row["return"]) > data_returns[row["cell"]]]
    return len(above) / len(ended)""",
        ]
    },
}


def solve(notebook: nbformat.NotebookNode, answers: dict[str, str | list[str]]) -> set[int]:
    """Write the answers into the notebook; the places of their cells."""
    changed = set()
    for blank, texts in answers.items():
        texts = [texts] if isinstance(texts, str) else texts
        assert sum(cell.source.count(blank) for cell in notebook.cells if cell.cell_type == "code") == len(texts)
        for text in texts:
            k = next(k for k, cell in enumerate(notebook.cells) if cell.cell_type == "code" and blank in cell.source)
            notebook.cells[k].source = notebook.cells[k].source.replace(blank, text, 1)
            changed.add(k)
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


@pytest.mark.parametrize("number", ANSWERS)
def test_runs_as_it_was_saved_and_accepts_the_right_answers(number):
    (path,) = Path(__file__).parent.glob(f"{number}_*.ipynb")
    saved = nbformat.read(path, as_version=4)
    nbformat.validate(saved)
    code = [cell for cell in saved.cells if cell.cell_type == "code"]
    assert len(code) <= 15
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run it top to bottom, then save"
    fresh = nbformat.read(path, as_version=4)
    exercises = solve(fresh, ANSWERS[number])
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
