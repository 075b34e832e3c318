"""Tests of OM2P against independent truths: closed forms, SciPy, forward-mode derivatives, recorded trajectories.

A test that takes `device` runs on the CPU and, where there is one, on the GPU.
"""

from __future__ import annotations

import csv
import functools
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from pettingzoo.test import parallel_api_test, parallel_seed_test
from torch import Tensor, nn

import data
import envs
import om2p
from om2p import Agent, Batch, Config, MeanFlowPolicy

ROOT = Path(__file__).parent
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
# networks this small gain nothing from more threads; and who resumes a run needs as many as who began it
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="session", params=DEVICES)
def device(request) -> str:
    return request.param


def generator(seed: int = 0, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def normal(*shape: int, seed: int = 0, device="cpu") -> Tensor:
    """Normal numbers, the same on every device."""
    return torch.randn(*shape, generator=generator(seed)).to(device)


def uniform(*shape: int, device="cpu") -> Tensor:
    """Numbers in [0, 1), the same on every device, from another stream than those of `normal`."""
    return torch.rand(*shape, generator=generator(1000)).to(device)


def random_batch(device: str, size: int = 64, seed: int = 0) -> Batch:
    g = generator(2000 + seed)
    obs, next_obs = torch.randn(2, size, 5, generator=g)
    action, reward = torch.rand(size, 2, generator=g) * 2 - 1, torch.randn(size, 1, generator=g)
    terminal = (torch.rand(size, 1, generator=g) < 0.5).float()
    return Batch(*(x.to(device) for x in (obs, action, reward, next_obs, terminal)))


def small_policy(device: str) -> MeanFlowPolicy:
    torch.manual_seed(0)
    return MeanFlowPolicy(5, 2, hidden_dim=64, hidden_layers=3).to(device)


def weights(module: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def one_step(policy: MeanFlowPolicy, obs: Tensor, noise: Tensor) -> Tensor:
    """The action of Eq. 3 itself, without a graph."""
    zero, one = torch.zeros_like(noise[:, :1]), torch.ones_like(noise[:, :1])
    return (noise + policy(obs, noise, zero, one)).clamp(-1, 1).detach()


# -------------------- timesteps, Eq. 4

XIS = [(0, 0, 0, 0), (5, 5, 0, 0), (2, 0, 0, 0), (0, 0, 0.2, 7), (-0.9, 0, 0, 0), (0, -0.5, 0, 0), (-0.9, 1.5, 3, 0)]
XIS += [(0, 0, 50, 0), (0, 0, -50, 0), (2, -0.5, -8, 0), (-0.9, -0.5, 50, 0), (0, 0, 2000, 0), (3, 3, -200, 1)]


def law(xi, points: np.ndarray) -> np.ndarray:
    """The distribution function of Eq. 4: SciPy's Beta, or by quadrature in logit(t), where the integrand is smooth."""
    if not xi[2]:
        return scipy.stats.beta(xi[0] + 1, xi[1] + 1).cdf(points)
    s = np.linspace(-400, 400, 400_001)
    log_t, log_1t = scipy.special.log_expit(s), scipy.special.log_expit(-s)
    log_density = (xi[0] + 1) * log_t + (xi[1] + 1) * log_1t + xi[2] * np.exp(log_t)
    area = scipy.integrate.cumulative_trapezoid(np.exp(log_density - log_density.max()), s, initial=0)
    return np.interp(scipy.special.logit(points), s, area / area[-1])


@pytest.mark.parametrize("xi", XIS)
def test_timesteps_follow_eq_4(xi, device):
    t = om2p.sample_timesteps(xi, 50_000, generator(device=device)).cpu()
    assert t.shape == (50_000, 1) and t.dtype == torch.float32 and 0 <= t.min() and t.max() <= 1
    assert scipy.stats.kstest(t.double().flatten().numpy(), lambda p: law(xi, p)).pvalue > 1e-3


@pytest.mark.parametrize("xi", [(-1, 0, 0, 0), (0, -1, 0, 0), (math.nan, 0, 0, 0), (0, 0, math.inf, 0), (0, 0, 0)])
def test_impossible_xi_is_refused(xi):
    with pytest.raises(ValueError, match="--xi"):
        om2p.sample_timesteps(xi, 10)


def test_coupled_and_ordered_times(device):
    r, t = om2p.sample_interval(om2p.UNIFORM, 10_000, "coupled", 0.3, generator(device=device))
    assert torch.equal(r, 1 - t)
    r, t = om2p.sample_interval(om2p.UNIFORM, 10_000, "ordered", 0.3, generator(device=device))
    assert (r <= t).all() and (r == t).sum() == 3000
    r, t = om2p.sample_interval(om2p.UNIFORM, 10_000, "ordered", generator=generator(device=device))
    assert (r == t).sum() == 5000  # half, as README says


# -------------------- derivative, Eq. 5


def derivative(policy: MeanFlowPolicy, inputs: tuple[Tensor, ...], **settings) -> Tensor:
    """du/dr as the settings choose it."""
    return om2p.choose_derivative(Config(**settings))(policy, *inputs, policy(*inputs[:4]).detach())


def clone(policy: MeanFlowPolicy, draw, steps: int, device: str, times: str = "ordered", **settings) -> MeanFlowPolicy:
    """Train by cloning alone on what `draw` gives: 256 observations and actions."""
    optimizer, g = torch.optim.Adam(policy.parameters(), lr=1e-3), generator()
    for _ in range(steps):
        r, t = om2p.sample_interval(om2p.UNIFORM, 256, times, 0.5, g)
        inputs = (*draw(g), torch.randn(256, 2, generator=g), r, t)
        chosen = om2p.choose_derivative(Config(**settings))
        loss, _ = om2p.mean_flow_loss(policy, *(x.to(device) for x in inputs), chosen)
        om2p.descend(optimizer, loss)
    return policy


def smooth(g: torch.Generator) -> tuple[Tensor, Tensor]:
    obs = torch.randn(256, 5, generator=g)
    return obs, torch.tanh(obs[:, :2] + 0.3 * torch.randn(256, 2, generator=g))


def two_modes(g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Actions near (0.6, 0.6) or (-0.6, -0.6), whatever is observed."""
    side = torch.randint(2, (256, 1), generator=g) * 2 - 1
    return torch.zeros(256, 5), 0.6 * side + 0.05 * torch.randn(256, 2, generator=g)


def test_differences_on_a_trained_network(device):
    policy, b, noise, r, t = loss_inputs(device)
    clone(policy, smooth, 300, device)
    a_r, v = om2p.path(b.action, noise, r)
    inputs = b.obs, a_r, r, t, v
    exact = derivative(policy, inputs, derivative="exact")
    assert not exact.requires_grad and exact.abs().mean() > 0.05
    double = {"derivative_dtype": "float64"}
    for settings in ({"delta_r": 1e-3}, {"delta_r": 1e-12} | double, {"derivative": "exact"} | double):
        assert (derivative(policy, inputs, **settings) - exact).norm() < 0.01 * exact.norm()
    assert not derivative(policy, inputs, delta_r=1e-12).any(), "Table 4's step vanishes in float32"


# -------------------- mean flow, Eq. 1 to 3


class GaussianFlow(nn.Module):
    """The exact mean velocity between Gaussians N(0, 1) at time 0 and N(m, s^2) at time 1, independently coupled."""

    m, s = 0.3, 0.5

    def deviation(self, r):
        return ((1 - r) ** 2 + (r * self.s) ** 2).sqrt()

    def forward(self, obs, a_r, r, t):
        # the flow maps quantiles to quantiles: (a_t - t m) / deviation(t) is constant along a path
        a_t = t * self.m + self.deviation(t) / self.deviation(r) * (a_r - r * self.m)
        return torch.where(t == r, self.velocity(a_r, r), (a_t - a_r) / torch.where(t == r, 1, t - r))

    def velocity(self, a, r):
        slope = ((self.s**2) * r - (1 - r)) / self.deviation(r) ** 2
        return self.m + slope * (a - r * self.m)


def test_mean_flow_loss_is_least_at_the_true_mean_velocity(device):
    """The gradient of Eq. 1 vanishes at the true u, whichever way u is shifted."""
    flow, n, shift = GaussianFlow(), 400_000, torch.zeros(6, device=device, requires_grad=True)
    noise, action = normal(n, 1, device=device), flow.m + flow.s * normal(n, 1, seed=1, device=device)
    r, t = om2p.sample_interval(om2p.UNIFORM, n, "ordered", 0.5, generator(5, device))

    def shifted(obs, a, r, t):
        ways = torch.cat([torch.ones_like(r), a, r, t, a * r, (t > r).float()], 1)
        return flow(obs, a, r, t) + (ways * shift).sum(1, keepdim=True)

    loss, _ = om2p.mean_flow_loss(shifted, None, action, noise, r, t, om2p.exact_derivative)
    assert torch.autograd.grad(loss, shift)[0].abs().max() < 0.03  # 5 standard errors are about 0.024


def loss_inputs(device: str) -> tuple[MeanFlowPolicy, Batch, Tensor, Tensor, Tensor]:
    """Policy, batch, noise, times r and t."""
    return small_policy(device), random_batch(device), normal(64, 2, device=device), *uniform(2, 64, 1, device=device)


def test_no_gradient_flows_through_the_target(device):
    """The loss has the gradient that it would have if u_target were a constant."""
    policy, b, noise, r, t = loss_inputs(device)
    a_r, v = om2p.path(b.action, noise, r)
    u = policy(b.obs, a_r, r, t)
    target = v - (r - t) * om2p.exact_derivative(policy, b.obs, a_r, r, t, v, u)
    loss, _ = om2p.mean_flow_loss(policy, b.obs, b.action, noise, r, t, om2p.exact_derivative)
    losses = loss, (u - target).square().sum(1).mean()
    for p, q in zip(*(torch.autograd.grad(x, list(policy.parameters())) for x in losses)):
        assert torch.allclose(p, q, atol=1e-6)


def test_one_step_and_many_steps_follow_eq_3(device):
    flow, noise = GaussianFlow(), normal(1000, 1, device=device)
    policy = MeanFlowPolicy(1, 1, 8, 1)
    policy.forward = flow.forward
    for steps in (1, 4):  # the exact mean velocity needs one step, and more change nothing
        a = policy.act(torch.zeros(1000, 1, device=device), noise, steps)
        assert torch.allclose(a, (flow.m + flow.s * noise).clamp(-1, 1), atol=1e-5)


def test_two_modes_are_learned_where_a_zero_derivative_averages_them(device):
    """With du/dr = 0 one step gives the conditional mean; ordered times and Eq. 5 give the modes."""
    near = {}
    for name, times in (("zero", "coupled"), ("finite_difference", "ordered")):
        policy = clone(small_policy(device), two_modes, 1000, device, times, derivative=name)
        a = one_step(policy, torch.zeros(2000, 5, device=device), normal(2000, 2, device=device))
        in_reach = torch.minimum((a - 0.6).norm(dim=1), (a + 0.6).norm(dim=1)) < 0.25
        near[name] = in_reach.float().mean().item()
    assert near["zero"] < 0.05 and near["finite_difference"] > 0.5


# -------------------- losses, Eq. 6 and 7


def linear(*w: float) -> Callable[..., Tensor]:
    """A critic with a closed form: Q = w . a + sum(o)."""
    return lambda obs, a: (a @ a.new_tensor(w) + obs.sum(-1))[:, None]


def test_critic_loss_is_eq_7(device):
    policy, b, noise, _, _ = loss_inputs(device)
    critics, targets = [linear(1.0, 2.0), linear(-1.0, 0.5)], [linear(0.3, 0.0), linear(0.0, -0.7)]
    loss, info = om2p.critic_loss(critics, targets, policy, b, noise, gamma=0.9)
    a = one_step(policy, b.next_obs, noise).cpu().numpy()
    obs, action, reward, next_obs, terminal = (x.cpu().numpy() for x in b)
    q_next = 0.5 * (a @ [0.3, 0.0] + a @ [0.0, -0.7]) + next_obs.sum(-1)
    target = reward[:, 0] + 0.9 * np.where(terminal[:, 0] == 1, 0, q_next)
    errors = [action @ w + obs.sum(-1) - target for w in ([1.0, 2.0], [-1.0, 0.5])]
    assert loss.item() == pytest.approx(np.square(errors).mean(1).sum(), rel=1e-5)
    assert info["target_q"].item() == pytest.approx(target.mean(), rel=1e-5)
    assert not loss.requires_grad, "no gradient flows to the target policy"


@pytest.mark.parametrize("start", ["path", "noise"])
@pytest.mark.parametrize("scale", ["none", "value", "gradient"])
def test_policy_loss_is_eq_6(scale, start, device):
    """Its gradient is that of L_bc - eta E[Q / scale], for critics whose dQ/da is part of the observation."""
    policy, b, noise, r, t = loss_inputs(device)
    q_noise, direction = normal(64, 2, seed=1, device=device), b.obs[:, :2]
    critics = [lambda obs, a, k=k: k * (a * obs[:, :2]).sum(-1, keepdim=True) for k in (0.5, 1.5)]
    begin = r if start == "path" else 0 * r
    a_r = (1 - begin) * q_noise + begin * b.action
    a = (a_r + (1 - begin) * policy(b.obs, a_r, begin, 0 * r + 1)).clamp(-1, 1)
    q = (a * direction).sum(-1, keepdim=True)
    size = {"none": 1.0, "value": q.abs().mean().item(), "gradient": direction.norm(dim=-1).mean().item()}[scale]
    terms = {"bc": om2p.mean_flow_loss(policy, b.obs, b.action, noise, r, t)[0], "q": -3.0 * (q / size).mean()}
    for objective, expected in (("both", sum(terms.values())), *terms.items()):
        config = Config(eta=3.0, q_scale=scale, q_start=start, objective=objective)
        loss, info = om2p.policy_loss(policy, critics, b, noise, q_noise, r, t, config)
        ours, theirs = (torch.autograd.grad(x, list(policy.parameters()), retain_graph=True) for x in (loss, expected))
        assert all(torch.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in zip(ours, theirs))
        assert "q" not in info or info["q"].item() == pytest.approx(q.mean().item(), rel=1e-4)


# -------------------- settings


def test_table_and_presets_are_the_papers():
    """Cells of Table 3 and 4, copied from the paper."""
    assert len(om2p.TABLE_3) == 16
    for cell, eta, xi in (
        ("tag/medium-expert", 100.0, (2, 0, 0, 0)),
        ("world/medium-expert", 10_000.0, (0, 0, 0, 0)),
        ("world/medium", 1000.0, (0, 0, 0.2, 0)),
        ("spread/medium-expert", 0.1, (0, 0, 0.05, 0)),
        ("halfcheetah/medium", 0.125, (0, 0, 0, 0)),
        ("halfcheetah/expert", 0.008, (0, 0, 0, 0)),
    ):
        paper = Config.of(*cell.split("/"), preset="paper")
        assert (paper.eta, paper.xi) == om2p.TABLE_3[cell] == (eta, xi)
    assert (paper.times, paper.delta_r, paper.q_scale, paper.q_start) == ("coupled", 1e-12, "none", "noise")
    assert (paper.candidates, paper.act_noise, paper.hidden_dim, paper.learning_rate) == (1, 1.0, 512, 3e-4)
    assert (paper.batch_size, paper.gamma, paper.rho) == (256, 0.99, 0.005)
    ours = Config.of("world", "expert")  # as README says
    assert (ours.times, ours.xi, ours.delta_r) == ("ordered", om2p.UNIFORM, 1e-3)
    assert (ours.q_scale, ours.q_start, ours.candidates, ours.steps) == ("gradient", "path", 8, 5000)


def test_settings_come_in_three_layers():
    """The preset, its part for the task, the command line: later ones win."""
    flags = ["--xi", "1", "0", "0.5", "0", "--q-scale", "value", "--steps", "7", "--gamma", "0.9", "--env", "tag"]
    given, args = data.parse_options(Config, [*flags, "--preset", "paper"])
    assert given == {"xi": (1, 0, 0.5, 0), "q_scale": "value", "steps": 7, "gamma": 0.9, "env": "tag"}
    config = vars(Config.of("tag", "medium", args.preset, **given))
    assert (given | {"eta": 10.0, "times": "coupled", "derivative_dtype": "float64"}).items() <= config.items()


# -------------------- agent


def agent(device: str = "cpu", **options) -> Agent:
    torch.manual_seed(0)
    return Agent(5, 2, Config(**({"hidden_dim": 32, "hidden_layers": 2} | options)), device)


def test_rewards_without_a_column_are_refused(device):
    batch = random_batch(device)
    for changed in (batch._replace(reward=batch.reward[:, 0]), batch._replace(terminal=batch.terminal[:, 0])):
        with pytest.raises(ValueError, match=r"\[64, 1\]"):
            agent(device).update(changed)


def test_targets_move_by_rho(device):
    a = agent(device, rho=0.25)
    assert not torch.equal(weights(a.critics[0]), weights(a.critics[1])), "twins"
    before = weights(a.policy), weights(a.critics)  # the targets start there too
    a.update(random_batch(device))
    for old, target, online in zip(before, (a.target_policy, a.target_critics), (a.policy, a.critics)):
        assert not torch.equal(weights(online), old)
        assert torch.allclose(weights(target), 0.75 * old + 0.25 * weights(online), atol=1e-6)


def test_policy_step_leaves_the_critics_alone(device):
    a = agent(device, learning_rate=0.0)
    a.policy_optimizer.param_groups[0]["lr"] = 1e-2
    critics, policy = weights(a.critics), weights(a.policy)
    a.update(random_batch(device))
    assert torch.equal(weights(a.critics), critics) and not torch.equal(weights(a.policy), policy)
    assert all(p.grad is None for p in a.critics.parameters())


@pytest.mark.skipif("cuda" not in DEVICES, reason="needs a GPU")
@pytest.mark.parametrize("options", [{}, {"xi": (2.0, 0.0, 0.2, 0.0)}, om2p.PAPER], ids=["ours", "xi", "paper"])
def test_an_update_never_waits_for_the_gpu(options):
    a, b = agent("cuda", **options), random_batch("cuda")
    a.update(b)  # the first one may wait, for libraries to load
    torch.cuda.set_sync_debug_mode("error")
    try:
        a.update(b)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_terminal_and_time_limit(device):
    """The critic learns reward / (1 - gamma) where episodes only run out of time, and the reward where they end."""
    for terminal, expected in ((1.0, 1.0), (0.0, 1 / (1 - 0.8))):
        a, b = agent(device, gamma=0.8, rho=0.05, learning_rate=3e-3), random_batch(device, 256)
        one = torch.ones_like(b.reward)
        b = b._replace(reward=one, terminal=terminal * one, next_obs=b.obs)
        for _ in range(300):
            a.update(b)
        with torch.no_grad():
            assert a.critics[0](b.obs, b.action).mean().item() == pytest.approx(expected, rel=0.1)


def test_q_term_moves_the_policy_to_better_actions(device):
    """On data of uniform actions with reward -|a - 0.5|^2, cloning stays at 0 and OM2P moves towards 0.5."""
    means = {}
    for objective in ("bc", "both"):
        a = agent(device, objective=objective, eta=1.0, gamma=0.0, learning_rate=1e-3, candidates=1)
        for seed in range(400):
            b = random_batch(device, 256, seed=seed)
            a.update(b._replace(reward=-(b.action - 0.5).square().sum(1, keepdim=True)))
        means[objective] = a.act(normal(1000, 5, device=device), generator=generator(1, device)).mean().item()
    assert abs(means["bc"]) < 0.1
    assert means["both"] > 0.25


def test_the_averaged_networks_act_with_scaled_noise(device):
    obs, noise = normal(50, 5, device=device), normal(50, 2, device=device)
    for scale in (1.0, 0.5, 0.0):
        a = agent(device, act_noise=scale)
        a.update(random_batch(device))
        assert torch.allclose(a.act(obs, noise), one_step(a.target_policy, obs, scale * noise), atol=1e-6)
        assert not torch.allclose(a.act(obs, noise), one_step(a.policy, obs, scale * noise), atol=1e-6)


def test_of_several_candidates_the_critics_best_is_taken(device):
    """With Q(o, a) = -|a - 0.5|^2 that is the one nearest to 0.5, at every observation."""
    a, obs, noise = agent(device), normal(50, 5, device=device), normal(50, 5, 2, device=device)
    critic = nn.Module()
    critic.forward = lambda obs, action: -(action - 0.5).square().sum(1, keepdim=True)
    a.target_critics = nn.ModuleList([critic, critic])
    tried = torch.stack([one_step(a.policy, obs, noise[:, k]) for k in range(5)], 1)
    nearest = (tried - 0.5).norm(dim=2).argmin(1)
    assert nearest.unique().numel() > 1
    assert torch.allclose(a.act(obs, noise), tried[torch.arange(50), nearest], atol=1e-6)
    drawn = torch.randn(50, 8, 2, generator=generator(1, device), device=device)  # as many as the settings say
    assert torch.equal(a.act(obs, generator=generator(1, device)), a.act(obs, drawn))
    assert agent(act_noise=0.0).candidates == agent(objective="bc").candidates == 1, "nothing to choose from"


ALONE = """
import sys

class Only:
    # finds torch, numpy, what torch itself imports, and the standard library, one part of which is named by machine
    torch = "torch torchgen functorch triton sympy mpmath typing_extensions".split()
    allowed = {*sys.stdlib_module_names, "om2p", "numpy", *torch}

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.allowed or name.startswith("_sysconfigdata"):
            return self.finder.find_spec(name, path, target)

sys.meta_path = [Only(finder) for finder in sys.meta_path]
"""


def test_the_readmes_example_runs_beside_a_copy_of_om2p_alone(tmp_path):
    shutil.copy(ROOT / "om2p.py", tmp_path)
    _, *blocks = (ROOT / "README.md").read_text().split("```python\n")
    code = ALONE + "".join(block.split("```")[0] for block in blocks) + "print(a.shape)"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.stdout == "torch.Size([256, 2])\n", result.stderr


# -------------------- particle worlds

GOLDEN = json.loads((ROOT / "notebooks" / "lab" / "golden.json").read_text())
WORLDS = tuple(envs.SCENARIOS)


@pytest.mark.parametrize("name", WORLDS)
def test_particle_worlds_match_recorded_trajectories(name, device):
    """An episode in float64, recorded from the environment that made the public data, beside another one."""
    kind = {"device": device, "dtype": torch.float64}
    world = envs.ParticleWorld(name, **kind)
    start, actions, rewards = (torch.tensor(GOLDEN[name][key], **kind) for key in ("start", "actions", "rewards"))
    world.set_state(torch.stack([start.flip(0), start]))
    for action, reward in zip(actions, rewards):
        world.advance(torch.stack([-action, action]))
        assert torch.allclose(world.rewards()[1], reward, rtol=0, atol=1e-9)
    team, prey = world.observations()
    for row, expected in zip([*team[1], *([] if prey is None else prey[1])], GOLDEN[name]["last_observations"]):
        assert torch.allclose(row, torch.tensor(expected, **kind), rtol=0, atol=1e-9)


def test_the_prey_pays_for_leaving_the_arena():
    """bound(x) is 0 below 0.9, 10 (x - 0.9) below 1, then exp(2x - 2), at most 10; World counts it twice."""
    for x, bound in ((0.5, 0.0), (-0.95, 0.5), (1.5, math.e), (-5.0, 10.0)):
        for name, times, food in (("tag", 1, 0.0), ("world", 2, 0.05)):
            world = envs.ParticleWorld(name, dtype=torch.float64)
            position = torch.zeros(1, len(world.sizes), 2).double()
            position[0, 3, 0] = x  # all others, the food too, lie in the middle
            world.set_state(position)
            assert world.rewards()[0, 3].item() == pytest.approx((0.3 + food) * abs(x) - times * bound, abs=1e-9)


def test_starts_are_uniform_in_their_squares():
    world = envs.ParticleWorld("tag")
    world.reset(4000, generator())
    for entities, half in ((slice(0, 4), 1.0), (slice(4, 6), 0.9)):
        x = world.position[:, entities].flatten().numpy()
        assert scipy.stats.kstest(x, scipy.stats.uniform(-half, 2 * half).cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", WORLDS)
def test_pettingzoo_view(name):
    parallel_api_test(envs.ParticleParallelEnv(name), num_cycles=60)
    parallel_seed_test(lambda: envs.ParticleParallelEnv(name))


# -------------------- HalfCheetah


def test_halfcheetah_matches_gymnasium_index_by_index():
    """Every step from the same state: observations by joint name, actions by actuator name, rewards, state."""
    single, cheetah = gymnasium.make("HalfCheetah-v5").unwrapped, envs.HalfCheetah()
    cheetah.reset(3, generator())
    parts = [f"{leg}{part}" for leg in "bf" for part in ("foot", "shin", "thigh")]
    order = [single.model.actuator(f"{leg}{part}").id for leg in "bf" for part in ("thigh", "shin", "foot")]
    for actions in uniform(50, 3, 2, 3) * 3 - 1.5:  # some beyond the bounds
        before = cheetah.qpos.copy(), cheetah.qvel.copy()
        obs, rewards, terminals = cheetah.step(actions)
        for b in range(3):
            single.reset()
            single.set_state(before[0][b], before[1][b])
            control = np.zeros(6)
            control[order] = actions[b].clamp(-1, 1).flatten()
            full, reward, *_ = single.step(control)
            joints = [single.data.joint(part) for part in parts]
            seen = [x for joint in joints for x in (joint.qpos[0], joint.qvel[0])]
            assert np.allclose(obs[b].flatten(), seen, rtol=1e-6, atol=1e-6)
            assert np.allclose([*cheetah.qpos[b, 1:], *cheetah.qvel[b]], full, rtol=0, atol=1e-6)
            assert rewards[b].tolist() == pytest.approx([reward] * 2, abs=1e-5)
    assert not terminals.any()


def test_halfcheetah_starts_as_gymnasium_does():
    cheetah, single = envs.HalfCheetah(), gymnasium.make("HalfCheetah-v5").unwrapped
    cheetah.reset(2000, generator())
    starts = np.array([single.reset(seed=k)[0] for k in range(2000)])
    for ours, theirs in zip(np.concatenate([cheetah.qpos[:, 1:], cheetah.qvel], 1).T, starts.T):
        assert scipy.stats.ks_2samp(ours, theirs).pvalue > 1e-3


def test_cheetahs_of_a_batch_do_not_mix_whatever_the_number_of_threads():
    last, actions = [], uniform(60, 5, 2, 3) * 2 - 1
    for rows, threads in ((slice(0, 5), 1), (slice(0, 5), 3), (slice(3, 4), 1)):
        torch.set_num_threads(threads)
        cheetah = envs.HalfCheetah()
        torch.set_num_threads(1)
        cheetah.reset(5, generator(1))
        cheetah.set_state(cheetah.qpos[rows], cheetah.qvel[rows])
        for action in actions:
            cheetah.step(action[rows])
        last.append(cheetah.qpos)
    assert np.array_equal(last[0], last[1]) and np.array_equal(last[0][3:4], last[2])


# -------------------- pictures


def test_gif_has_a_frame_for_every_step(whole_run):
    from PIL import Image

    with Image.open(whole_run / "rollout.gif") as picture:
        assert picture.n_frames == 25
        first, last = (np.asarray(picture.convert("RGB")) for _ in map(picture.seek, (0, 24)))
    assert (first != last).any()


def test_the_cheetah_is_drawn_in_view(tmp_path):
    from matplotlib.figure import Figure

    cheetah, axes = envs.make_env("halfcheetah"), Figure().add_subplot()
    cheetah.reset(1, generator())
    cheetah.draw(axes, 0)
    outlines = np.array([p.vertices[:32] for p in axes.collections[0].get_paths()])
    assert outlines.shape == (8, 32, 2)  # torso, head, then thigh, shin and foot of the back and of the front leg
    assert np.linalg.norm(outlines[0].max(0) - outlines[0].min(0)) == pytest.approx(1.1, abs=0.1)  # a torso of 1 m
    assert 0 < outlines[..., 1].min() < 0.3  # starts just above the ground
    assert outlines[4].mean(0)[0] < outlines[7].mean(0)[0]  # the back foot is behind the front one
    assert all(axes.viewLim.contains(x, z) for x, z in outlines.reshape(-1, 2))
    cheetah.episode_steps = 2
    envs.save_gif([Agent(6, 3, Config(hidden_dim=8))] * 2, cheetah, tmp_path / "a.gif", seed=0)
    assert os.listdir(tmp_path) == ["a.gif"]


# -------------------- anyone's own environment

OWN_TASK = """
import numpy as np
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv

class Task(ParallelEnv):
    # two agents see their own number and may push it by [0, 4]; the reward is how far it went
    metadata = {"name": "task"}
    possible_agents = ["left", "right"]
    limit = 7

    def __init__(self, action=Box(0, 4, (1,)), render_mode=None):
        self.action, self.render_mode = action, render_mode

    def observation_space(self, agent):
        return Box(-9, 99, (1, 2))

    def action_space(self, agent):
        return self.action

    def reset(self, seed=None, options=None):
        self.agents, self.steps = list(self.possible_agents), 0
        self.x = np.random.default_rng(seed).uniform(-1, 1, 2)
        return self.see(), {a: {} for a in self.agents}

    def see(self):
        return {a: np.array([[x, self.steps]], np.float32) for a, x in zip(self.agents, self.x)}

    def step(self, actions):
        pushes = np.array([actions[a][0] for a in self.agents])
        assert ((pushes >= 0) & (pushes <= 4)).all()
        self.x, self.steps = self.x + pushes, self.steps + 1
        done = bool(self.x[0] > 10)  # true end, sooner or later
        flags = [dict.fromkeys(self.agents, f) for f in (done, self.steps >= self.limit)]
        return self.see(), dict(zip(self.agents, pushes)), *flags, {a: {} for a in self.agents}

    def render(self):
        return np.full((20, 20, 3), 20 * self.steps, np.uint8)

def make(): return Task()
def drawn(): return Task(render_mode="rgb_array")
def still(): return Task(Box(0, 0, (1,)))
def ours():
    import data, envs
    return envs.ParticleParallelEnv("world", data.Behaviour("world").env.prey)
def act(obs):
    obs -= 5
    return np.tanh(obs[:, :1])
def wide(obs): return np.zeros((2, 3))
def none(obs): return None
def nan(obs): return np.full((2, 1), np.nan)
def large(obs): return np.full((2, 1), 3)

class Odd(Task):  # what it returns is changed by `change` at step `when`, 0 for reset
    def __init__(self, change, when=0, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.change, self.when = change, when
    def reset(self, seed=None, options=None):
        result = super().reset(seed, options)
        return result if self.when else self.change(*result)
    def step(self, actions):
        result = super().step(actions)
        return self.change(*result) if self.steps == self.when else result

class Own(Task):  # whose attributes are given
    def __init__(self, **attributes):
        super().__init__(attributes.pop("action", Box(0, 4, (1,))), "rgb_array")
        for name, value in attributes.items():
            setattr(self, name, value)

def fail(*_): raise RuntimeError("no licence\\nfor this")
def boxes(**of): return of.__getitem__
"""


@pytest.fixture
def own_task(tmp_path, monkeypatch):
    """A folder with someone's own environment in task.py, to work in."""
    (tmp_path / "task.py").write_text(OWN_TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "task", raising=False)


def test_a_pettingzoo_environment_steps_as_it_does_by_itself(own_task, device):
    """A world seen through PettingZoo equals the world itself."""
    task, world = envs.make_env("task:ours", device=device), envs.make_env("world", data.Behaviour("world").env.prey)
    seed = torch.randint(2**31 - 1, (1,), generator=generator(4)).item()
    assert torch.equal(task.reset(1, generator(4)).cpu(), world.reset(1, generator(seed)))
    for action in uniform(25, 1, 3, 2) * 2 - 1:
        assert not task.over
        obs, rewards, terminals = (x.cpu() for x in task.step(action.to(device)))
        own = world.step(action)
        assert torch.equal(obs, own[0]) and torch.equal(rewards, own[1]) and not terminals.any()
    assert task.over


def test_one_environment_plays_all_episodes_and_is_closed(own_task, monkeypatch):
    made, closed, module = [], [], sys.modules[envs.import_function("task:make").__module__]
    monkeypatch.setattr(module.Task, "close", lambda self: closed.append(self))
    monkeypatch.setattr(module, "make", lambda: made.append(module.Task()) or made[-1])
    task = envs.make_env("task:make")
    assert (task.num_agents, task.obs_dim, task.action_dim) == (2, 2, 1)
    steps = list(envs.rollout(lambda obs: (obs[:, :, :1] > 4).float(), task, 1, generator()))
    assert len(steps) == 5 or len(steps) == 4  # from [-1, 1] by 2, and by 4 beyond 4
    assert torch.equal(sum(step.terminals for step in steps), torch.ones(1, 2))
    returns = envs.returns_of(lambda obs: torch.zeros(1, 2, 1), task, 20, generator())
    assert len(returns) == 20 and returns.min() >= 9 and returns.max() <= 14 and not closed
    del task
    assert closed == made and len(made) == 1


def refused(capsys, main, *options: object) -> str:
    """The line with which a command that is refused ends."""
    try:
        code = main([str(option) for option in options])
    except SystemExit as stop:
        code = stop.code
    *_, last = capsys.readouterr().err.splitlines()
    assert code == 2 and last.startswith(("om2p.py: ", "data.py: ")), last  # else it is the last of several lines
    return last


BOX = "Box(0, 4, (1,))"
PLACE = f"failed (task.py, line {1 + OWN_TASK[: OWN_TASK.index('def fail(')].count(chr(10))}: RuntimeError: no licence)"
SPACES = {  # what an environment declares: the line that refuses it, "" if it works
    "fail()": f"making task:case {PLACE}",
    "None": "makes a NoneType, which is no PettingZoo parallel environment",
    "type('Aec', (), {'possible_agents': [], 'agent_iter': 1})()": "aec_to_parallel",
    "Own(possible_agents=[])": "which is no PettingZoo parallel environment",
    "Own(action_space=fail)": PLACE,
    "Task(Discrete(3))": "the action space of left is Discrete(3), not a gymnasium.spaces.Box",
    "Task(Box(0, 4, (1,), np.int32))": "not of floating-point numbers",
    "Task(Box(-np.inf, 0, (1,)))": "with bounds of at most 1e+06",
    "Task(Box(0, np.inf, (1,)))": "with bounds of at most 1e+06",
    f"Own(action_space=boxes(left={BOX}, right=Box(0, 3, (1,))))": "pad_action_space_v0",
    f"Own(action_space=boxes(left={BOX}, right=Box(0, 4, (2,))))": "(2,), float32)); supersuit.pad_action_space_v0",
    "Own(observation_space=boxes(left=Box(-9, 99, (1, 2)), right=Box(-9, 99, (3,))))": "supersuit.pad_observations_v0",
    **dict.fromkeys(("Task(Box(0, 4, (1,), np.float64))", "still()"), ""),
    "Own(possible_agents=['left'], limit=1)": "",
    "Own(observation_space=lambda a: Box(-np.inf, np.inf, (1, 2), np.float64))": "",
}
ODD = {  # what `change` of Odd makes of (observations, infos) at reset, of the five dictionaries at step 2
    0: {
        "fail": f"task:case: reset {PLACE}",
        "lambda o, i: o": "reset: observation of left: taking it from the dictionary, as numbers, failed",
        "lambda o, i: ({'left': o['left']}, i)": "from the dictionary, as numbers, failed (KeyError: 'right')",
        "lambda o, i: (o | {'right': o['right'][0]}, i)": "observation of right has shape (2,), not (1, 2)",
        "lambda o, i: (o | {'left': o['left'] * np.nan}, i)": "observation of left holds NaN or infinite numbers",
        "lambda o, i: (o | {'left': o['left'].tolist()}, i)": "",
        "lambda o, i: (o | {'left': np.float64(o['left'])}, None)": "",
        "lambda o, i: (o | {'other': None}, i)": "",
    },
    2: {
        "fail": f"task:case: step 2 {PLACE}",
        "lambda o, r, e, l, i: (o, r, e, i)": "step 2: taking what it returned for (observations, rewards, ",
        "lambda o, r, e, l, i: (o, 1.0, e, l, i)": "step 2: reward of left: taking it from the dictionary, ",
        "lambda o, r, e, l, i: (o, r | {'right': np.nan}, e, l, i)": "step 2: reward of right holds NaN",
        "lambda o, r, e, l, i: (o, r, e | {'left': True}, l, i)": "over for left but not for right; supersuit.black",
        "lambda o, r, e, l, i: (o, r, {'left': False}, l, i)": "over for right but not for left; supersuit.black",
        "lambda o, r, e, l, i: (o, {a: True for a in r}, e, l, i)": "",
        "lambda o, r, e, l, i: (o, {a: np.float64(1) for a in r}, e, l, i)": "",
        "lambda o, r, e, l, i: (o, r, {a: np.bool_(1) for a in r}, l, None)": "",
        "lambda o, r, e, l, i: (o, r, {a: 1 for a in r}, {a: 1 for a in r}, i)": "",
    },
}
CASES = SPACES | {f"Odd({change}, {k})": line for k, cases in ODD.items() for change, line in cases.items()}
CASES["Own(limit=1e9, action=Box(0, 0, (1,)))"] = "step 1,000: the episode does not end: give it a time limit"


@pytest.mark.parametrize("code", CASES)
def test_what_an_environment_returns_works_or_is_refused_in_one_line(own_task, monkeypatch, capsys, code):
    monkeypatch.setattr(envs, "LONGEST_EPISODE", 1000)
    Path("task.py").write_text(f"{OWN_TASK}\ndef case(): return {code}\n")
    own = ["collect", "--env", "task:case", "--transitions", "10", "--out", "own.npz"]
    if CASES[code]:
        assert CASES[code] in refused(capsys, data.main, *own) and not Path("own.npz").exists()
    else:
        assert data.main(own) == 0 and len(data.Dataset.load("own.npz", "task:case")) == 10


NAMES = {  # what --env names: the line that refuses it
    "task:missing": "importing task:missing failed (AttributeError",
    "no_such_module:make": "importing no_such_module:make failed (ModuleNotFoundError",
    "syntax:make": "syntax.py, line 2",
    "raising:make": "importing raising:make failed (raising.py, line 3: ValueError: bad)",
    "leaving:make": "importing leaving:make failed (leaving.py, line 1: SystemExit: 3)",
    "envs:make": "envs.py is a file of this program; give yours another name",
    "task:": "choose from",
    "chess": "choose from",
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_environments_that_cannot_be_made(own_task, capsys, name):
    Path("syntax.py").write_text("x = 1\ndef make(:\n")
    Path("raising.py").write_text("\n\nraise ValueError('bad')\n")
    Path("leaving.py").write_text("raise SystemExit(3)\n")
    assert NAMES[name] in refused(capsys, data.main, "collect", "--env", name, "--out", "own.npz")


PICTURES = {  # what render does: the note in place of a GIF, "" if there is one
    "fail": PLACE,
    **dict.fromkeys(("lambda: None", "lambda: np.zeros((3, 5, 5))"), "render_mode='rgb_array' gives"),
    "lambda: np.zeros((4, 4, 3), np.uint8)": "",
}


@pytest.mark.parametrize("render", PICTURES)
def test_a_gif_is_drawn_if_there_are_pictures(own_task, capsys, render):
    Path("task.py").write_text(f"{OWN_TASK}\ndef case(): return Own(render={render}, render_mode=None)\n")
    data.collect("task:case", transitions=20).save("own.npz")
    assert om2p.main([*tiny("own.npz", "run"), "--env", "task:case", "--steps", "2"]) == 0
    out = capsys.readouterr().out
    assert PICTURES[render] in out and "normalised score  not known" in out
    assert Path("run/rollout.gif").exists() == (not PICTURES[render])


def test_training_on_ones_own_environment(own_task, capsys):
    command = ["collect", "--env", "task:drawn", "--policy", "task:act", "--transitions", "300", "--out", "own.npz"]
    assert data.main(command) == 0
    d = data.Dataset.load("own.npz", "task:drawn")
    assert len(d) == 300 and d.meta["episode_steps"] <= 7 and d.meta["quality"] == "custom"
    low, mean, high = (d.meta[f"{whose}_return"] for whose in ("random", "mean", "expert"))
    assert abs(high - mean) < abs(high - low) / 4, (low, mean, high)
    same = (d.next_observations[:-1] == d.observations[1:]).flatten(1).all(1)
    assert (same <= (d.terminals[:-1, 0] == 0)).all() and same.float().mean() > 0.6
    small = ["--hidden-dim", "16", "--steps", "3", "--final-episodes", "5"]
    assert om2p.main(["--env", "task:drawn", "--data", "own.npz", *small]) == 0
    assert Path("runs/task.drawn-custom-seed0/rollout.gif").exists()
    other = f"{OWN_TASK}\ndef drawn(): return Own(possible_agents=['left', 'right', 'middle'])"
    Path("task.py").write_text(other)  # the same name, another task
    del sys.modules["task"]
    for options in (["--env", "task:drawn", "--data", "own.npz"], ["--evaluate", "runs/task.drawn-custom-seed0"]):
        assert "(2, 2, 1), task:drawn has (3, 2, 1)" in refused(capsys, om2p.main, *options)


def test_mistakes_around_ones_own_environment_end_in_one_line(own_task, capsys):
    own = ["collect", "--env", "task:make", "--transitions", "50", "--out", "own.npz"]
    os.mkdir("folder.npz")
    for line, options in {
        "(2, 3)": [*own, "--policy", "task:wide"],
        "playing task:none failed (TypeError": [*own, "--policy", "task:none"],
        "gives actions up to nan": [*own, "--policy", "task:nan"],
        "gives actions up to 3": [*own, "--policy", "task:large"],
        "playing task:fail failed (task.py, line": [*own, "--policy", "task:fail"],
        "nothing to play": ["collect", "--env", "none"],
        "leave it out": ["collect", "--env", "tag", "--policy", "task:act"],
        "own: a data file is named .npz": [*own[:-1], "own"],
        "folder.npz: a data file is named .npz": [*own[:-1], "folder.npz"],
    }.items():
        assert line in refused(capsys, data.main, *options)
    assert "data.py collect --env task:make" in refused(capsys, om2p.main, "--env", "task:make", "--data", "own.npz")


def test_where_all_returns_are_equal_there_is_no_scale(own_task, capsys):
    own = ["collect", "--env", "task:still", "--policy", "task:act", "--transitions", "300", "--out", "own.npz"]
    assert data.main(own) == 0 and data.main(["info", "own.npz"]) == 0
    assert "expert_return  None" in capsys.readouterr().out


# -------------------- data


@pytest.fixture(scope="session")
def expert(tmp_path_factory) -> Path:
    """A small data file, made as a user makes one."""
    path = tmp_path_factory.mktemp("data") / "expert.npz"
    command = ["collect", "--env", "world", "--quality", "expert", "--transitions", "25000", "--out", str(path)]
    assert data.main(command) == 0
    return path


@pytest.fixture(scope="session")
def few(tmp_path_factory) -> Path:
    """Data of ten episodes."""
    path = tmp_path_factory.mktemp("few") / "few.npz"
    data.collect("world", "expert", 250).save(path)
    return path


def test_collected_data_is_what_it_says(expert):
    d = data.Dataset.load(expert, "world")
    assert len(d) == 25_000 and d.meta["quality"] == "expert" and d.meta["noise"] == 0.1
    returns = d.rewards.mean(1).view(-1, 25).sum(1)
    assert d.meta["mean_return"] == pytest.approx(returns.mean().item(), rel=1e-5)
    assert d.terminals.sum() == 0
    # within an episode, each next observation is the following observation
    obs, next_obs = d.observations.view(-1, 25, 3, 24), d.next_observations.view(-1, 25, 3, 24)
    assert torch.equal(next_obs[:, :-1], obs[:, 1:])


def test_data_replays_in_the_environment(expert):
    """Stepping the world from a recorded state with recorded actions gives the recorded rewards: prey included."""
    d = data.Dataset.load(expert)
    world = envs.ParticleWorld("world", d.prey)
    obs, own = d.observations[:2000], d.observations[:2000, :1, 2:4]
    landmarks, prey = own + obs[:, 0, 4:14].view(-1, 5, 2), own + obs[:, :1, 18:20]
    velocity = torch.cat([obs[:, :, :2], obs[:, :1, 20:22]], 1)
    world.set_state(torch.cat([obs[:, :, 2:4], prey, landmarks], 1), velocity)
    next_obs, rewards, _ = world.step(d.actions[:2000])
    agree = (next_obs - d.next_observations[:2000]).abs().amax((1, 2)) < 1e-3  # stiff contacts amplify rounding
    assert agree.float().mean() > 0.99
    assert torch.allclose(rewards[agree], d.rewards[:2000][agree], atol=1e-3)


def test_same_seed_same_bytes(tmp_path):
    paths = [tmp_path / f"{name}.npz" for name in "abc"]
    for path, seed in zip(paths, (3, 3, 4)):
        data.make("world", "medium-expert", path, transitions=500, seed=seed)
    a, b, c = (path.read_bytes() for path in paths)
    assert a == b and a != c


def test_cheetah_data_is_what_it_says():
    d = data.collect("halfcheetah", "medium-expert", 2000)
    assert d.observations.shape == (2000, 2, 6) and d.actions.shape == (2000, 2, 3) and d.prey is None
    assert torch.equal(d.rewards[:, 0], d.rewards[:, 1]) and not d.terminals.any()
    follows = (d.next_observations[:-1] == d.observations[1:]).flatten(1).all(1)
    assert (~follows).nonzero().flatten().tolist() == [999, 1997]  # the last two are the expert's


PUBLISHED = {  # mean returns of the public data: random, medium, expert
    "spread": (159.8, 259.9, 516.8),
    "tag": (-4.1, 88.7, 185.6),
    "world": (-6.8, 43.3, 79.5),
}


@pytest.mark.parametrize("name", [*PUBLISHED, "halfcheetah"])
def test_shipped_policies_reach_the_recorded_and_published_returns(name):
    """HalfCheetah's published returns are of another MuJoCo."""
    behaviour, qualities = data.Behaviour(name), ("random", "medium", "expert")
    recorded = np.array([behaviour.meta[f"{quality}_return"] for quality in qualities])
    acts = [data.random_actions(behaviour.env, 1), behaviour.policy("medium"), behaviour.policy("expert")]
    episodes = 40 if name == "halfcheetah" else 2000
    measured = np.array([envs.returns_of(act, behaviour.env, episodes, generator(7)).mean() for act in acts])
    assert np.abs(measured - recorded).max() < (0.12 if name == "halfcheetah" else 0.04) * np.ptp(recorded)
    assert np.abs(measured - PUBLISHED.get(name, measured)).max() < 0.1 * np.ptp(recorded)


@pytest.mark.parametrize("name", WORLDS)
def test_medium_replay_goes_from_random_to_medium(name):
    """As long as the training was; the returns of its episodes rise from random to almost medium."""
    made, meta = data.collect(name, "medium-replay"), data.Behaviour(name).meta
    assert len(made) == meta["medium_steps"]
    returns, begin = made.rewards.mean(1).view(-1, 25).sum(1), meta["random_steps"]
    span, last = meta["medium_return"] - meta["random_return"], returns[-len(returns) // data.REPLAY :].mean()
    assert abs(returns[: begin // 25].mean() - meta["random_return"]) < 0.25 * span
    assert meta["random_return"] + 0.5 * span < last < meta["medium_return"] + 0.25 * span


def at(place: tuple[int, ...], value: float) -> Callable[[np.ndarray], np.ndarray]:
    """A function that puts one number into an array."""
    return lambda x: np.put(x, np.ravel_multi_index(place, x.shape), value) or x


SPOILED = {  # what each array becomes: something else, a function of what it was, or nothing
    "has no array actions": {"actions": None},
    "names no quality": {"meta": None},
    "rewards is of shape": {"rewards": lambda x: x[:-1]},
    "rewards: nan in row 3, agent 1, is NaN": {"rewards": at((3, 1), np.nan)},
    "actions: 1.5 in row 7, agent 2, is not in [-1, 1]": {"actions": at((7, 2, 1), 1.5)},
    "observations (0, 3, 24)": {k: (lambda x: x[:0]) for k in data.ARRAYS},
    "terminals: 0.5 in row 9, agent 0, is neither 0 nor 1": {"terminals": at((9, 0), 0.5)},
    "meta is missing, damaged or": {"meta": np.array("[]")},
    "holds data of tag": {"meta": lambda old: np.array(str(old).replace('"world"', '"tag"'))},
}


@pytest.mark.parametrize("message", SPOILED)
def test_spoiled_data_is_refused_in_one_line(message, few, tmp_path, capsys):
    arrays = data.read_npz(few)
    for name, change in SPOILED[message].items():
        arrays[name] = change(arrays[name]) if callable(change) else change
    np.savez(tmp_path / "spoiled.npz", **{name: x for name, x in arrays.items() if x is not None})
    error = refused(capsys, om2p.main, "--data", tmp_path / "spoiled.npz")
    assert message in error and "spoiled.npz" in error and os.listdir(tmp_path) == ["spoiled.npz"]


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_files_of_another_kind_are_refused(few, tmp_path, capsys):
    whole, evil = few.read_bytes(), np.array([Evil(tmp_path / "unpickled")])
    for name, content in (("empty", b""), ("short", whole[: len(whole) // 2]), ("text", b"hello")):
        (tmp_path / f"{name}.npz").write_bytes(content)
    np.savez(tmp_path / "evil.npz", **{name: evil for name in (*data.ARRAYS, "meta")})
    (tmp_path / "array.npz").write_bytes(evil.dumps())
    before = sorted(os.listdir(tmp_path))
    for name in before:
        assert name in refused(capsys, om2p.main, "--data", tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == before


# -------------------- data made by others


def write_folder(folder: Path, d: data.Dataset) -> Path:
    """A folder as OMAR's data sets are laid out: five arrays an agent, rewards and dones in columns, the prey last."""
    folder.mkdir(parents=True)
    for i in range(d.observations.shape[1]):
        arrays = {"obs": d.observations, "acs": d.actions, "next_obs": d.next_observations, "rews": d.rewards}
        for stem, x in arrays.items():
            np.save(folder / f"{stem}_{i}.npy", x[:, i].double().numpy())
        np.save(folder / f"dones_{i}.npy", np.arange(len(d)) % 25 == 24)
    for stem in (*arrays, "dones"):
        np.save(folder / f"{stem}_{i + 1}.npy", np.full((len(d), 22), np.nan))
    return folder


def write_prey(path: Path, obs_dim: int = 22) -> nn.Sequential:
    """A checkpoint as OMAR's pretrained_adv_model.pt, nested and with optimizers beside it; and its network."""
    torch.manual_seed(0)
    layers = [nn.Linear(i, o) for i, o in ((obs_dim, 64), (64, 64), (64, 2))]
    network = nn.Sequential(nn.BatchNorm1d(obs_dim), layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.Tanh())
    for x in network[0].state_dict().values():
        x.copy_(torch.rand(x.shape) + 0.5)
    names = {"0": "in_fn", "1": "fc1", "3": "fc2", "5": "fc3"}
    policy = {names[key[0]] + key[1:]: x for key, x in network.state_dict().items()}
    params = [{"policy": {}}, {"policy": policy, "policy_optimizer": {"state": {}, "param_groups": [{"lr": 0.01}]}}]
    torch.save({"init_dict": {"gamma": 0.95}, "agent_params": params}, path)
    return network.eval()


def test_folders_in_omars_layout(few, tmp_path, capsys, no_gif):
    """Quality and prey are those of the folder's place, and the prey plays as its network did."""
    d = data.Dataset.load(few)
    folder = write_folder(tmp_path / "simple_world" / "medium_replay" / "seed_0_data", d)
    loaded = data.load_or_make(folder, "world")
    assert "do not compare" in capsys.readouterr().out and torch.equal(loaded.prey[0][0], d.prey[0][0])
    for name in data.ARRAYS:
        assert torch.equal(getattr(loaded, name), getattr(d, name)), name  # dones mark time limits, not ends
    meta = d.meta | {"quality": "medium-replay", "seed": None, "noise": None}
    assert loaded.meta == meta | {"mean_return": pytest.approx(d.meta["mean_return"])}
    network = write_prey(tmp_path / "simple_world" / "pretrained_adv_model.pt")
    out = tmp_path / "converted.npz"
    assert data.main(["convert", str(folder), "--env", "world", "--out", str(out), "--quality", "medium"]) == 0
    assert "do not compare" not in capsys.readouterr().out
    converted = data.Dataset.load(out, "world")
    assert converted.meta["quality"] == "medium" and torch.equal(converted.next_observations, d.next_observations)
    world = envs.ParticleWorld("world", converted.prey)
    world.reset(50, generator())
    assert torch.allclose(world.prey_action()[:, 0], network(world.observations()[1][:, 0]), atol=1e-5)
    assert om2p.main(tiny(folder, tmp_path / "run", "cpu", "--steps", 2)) == 0
    np.savez(tmp_path / "plain.npz", **{name: x.numpy() for name, x in d.arrays().items()})
    convert = ["convert", str(tmp_path / "plain.npz"), "--env", "world", "--out", str(out)]
    assert "names no quality" in refused(capsys, data.main, *convert)
    assert data.main([*convert, "--quality", "medium"]) == 0
    plain = data.Dataset.load(out)
    assert plain.meta["quality"] == "medium" and torch.equal(plain.actions, d.actions)


def test_bad_folders_and_preys_are_refused_in_one_line(few, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    d, evil = data.Dataset.load(few), Evil(tmp_path / "unpickled")
    convert = ["convert", write_folder(tmp_path / "good", d), "--env", "world", "--out", "x.npz"]
    write_prey(tmp_path / "tag.pt", obs_dim=14)
    torch.save({"agent_params": [{"policy": evil}]}, "evil.pt")
    Path("text.pt").write_text("hello")
    for name in ("evil", "text", "tag", "missing"):
        options = [*convert, "--quality", "expert", "--prey", f"{name}.pt"]
        assert f"{name}.pt" in refused(capsys, data.main, *options)
    spoils = {
        "acs_1.npy is missing, ": lambda f: (f / "acs_1.npy").unlink(),
        "rews is missing, damaged or not what its name says: ValueError: all input arrays": lambda f: np.save(
            f / "rews_2.npy", d.rewards[:-1, 2].numpy()
        ),
        "says: ValueError: all input arrays": lambda f: np.save(f / "obs_0.npy", d.observations[:, 0, :16].numpy()),
        "obs_1.npy is missing, damaged": lambda f: np.save(f / "obs_1.npy", np.array([evil] * 2)),
        "acs_2.npy is missing, damaged": lambda f: (f / "acs_2.npy").write_bytes(b""),
        "actions: 3 in row 0, agent 0,": lambda f: np.save(f / "acs_0.npy", np.full((len(d), 2), 3.0)),
        "next_observations: nan in row 0, agent 1,": lambda f: np.save(
            f / "next_obs_1.npy", np.full((len(d), 24), np.nan)
        ),
    }
    for k, (message, spoil_it) in enumerate(spoils.items()):
        spoil_it(Path(shutil.copytree("good", f"expert/{k}")))
        assert message in refused(capsys, om2p.main, "--data", f"expert/{k}")
    assert not Path("unpickled").exists() and not Path("x.npz").exists()


PLAIN = {  # what others' files hold, as functions of arrays that are as ours: the line that refuses it, "" if it works
    "float64": (lambda k, x: (k, x.astype(np.float64)), ""),
    "float16 and whole numbers": (lambda k, x: (k, x.astype(np.int8 if k == "rewards" else np.float16)), ""),
    "big-endian": (lambda k, x: (k, x.astype(">f8")), ""),
    "Fortran order": (lambda k, x: (k, np.asfortranarray(x)), ""),
    "bool": (lambda k, x: (k, x.astype(bool) if k == "terminals" else x), ""),
    "OMAR's names": (lambda k, x: (data.SYNONYMS[k][0], x), ""),
    "states": (lambda k, x: (k.replace("next_observations", "next_states"), x), ""),
    "text": (lambda k, x: (k, np.full(x.shape, "good") if k == "rewards" else x), "could not convert string"),
    "two agents": (lambda k, x: (k, x[:, :1]), "(1, 2, 1), task:make has (2, 2, 1)"),
    "flat": (lambda k, x: (k, x[:, 0] if k == "observations" else x), "(agents, observations, actions) (2, 1)"),
    "beyond the box": (
        lambda k, x: (k, x + 3 if k == "actions" else x),
        "actions: 7 in row 0, agent 0, is outside the box",
    ),
    "beyond by rounding": (lambda k, x: (k, np.where(x == 4, 4.00001, x) if k == "actions" else x), ""),
}


@pytest.mark.parametrize("what", PLAIN)
def test_plain_arrays_are_taken_or_refused_in_one_line(own_task, capsys, what):
    """Actions are in units of the box, [0, 4]."""
    change, message = PLAIN[what]
    d = data.collect("task:make", transitions=50)
    d.actions[0, 0], d.rewards = 1, d.rewards.round()
    arrays = {name: x.numpy() for name, x in d.arrays().items()}
    arrays["actions"] = arrays["actions"] * 2 + 2
    np.savez("plain.npz", infos=np.array([{}]), **dict(change(k, x) for k, x in arrays.items()))
    if message:
        assert message in refused(capsys, om2p.main, *tiny("plain.npz", "run"), "--env", "task:make")
        assert not Path("run").exists()
        return
    assert data.main(["convert", "plain.npz", "--env", "task:make", "--out", "whole.npz"]) == 0
    whole = data.Dataset.load("whole.npz", "task:other")  # data is of sizes, not of a function's name
    for name, x in whole.arrays().items():
        assert torch.allclose(x, getattr(d, name), atol=2e-2 if "float16" in what else 1e-4), name
    assert whole.actions.abs().max() <= 1


def test_data_alone_is_enough_to_train_resume_and_export(few, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_folder(Path("mine"), data.Dataset.load(few))
    for path in Path("mine").glob("*_3.npy"):  # of the prey, which sees less than the team
        path.unlink()
    assert om2p.main(tiny("mine", "whole", "cpu", "--env", "none")) == 0
    assert sorted(os.listdir("whole")) == ["checkpoint.pt", "config.json", "metrics.csv"]
    assert om2p.main(tiny("mine", "parts", "cpu", "--env", "none", "--steps", 14)) == 0
    monkeypatch.chdir("parts")  # the data is found from another folder
    assert om2p.main(["--resume", "../parts", "--steps", "30"]) == 0
    monkeypatch.chdir(tmp_path)
    assert ending(Path("whole")) == ending(Path("parts"))
    assert om2p.main(["--evaluate", "parts", "--export", "policy.pt2"]) == 0
    assert "without an environment there is no score" in capsys.readouterr().out
    actions = torch.export.load("policy.pt2").module()(torch.zeros(5, 3, 24), normal(5, 3, 8, 2))
    assert actions.shape == (5, 3, 2)
    assert om2p.main(["--resume", "parts", "--steps", "31", "--data", str(shutil.copytree("mine", "moved"))]) == 0
    np.save("moved/rews_0.npy", np.zeros(250))
    assert "began with other data" in refused(capsys, om2p.main, "--resume", "parts", "--steps", "40")
    assert "nosuch.npz does not exist" in refused(capsys, om2p.main, "--env", "none", "--data", "nosuch.npz")


def test_folders_of_the_field(tmp_path, monkeypatch, capsys):
    """Two of them are mixed, a parent says which one is meant, HalfCheetah's have names of their own."""
    monkeypatch.chdir(tmp_path)
    for quality in ("medium", "expert", "random"):
        d = data.collect("tag", quality, 250)
        write_folder(Path(f"simple_tag/{quality}/seed_0_data"), d)
    convert = ["convert", "simple_tag/expert/seed_0_data", "simple_tag/medium/seed_0_data", "--env", "tag"]
    assert data.main([*convert, "--out", "mixed.npz"]) == 0
    mixed, medium = (data.Dataset.load("mixed.npz", "tag"), data.Dataset.load("simple_tag/medium/seed_0_data", "tag"))
    assert mixed.meta["quality"] == "medium-expert" and len(mixed) == 250 + 250 // 9
    assert torch.equal(mixed.observations[:250], medium.observations)
    assert "taken for random data" not in capsys.readouterr().out
    assert data.Dataset.load("simple_tag/random/seed_0_data", "tag").meta["quality"] == "random"
    assert "taken for random data of tag" in capsys.readouterr().out
    assert abs(d.meta["mean_return"] - d.meta["random_return"]) < 20 and d.meta["noise"] is None
    assert "not expert of tag, random of tag" in refused(
        capsys, data.main, *convert[:2], "simple_tag/random/seed_0_data", *convert[3:], "--out", "x.npz"
    )
    assert "name one of seed_0_data" in refused(capsys, om2p.main, "--env", "tag", "--data", "simple_tag/expert")
    folder = write_folder(Path("expert/cheetah"), data.collect("halfcheetah", "expert", 1000))
    for path in [*folder.glob("obs_*.npy"), *folder.glob("next_obs_*.npy")]:
        path.rename(folder / path.name.replace("obs", "states"))
    cheetah = data.Dataset.load(folder, "halfcheetah")
    assert cheetah.sizes == (2, 6, 3) and not cheetah.terminals.any() and "MuJoCo 2.0" in capsys.readouterr().out


# -------------------- runs

FILES = ["checkpoint.pt", "config.json", "curve.png", "metrics.csv", "rollout.gif"]
TINY = ["--hidden-dim", "16", "--hidden-layers", "2", "--eval-episodes", "2", "--final-episodes", "3"]
TINY += ["--eval-every", "7", "--save-every", "5", "--batch-size", "32"]


def tiny(file: Path | str, out: Path | str, device: str = "cpu", *options: object) -> list[str]:
    """The command line of a small run, of 30 steps if `options` do not say otherwise."""
    return [*TINY, "--data", str(file), "--out", str(out), "--device", device, "--steps", "30", *map(str, options)]


def metrics(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, without the seconds."""
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert all(float(row.pop("training_seconds")) > 0 for row in rows)
    return rows


def ending(folder: Path) -> list[object]:
    """All numbers that a run leaves but for its settings and seconds, to be compared bit for bit."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    del state["config"], state["seconds"]
    state["history"] = [{k: v for k, v in row.items() if k != "training_seconds"} for row in state["history"]]
    leaves = torch.utils._pytree.tree_leaves([state, metrics(folder)])
    return [x.tolist() if isinstance(x, Tensor) else x for x in leaves]


@pytest.fixture
def no_gif(monkeypatch):
    """Drawing takes longer than so small a training: only an empty file is left."""
    for module in (envs, data):
        monkeypatch.setattr(module, "save_gif", lambda agents, env, path, seed: Path(path).touch())


@pytest.fixture(scope="session")
def whole_run(few, device, tmp_path_factory) -> Path:
    """An uninterrupted run of 30 steps."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert om2p.main(tiny(few, folder, device)) == 0
    return folder


@pytest.fixture
def copied_run(whole_run, tmp_path) -> Path:
    return Path(shutil.copytree(whole_run, tmp_path / "copy"))


def test_the_command_line_from_an_empty_folder(tmp_path, few):
    (tmp_path / "expert.npz").symlink_to(few)
    command = [sys.executable, str(ROOT / "om2p.py"), *TINY, "--steps", "14", "--device", "cpu"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=150)
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    folder = tmp_path / "runs" / "world-expert-seed0"
    assert sorted(os.listdir(folder)) == FILES
    rows = metrics(folder)
    assert [(row["step"], row["episodes"]) for row in rows] == [("7", "2"), ("14", "2"), ("14", "3")]
    assert all(math.isfinite(float(x)) for row in rows[:-1] for x in row.values())
    assert {"bc_loss", "du_dr", "critic_loss", "target_q", "q", "policy_loss", "return_std"} < rows[0].keys()
    mean, std = float(rows[-1]["return"]), float(rows[-1]["return_std"])
    assert f"{mean:.1f} +- {std:.1f}" in result.stdout and "normalised score" in result.stdout
    config = json.loads((folder / "config.json").read_text())
    assert config["hidden_dim"] == 16 and config["eta"] == 10.0 and config["data_meta"]["env"] == "world"
    assert torch.__version__.startswith(config["versions"]["torch"]) and config["versions"]["om2p"] == data.VERSION
    assert {"python", "numpy", "mujoco", "gymnasium", "pettingzoo"} < config["versions"].keys()
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_no_run_touches_another(few, whole_run, tmp_path, capsys, monkeypatch, no_gif):
    monkeypatch.chdir(tmp_path)
    options = [*TINY, "--data", few, "--steps", "2", "--device", "cpu"]
    for name in ("world-expert-seed0", "world-expert-seed0.2", "world-expert-seed0.3"):
        assert om2p.main([str(option) for option in options]) == 0
        assert Path("runs", name, "curve.png").exists()
    before = ending(whole_run)
    assert "name another --out" in refused(capsys, om2p.main, *options, "--out", whole_run)
    assert ending(whole_run) == before


CELLS = [("spread", "medium-replay"), ("tag", "medium"), ("world", "medium-expert"), ("halfcheetah", "expert")]


@pytest.mark.parametrize(("name", "quality"), CELLS)
def test_each_task_makes_the_data_it_lacks(name, quality, tmp_path, monkeypatch, capsys, no_gif):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "make", functools.partial(data.make, transitions=2000))  # else a million
    file = f"{name}-{quality}.npz"
    options = ["--hidden-dim", "16", "--steps", "2", "--final-episodes", "2"]
    assert om2p.main(["--env", name, "--data", file, *options]) == 0
    assert capsys.readouterr().out.startswith(f"making {file}: {quality} data of {name}")
    made = data.Dataset.load(file, name)
    assert len(made) == 2000 and made.meta["quality"] == quality
    config = json.loads(Path(f"runs/{name}-{quality}-seed0/config.json").read_text())
    assert om2p.RECOMMENDED[name].items() <= config.items()


def test_training_is_algorithm_1_whatever_is_evaluated_on_the_way(few, tmp_path, device, no_gif):
    """Every agent learns in a thread of its own; one after the other they learn the same, bit for bit."""
    small = {"steps": 20, "hidden_dim": 16, "hidden_layers": 2, "eval_every": 3, "save_every": 7, "final_episodes": 2}
    small["derivative"] = "exact"  # PyTorch takes it in one thread at a time only
    config = Config(data=str(few), out=str(tmp_path / "run"), device=device, seed=1, eval_episodes=2, **small)
    trained, dataset = om2p.train(config)[0], data.Dataset.load(few).to(device)
    torch.manual_seed(config.seed)
    in_turn = [Agent(24, 2, config, device, index=i) for i in range(3)]
    for _ in range(config.steps):
        for i, a in enumerate(in_turn):
            a.update(Batch(*dataset.sample(i, config.batch_size, a.generator)))
    loaded, state = om2p.load_agents(config.out)
    assert state["step"] == config.steps
    for a, b, c in zip(in_turn, trained, loaded):
        assert torch.equal(weights(a.policy), weights(b.policy)) and torch.equal(weights(a.critics), weights(b.critics))
        assert torch.equal(weights(a.policy).cpu(), weights(c.policy))


def test_om2p_beats_its_data(tmp_path, expert, device, no_gif):
    """25,000 expert transitions (79) and 500 steps are enough: seeds 0 to 3 end at 102 to 106, cloning at 78 to 82."""
    options = {"steps": 500, "hidden_dim": 64, "hidden_layers": 2, "final_episodes": 200, "eval_every": 500, "eta": 1.0}
    options |= {"data": str(expert), "out": str(tmp_path / "run"), "learning_rate": 3e-3, "rho": 0.02, "device": device}
    _, last = om2p.train(Config.of("world", "expert", **options))
    assert last["return"] > 1.15 * data.Dataset.load(expert).meta["mean_return"]


REFUSED = {
    "nosuch.npz": ["--data", "nosuch.npz"],
    "tag-expert.npz": ["--data", "tag-expert.npz"],
    "no/expert.npz": ["--data", "no/expert.npz"],
    "--gamma": ["--gamma", "nan"],
    "--preset": ["--preset", "best"],
    "--times sideways": ["--times", "sideways"],
    "--batch-size": ["--batch-size", "1000000000000"],
    "--delta-r": ["--delta-r", "0"],
    "--hidden-dim": ["--hidden-dim", "many"],
    "no checkpoint.pt": ["--evaluate", "nowhere"],
    "nothing to continue": ["--resume", "nowhere"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_settings_are_refused_in_one_line(message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, om2p.main, *REFUSED[message])
    assert os.listdir() == []


# -------------------- resuming and faults


def disturb(monkeypatch, owner, name: str, call: int, act) -> None:
    """Let `act` change what the `call`-th call of a function returns."""
    function, calls = getattr(owner, name), itertools.count(1)

    def disturbed(*args):
        number, result = next(calls), function(*args)
        return act(result) if number == call else result

    monkeypatch.setattr(owner, name, disturbed)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_a_run_with_all_its_files(signum, whole_run, few, tmp_path, device, capsys, monkeypatch, no_gif):
    """The signal comes in step 9, with three updates a step; the run ends within ten more."""
    disturb(monkeypatch, Agent, "update", 26, lambda info: signal.raise_signal(signum) or info)
    run = tmp_path / "run"
    assert om2p.main(tiny(few, run, device)) == 130
    out, err = capsys.readouterr()
    assert "normalised score" in out and "Traceback" not in err and sorted(os.listdir(run)) == FILES
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] < 20
    for _ in range(2):  # the second time nothing is left to do
        assert om2p.main(["--resume", str(run)]) == 0
        assert ending(run) == ending(whole_run)


def test_a_second_signal_ends_a_run_at_once(few, tmp_path, capsys, monkeypatch):
    both = (signal.SIGINT, signal.SIGTERM)
    disturb(monkeypatch, Agent, "update", 5, lambda info: [signal.raise_signal(signum) for signum in both] and info)
    assert om2p.main(tiny(few, tmp_path / "run")) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "om2p.py: interrupted"


KILLED = """
import os, sys, om2p
sync, calls = os.fsync, []
def fsync(file):
    calls.append(sync(file))
    if len(calls) == 4:
        os.kill(os.getpid(), 9)
os.fsync = fsync
om2p.main(sys.argv[1:])
"""


def test_a_killed_run_equals_an_uninterrupted_one(whole_run, few, tmp_path, device, no_gif):
    """Kill -9 meets the fourth file, the checkpoint of step 10: config.json, checkpoint and table come before."""
    run = tmp_path / "run"
    command = [sys.executable, "-c", KILLED, *tiny(few, run, device)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=150)
    assert result.returncode == -signal.SIGKILL
    assert om2p.main(["--resume", str(run)]) == 0
    assert ending(run) == ending(whole_run)


def test_resuming_takes_all_but_the_steps_from_the_folder(copied_run, capsys):
    before = ending(copied_run)
    assert "leave out --seed" in refused(capsys, om2p.main, "--resume", copied_run, "--seed", "1")
    assert "has made 30 already" in refused(capsys, om2p.main, "--resume", copied_run, "--steps", "20")
    with data.locked(copied_run):
        assert "in use by another process" in refused(capsys, om2p.main, "--resume", copied_run)
    assert ending(copied_run) == before


def change_checkpoint(run: Path, **changes) -> None:
    torch.save(torch.load(run / "checkpoint.pt", weights_only=True) | changes, run / "checkpoint.pt")


def test_a_run_is_scored_anywhere_but_goes_on_with_its_data_and_device_only(copied_run, device, capsys):
    """No CPU can continue the random streams of a GPU."""
    state, last = torch.load(copied_run / "checkpoint.pt", weights_only=True), metrics(copied_run)[-1]
    for changes in ({"meta": state["meta"] | {"mean_return": 0.5}}, {"device": "elsewhere"}):
        change_checkpoint(copied_run, **state | changes)
        assert "other data" in refused(capsys, om2p.main, "--resume", copied_run)
        assert om2p.main(["--evaluate", str(copied_run), "--episodes", "3"]) == 0
        out = capsys.readouterr().out  # on the CPU, with other random numbers than those of a GPU
        assert f"{float(last['return']):.1f} +- {float(last['return_std']):.1f}" in out or device == "cuda"


def test_a_damaged_checkpoint_is_refused_in_one_line(copied_run, tmp_path, capsys):
    path, touched = copied_run / "checkpoint.pt", tmp_path / "unpickled"
    good = path.read_bytes()
    for content in (b"", good[: len(good) // 2]):
        path.write_bytes(content)
        assert "checkpoint.pt" in refused(capsys, om2p.main, "--evaluate", copied_run)
    path.write_bytes(good)
    change_checkpoint(copied_run, config={"seed": 0})
    assert "another program or version" in refused(capsys, om2p.main, "--evaluate", copied_run)
    change_checkpoint(copied_run, step=Evil(touched))
    assert "checkpoint.pt" in refused(capsys, om2p.main, "--evaluate", copied_run) and not touched.exists()


def test_nan_in_a_loss_stops_the_run_and_keeps_the_last_checkpoint(few, tmp_path, device, capsys, monkeypatch):
    disturb(monkeypatch, Agent, "update", 26, lambda info: info | {"critic_loss": math.nan * info["critic_loss"]})
    error = refused(capsys, om2p.main, *tiny(few, tmp_path / "run", device))
    assert "step 10 critic_loss is no finite number" in error and "checkpoint of step 5 is kept" in error
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 5


def test_an_environment_that_fails_in_an_evaluation_costs_no_training(own_task, capsys, monkeypatch):
    data.collect("task:make", transitions=50).save("own.npz")
    whole, parts = ([*tiny("own.npz", run), "--env", "task:make"] for run in ("whole", "parts"))
    assert om2p.main(whole) == 0
    with monkeypatch.context() as patch:
        disturb(patch, sys.modules["task"].Task, "see", 40, lambda _: 1 / 0)
        error = refused(capsys, om2p.main, *parts)
        assert "failed (test_om2p.py, line" in error and "the checkpoint of step 20 is kept" in error
    assert om2p.main(["--resume", "parts"]) == 0
    assert ending(Path("parts")) == ending(Path("whole"))


def test_a_full_disk_leaves_what_was_there(few, copied_run, capsys):
    """A limit on the size of files does what a full disk does."""
    resource = pytest.importorskip("resource")
    d, files = data.Dataset.load(few), [copied_run.parent / "few.npz", copied_run / "checkpoint.pt"]
    files[0].write_text("earlier")
    before, limits = [file.read_bytes() for file in files], resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError):
            d.save(files[0])
        error = refused(capsys, om2p.main, "--resume", copied_run, "--steps", "40")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "is the disk full?" in error and [file.read_bytes() for file in files] == before
    assert sorted(os.listdir(copied_run)) == FILES and len(os.listdir(copied_run.parent)) == 2


def test_drawing_and_exporting_a_checkpoint(whole_run, tmp_path, capsys, no_gif):
    """The exported policy runs in a process that has nothing of this repository."""
    gif, program = tmp_path / "a.gif", tmp_path / "policy.pt2"
    command = ["--evaluate", whole_run, "--episodes", "3", "--gif", gif, "--export", program]
    assert om2p.main([str(option) for option in command]) == 0
    assert gif.exists()
    obs, noise = normal(5, 3, 24, seed=1), normal(5, 3, 8, 2, seed=2)
    torch.save((obs, noise), tmp_path / "inputs.pt")
    code = """import torch
inputs = torch.load("inputs.pt", weights_only=True)
torch.save(torch.export.load("policy.pt2").module()(*inputs), "actions.pt")"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    actions = torch.load(tmp_path / "actions.pt", weights_only=True)
    for i, one in enumerate(om2p.load_agents(str(whole_run))[0]):
        assert torch.allclose(actions[:, i], one.act(obs[:, i], noise[:, i]), atol=1e-6)
    for option, path in (("--export", "policy.onnx"), ("--export", "no/a.pt2"), ("--gif", "a.mp4")):
        assert "does not end in" in refused(capsys, om2p.main, "--evaluate", whole_run, option, path)
    for options in (["--seed", "5"], ["--candidates", "1"], ["--act-noise", "0"], []):  # each another score
        assert om2p.main(["--evaluate", str(whole_run), "--episodes", "3", *options]) == 0
    scores = [line for line in capsys.readouterr().out.splitlines() if line.lstrip().startswith("return  ")]
    assert len({*scores[-4:]}) == 4
    assert "leave out --eta" in refused(capsys, om2p.main, "--evaluate", whole_run, "--eta", "1")
