"""Table 2's workload: training with evaluation at full width on World expert data, its time and peak training memory.

    python notebooks/table_2.py                 # hours: 10,000 steps of each system, 10 episodes every 100 steps
    python notebooks/table_2.py --steps 100     # the same, scaled to 10,000 steps
    python notebooks/table_2.py --only om2p ma-fql

Every system runs in a process of its own, one after the other, and is added to `results/table_2.csv` as it ends; one
that stands there with as many steps is skipped. MA-SfBC makes a twentieth of the steps, the full Jacobian a hundredth,
scaled.
Memory is that of `benchmark.py`.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import benchmark  # noqa: E402

import data  # noqa: E402
import envs  # noqa: E402
import om2p  # noqa: E402

OUT = HERE / "results" / "table_2.csv"
PAPER = {"preset": "paper", "xi": om2p.UNIFORM, "eta": 1.0}  # Table 3 for World expert
SYSTEMS = {
    "om2p": {},
    "om2p-paper": PAPER,
    "om2p-paper, torch.func.jvp": PAPER | {"derivative": "exact"},
    "om2p-paper, full Jacobian": PAPER | {"derivative": "exact"},
    "ma-fql": {"algorithm": "ma-fql"},
    "ma-sfbc": {"algorithm": "ma-sfbc"},
}
FEWER = {"ma-sfbc": 20, "om2p-paper, full Jacobian": 100}  # by so much, for they take hours


def jacobian_derivative(policy: torch.nn.Module, obs: Tensor, a_r: Tensor, r: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """du/dr from the Jacobian of the whole batch, (B, A, B, A) and (B, A, B, 1), as in the authors' release."""
    by_action, by_time = torch.autograd.functional.jacobian(lambda a, s: policy(obs, a, s, t), (a_r, r))
    return (torch.einsum("biaj,aj->bi", by_action, v) + by_time.sum((2, 3))).detach()


def measure(name: str, steps: int) -> dict[str, object]:
    """Train so long, with 10 evaluation episodes every 100 steps (at least once), and measure."""
    if name.endswith("full Jacobian"):
        om2p.exact_derivative = jacobian_derivative
    om2p.tune_cpu(benchmark.DEVICE)
    dataset = data.collect("world", "expert", 100_000, progress=False).to(benchmark.DEVICE)
    env = envs.make_env("world", dataset.prey, benchmark.DEVICE)
    agents = benchmark.make_agents(SYSTEMS[name], env.num_agents, (env.obs_dim, env.action_dim))

    def step() -> None:
        for i, agent in enumerate(agents):
            agent.update(om2p.Batch(*dataset.sample(i, 256, agent.generator)))

    for _ in range(3):
        step()
    memory = benchmark.training_bytes(agents, om2p.Batch(*dataset.sample(0, 256, agents[0].generator)))
    began = time.perf_counter()
    for k in range(steps):
        step()
        if (k + 1) % 100 == 0 or steps < 100 and k + 1 == steps:
            evaluation = time.perf_counter()
            envs.evaluate(agents, env, 10, seed=0)
            evaluation = time.perf_counter() - evaluation
    seconds = time.perf_counter() - began
    if steps < 100:  # one evaluation stands for more steps than were made
        seconds -= evaluation * (1 - steps / 100)
    row = {"system": name, "steps": steps, "seconds": seconds}
    return row | {
        "seconds_per_10000_steps": seconds * 10_000 / steps,
        "megabytes": memory / 1e6,
        "machine": benchmark.machine(),
    }


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--only", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # the process of one system
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.steps)))
        return
    rows = []
    if OUT.exists():
        with open(OUT, newline="") as file:
            rows = list(csv.DictReader(file))
    for name in args.only:
        steps = max(1, args.steps // FEWER.get(name, 1))
        row = next((row for row in rows if row["system"] == name and int(row["steps"]) == steps), None)
        done = row is not None
        if not done:
            command = [sys.executable, __file__, "--measure", name, "--steps", str(steps)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            row = json.loads(printed.splitlines()[-1])
        figures = [float(row[k]) for k in ("seconds_per_10000_steps", "megabytes")]
        print(f"{name:<28} {figures[0]:10.0f} s  {figures[1]:8.1f} MB  ({steps} steps)", flush=True)
        if done:
            continue
        rows.append(row)
        with data.whole_file(OUT) as part, open(part, "w", newline="") as file:
            writer = csv.DictWriter(file, row)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
