"""Trains every cell of the paper's Table 1 for 500 steps, each from an empty folder with one command.

    python notebooks/cells.py            # all 16, about 20 minutes on 2 cores
    python notebooks/cells.py tag/expert halfcheetah/medium

Prints a line per cell and writes `results/cells.csv` as it goes; a cell that stands there is skipped, so that it can be
interrupted and continued. This shows that every cell runs, not what OM2P reaches: 500 steps are few.
"""

from __future__ import annotations

import csv
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from om2p import QUALITIES, TABLE_3_ETA  # noqa: E402

OUT = HERE / "results" / "cells.csv"
CELLS = [f"{env}/{quality}" for env in sorted(TABLE_3_ETA) for quality in QUALITIES]


def run_cell(env: str, quality: str) -> dict[str, object]:
    """The figures of one training, in a folder that exists only meanwhile."""
    options = ["--env", env, "--data", f"{quality}.npz", "--hidden-dim", "128", "--steps", "500"]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        result = subprocess.run(
            [sys.executable, HERE.parent / "om2p.py", *options], cwd=folder, capture_output=True, text=True
        )
        seconds = time.perf_counter() - start
        if result.returncode:
            raise SystemExit(f"{env}/{quality} failed with exit code {result.returncode}:\n{result.stderr}")
        run = Path(folder) / "runs" / f"{env}-{quality}-seed0"
        meta = json.loads((run / "config.json").read_text())["data_meta"]
        with open(run / "metrics.csv", newline="") as file:
            last = list(csv.DictReader(file))[-1]
        training = (run / "timing.csv").read_text().split(",")[-1].strip()
        files = sorted(path.name for path in run.iterdir())
    row = {"cell": f"{env}/{quality}", "command": " ".join(["python om2p.py", *options]), "episodes": last["episodes"]}
    row |= {"return": last["return"], "return_std": last["return_std"], "data_return": meta["mean_return"]}
    row |= {"training_seconds": training, "seconds": seconds, "files": " ".join(files)}
    return row | {"machine": f"{platform.machine()}, Python {platform.python_version()}"}


def main() -> None:
    """Run the named cells, or all of them."""
    wanted = sys.argv[1:] or CELLS
    if unknown := [cell for cell in wanted if cell not in CELLS]:
        raise SystemExit(f"unknown cell {unknown[0]}: choose from {', '.join(CELLS)}")
    done = []
    if OUT.exists():
        with open(OUT, newline="") as file:
            done = [row["cell"] for row in csv.DictReader(file)]
    for cell in wanted:
        if cell in done:
            print(f"{cell:<28} done before")
            continue
        row = run_cell(*cell.split("/"))
        with open(OUT, "a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if not file.tell():
                writer.writeheader()
            writer.writerow(row)
        print(
            f"{cell:<28} return {float(row['return']):8.1f} +- {float(row['return_std']):6.1f}   "
            f"data {row['data_return']:8.1f}   {row['seconds']:6.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
