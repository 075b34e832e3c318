"""How many samples lie near a mode: a target of two actions that the critics hold for equally good.

    python notebooks/lab/two_modes.py      # half an hour on 2 cores; writes results/two_modes.csv and .png

What the CSV has already is not run again.

At every observation half of the data's actions lie around (0.6, 0.6), half around (-0.6, -0.6), with a standard
deviation of 0.05; every reward is 1. A sample, one action from all the noise, is near a mode if it is closer than 0.2
to it. The mean of the data is near none.
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

import baselines  # noqa: E402
from reproduce import RESULTS, append, table  # noqa: E402

import om2p  # noqa: E402

CSV = RESULTS / "two_modes.csv"
MODES = torch.tensor([[0.6, 0.6], [-0.6, -0.6]])
SPREAD, NEAR, OBS, STEPS, SEEDS, COUNTS = 0.05, 0.2, 3, 4000, (0, 1, 2), (1, 2, 4, 8, 16)
SMALL = {"hidden_dim": 128, "hidden_layers": 3, "learning_rate": 3e-4}
SYSTEMS = {
    "OM2P (paper's settings)": om2p.Config(**om2p.PAPER | SMALL, eta=1.0),
    "OM2P (ours)": om2p.Config(**SMALL),
    "OM2P (ours), eta 1": om2p.Config(**SMALL, eta=1.0),  # towards the weights of Predator-Prey (3) and World (10)
    "MA-FQL (from two on: its flow)": baselines.BaselineConfig.of("ma-fql", **SMALL, q_scale="value"),  # its paper's
    "MA-SfBC": baselines.BaselineConfig.of("ma-sfbc", **SMALL),
}
CHOICES = {  # the recommended settings with one of them changed: in the table, not drawn
    "OM2P (ours), coupled times": om2p.Config(**SMALL, times="coupled"),
    "OM2P (ours), zero derivative": om2p.Config(**SMALL, derivative="zero"),
    "OM2P (ours), Q from noise": om2p.Config(**SMALL, q_start="noise"),
}


def sample_data(size: int, generator: torch.Generator) -> om2p.Batch:
    """Transitions whose actions have two modes and whose rewards say nothing."""
    obs = torch.randn(size, OBS, generator=generator)
    mode = MODES[torch.randint(2, (size,), generator=generator)]
    action = mode + SPREAD * torch.randn(size, 2, generator=generator)
    return om2p.Batch(obs, action, torch.ones(size, 1), obs, torch.ones(size, 1))


def near_share(action: torch.Tensor) -> float:
    """The share of actions (B, 2) near a mode."""
    return (torch.cdist(action, MODES).amin(1) < NEAR).float().mean().item()


@torch.no_grad()
def samples(agent: om2p.Agent, generator: torch.Generator) -> dict[int, torch.Tensor]:
    """5,000 actions of the trained agent for each number of network evaluations that may be made for one."""
    policy, obs = agent.target_policy, torch.randn(5000, OBS, generator=generator)
    if isinstance(agent, baselines.MASfBC):
        # trained on a grid of 15 steps; one candidate each, since with equal Q any is as good
        return {15: baselines.diffusion_action(policy, obs, 15, generator)}
    noise = torch.randn(5000, 2, generator=generator)
    if isinstance(agent, baselines.MAFQL):
        return {
            1: policy.act(obs, noise),
            **{k: baselines.flow_action(policy.flow, obs, noise, k) for k in COUNTS[1:]},
        }
    return {k: policy.act(obs, noise, steps=k) for k in COUNTS}


def measure(name: str, seed: int) -> list[dict[str, object]]:
    """Train one system and sample from it in all its ways."""
    torch.manual_seed(seed)
    generator, config = torch.Generator().manual_seed(seed), replace((SYSTEMS | CHOICES)[name], seed=seed)
    make_agent = baselines.make_agent if isinstance(config, baselines.BaselineConfig) else om2p.Agent
    agent = make_agent(OBS, 2, config)
    for _ in range(STEPS):
        agent.update(sample_data(256, generator))
    shares = {k: near_share(action) for k, action in samples(agent, generator).items()}
    return [{"system": name, "seed": seed, "evaluations": k, "share": share} for k, share in shares.items()]


def read(path: Path) -> dict[str, dict[int, list[float]]]:
    """The shares of all seeds, by system and number of evaluations."""
    shares: dict[str, dict[int, list[float]]] = {}
    for row in sorted(table(path), key=lambda row: (row["system"], int(row["evaluations"]))):
        shares.setdefault(row["system"], {}).setdefault(int(row["evaluations"]), []).append(float(row["share"]))
    return shares


def draw(shares: dict[str, dict[int, list[float]]], path: Path) -> None:
    """Share near a mode against network evaluations: mean over seeds, and each seed as a dot."""
    from drawing import BLUE, GREEN, ORANGE, PINK, SKY, plt

    looks = dict(zip(SYSTEMS, zip((ORANGE, BLUE, SKY, GREEN, PINK), "so^vD")))
    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for name in reversed([name for name in shares if name in looks]):
        (colour, marker), (counts, values) = looks[name], zip(*shares[name].items())
        axes.plot(counts, values, ".", color=colour, alpha=0.4)
        line = "none" if "MA-FQL" in name else "-"  # its points are of two networks
        axes.plot(counts, torch.tensor(values).mean(1), ls=line, color=colour, marker=marker, label=name)
    axes.set_xscale("log", base=2)
    axes.set(
        xlabel="network evaluations for one action",
        ylabel="share of samples near a mode",
        xticks=COUNTS,
        xticklabels=COUNTS,
        ylim=(-0.03, 1.03),
    )
    figure.legend(loc="outside lower center", ncols=2, fontsize=11)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Train every system with every seed that the CSV lacks, two at a time, each written as it ends; draw."""
    done = {(row["system"], row["seed"]) for row in table(CSV)}
    jobs = [(name, seed) for name in SYSTEMS | CHOICES for seed in SEEDS if (name, str(seed)) not in done]
    with ProcessPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for future in as_completed([pool.submit(measure, *job) for job in jobs]):
            append(CSV, future.result())
    draw(read(CSV), CSV.with_suffix(".png"))


if __name__ == "__main__":
    main()
