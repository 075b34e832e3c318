"""How many samples lie near a mode: a target of two actions that the critics hold for equally good.

    python notebooks/two_modes.py      # half an hour on 2 cores; writes results/two_modes.csv and .png

What the CSV has already is not run again.

At every observation half of the data's actions lie around (0.6, 0.6), half around (-0.6, -0.6), with a standard
deviation of 0.05; every reward is 1. A sample, one action from all the noise, is near a mode if it is closer than 0.2
to it. The mean of the data is near none. All but the paper's OM2P act with averaged networks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import baselines  # noqa: E402
from reproduce import append, table  # noqa: E402

import om2p  # noqa: E402

MODES = torch.tensor([[0.6, 0.6], [-0.6, -0.6]])
SPREAD, NEAR, OBS, STEPS, SEEDS = 0.05, 0.2, 3, 4000, (0, 1, 2)
SMALL = {"hidden_dim": 128, "hidden_layers": 3}
OWN = {"eta": 1.0, "xi": om2p.UNIFORM}  # as for any task that has no entry in om2p.py's tables
SYSTEMS = {
    "OM2P, paper": {"preset": "paper"} | OWN,
    "OM2P, recommended": OWN,
    "OM2P, recommended, eta 10": OWN | {"eta": 10.0},  # as on Cooperative Navigation
    "MA-FQL": {"algorithm": "ma-fql", "act_with": "averaged"},
    "MA-SfBC": {"algorithm": "ma-sfbc", "act_with": "averaged"},
}
CHOICES = {  # the recommended settings with one of them changed: printed, not drawn
    f"OM2P, recommended, {name}": OWN | options
    for name, options in {
        "coupled times": {"times": "coupled"},
        "sampled velocity": {"velocity": "sampled"},
        "zero derivative": {"derivative": "zero"},
        "exact derivative": {"derivative": "exact"},
        "raw Q": {"normalise_q": False},
    }.items()
}


def sample_data(size: int, generator: torch.Generator) -> om2p.Batch:
    """Transitions whose actions have two modes and whose rewards say nothing."""
    obs = torch.randn(size, OBS, generator=generator)
    mode = MODES[torch.randint(2, (size,), generator=generator)]
    action = mode + SPREAD * torch.randn(size, 2, generator=generator)
    return om2p.Batch(obs, action, torch.ones(size, 1), obs, torch.ones(size, 1))


def near_share(action: Tensor) -> float:
    """The share of actions (B, 2) near a mode."""
    return (torch.cdist(action, MODES).amin(1) < NEAR).float().mean().item()


def samplers(name: str, agent: object, generator: torch.Generator) -> dict[int, Callable[[Tensor], Tensor]]:
    """Ways to act with the trained agent, by the number of network evaluations for one action."""
    if name.startswith("OM2P"):
        noise = torch.randn(5000, 2, generator=generator)
        policy = agent.acting()[0]
        return {k: lambda obs, k=k: policy.act(obs, noise, steps=k) for k in (1, 2, 4, 8, 16)}
    if name == "MA-FQL":
        flow, noise = agent.target_policy["flow"], torch.randn(5000, 2, generator=generator)
        steps = {k: lambda obs, k=k: baselines.flow_action(flow, obs, noise, k) for k in (2, 4, 8, 16)}
        return {1: lambda obs: agent.act(obs, noise)} | steps
    # the diffusion was trained on a grid of 15 steps; one candidate each, since with equal Q any is as good
    return {15: lambda obs: baselines.diffusion_action(agent.acting()[0], obs, 15, generator)}


def measure(name: str, seed: int) -> list[dict[str, object]]:
    """Train one system and sample from it in all its ways."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    options = (SYSTEMS | CHOICES)[name]
    if "algorithm" in options:
        config = baselines.BaselineConfig(seed=seed, **SMALL, **options).resolve()
        agent = baselines.make_agent(OBS, 2, config)
    else:
        agent = om2p.Agent(OBS, 2, om2p.Config(seed=seed, **SMALL, **options).resolve("medium"))
    for _ in range(STEPS):
        agent.update(sample_data(256, generator))
    obs = torch.randn(5000, OBS, generator=generator)
    with torch.no_grad():
        shares = {k: near_share(act(obs)) for k, act in samplers(name, agent, generator).items()}
    return [{"system": name, "seed": seed, "evaluations": k, "share": share} for k, share in shares.items()]


def draw(rows: list[dict[str, object]], path: Path) -> None:
    """Share near a mode against network evaluations: mean over seeds, and each seed as a dot."""
    from drawing import BLUE, GREEN, ORANGE, PINK, SKY
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, colour, marker in zip(SYSTEMS, (ORANGE, BLUE, SKY, GREEN, PINK), "so^vD"):
        points = sorted((row["evaluations"], row["share"]) for row in rows if row["system"] == name)
        counts = sorted({count for count, _ in points})
        means = [sum(s for c, s in points if c == count) / len(SEEDS) for count in counts]
        if name == "MA-FQL":  # two networks: one acts in one step, the other is a flow
            axes.plot(counts[:1], means[:1], color=colour, marker="*", markersize=12, ls="", label="MA-FQL")
            counts, means, name = counts[1:], means[1:], "MA-FQL's flow, which it is distilled from"
        axes.plot(counts, means, color=colour, marker=marker, label=name)
        axes.plot(*zip(*points), ".", color=colour, alpha=0.4)
    axes.set_xscale("log", base=2)
    axes.set(xticks=[1, 2, 4, 8, 16], xticklabels=[1, 2, 4, 8, 16], ylim=(-0.03, 1.03))
    axes.set(xlabel="network evaluations for one action", ylabel="share of samples near a mode")
    figure.legend(loc="outside lower center", ncols=2, fontsize=11)
    figure.savefig(path, dpi=130)


def read(path: Path) -> list[dict[str, object]]:
    """The rows of the CSV so far, with numbers as numbers."""
    rows = table(path) if path.exists() else []
    return [
        row | {k: kind(row[k]) for k, kind in (("seed", int), ("evaluations", int), ("share", float))} for row in rows
    ]


def text(rows: list[dict[str, object]]) -> str:
    """The share with one evaluation (MA-SfBC's 15): every seed, and the mean."""
    lines = []
    for name in SYSTEMS | CHOICES:
        one = [row["share"] for row in rows if row["system"] == name and row["evaluations"] in (1, 15)]
        lines.append(f"{name:<36} {' '.join(f'{share:.2f}' for share in one)}   mean {sum(one) / len(one):.2f}")
    return "\n".join(lines)


def main() -> None:
    """Train every system with every seed that the CSV lacks, two at a time, each written as it ends; then draw."""
    path = HERE / "results" / "two_modes.csv"
    done = {(row["system"], row["seed"]) for row in read(path)}
    jobs = [(name, seed) for name in SYSTEMS | CHOICES for seed in SEEDS if (name, seed) not in done]
    with ProcessPoolExecutor(2) as pool:
        for future in as_completed([pool.submit(measure, *job) for job in jobs]):
            append(path, future.result())
    rows = read(path)
    print(text(rows))
    draw(rows, path.with_suffix(".png"))


if __name__ == "__main__":
    main()
