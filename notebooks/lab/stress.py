"""Kills a training again and again with kill -9, resumes it each time, and compares it with an uninterrupted one.

python notebooks/lab/stress.py       # 50 kills, about ten minutes on 2 cores
python notebooks/lab/stress.py 5
"""

from __future__ import annotations

import csv
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import data  # noqa: E402

SMALL = "--hidden-dim 64 --hidden-layers 2 --eval-every 30 --save-every 20 --final-episodes 10".split()


def attempt(options: list[str], out: Path, seconds: float | None = None) -> bool:
    """Continue the run in `out` from its checkpoint, else begin it anew; whether it had to be killed, after `seconds`.

    Raises CalledProcessError if it fails.
    """
    command = ["--resume", str(out)]
    if not (out / "checkpoint.pt").exists():
        shutil.rmtree(out, ignore_errors=True)  # killed before its first checkpoint
        command = [*options, "--out", str(out)]
    try:  # the timeout of `run` kills with kill -9
        subprocess.run(
            [sys.executable, "om2p.py", *command], cwd=ROOT, capture_output=True, check=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return True
    return False


def ending(run: Path) -> list[object]:
    """Networks, optimizers and random streams that a run ends with, and its metrics but for the seconds."""
    agents = torch.load(run / "checkpoint.pt", weights_only=True)["agents"]
    leaves = [x.tolist() if isinstance(x, torch.Tensor) else x for x in torch.utils._pytree.tree_leaves(agents)]
    rows = csv.DictReader((run / "metrics.csv").read_text().splitlines())
    return [*leaves, *({k: v for k, v in row.items() if k != "training_seconds"} for row in rows)]


def main(kills: int) -> bool:
    """Print how many kills there were; whether the result is the same.

    A kill comes at a random moment of the time that a process needs for one step, so that it may hit the start, a
    training step, the writing of any file, or the end.
    """
    moments = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        file, one, killed, whole = (Path(folder) / name for name in ("expert.npz", "one", "killed", "whole"))
        data.make("world", "expert", file, transitions=50_000)
        options = ["--data", str(file), *SMALL, "--steps", str(60 * kills)]
        began = time.perf_counter()
        attempt([*options, "--steps", "1"], one)
        usual = time.perf_counter() - began
        hits = sum(attempt(options, killed, moments.uniform(0.2, 0.95) * usual) for _ in range(kills))
        attempt(options, killed)
        attempt(options, whole)
        same = ending(killed) == ending(whole)
    print(f"{hits} of {kills} kills hit a running process; {time.perf_counter() - began:.0f} s")
    print(f"weights, optimizers, random streams and metrics equal those of an uninterrupted run: {same}")
    return same


if __name__ == "__main__":
    sys.exit(not main(int(sys.argv[1]) if len(sys.argv) > 1 else 50))
