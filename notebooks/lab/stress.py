"""Kills a training again and again with kill -9, resumes it each time, and compares it with an uninterrupted one.

python notebooks/stress.py            # 50 kills, about ten minutes on 2 cores
python notebooks/stress.py --kills 5
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

OM2P = Path(__file__).resolve().parent.parent / "om2p.py"


def start(options: list[str]) -> subprocess.Popen:
    """One om2p.py in a process of its own."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, str(OM2P), *options], **quiet)


def run_killed(options: list[str], out: Path, kills: int, seed: int) -> int:
    """Train into `out`, killed so often and resumed each time; returns how many kills hit a running process.

    A kill comes at a random moment of the time that a process needs for one step, so that it may hit the start, a
    training step, the writing of any file, or the end.
    """
    began = time.perf_counter()
    assert start([*options, "--steps", "1", "--out", str(out.with_name("one"))]).wait() == 0
    usual, hits, moments = time.perf_counter() - began, 0, random.Random(seed)
    for _ in range(kills):
        process = start_or_resume(options, out)
        try:
            process.wait(moments.uniform(0.2, 0.95) * usual)
        except subprocess.TimeoutExpired:
            process.kill()
            hits += 1
        process.wait()
    process = start_or_resume(options, out)
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"the last resumption failed: {errors.decode()}")
    return hits


def start_or_resume(options: list[str], out: Path) -> subprocess.Popen:
    """Continue the run in `out` if it has a checkpoint, else begin it."""
    resume = ["--resume"] if (out / "checkpoint.pt").exists() else []
    return start([*options, "--out", str(out), *resume])


def same_weights(a: Path, b: Path) -> bool:
    """Whether two run folders end with the same networks, optimizers and random streams, and the same metrics."""
    states = [torch.load(folder / "checkpoint.pt", weights_only=True)["agents"] for folder in (a, b)]
    leaves = [torch.utils._pytree.tree_leaves(state) for state in states]
    same = all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(*leaves, strict=True))
    return same and (a / "metrics.csv").read_bytes() == (b / "metrics.csv").read_bytes()


def main() -> None:
    """Print how many kills there were, and whether the result is the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    kills = parser.parse_args().kills
    sys.path.insert(0, str(OM2P.parent))
    import data

    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "expert.npz", Path(folder) / "killed"
        data.make("world", "expert", file, transitions=50_000)
        options = ["--data", str(file), "--hidden-dim", "64", "--hidden-layers", "2", "--steps", str(60 * kills)]
        options += ["--eval-every", "30", "--save-every", "20", "--final-episodes", "10"]
        began = time.perf_counter()
        hits = run_killed(options, out, kills, seed=0)
        assert start([*options, "--out", str(out.with_name("whole"))]).wait() == 0
        same = same_weights(out, out.with_name("whole"))
        print(f"{hits} of {kills} kills hit a running process; {time.perf_counter() - began:.0f} s")
        print(f"weights, optimizers, random streams and metrics equal those of an uninterrupted run: {same}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
