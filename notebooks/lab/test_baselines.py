"""Tests of the systems that OM2P is compared with, and of the target with two modes: `pytest notebooks/lab`."""

from __future__ import annotations

import math
from pathlib import Path

import baselines
import pytest
import torch
import two_modes

import data
import om2p

BEST = torch.tensor([0.5, -0.5])


def make(algorithm: str, **options) -> baselines.Baseline:
    sizes = {"hidden_dim": 64, "hidden_layers": 2, "learning_rate": 1e-3, "rho": 0.05}
    torch.manual_seed(0)
    return baselines.make_agent(3, 2, baselines.BaselineConfig.of(algorithm, **sizes | options))


@pytest.mark.parametrize(("algorithm", "limit"), [("ma-fql", 0.25), ("ma-sfbc", 0.45), ("omar", 0.3)])
def test_each_finds_the_better_actions_of_uniform_data(algorithm, limit):
    """One decision, reward - |action - best|^2, uniform data: who only clones stays 0.7 away, who learns comes near."""
    agent, g = make(algorithm, **{"alpha": 0.3} if algorithm == "ma-fql" else {}), torch.Generator().manual_seed(5)
    for _ in range(600):
        obs, action = torch.randn(256, 3, generator=g), torch.rand(256, 2, generator=g) * 2 - 1
        reward = -(action - BEST).square().sum(-1, keepdim=True)
        agent.update(om2p.Batch(obs, action, reward, obs, torch.ones(256, 1)))
    action = agent.act(torch.randn(500, 3, generator=g), generator=g)
    assert (action - BEST).norm(dim=-1).mean() < limit


def test_cloning_learns_the_conditional_mean():
    agent, g = make("bc"), torch.Generator().manual_seed(5)
    for _ in range(300):
        obs = torch.randn(256, 3, generator=g)
        action = (0.5 * torch.sin(obs[:, :2]) + 0.3 * torch.randn(256, 2, generator=g)).clamp(-1, 1)
        agent.update(om2p.Batch(obs, action, torch.zeros(256, 1), obs, torch.ones(256, 1)))
    obs = torch.randn(500, 3, generator=g)
    assert (agent.act(obs) - 0.5 * torch.sin(obs[:, :2])).abs().mean() < 0.08


class Exact(torch.nn.Module):
    """The noise in, or the velocity of, actions around `BEST`: what a perfect network would answer."""

    action_dim = 2

    def __init__(self, kind: str, steps: int = 15, spread: float = 0.0) -> None:
        super().__init__()
        self.kind, self.steps, self.spread = kind, steps, spread

    def forward(self, obs, a_t, t):
        if self.kind == "velocity":
            return (BEST - a_t) / (1 - t)
        share = baselines.signal_share(self.steps)[(t * self.steps).round().long()]
        pull = share.sqrt() * self.spread**2 / (share * self.spread**2 + 1 - share)
        action = BEST + pull * (a_t - share.sqrt() * BEST)  # its mean, given a_t
        return (a_t - share.sqrt() * action) / (1 - share).sqrt()


def test_perfect_networks_generate_the_data():
    obs, g = torch.zeros(64, 3), torch.Generator().manual_seed(0)
    for steps in (5, 15):
        action = baselines.diffusion_action(Exact("noise", steps), obs, steps, g)
        assert torch.allclose(action, BEST.expand(64, 2), atol=1e-4)
    action = baselines.flow_action(Exact("velocity"), obs, torch.randn(64, 2, generator=g), 10)
    assert torch.allclose(action, BEST.expand(64, 2), atol=1e-5)


def test_the_diffusion_keeps_most_of_a_small_spread():
    g = torch.Generator().manual_seed(0)
    action = baselines.diffusion_action(Exact("noise", 15, 0.1), torch.zeros(5000, 3), 15, g)
    assert torch.allclose(action.mean(0), BEST, atol=0.01)
    assert 0.06 < (action - action.mean(0)).std() < 0.11


def test_the_conservative_term_is_zero_for_equal_values_and_punishes_strangers():
    """With constant critics, log-sum-exp of Q - log density over n samples, less Q, is their log-mean-density."""
    agent = make("omar")
    batch = om2p.Batch(torch.randn(64, 3), torch.rand(64, 2), torch.zeros(64, 1), torch.randn(64, 3), torch.ones(64, 1))
    for critic in agent.critics:
        for p in critic.parameters():
            torch.nn.init.zeros_(p)
    _, log_density = agent.conservative_actions(batch)
    expected = 2 * torch.logsumexp(-log_density, 0)
    _, info = agent.critic_loss(batch)
    assert info["conservative"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert log_density[0].item() == pytest.approx(2 * math.log(0.5))  # uniform on a square of side 2


def test_omars_search_finds_better_actions():
    agent = make("omar")

    class Hill(torch.nn.Module):
        def forward(self, obs, action):
            return -(action - BEST).square().sum(-1, keepdim=True)

    agent.critics = torch.nn.ModuleList([Hill(), Hill()])
    start = torch.rand(256, 2) * 2 - 1
    found = agent.search(torch.zeros(256, 3), start)
    before, after = ((a - BEST).norm(dim=-1) for a in (start, found))
    assert (after <= before + 1e-6).all() and after.mean() < 0.35 * before.mean()


def test_sfbc_weights_candidates_by_softmax_of_q():
    _, q, weights = make("ma-sfbc", alpha=2.0).sample(torch.randn(5, 3), 4, None)
    torch.testing.assert_close(weights, torch.softmax(2.0 * q / q.abs().mean(), 1))


def test_one_command_trains_a_baseline(tmp_path, monkeypatch, capsys):
    """The folder's name says which; its settings are the algorithm's, then what was given; a mistake is one line."""
    monkeypatch.chdir(tmp_path)
    data.make("world", "expert", Path("expert.npz"), transitions=100)
    small = "--hidden-dim 8 --steps 2 --eval-every 2 --eval-episodes 1 --final-episodes 1 --diffusion-steps 2".split()
    assert baselines.main(["--algorithm", "ma-sfbc", "--seed", "3", "--candidates", "4", *small]) == 0
    state = data.load_checkpoint("runs/ma-sfbc-world-expert-seed3")
    assert (state["step"], state["config"]["alpha"], state["config"]["candidates"]) == (2, 10.0, 4)
    capsys.readouterr()
    for argv in (["--alpha", "-1"], ["--data", "none.npz"], ["--out", "runs/ma-sfbc-world-expert-seed3", *small]):
        assert baselines.main(argv) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert om2p.main(["--evaluate", "runs/ma-sfbc-world-expert-seed3"]) == 2


def test_the_mean_of_two_modes_is_near_none():
    batch = two_modes.sample_data(2000, torch.Generator().manual_seed(0))
    assert two_modes.near_share(batch.action) > 0.99
    assert two_modes.near_share(batch.action.mean(0, keepdim=True)) == 0
