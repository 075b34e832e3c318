"""Tests of OM2P against independent truths: closed forms, SciPy, forward-mode derivatives, recorded trajectories."""

from __future__ import annotations

import base64
import csv
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import torch
from pettingzoo.test import parallel_api_test, parallel_seed_test
from torch import nn

import data
import envs
import om2p
from om2p import Agent, Batch, Config, MeanFlowPolicy

ROOT = Path(__file__).parent


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_batch(size: int = 64, obs_dim: int = 5, action_dim: int = 2, seed: int = 0) -> Batch:
    g = generator(seed)
    obs, next_obs = torch.randn(2, size, obs_dim, generator=g)
    action = torch.rand(size, action_dim, generator=g) * 2 - 1
    reward, terminal = torch.randn(size, 1, generator=g), (torch.rand(size, 1, generator=g) < 0.5).float()
    return Batch(obs, action, reward, next_obs, terminal)


def small_policy(seed: int = 0, dtype: torch.dtype = torch.float32) -> MeanFlowPolicy:
    torch.manual_seed(seed)
    return MeanFlowPolicy(5, 2, hidden_dim=64, hidden_layers=3).to(dtype)


def clone(policy: MeanFlowPolicy, steps: int, **options) -> MeanFlowPolicy:
    """Train by cloning alone on smooth data, so that the network's derivatives are those of a trained one."""
    optimizer, g = torch.optim.Adam(policy.parameters(), lr=1e-3), generator()
    for _ in range(steps):
        obs = torch.randn(256, 5, generator=g)
        action = torch.tanh(obs[:, :2] + 0.3 * torch.randn(256, 2, generator=g))
        r, t = om2p.sample_times(om2p.UNIFORM, 256, "ordered", 0.5, g)
        loss, _ = om2p.mean_flow_loss(policy, obs, action, torch.randn(256, 2, generator=g), r, t, **options)
        om2p.descend(optimizer, loss)
    return policy


def path_inputs(size: int = 256, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    g = generator(1)
    obs, action, noise = (torch.randn(size, n, generator=g).to(dtype) for n in (5, 2, 2))
    r, t = (torch.rand(size, 1, generator=g).to(dtype) for _ in range(2))
    a_r, v = om2p.path(action, noise, r)
    return obs, a_r, r, t, v


def relative_error(estimate: torch.Tensor, truth: torch.Tensor) -> float:
    return ((estimate - truth).norm() / truth.norm()).item()


# ---------------------------------------------------------------------------------------------- timesteps, Eq. 4

XIS = [(0, 0, 0, 0), (5, 5, 0, 0), (2, 0, 0, 0), (0, 0, 0.2, 7), (-0.9, 0, 0, 0), (0, -0.5, 0, 0), (-0.9, 1.5, 3, 0)]
XIS += [(0, 0, 50, 0), (0, 0, -50, 0), (2, -0.5, -8, 0), (-0.9, -0.5, 50, 0), (0, 0, 2000, 0), (3, 3, -200, 1)]


def cdf(xi, points: np.ndarray) -> np.ndarray:
    """The distribution function of Eq. 4 by quadrature in s = logit(t), where the integrand is smooth."""
    s = np.linspace(-400, 400, 400_001)
    log_t, log_1t = scipy.special.log_expit(s), scipy.special.log_expit(-s)
    log_density = (xi[0] + 1) * log_t + (xi[1] + 1) * log_1t + xi[2] * np.exp(log_t)
    area = scipy.integrate.cumulative_trapezoid(np.exp(log_density - log_density.max()), s, initial=0)
    return np.interp(scipy.special.logit(points), s, area / area[-1])


@pytest.mark.parametrize("xi", XIS)
def test_timesteps_follow_eq_4(xi):
    t = om2p.sample_timesteps(xi, 50_000, generator())
    assert t.shape == (50_000, 1) and t.dtype == torch.float32
    assert 0 <= t.min() and t.max() <= 1
    # float32 rounds what lies next to 1; compare there with a continuous law by undoing the rounding at random
    ulp = np.where(t.numpy() > 0.5, 2.0**-25, 0.0)
    x = t.double().numpy() + ulp * np.random.default_rng(0).uniform(-1, 1, t.shape)
    x = np.clip(x, 1e-300, 1 - 2.0**-53).ravel()
    assert scipy.stats.kstest(x, lambda p: cdf(xi, p)).pvalue > 1e-3


def test_timesteps_named_laws():
    t = om2p.sample_timesteps((5, 5, 0, 0), 50_000, generator()).double().numpy().ravel()
    assert scipy.stats.kstest(t, scipy.stats.beta(6, 6).cdf).pvalue > 1e-3
    t = om2p.sample_timesteps((2, 0, 0, 0), 50_000, generator()).double().numpy().ravel()
    assert scipy.stats.kstest(t, scipy.stats.beta(3, 1).cdf).pvalue > 1e-3


@pytest.mark.parametrize("xi", [(-1, 0, 0, 0), (0, -1, 0, 0), (math.nan, 0, 0, 0), (0, 0, math.inf, 0), (0, 0, 0)])
def test_impossible_xi_is_refused(xi):
    with pytest.raises(ValueError, match="--xi"):
        om2p.sample_timesteps(xi, 10)


def test_the_own_velocity():
    """Where r < t the target is w - (r - t) du/dr along w, w = u(a_r, r, r); where r = t it is v."""
    policy, batch, g = small_policy(), random_batch(), generator(3)
    noise = torch.randn(64, 2, generator=g)
    r, t = om2p.sample_times(om2p.UNIFORM, 64, "ordered", 0.5, g)
    a_r, v = om2p.path(batch.action, noise, r)
    w = policy(batch.obs, a_r, r, r)
    _, du_dr = torch.func.jvp(lambda a, s: policy(batch.obs, a, s, t), (a_r, r), (w, torch.ones_like(r)))
    target = torch.cat([v[:32], (w - (r - t) * du_dr)[32:]]).detach()
    truth = (policy(batch.obs, a_r, r, t) - target).square().sum(-1).mean()
    for derivative in ("exact", "finite_difference"):
        inputs = (policy, batch.obs, batch.action, noise, r, t, derivative)
        for known in (0, 32):
            loss, _ = om2p.mean_flow_loss(*inputs, velocity="own", equal_rows=known)
            assert loss.item() == pytest.approx(truth.item(), rel=1e-4)
        assert om2p.mean_flow_loss(*inputs)[0].item() != pytest.approx(truth.item(), rel=1e-2)
        same = om2p.mean_flow_loss(policy, batch.obs, batch.action, noise, t, t, derivative, velocity="own")[0]
        assert same.item() == om2p.mean_flow_loss(policy, batch.obs, batch.action, noise, t, t, derivative)[0].item()


def test_coupled_and_ordered_times():
    r, t = om2p.sample_times(om2p.UNIFORM, 10_000, "coupled", None, generator())
    assert torch.equal(r, 1 - t)
    r, t = om2p.sample_times(om2p.UNIFORM, 10_000, "ordered", 0.3, generator())
    assert (r <= t).all()
    assert (r == t).sum() == 3000
    with pytest.raises(ValueError, match="sideways"):
        om2p.sample_times(om2p.UNIFORM, 10, "sideways", None)


# --------------------------------------------------------------------------------------------- derivative, Eq. 5


def test_exact_derivative_equals_a_central_difference():
    policy, (obs, a_r, r, t, v) = small_policy(dtype=torch.float64), path_inputs(dtype=torch.float64)
    h = 1e-5
    with torch.no_grad():
        central = (policy(obs, a_r + h * v, r + h, t) - policy(obs, a_r - h * v, r - h, t)) / (2 * h)
    assert relative_error(om2p.exact_derivative(policy, obs, a_r, r, t, v), central) < 1e-8


def test_exact_derivative_equals_the_jacobian():
    policy, (obs, a_r, r, t, v) = small_policy(), path_inputs(8)
    for i in range(8):
        row = [x[i : i + 1] for x in (obs, a_r, r, t, v)]
        du_da, du_dr = torch.func.jacrev(lambda a, s, row=row: policy(row[0], a, s, row[3])[0], (0, 1))(row[1], row[2])
        expected = du_da[:, 0] @ row[4][0] + du_dr[:, 0, 0]
        assert torch.allclose(om2p.exact_derivative(policy, *row)[0], expected, atol=1e-5)


def test_differences_on_a_trained_network():
    policy, inputs = clone(small_policy(), 300), path_inputs()
    exact = om2p.exact_derivative(policy, *inputs)
    assert exact.requires_grad is False and exact.abs().mean() > 0.05
    assert relative_error(om2p.finite_difference(policy, *inputs, 1e-3), exact) < 0.01
    assert relative_error(om2p.finite_difference(policy, *inputs, 1e-12, dtype=torch.float64), exact) < 0.01
    with torch.no_grad():
        u = policy(*inputs[:4])
    assert torch.equal(om2p.finite_difference(policy, *inputs, 1e-3, u), om2p.finite_difference(policy, *inputs, 1e-3))


def test_table_4_step_vanishes_in_float32():
    assert om2p.finite_difference(small_policy(), *path_inputs(), 1e-12).abs().max() == 0


# ------------------------------------------------------------------------------------------------ mean flow, Eq. 2


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


def test_mean_flow_identity_holds_for_a_flow_with_a_closed_form():
    """Sign and direction of u_target: with du/dr along the true velocity, u_target is u itself (Eq. 2)."""
    flow, g = GaussianFlow().double(), generator()
    a_r = torch.randn(1000, 1, generator=g).double()
    r, t = (torch.rand(1000, 1, generator=g).double() * 0.98 + 0.01 for _ in range(2))
    v = flow.velocity(a_r, r)
    du_dr = om2p.exact_derivative(flow, a_r, a_r, r, t, v)
    assert torch.allclose(v - (r - t) * du_dr, flow(None, a_r, r, t), atol=1e-9)


def test_mean_flow_loss_is_least_at_the_true_mean_velocity():
    """The expected gradient of Eq. 2 vanishes at the true u: shifting u either way does not lower the loss."""
    flow, g, n = GaussianFlow(), generator(), 400_000
    noise, obs = torch.randn(n, 1, generator=g), torch.zeros(n, 1)
    action = flow.m + flow.s * torch.randn(n, 1, generator=g)
    r, t = om2p.sample_times(om2p.UNIFORM, n, "ordered", 0.5, g)
    a_r, v = om2p.path(action, noise, r)
    u = flow(obs, a_r, r, t)
    residual = u - (v - (r - t) * om2p.exact_derivative(flow, obs, a_r, r, t, v))
    for weight in (torch.ones_like(r), a_r, r, t, a_r * r, (t > r).float()):
        product = (weight * residual)[(r < 0.98).expand_as(residual)]
        assert abs(product.mean()) < 5 * product.std() / math.sqrt(len(product))


def test_the_own_velocity_leaves_no_chance_at_the_true_mean_velocity():
    """There Eq. 2 is zero for every row with r < t, where the sampled velocity leaves the variance of v."""
    flow, g, n = GaussianFlow().double(), generator(), 1000
    noise, action = torch.randn(n, 1, generator=g).double(), flow.m + flow.s * torch.randn(n, 1, generator=g).double()
    r, t = (x.double() for x in om2p.sample_times(om2p.UNIFORM, n, "ordered", 0.0, g))
    inputs = (flow, torch.zeros_like(r), action, noise, r, t, "exact")
    assert om2p.mean_flow_loss(*inputs, velocity="own")[0] < 1e-20
    assert om2p.mean_flow_loss(*inputs, velocity="sampled")[0] > 0.1


def test_equal_times_make_the_target_the_velocity():
    policy, b = small_policy(), random_batch()
    noise, r = torch.randn(64, 2), torch.rand(64, 1)
    a_r, v = om2p.path(b.action, noise, r)
    expected = (policy(b.obs, a_r, r, r) - v).square().sum(1).mean()
    cases = [(derivative, known) for derivative in ("finite_difference", "exact", "zero") for known in (0, 64)]
    for derivative, known in cases:
        loss, info = om2p.mean_flow_loss(policy, b.obs, b.action, noise, r, r, derivative, equal_rows=known)
        assert torch.allclose(loss, expected)
        assert info["du_dr"].isfinite()


@pytest.mark.parametrize("velocity", ["sampled", "own"])
@pytest.mark.parametrize("derivative", ["finite_difference", "exact", "zero"])
def test_telling_which_rows_have_equal_times_saves_work_and_changes_nothing(derivative, velocity):
    policy, b, g = small_policy(), random_batch(), generator()
    noise, (r, t) = torch.randn(64, 2), om2p.sample_times(om2p.UNIFORM, 64, "ordered", 0.5, g)
    inputs, rows = (policy, b.obs, b.action, noise, r, t, derivative, 1e-2), []
    policy.net.register_forward_hook(lambda net, x, y: rows.append(len(y)))
    (loss, _), whole = om2p.mean_flow_loss(*inputs, velocity=velocity), rows.copy()
    rows.clear()
    same, _ = om2p.mean_flow_loss(*inputs, velocity=velocity, equal_rows=32)
    assert torch.allclose(loss, same, atol=1e-5)
    assert rows == [64, *[32] * (len(whole) - 1)]


def test_no_gradient_flows_through_the_target():
    """Eq. 2 has a stop-gradient: the loss differentiates as if u_target were a constant."""
    policy, b = small_policy(), random_batch()
    noise, r, t = torch.randn(64, 2), torch.rand(64, 1), torch.rand(64, 1)
    a_r, v = om2p.path(b.action, noise, r)
    target = v - (r - t) * om2p.exact_derivative(policy, b.obs, a_r, r, t, v)
    constant = (policy(b.obs, a_r, r, t) - target).square().sum(1).mean()
    loss, _ = om2p.mean_flow_loss(policy, b.obs, b.action, noise, r, t, "exact")
    for p, q in zip(*(torch.autograd.grad(x, list(policy.parameters())) for x in (loss, constant))):
        assert torch.allclose(p, q, atol=1e-6)
    with pytest.raises(ValueError, match="magic"):
        om2p.mean_flow_loss(policy, b.obs, b.action, noise, r, t, "magic")


def test_one_step_and_many_steps_follow_eq_3():
    flow, noise = GaussianFlow(), torch.randn(1000, 1)
    policy = MeanFlowPolicy(1, 1, 8, 1)
    policy.forward = flow.forward
    expected = (flow.m + flow.s * noise).clamp(-1, 1)
    for steps in (1, 4):  # the exact mean velocity needs one step, and more change nothing
        assert torch.allclose(policy.act(torch.zeros(1000, 1), noise, steps), expected, atol=1e-5)


def test_recommended_learns_two_modes_where_a_zero_derivative_averages_them():
    """design: with du/dr = 0 one step gives the conditional mean; ordered times and Eq. 5 give the modes."""
    near = {}
    for name, times, derivative in (("zero", "coupled", "zero"), ("recommended", "ordered", "finite_difference")):
        torch.manual_seed(0)
        policy, g = MeanFlowPolicy(1, 2, 64, 3), generator()
        optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
        for _ in range(1500):
            mode = (torch.randint(2, (256, 1), generator=g) * 2 - 1).float()
            action = mode * torch.tensor([0.6, 0.6]) + 0.05 * torch.randn(256, 2, generator=g)
            r, t = om2p.sample_times(om2p.UNIFORM, 256, times, 0.5, g)
            noise = torch.randn(256, 2, generator=g)
            loss, _ = om2p.mean_flow_loss(policy, torch.zeros(256, 1), action, noise, r, t, derivative)
            om2p.descend(optimizer, loss)
        with torch.no_grad():
            a = policy.act(torch.zeros(2000, 1), torch.randn(2000, 2, generator=g))
        near[name] = ((a.abs() - 0.6).norm(dim=1) < 0.25).logical_and(a[:, 0] * a[:, 1] > 0).float().mean().item()
    assert near["zero"] < 0.05
    assert near["recommended"] > 0.5


# ----------------------------------------------------------------------------------------------- losses, Eq. 6 and 7


class Linear(nn.Module):
    """A critic with a closed form: Q = w . a + sum(o)."""

    def __init__(self, *w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self, obs, action):
        return (action @ self.w + obs.sum(-1))[:, None]


def test_critic_loss_is_eq_7():
    b, policy, noise = random_batch(), small_policy(), torch.randn(64, 2)
    critics, targets = [Linear(1.0, 2.0), Linear(-1.0, 0.5)], [Linear(0.3, 0.0), Linear(0.0, -0.7)]
    loss, info = om2p.critic_loss(critics, targets, policy, b, noise, gamma=0.9)
    # one-step action of the target policy, by Eq. 3 itself
    zero, one = torch.zeros(64, 1), torch.ones(64, 1)
    a = (noise + policy(b.next_obs, noise, zero, one)).clamp(-1, 1).detach().numpy()
    q_next = 0.5 * (a @ [0.3, 0.0] + a @ [0.0, -0.7]) + b.next_obs.sum(-1).numpy()
    target = b.reward[:, 0].numpy() + 0.9 * np.where(b.terminal[:, 0] == 1, 0, q_next)
    expected = 0.0
    for w in ([1.0, 2.0], [-1.0, 0.5]):
        expected += np.mean((b.action.numpy() @ w + b.obs.sum(-1).numpy() - target) ** 2)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert info["target_q"].item() == pytest.approx(target.mean(), rel=1e-5)
    loss.backward()
    assert all(p.grad is None for p in policy.parameters())


@pytest.mark.parametrize("normalise", [False, True])
def test_policy_loss_is_eq_6(normalise):
    b, policy, critics = random_batch(), small_policy(), [Linear(1.0, 2.0), Linear(-1.0, 0.5)]
    noise, act_noise, r, t = torch.randn(64, 2), torch.randn(64, 2), torch.rand(64, 1), torch.rand(64, 1)
    bc, _ = om2p.mean_flow_loss(policy, b.obs, b.action, noise, r, t, "exact")
    a = (act_noise + policy(b.obs, act_noise, torch.zeros(64, 1), torch.ones(64, 1))).clamp(-1, 1)
    q = (a @ torch.tensor([0.0, 1.25]) + b.obs.sum(-1)).detach()
    expected = bc.item() - 3.0 * q.mean().item() / (q.abs().mean().item() if normalise else 1)
    args = (policy, critics, b, noise, act_noise, r, t, 3.0, normalise)
    loss, info = om2p.policy_loss(*args, "both", derivative="exact")
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert om2p.policy_loss(*args, "bc", derivative="exact")[0].item() == pytest.approx(bc.item(), rel=1e-4)
    assert om2p.policy_loss(*args, "q", derivative="exact")[0].item() == pytest.approx(expected - bc.item(), rel=1e-3)
    assert info["q"].item() == pytest.approx(q.mean().item(), rel=1e-4)


@pytest.mark.parametrize("eta", [0.5, 1.5])
def test_weights_tilt_the_data_as_the_best_policy_does(eta):
    """Of actions N(0, s^2) and Q = k a, the policy that maximises eta E[Q] - KL(policy, data) is N(eta k s^2, s^2)."""
    s, k = 0.3, 2.0
    action = s * torch.randn(200_000, 1, generator=generator()).double()
    w = om2p.cloning_weights(k * action + 5.0, eta)  # what all actions have in common says nothing
    assert w.shape == action.shape and w.mean().item() == pytest.approx(1)
    mean = (w * action).mean()
    assert mean.item() == pytest.approx(eta * k * s**2, abs=3e-3)
    assert (w * (action - mean).square()).mean().item() == pytest.approx(s**2, rel=0.02)


def test_weights_leave_many_rows_and_equal_values_alone():
    """However large eta is, the exponents keep a standard deviation of 1, so that no few rows are all that counts."""
    g = generator()
    advantage = torch.randn(10_000, 1, generator=g)
    w = om2p.cloning_weights(advantage, 1e6)
    torch.testing.assert_close(w, om2p.cloning_weights(2 * advantage, 1e4))  # nor does the scale of Q matter then
    log = w.log() - w.log().mean()
    torch.testing.assert_close(log, (advantage - advantage.mean()) / advantage.std(correction=0))
    assert w.sum() ** 2 / w.square().sum() > 10_000 / 4  # effective rows: e^-1 of them
    for same in (torch.full((8, 1), 3.0), torch.zeros(1, 1)):
        assert torch.equal(om2p.cloning_weights(same, 1e6), torch.ones_like(same))


def test_weighted_cloning_is_eq_2_with_weights():
    b, policy, critics = random_batch(), small_policy(), [Linear(1.0, 2.0), Linear(-1.0, 0.5)]
    noise, act_noise, r, t = torch.randn(64, 2), torch.randn(64, 2), torch.rand(64, 1), torch.rand(64, 1)
    rows = [[x[k : k + 1] for x in (b.obs, b.action, noise, r, t)] for k in range(64)]
    each = np.array([om2p.mean_flow_loss(policy, *row, "exact")[0].item() for row in rows])
    a = (act_noise + policy(b.obs, act_noise, torch.zeros(64, 1), torch.ones(64, 1))).clamp(-1, 1).detach()
    better = ((b.action - a) @ torch.tensor([0.0, 1.25])).double().numpy()  # the observation's part cancels
    w = np.exp(0.4 * better) / np.exp(0.4 * better).mean()
    q = (a @ torch.tensor([0.0, 1.25]) + b.obs.sum(-1)).mean().item()
    args = (policy, critics, b, noise, act_noise, r, t, 0.4, False)
    loss, info = om2p.policy_loss(*args, derivative="exact", cloning="weighted")
    assert info["bc_loss"].item() == pytest.approx((w * each).mean(), rel=1e-4)
    assert loss.item() == pytest.approx((w * each).mean() - 0.4 * q, rel=1e-4)
    assert info["bc_loss"].item() != pytest.approx(each.mean(), rel=1e-2)
    with pytest.raises(ValueError, match="cloning 'heavy': choose from plain, weighted"):
        om2p.policy_loss(*args, cloning="heavy")


# ----------------------------------------------------------------------------------------------------- agent


def agent(**options) -> Agent:
    torch.manual_seed(0)
    return Agent(5, 2, Config(**({"hidden_dim": 32, "hidden_layers": 2} | options)).resolve("expert"))


def weights(module: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def test_twins_start_differently_and_targets_equal():
    a = agent()
    assert not torch.equal(weights(a.critics[0]), weights(a.critics[1]))
    assert torch.equal(weights(a.policy), weights(a.target_policy))
    assert torch.equal(weights(a.critics), weights(a.target_critics))


def test_targets_move_by_rho():
    a = agent(rho=0.25)
    before = weights(a.target_policy), weights(a.target_critics)
    a.update(random_batch())
    for old, target, online in zip(before, (a.target_policy, a.target_critics), (a.policy, a.critics)):
        assert not torch.equal(weights(online), old)
        assert torch.allclose(weights(target), 0.75 * old + 0.25 * weights(online), atol=1e-6)


def test_policy_step_leaves_the_critics_alone():
    a = agent(learning_rate=0.0)
    a.policy_optimizer.param_groups[0]["lr"] = 1e-2
    critics, policy = weights(a.critics), weights(a.policy)
    a.update(random_batch())
    assert torch.equal(weights(a.critics), critics) and not torch.equal(weights(a.policy), policy)
    # the policy's step gave the critics no gradients of its own
    b = random_batch()
    noise = torch.randn(64, 2)
    a.critic_optimizer.zero_grad()
    loss, _ = om2p.policy_loss(a.policy, a.critics, b, noise, noise, torch.rand(64, 1), torch.rand(64, 1))
    om2p.descend(a.policy_optimizer, loss)
    assert all(p.grad is None for p in a.critics.parameters())


VARIANTS = [
    {"preset": "paper"},
    {"derivative": "exact"},
    {"derivative": "zero", "times": "coupled"},
    {"objective": "bc"},
    {"objective": "q"},
    {"cloning": "weighted"},
    {"normalise_q": False, "eta": 0.5, "xi": (2.0, 0.0, 0.0, 0.0)},
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: "-".join(map(str, o.values())))
def test_every_variant_trains(options):
    a = agent(**options)
    before = weights(a.policy)
    for seed in range(3):
        info = a.update(random_batch(seed=seed))
    assert not torch.equal(weights(a.policy), before)
    assert all(torch.isfinite(x) for x in info.values())


def test_terminal_and_time_limit():
    """The critic learns reward / (1 - gamma) where episodes only run out of time, and the reward where they end."""
    for terminal, expected in ((1.0, 1.0), (0.0, 1 / (1 - 0.8))):
        a = agent(gamma=0.8, rho=0.05, learning_rate=3e-3)
        b = random_batch(256)
        b = b._replace(reward=torch.ones(256, 1), terminal=torch.full((256, 1), terminal), next_obs=b.obs)
        for _ in range(400):
            a.update(b)
        with torch.no_grad():
            assert a.critics[0](b.obs, b.action).mean().item() == pytest.approx(expected, rel=0.1)


def test_q_term_moves_the_policy_to_better_actions():
    """On data of uniform actions with reward -|a - 0.5|^2, cloning stays at 0 and OM2P moves towards 0.5."""
    means = {}
    for objective in ("bc", "both"):
        a = agent(objective=objective, gamma=0.0, learning_rate=1e-3)
        g = generator()
        for _ in range(400):
            obs, action = torch.randn(256, 5, generator=g), torch.rand(256, 2, generator=g) * 2 - 1
            reward = -(action - 0.5).square().sum(1, keepdim=True)
            a.update(Batch(obs, action, reward, obs, torch.zeros(256, 1)))
        means[objective] = a.act(torch.randn(1000, 5), generator=generator()).mean().item()
    assert abs(means["bc"]) < 0.1
    assert means["both"] > 0.25


def test_acting_draws_from_the_given_stream_only():
    a, obs = agent(), torch.randn(10, 5)
    state = torch.get_rng_state(), a.generator.get_state()
    first, second = (a.act(obs, generator=generator(3)) for _ in range(2))
    assert torch.equal(first, second) and first.abs().max() <= 1
    assert torch.equal(state[0], torch.get_rng_state()) and torch.equal(state[1], a.generator.get_state())


def test_the_averages_act_where_asked():
    obs, noise = torch.randn(20, 5), torch.randn(20, 1, 2)
    for act_with in ("trained", "averaged"):
        a = agent(act_with=act_with)
        for _ in range(3):
            a.update(random_batch(64))
        acts = {"trained": a.policy, "averaged": a.target_policy}
        for name, policy in acts.items():
            assert torch.allclose(a.act(obs, noise), policy.act(obs, noise[:, 0]), atol=1e-6) == (name == act_with)


def test_of_several_candidates_the_critics_best_is_taken():
    """With Q(o, a) = -|a - 0.5|^2 the action nearest to 0.5 of those of the policy, at every observation."""
    a, obs = agent(candidates=5), torch.randn(50, 5)
    noise = torch.randn(50, 5, 2, generator=generator())
    critic = torch.nn.Module()
    critic.forward = lambda obs, action: -(action - 0.5).square().sum(1, keepdim=True)
    a.critics = a.target_critics = torch.nn.ModuleList([critic, critic])
    tried = torch.stack([a.policy.act(obs, noise[:, k]) for k in range(5)], 1)
    nearest = (tried - 0.5).norm(dim=2).argmin(1)
    assert nearest.unique().numel() > 1
    assert torch.allclose(a.act(obs, noise), tried[torch.arange(50), nearest], atol=1e-6)
    assert torch.allclose(a.act(obs, noise[:, 0]), tried[:, 0].detach(), atol=1e-6)  # one candidate: no choice


def test_less_noise_when_acting():
    whole, half, none = (agent(act_noise=scale) for scale in (1.0, 0.5, 0.0))
    obs, noise = torch.randn(50, 5), torch.randn(50, 2)
    assert torch.equal(half.act(obs, noise), whole.act(obs, noise / 2))
    assert not torch.allclose(half.act(obs, noise), whole.act(obs, noise))
    assert torch.equal(none.act(obs, noise), none.act(obs))


def test_usable_alone(tmp_path):
    """om2p.py copied into another project needs torch and numpy only."""
    (tmp_path / "om2p.py").write_text((ROOT / "om2p.py").read_text())
    code = """
import sys, torch
for name in ("pettingzoo", "gymnasium", "tqdm", "matplotlib", "mujoco", "data", "envs"): sys.modules[name] = None
from om2p import MeanFlowPolicy, mean_flow_loss
p = MeanFlowPolicy(4, 2)
zeros, ones = torch.zeros(3, 2), torch.ones(3, 2)
loss, info = mean_flow_loss(p, torch.zeros(3, 4), zeros, ones, zeros[:, :1], ones[:, :1])
loss.backward()
assert p.act(torch.zeros(3, 4)).shape == (3, 2)
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)


def test_the_readmes_example_runs():
    code = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict = {}
    exec(code, names)
    assert names["a"].shape == (256, 2) and torch.isfinite(names["info"]["policy_loss"])


# ------------------------------------------------------------------------------------------------------------- envs


@pytest.mark.parametrize("name", envs.SCENARIOS)
def test_particle_worlds_match_recorded_trajectories(name):
    """One episode of each world in float64, recorded from the environment that made the public data."""
    numbers = np.frombuffer(zlib.decompress(base64.b85decode("".join(GOLDEN[name].split()))), "<f8")
    world = envs.ParticleWorld(name, dtype=torch.float64)
    A, E, O = world.total_agents, len(world.sizes), 24
    shapes = [(1, E, 2), (25, 1, A, 2), (25, A), (A, O)]
    parts = np.split(numbers, np.cumsum([math.prod(s) for s in shapes])[:-1])
    position, actions, rewards, last = (torch.from_numpy(p.copy()).view(s) for p, s in zip(parts, shapes))
    world.set_state(position)
    for action, reward in zip(actions, rewards):
        world.advance(action)
        assert torch.allclose(world.rewards()[0], reward, rtol=0, atol=1e-9)
    team, prey = world.observations()
    seen = [*team[0], *([] if prey is None else prey[0])]
    for row, expected in zip(seen, last):
        assert torch.allclose(row, expected[: len(row)], rtol=0, atol=1e-9) and not expected[len(row) :].any()


@pytest.mark.parametrize("name", envs.SCENARIOS)
def test_worlds_of_a_batch_do_not_mix(name):
    world, alone, g = (envs.ParticleWorld(name, dtype=torch.float64) for _ in range(2)), None, generator()
    world, alone = world
    world.reset(5, g)
    start, actions = world.position.clone(), torch.rand(25, 5, world.total_agents, 2, generator=g).double() * 2 - 1
    alone.set_state(start[3:4])
    for action in actions:
        world.advance(action)
        alone.advance(action[3:4])
    assert torch.allclose(world.position[3], alone.position[0], atol=1e-12)
    assert torch.allclose(world.rewards()[3], alone.rewards()[0], atol=1e-12)


def test_the_prey_pays_for_leaving_the_arena():
    """bound(x) is 0 below 0.9, 10 (x - 0.9) below 1, then exp(2x - 2), at most 10; World counts it twice."""
    for x, bound in ((0.5, 0.0), (-0.95, 0.5), (1.5, math.e), (-5.0, 10.0)):
        for name, times in (("tag", 1), ("world", 2)):
            world = envs.ParticleWorld(name, dtype=torch.float64)
            position = torch.zeros(1, len(world.sizes), 2).double()
            position[0, 3, 0] = x
            world.set_state(position)
            touching = 3 * (10 if name == "tag" else 5) * (abs(x) < 0.1)
            food = 0.05 * abs(x) if name == "world" else 0
            expected = 0.1 * 3 * abs(x) - touching - times * bound + food
            assert world.rewards()[0, 3].item() == pytest.approx(expected, abs=1e-9)


def test_coincident_bodies_give_finite_numbers():
    world = envs.ParticleWorld("world")
    world.set_state(torch.zeros(2, 9, 2))
    for _ in range(3):
        world.advance(torch.ones(2, 4, 2))
    assert torch.isfinite(world.position).all() and torch.isfinite(world.rewards()).all()


def test_starts_are_uniform_in_their_squares():
    world = envs.ParticleWorld("tag")
    world.reset(4000, generator())
    for entities, half in ((slice(0, 4), 1.0), (slice(4, 6), 0.9)):
        x = world.position[:, entities].flatten().numpy()
        assert scipy.stats.kstest(x, scipy.stats.uniform(-half, 2 * half).cdf).pvalue > 1e-3


def test_halfcheetah_matches_gymnasium_index_by_index():
    """Every step from the same state: observations by joint name, actions by actuator name, rewards, state."""
    single = gymnasium.make("HalfCheetah-v5").unwrapped
    cheetah, g = envs.HalfCheetah(dtype=torch.float64), generator()
    obs = cheetah.reset(3, g)
    parts = [f"{leg}{part}" for leg in "bf" for part in ("foot", "shin", "thigh")]
    order = [single.model.actuator(f"{leg}{part}").id for leg in "bf" for part in ("thigh", "shin", "foot")]
    for actions in torch.rand(50, 3, 2, 3, generator=g).double() * 3 - 1.5:  # some beyond the bounds
        before = cheetah.qpos.copy(), cheetah.qvel.copy()
        obs, rewards, terminals = cheetah.step(actions)
        for b in range(3):
            single.reset()
            single.set_state(before[0][b], before[1][b])
            single.data.time = 0
            control = np.zeros(6)
            control[order] = actions[b].clamp(-1, 1).flatten().numpy()
            full, reward, *_ = single.step(control)
            joints = [single.data.joint(part) for part in parts]
            seen = [x for joint in joints for x in (joint.qpos[0], joint.qvel[0])]
            assert np.allclose(obs[b].flatten(), seen, rtol=0, atol=1e-6)
            assert np.allclose(cheetah.state()[b], full, rtol=0, atol=1e-6)
            assert rewards[b].tolist() == pytest.approx([reward] * 2, abs=1e-6)
    assert not terminals.any()


def test_halfcheetah_starts_as_gymnasium_does():
    cheetah = envs.HalfCheetah()
    cheetah.reset(2000, generator())
    for i in range(9):
        assert scipy.stats.kstest(cheetah.qpos[:, i], scipy.stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-3
        assert scipy.stats.kstest(cheetah.qvel[:, i], scipy.stats.norm(0, 0.1).cdf).pvalue > 1e-3
    single = gymnasium.make("HalfCheetah-v5").unwrapped
    starts = np.array([single.reset(seed=k)[0] for k in range(200)])
    ours = cheetah.state().numpy()
    assert np.allclose(starts.mean(0), ours.mean(0), atol=0.03) and np.allclose(starts.std(0), ours.std(0), atol=0.02)


def test_cheetahs_of_a_batch_do_not_mix_whatever_the_number_of_threads():
    g, last = generator(), []
    actions = torch.rand(60, 5, 2, 3, generator=g) * 2 - 1
    for rows, threads in ((slice(0, 5), 1), (slice(0, 5), 3), (slice(3, 4), 1)):
        with data.threads(threads):
            cheetah = envs.HalfCheetah()
        cheetah.reset(5, generator(1))
        cheetah.set_state(cheetah.qpos[rows], cheetah.qvel[rows])
        for action in actions:
            cheetah.step(action[rows])
        last.append(cheetah.state())
    assert torch.equal(last[0], last[1]) and torch.equal(last[0][3:4], last[2])


OWN_TASK = """
import numpy as np
from gymnasium.spaces import Box, Discrete
from pettingzoo import ParallelEnv

class Task(ParallelEnv):
    # two agents see their own number and may push it by [0, 4]; the reward is how far it went
    metadata = {"name": "task"}
    possible_agents = ["left", "right"]
    limit = 7

    def __init__(self, action=Box(0, 4, (1,)), observation=None, render_mode=None):
        self.action, self.observation, self.render_mode = action, observation or Box(-9, 99, (1, 2)), render_mode

    def observation_space(self, agent):
        return self.observation

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

class Parting(Task):
    def step(self, actions):
        result = super().step(actions)
        result[2]["left"] = True
        return result

class Endless(Task):
    limit = 1e9

def make(): return Task()
def drawn(): return Task(render_mode="rgb_array")
def discrete(): return Task(Discrete(3))
def unbounded(): return Task(Box(-np.inf, np.inf, (1,)))
def parting(): return Parting()
def endless(): return Endless(Box(0, 0, (1,)))
def unmade(): raise RuntimeError("no licence\\nfor this")
def unseen():
    task = Task(render_mode="rgb_array")
    task.render = unmade
    return task
def still(): return Task(Box(0, 0, (1,)))
def nothing(): return 5
def act(obs): return np.tanh(obs[:, :1] - 5)
def wide(obs): return np.zeros((2, 3))
def none(obs): return None
number = 3
"""


@pytest.fixture
def own_task(tmp_path, monkeypatch):
    """A folder with someone's own environment in task.py, to work in."""
    (tmp_path / "task.py").write_text(OWN_TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "task", raising=False)


def test_a_pettingzoo_environment_steps_as_it_does_by_itself(own_task):
    """A batch of ours, seen through PettingZoo, equals the batch itself."""
    Path("ours.py").write_text("import envs\ndef make(): return envs.ParticleParallelEnv('spread')\n")
    task, world = envs.make_env("ours:make"), envs.ParticleWorld("spread")
    seeds = torch.randint(2**31 - 1, (3,), generator=generator(4)).tolist()
    obs = task.reset(3, generator(4))
    assert torch.equal(obs, torch.cat([world.reset(1, generator(seed)) for seed in seeds]))
    starts = [envs.ParticleWorld("spread") for _ in seeds]
    for one, seed in zip(starts, seeds):
        one.reset(1, generator(seed))
    for action in torch.rand(25, 3, 3, 2, generator=generator()) * 2 - 1:
        assert not task.over
        obs, rewards, terminals = task.step(action)
        singles = [one.step(action[b : b + 1]) for b, one in enumerate(starts)]
        assert torch.equal(obs, torch.cat([s[0] for s in singles]))
        assert torch.allclose(rewards, torch.cat([s[1] for s in singles])) and not terminals.any()
    assert task.over


def test_own_episodes_end_by_themselves_and_stop_counting(own_task):
    task = envs.make_env("task:make")
    assert (task.num_agents, task.obs_dim, task.action_dim) == (2, 2, 1)
    g = generator()
    steps = list(envs.rollout(lambda obs: torch.full((50, 2, 1), 0.0) + (obs[:, :, :1] > 4), task, 50, g))
    ends = torch.stack([step.terminals[:, 0] for step in steps])
    assert len(steps) == 5 or len(steps) == 4  # from [-1, 1] by 2, and by 4 beyond 4
    assert set(ends.sum(0).tolist()) == {1.0}
    rewards = torch.stack([step.rewards[:, 0] for step in steps])
    assert torch.allclose(steps[-1].next_observations[:, 0, 0], steps[0].observations[:, 0, 0] + rewards.sum(0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("task:discrete", "not a continuous Box"),
        ("task:unbounded", "no bounds"),
        ("task:nothing", "no PettingZoo parallel environment"),
        ("task:unmade", "making task:unmade failed (RuntimeError: no licence)"),
        ("task:missing", "cannot be imported"),
        ("no_such_module:make", "cannot be imported"),
        ("task:number", "no function"),
        ("task:parting", "over for left but not for right"),
        ("task:endless", "time limit"),
        ("task:", "choose from"),
        ("chess", "choose from"),
    ],
)
def test_unsuitable_environments_are_refused_in_one_line(own_task, monkeypatch, capsys, name, message):
    monkeypatch.setattr(envs, "LONGEST_EPISODE", 1000)
    assert data.main(["collect", "--env", name, "--transitions", "10", "--out", "own.npz"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error and not Path("own.npz").exists()


def test_training_on_ones_own_environment(own_task, capsys):
    command = ["collect", "--env", "task:drawn", "--policy", "task:act", "--transitions", "300", "--out", "own.npz"]
    assert data.main(command) == 0
    d = data.Dataset.load("own.npz", "task:drawn")
    assert len(d) == 300 and d.meta["episode_steps"] <= 7 and d.meta["quality"] == "custom"
    goes_on = d.terminals[:-1, 0] == 0
    same = (d.next_observations[:-1] == d.observations[1:]).flatten(1).all(1)
    assert (same <= goes_on).all() and same.float().mean() > 0.6
    assert data.episode_returns(d).mean().item() == pytest.approx(d.meta["mean_return"], rel=0.03)
    small = ["--hidden-dim", "16", "--steps", "3", "--final-episodes", "5", "--out", "run"]
    assert om2p.main(["--env", "task:drawn", "--data", "own.npz", *small]) == 0
    assert Path("run/rollout.gif").exists()
    assert om2p.main(["--env", "task:make", "--data", "own.npz", *small]) == 2
    assert "task:drawn" in capsys.readouterr().err
    assert data.main(["collect", "--env", "task:make", "--transitions", "50", "--out", "random.npz"]) == 0
    assert om2p.main(["--env", "task:make", "--data", "random.npz", *small[:-1], "other"]) == 0
    out = capsys.readouterr().out
    assert "no rollout.gif" in out and "normalised score  none" in out
    assert om2p.main(["--evaluate", "other", "--episodes", "2", "--gif", "a.gif", "--export", "a.pt2"]) == 0
    assert "no a.gif" in capsys.readouterr().out and Path("a.pt2").exists() and not Path("a.gif").exists()


def test_one_action_and_one_return_are_enough(own_task, capsys):
    """Actions of a single number are drawn, and where no action matters there is no scale of returns."""
    collect = ["collect", "--env", "task:still", "--policy", "task:act", "--transitions", "300", "--out", "own.npz"]
    assert data.main(collect) == 0 and data.main(["info", "own.npz", "--plot"]) == 0
    assert Path("own.png").read_bytes().startswith(b"\x89PNG") and "expert unknown" in capsys.readouterr().out


def test_mistakes_around_ones_own_environment_end_in_one_line(own_task, capsys):
    own = ["collect", "--env", "task:make", "--transitions", "50", "--out", "own.npz"]
    for command, message in (
        ([*own, "--policy", "task:wide"], "(2, 3)"),
        ([*own, "--policy", "task:nowhere"], "cannot be imported"),
        ([*own, "--policy", "task:none"], "playing task:make failed (TypeError"),
        (["info", "nowhere.npz"], "does not exist"),
        (["train", "--out", "policies"], "ends in .npz"),
        (["train", "--out", "nowhere/p.npz"], "no folder"),
        ([*own, "--quality", "medium"], "no effect"),
        (["collect", "--env", "world", "--policy", "task:act"], "no effect"),
    ):
        try:
            assert data.main(command) == 2
        except SystemExit as stop:
            assert stop.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert om2p.main(["--env", "task:make", "--data", "own.npz"]) == 2
    assert "data.py collect --env task:make" in capsys.readouterr().err


class RandomAgent:
    def __init__(self, action_dim: int = 2) -> None:
        self.action_dim = action_dim

    def act(self, obs, *, generator):
        return torch.rand(len(obs), self.action_dim, generator=generator, device=obs.device) * 2 - 1


def test_evaluation_is_repeatable_and_changes_no_other_stream():
    world, agents = data.Behaviour("world").env, [RandomAgent()] * 3
    state = torch.get_rng_state()
    first, second, other = (envs.evaluate(agents, world, 20, seed) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other) and first.shape == (20,)
    assert torch.equal(state, torch.get_rng_state())


def test_a_world_without_its_prey_refuses_to_step():
    world = envs.ParticleWorld("tag")
    world.reset(1, generator())
    with pytest.raises(ValueError, match="prey"):
        world.step(torch.zeros(1, 3, 2))
    with pytest.raises(ValueError, match="choose from spread, tag, world"):
        envs.ParticleWorld("chess")


@pytest.mark.parametrize("name", envs.SCENARIOS)
def test_pettingzoo_view(name):
    parallel_api_test(envs.ParticleParallelEnv(name), num_cycles=60)
    parallel_seed_test(lambda: envs.ParticleParallelEnv(name))


def test_pettingzoo_view_equals_the_batched_world():
    prey = data.Behaviour("world").env.prey
    view, world = envs.ParticleParallelEnv("world", prey), envs.ParticleWorld("world", prey)
    obs, _ = view.reset(seed=5)
    batch = world.reset(1, generator(5))
    assert view.agents == ["agent_0", "agent_1", "agent_2"]
    actions = torch.rand(25, 3, 2, generator=generator()) * 2 - 1
    for k, action in enumerate(actions):
        assert np.array_equal(np.stack(list(obs.values())), batch[0].numpy())
        obs, rewards, terminated, truncated, _ = view.step(dict(zip(view.agents, action.numpy())))
        batch, batch_rewards, _ = world.step(action[None])
        assert list(rewards.values()) == batch_rewards[0].tolist()
        assert not any(terminated.values()) and all(v == (k == 24) for v in truncated.values())
    assert view.agents == []


def test_gif_has_a_frame_for_every_step(tmp_path):
    from PIL import Image

    envs.save_gif([RandomAgent()] * 3, data.Behaviour("world").env, tmp_path / "a.gif", seed=0, episodes=2)
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames == envs.EPISODE_STEPS
        frames = [np.asarray(picture.convert("RGB")) for _ in (picture.seek(k) for k in (0, 24))]
    assert (frames[0] != frames[1]).any()


def test_gif_of_the_cheetah_has_its_outlines_in_view(tmp_path):
    from PIL import Image

    cheetah = envs.make_env("halfcheetah")
    cheetah.reset(1, generator())
    outlines = cheetah.picture()[0]  # torso, head, then thigh, shin and foot of the back and of the front leg
    assert outlines.shape == (8, 32, 2)
    assert np.linalg.norm(outlines[0].max(0) - outlines[0].min(0)) == pytest.approx(1.1, abs=0.1)  # a torso of 1 m
    assert 0 < outlines[..., 1].min() < 0.3  # starts just above the ground
    assert outlines[4].mean(0)[0] < outlines[7].mean(0)[0]  # the back foot is behind the front one
    cheetah.episode_steps = 30
    envs.save_gif([RandomAgent(3)] * 2, cheetah, tmp_path / "a.gif", seed=0, episodes=2)
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.n_frames == 30


# ------------------------------------------------------------------------------------------------------------- data


@pytest.fixture(scope="session")
def expert(tmp_path_factory) -> Path:
    """A small data file, made as a user makes one."""
    path = tmp_path_factory.mktemp("data") / "expert.npz"
    command = ["collect", "--env", "world", "--quality", "expert", "--transitions", "25000", "--out", str(path)]
    assert data.main(command) == 0
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
    # the velocity in an observation follows from the positions, so columns and rows are where they belong
    moved = next_obs[..., 2:4] - obs[..., 2:4]
    assert torch.allclose(moved, 0.1 * next_obs[..., :2], atol=1e-5)


def test_data_replays_in_the_environment(expert):
    """Stepping the world from a recorded state with recorded actions gives the recorded rewards: prey included."""
    d = data.Dataset.load(expert)
    world = envs.ParticleWorld("world", d.prey)
    obs, own = d.observations[:2000], d.observations[:2000, 0, 2:4]
    landmarks = own[:, None] + obs[:, 0, 4:14].view(-1, 5, 2)
    prey = own + obs[:, 0, 18:20]
    agents = torch.cat([obs[:, :, 2:4], prey[:, None]], 1)
    velocity = torch.cat([obs[:, :, :2], obs[:, :1, 20:22]], 1)
    world.set_state(torch.cat([agents, landmarks], 1), velocity)
    next_obs, rewards, _ = world.step(d.actions[:2000])
    agree = (next_obs - d.next_observations[:2000]).abs().amax((1, 2)) < 1e-3  # stiff contacts amplify rounding
    assert agree.float().mean() > 0.99
    assert torch.allclose(rewards[agree], d.rewards[:2000][agree], atol=1e-3)


def test_same_seed_same_bytes(tmp_path):
    for name in ("a", "b"):
        data.make("world", "medium-expert", tmp_path / f"{name}.npz", transitions=500, seed=3)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    data.make("world", "medium-expert", tmp_path / "c.npz", transitions=500, seed=4)
    assert (tmp_path / "a.npz").read_bytes() != (tmp_path / "c.npz").read_bytes()


def test_cheetah_data_is_what_it_says(tmp_path):
    for name in ("a", "b"):
        d = data.make("halfcheetah", "medium-expert", tmp_path / f"{name}.npz", transitions=3000, seed=3)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    d = data.Dataset.load(tmp_path / "a.npz", "halfcheetah")
    assert d.observations.shape == (3000, 2, 6) and d.actions.shape == (3000, 2, 3) and d.prey is None
    assert torch.equal(d.rewards[:, 0], d.rewards[:, 1]) and not d.terminals.any()
    follows = (d.next_observations[:-1] == d.observations[1:]).flatten(1).all(1)
    assert set((~follows).nonzero().flatten().tolist()) == {999, 1999, 2996}  # the last three are the expert's
    assert data.episode_returns(d)[:2].tolist() == pytest.approx(d.rewards[:2000, 0].view(2, -1).sum(1).tolist())


def test_shipped_cheetahs_reach_their_recorded_returns():
    behaviour = data.Behaviour("halfcheetah")
    for quality, low, high in (("medium", 1500, 2200), ("expert", 3500, 4000)):
        value = data.mean_return(behaviour.policy(quality), behaviour.env, episodes=60, seed=7)
        assert low < value < high and low < behaviour.meta[f"{quality}_return"] < high
    value = data.mean_return(data.random_actions(behaviour.env, 1), behaviour.env, seed=7)
    assert abs(value - behaviour.meta["random_return"]) < 60


PUBLISHED = {  # mean returns of the public data: random, medium, expert
    "spread": (159.8, 259.9, 516.8),
    "tag": (-4.1, 88.7, 185.6),
    "world": (-6.8, 43.3, 79.5),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_policies_reach_their_recorded_and_the_published_returns(name):
    behaviour, published = data.Behaviour(name), dict(zip(("random", "medium", "expert"), PUBLISHED[name]))
    span = published["expert"] - published["random"]
    acts = {"random": data.random_actions(behaviour.env, 1), **{q: behaviour.policy(q) for q in ("medium", "expert")}}
    for quality, act in acts.items():
        value = data.mean_return(act, behaviour.env, episodes=2000, seed=7)
        assert abs(value - behaviour.meta[f"{quality}_return"]) < 0.04 * span
        assert abs(value - published[quality]) < 0.1 * span


@pytest.mark.parametrize("name", PUBLISHED)
def test_medium_replay_goes_from_random_to_medium(name):
    """Whole episodes in order, as long as the training was; their returns rise from random to almost medium."""
    made, meta = data.collect(name, "medium-replay", progress=False), data.Behaviour(name).meta
    assert len(made) == meta["medium_steps"]
    obs, next_obs = (x.view(-1, 25, *x.shape[1:]) for x in (made.observations, made.next_observations))
    assert torch.equal(next_obs[:, :-1], obs[:, 1:])
    returns = made.rewards.mean(1).view(-1, 25).sum(1)
    assert returns.mean().item() == pytest.approx(made.meta["mean_return"])
    span, last = meta["medium_return"] - meta["random_return"], returns[-len(returns) // data.REPLAY :].mean()
    assert abs(returns[:64].mean() - meta["random_return"]) < 0.25 * span, "the first 1,600 steps are random"
    assert meta["random_return"] + 0.5 * span < last < meta["medium_return"] + 0.25 * span
    few = data.collect(name, "medium-replay", 3000, noise=0.0, progress=False)
    assert len(few) == 3000 and torch.equal(few.actions[:1600], made.actions[:1600])


def test_a_team_is_kept_when_it_first_reaches_a_return(capsys):
    """With low bars, to be quick; what is printed on the way says when they were reached."""
    behaviour = data.Behaviour("world")
    bars = {"medium_return": -1.5, "expert_return": 0.0}
    recipe = dataclasses.replace(data.RECIPES["world"], seed=behaviour.meta["seed"], **bars)
    policies, meta = data.train_team(behaviour.env, recipe)
    lines = [line.replace(",", "").split() for line in capsys.readouterr().out.splitlines()]
    values = {int(step): float(value) for step, _, _, value in lines}  # rounded to a tenth
    assert meta["expert_steps"] == max(values)
    for quality in ("medium", "expert"):
        bar, step = bars[f"{quality}_return"], meta[f"{quality}_steps"]
        assert meta[f"{quality}_return"] >= bar
        assert values[step] == pytest.approx(meta[f"{quality}_return"], abs=0.051)
        assert all(value < bar + 0.051 for earlier, value in values.items() if earlier < step)
        act = data.BehaviourPolicy(policies[quality])
        assert data.mean_return(act, behaviour.env) == pytest.approx(meta[f"{quality}_return"])


def test_training_the_shipped_policies(tmp_path, monkeypatch, capsys):
    """With a low bar, to be quick: what is written is what the training measured; a bar out of reach leaves nothing."""
    low = dataclasses.replace(data.RECIPES["world"], prey_age=800, medium_return=-math.inf, expert_return=-math.inf)
    monkeypatch.setitem(data.RECIPES, "world", low)
    out = tmp_path / "behaviour.npz"
    assert data.main(["train", "--env", "world", "--out", str(out)]) == 0
    behaviour = data.Behaviour("world", out)
    assert behaviour.meta["medium_steps"] == 800
    for quality in ("medium", "expert"):
        value = data.mean_return(behaviour.policy(quality), behaviour.env)
        assert value == pytest.approx(behaviour.meta[f"{quality}_return"], rel=1e-5)
    obs = behaviour.env.reset(8, torch.Generator().manual_seed(0))
    last = behaviour.policy(f"replay_{data.REPLAY - 1}")(obs)
    assert last.shape == (8, 3, 2) and not torch.equal(last, behaviour.policy("medium")(obs))
    monkeypatch.setitem(data.RECIPES, "world", dataclasses.replace(low, expert_return=math.inf, steps=800))
    capsys.readouterr()
    assert data.main(["train", "--env", "world", "--out", str(tmp_path / "none.npz")]) == 2
    assert "try another seed" in capsys.readouterr().err and list(tmp_path.iterdir()) == [out]


def spoil(path: Path, out: Path, **changes) -> Path:
    """A copy of a data file with arrays replaced (by a function of the old one) or left out (None)."""
    arrays = data.read_npz(path)
    for name, change in changes.items():
        new = change(arrays.get(name)) if callable(change) else change
        arrays = {k: v for k, v in arrays.items() if k != name} | ({} if new is None else {name: new})
    np.savez(out, **arrays)
    return out


def with_nan(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flat[7] = np.nan
    return x


def meta_with(**changes):
    return lambda old: np.array(json.dumps({k: v for k, v in (json.loads(str(old)) | changes).items() if v != "gone"}))


def test_broken_data_is_refused_or_runs():
    """The short form of notebooks/fuzz.py, which tries thousands."""
    sys.path.insert(0, str(ROOT / "notebooks"))
    import fuzz

    with data.threads(1):
        counts = fuzz.fuzz(160)
    assert sum(counts.values()) >= 160 and len(counts) == 4


SPOILED = {
    "has no array actions": {"actions": None},
    "has no array meta": {"meta": None},
    "observations is float64": {"observations": lambda x: x.astype(np.float64)},
    "observations is complex64": {"observations": lambda x: x.astype(np.complex64)},
    "rewards is float32 of shape": {"rewards": lambda x: x[..., None]},
    "rewards has shape": {"rewards": lambda x: x[:-1]},
    "actions has shape": {"actions": lambda x: x[:, :2]},
    "2 agents": {k: (lambda x: x[:, :2]) for k in data.ARRAYS},
    "20 observations": {k: (lambda x: x[..., :20]) for k in ("observations", "next_observations")},
    "rewards holds NaN": {"rewards": with_nan},
    "next_observations holds NaN": {"next_observations": with_nan},
    "actions reach 2": {"actions": lambda x: 2 * np.sign(x)},
    "holds no transitions": {k: (lambda x: x[:0]) for k in data.ARRAYS},
    "terminals must be 0 or 1": {"terminals": lambda x: x + 0.5},
    "meta is no JSON": {"meta": np.array("{")},
    "meta lacks quality": {"meta": meta_with(quality="gone")},
    "meta lacks env": {"meta": np.array("[]")},
    "meta: mean_return": {"meta": meta_with(mean_return="high")},
    "meta: quality": {"meta": meta_with(quality="best")},
    "meta: expert_return": {"meta": meta_with(expert_return=-4.0, random_return=-4.0)},
    "holds data of tag": {"meta": meta_with(env="tag")},
    "has no prey": {"prey_weight_0": None},
    "prey": {"prey_weight_1": lambda x: x[:-1]},
    "holds object, not numbers": {"actions": lambda x: np.array([{}], dtype=object)},
}


@pytest.mark.parametrize("message", SPOILED)
def test_spoiled_data_is_refused_in_one_line(message, expert, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spoil(expert, tmp_path / "expert.npz", **SPOILED[message])
    assert om2p.main(["--data", "expert.npz"]) == 2
    error = capsys.readouterr().err
    assert message in error and "expert.npz" in error and error.count("\n") == 1
    assert os.listdir() == ["expert.npz"]


def test_files_of_another_kind_are_refused(expert, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = expert.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    touched = tmp_path / "unpickled"
    evil = f"cposix\nsystem\n(S'touch {touched}'\ntR.".encode()
    files = {"empty": b"", "short": whole[: len(whole) // 2], "flipped": bytes(flipped), "pickle": evil}
    for name, content in files.items():
        Path(f"{name}.npz").write_bytes(content)
    with zipfile.ZipFile("zip.npz", "w") as file:
        file.writestr("actions.npy", evil)
    Path("folder.npz").mkdir()
    before = sorted(os.listdir())
    for name in (*files, "zip", "folder"):
        assert om2p.main(["--data", f"{name}.npz"]) == 2, name
        error = capsys.readouterr().err
        assert f"{name}.npz" in error and error.count("\n") == 1, error
    assert sorted(os.listdir()) == before and not touched.exists()


# ------------------------------------------------------------------------------------------- data made by others


def write_folder(folder: Path, d: data.Dataset, dtype=np.float64, with_prey: bool = True) -> Path:
    """A folder as OMAR's data sets are laid out: five arrays an agent, rewards and dones in columns, the prey last."""
    folder.mkdir(parents=True)
    M = len(d)
    for i in range(d.observations.shape[1]):
        arrays = {"obs": d.observations[:, i], "acs": d.actions[:, i], "next_obs": d.next_observations[:, i]}
        arrays |= {"rews": d.rewards[:, i], "dones": (torch.arange(M) % 25 == 24)}
        for stem, x in arrays.items():
            np.save(folder / f"{stem}_{i}.npy", x.numpy().astype(dtype if stem != "dones" else bool))
    if with_prey:
        for stem, width in (("obs", 22), ("acs", 2), ("rews", 1), ("next_obs", 22), ("dones", 1)):
            np.save(folder / f"{stem}_3.npy", np.full((M, width), np.nan))
    return folder


def write_prey(path: Path, obs_dim: int = 22) -> dict[str, torch.Tensor]:
    """A checkpoint as OMAR's pretrained_adv_model.pt: nested lists and dicts of tensors, optimizers beside them."""
    torch.manual_seed(0)
    policy = {"in_fn.weight": torch.rand(obs_dim) + 0.5, "in_fn.bias": torch.randn(obs_dim)}
    policy |= {"in_fn.running_mean": torch.randn(obs_dim), "in_fn.running_var": torch.rand(obs_dim) + 0.1}
    policy |= {"in_fn.num_batches_tracked": torch.tensor(7)}
    for k, (i, o) in enumerate(((obs_dim, 64), (64, 64), (64, 2)), start=1):
        policy |= {f"fc{k}.weight": torch.randn(o, i) / i**0.5, f"fc{k}.bias": torch.randn(o)}
    params = [{"policy": {}}, {"policy": policy, "policy_optimizer": {"state": {}, "param_groups": [{"lr": 0.01}]}}]
    torch.save({"init_dict": {"gamma": 0.95}, "agent_params": params}, path)
    return policy


@pytest.mark.parametrize(("dtype", "with_prey"), [(np.float64, True), (np.float32, False)])
def test_folders_in_omars_layout(dtype, with_prey, expert, tmp_path, capsys):
    d = data.Dataset.load(expert)
    folder = write_folder(tmp_path / "simple_world" / "expert" / "seed_0_data", d, dtype, with_prey)
    loaded = data.load_or_make(folder, "world")
    assert "do not compare" in capsys.readouterr().out
    for name in data.ARRAYS:
        assert torch.equal(getattr(loaded, name), getattr(d, name)), name  # dones mark time limits, not ends
    assert loaded.meta["quality"] == "expert" and loaded.meta["mean_return"] == pytest.approx(d.meta["mean_return"])
    options = ["--data", str(folder), "--out", str(tmp_path / "run"), "--hidden-dim", "16", "--final-episodes", "2"]
    assert om2p.main([*options, "--steps", "2"]) == 0
    out = tmp_path / "converted.npz"
    assert data.main(["convert", str(folder), "--env", "world", "--out", str(out)]) == 0
    assert torch.equal(data.Dataset.load(out, "world").next_observations, d.next_observations)
    assert data.main(["info", "--plot", str(out)]) == 0
    assert (tmp_path / "converted.png").read_bytes().startswith(b"\x89PNG")


def test_cheetah_folders_in_omars_layout(tmp_path):
    d = data.collect("halfcheetah", "medium", 1000, progress=False)
    loaded = data.load_or_make(write_folder(tmp_path / "medium", d, with_prey=False), "halfcheetah")
    assert torch.equal(loaded.observations, d.observations) and not loaded.terminals.any()
    assert loaded.meta["mean_return"] == pytest.approx(d.meta["mean_return"], rel=1e-4)


def test_the_original_prey_plays_as_its_network_did(expert, tmp_path, capsys):
    policy = write_prey(tmp_path / "pretrained_adv_model.pt")
    folder = write_folder(tmp_path / "medium", data.Dataset.load(expert))
    loaded = data.load_or_make(folder, "world", None, tmp_path / "pretrained_adv_model.pt")
    assert capsys.readouterr().out == ""
    world = envs.ParticleWorld("world", loaded.prey)
    world.reset(50, generator())
    norm = nn.BatchNorm1d(22).eval()
    norm.load_state_dict({k.removeprefix("in_fn."): v for k, v in policy.items() if k.startswith("in_fn.")})
    x = norm(world.observations()[1][:, 0])
    for k in (1, 2, 3):
        x = nn.functional.linear(x, policy[f"fc{k}.weight"], policy[f"fc{k}.bias"])
        x = torch.relu(x) if k < 3 else torch.tanh(x)
    assert torch.allclose(world.prey_action()[:, 0], x, atol=1e-5)


class Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_bad_folders_and_preys_are_refused_in_one_line(expert, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    d = data.Dataset.load(expert)
    good = write_folder(tmp_path / "good", d)
    touched = tmp_path / "unpickled"
    write_prey(tmp_path / "tag.pt", obs_dim=14)
    torch.save({"agent_params": [{"policy": Evil(f"touch {touched}")}]}, "evil.pt")
    torch.save([1, 2], "list.pt")
    Path("text.pt").write_text("hello")
    spoils = {
        "has no acs_1.npy": lambda f: (f / "acs_1.npy").unlink(),
        "rews_2.npy has shape": lambda f: np.save(f / "rews_2.npy", d.rewards[:-1, 2].numpy()),
        "obs_0.npy has shape": lambda f: np.save(f / "obs_0.npy", d.observations[:, 0, :16].numpy()),
        "obs_1.npy cannot be read": lambda f: np.save(f / "obs_1.npy", np.array([Evil("touch unpickled")] * 2)),
        "acs_0.npy holds no array": lambda f: np.save(f / "acs_0.npy", d.actions[:, 0].numpy() * 1j),
        "acs_2.npy cannot be read": lambda f: (f / "acs_2.npy").write_bytes(b""),
        "dones_0.npy cannot be read": lambda f: (f / "dones_0.npy").write_bytes(b"\x93NUMPY\x01\x00"),
        "actions reach 3": lambda f: np.save(f / "acs_0.npy", 0 * d.actions[:, 0].numpy() + 3),
        "next_observations holds NaN": lambda f: np.save(f / "next_obs_1.npy", np.full((len(d), 24), np.nan)),
    }
    cases = {"names no quality": ["good"], "no such": ["good", "--quality", "expert", "--prey", "no such.pt"]}
    for name in ("evil", "list", "text", "tag"):
        cases[f"{name}.pt"] = ["good", "--quality", "expert", "--prey", f"{name}.pt"]
    cases["--quality is for folders"] = [str(expert), "--quality", "medium"]
    for k, (message, spoil_it) in enumerate(spoils.items()):
        spoil_it(write_folder(tmp_path / f"expert{k}", d))
        cases[message] = [f"expert{k}"]
    before = sorted(os.listdir())
    for message, options in cases.items():
        assert om2p.main(["--data", *options]) == 2, message
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, (message, error)
    assert sorted(os.listdir()) == before and not touched.exists() and good.exists()


REFUSED = {
    "nosuch.npz": ["--data", "nosuch.npz"],
    "tag-expert.npz": ["--data", "tag-expert.npz"],
    "no folder": ["--data", "no/expert.npz"],
    "--bogus": ["--bogus", "1"],
    "--steps": ["--steps", "0"],
    "--gamma": ["--gamma", "nan"],
    "--rho": ["--rho", "1.5"],
    "--preset": ["--preset", "best"],
    "--xi": ["--xi", "-1", "0", "0", "0"],
    "xi0 must lie": ["--xi", "1e307", "0", "0", "0"],
    "--batch-size": ["--batch-size", "1000000000000"],
    "nofolder does not exist": ["--data", "nofolder", "--quality", "expert"],
    "--delta-r": ["--delta-r", "0"],
    "--equal-share": ["--preset", "paper", "--equal-share", "0.5"],
    "--candidates": ["--act-noise", "0", "--candidates", "4"],
    "--derivative-dtype": ["--derivative", "exact", "--derivative-dtype", "float64"],
    "--eta": ["--objective", "bc", "--eta", "1"],
    "--times": ["--objective", "q", "--times", "ordered"],
    "--derivative": ["--objective", "q", "--derivative", "exact"],
    "--velocity": ["--times", "coupled", "--velocity", "own"],
    "--cloning": ["--objective", "bc", "--cloning", "weighted"],
    "--hidden-dim": ["--hidden-dim", "many"],
}


@pytest.mark.parametrize("message", REFUSED)
def test_bad_settings_are_refused_in_one_line(message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        code = om2p.main(REFUSED[message])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and message in error and error.count("\n") == 1
    assert os.listdir() == []


def test_settings_are_judged_by_the_quality_of_the_data(tmp_path, capsys, monkeypatch):
    """Of HalfCheetah's data, expert acts without noise by default, so that all candidates are one; medium with some."""
    monkeypatch.chdir(tmp_path)
    options = [*TINY, "--steps", "1", "--env", "halfcheetah", "--candidates", "4"]
    assert om2p.main([*options, "--data", "expert.npz"]) == 2
    assert "--candidates has no effect with --act-noise 0" in capsys.readouterr().err and os.listdir() == []
    np.savez("x.npz", rewards=np.zeros(3))
    assert om2p.main(["--resume", "--data", "x.npz"]) == 2
    assert "x.npz has no array meta" in capsys.readouterr().err
    data.collect("halfcheetah", "medium", 1000, progress=False).save("mine.npz")
    monkeypatch.setattr(envs, "save_gif", lambda agents, env, path, seed: path.touch())
    assert om2p.main([*options, "--data", "mine.npz", "--out", "run"]) == 0
    assert json.loads(Path("run/config.json").read_text())["act_noise"] == 0.5


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    d = data.collect("world", "expert", 50, progress=False)
    (tmp_path / "expert.npz").write_text("earlier")

    def full(file, **arrays):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        d.save(tmp_path / "expert.npz")
    assert os.listdir(tmp_path) == ["expert.npz"] and (tmp_path / "expert.npz").read_text() == "earlier"


# ------------------------------------------------------------------------------------------------- presets and runs


def test_presets_are_what_the_readme_says():
    paper, ours = Config(preset="paper").resolve("medium"), Config().resolve("medium")
    assert (paper.times, paper.delta_r, paper.derivative_dtype) == ("coupled", 1e-12, "float64")
    assert (paper.eta, paper.xi, paper.normalise_q) == (1000.0, (0.0, 0.0, 0.2, 0.0), False)
    assert (ours.times, ours.equal_share, ours.delta_r, ours.derivative_dtype) == ("ordered", 0.5, 1e-3, "float32")
    assert (ours.eta, ours.normalise_q) == (30.0, True)
    assert (paper.velocity, ours.velocity) == ("sampled", "own")
    assert paper.cloning == ours.cloning == Config(env="my:task").resolve("medium").cloning == "plain"
    weighted = [Config(env="spread", preset=preset).resolve("medium").cloning for preset in ("paper", "recommended")]
    assert weighted == ["plain", "weighted"]
    assert Config(times="coupled").resolve().velocity == Config(equal_share=0.0).resolve().velocity == "sampled"
    assert (paper.candidates, ours.candidates) == (1, 8)
    noise = [c.resolve("medium").act_noise for c in (paper, ours, Config(env="halfcheetah"), Config(env="my:task"))]
    assert noise == [1.0, 1.0, 0.5, 0.5]
    assert (paper.act_with, ours.act_with) == ("trained", "averaged")
    assert Config().resolve("medium-replay").eta == 300.0 and Config(env="my:task").resolve("medium-replay").eta == 1.0
    mixed = Config(preset="paper", times="ordered", eta=3.0, delta_r=1e-3).resolve("medium")
    assert (mixed.times, mixed.eta, mixed.derivative_dtype, mixed.normalise_q) == ("ordered", 3.0, "float32", False)
    assert mixed.resolve("medium") == mixed


def run(folder: Path, *options: str, **kwargs) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "om2p.py"), *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=150, **kwargs)


FILES = ["checkpoint.pt", "config.json", "curve.png", "metrics.csv", "rollout.gif", "timing.csv"]
SMALL = ("--hidden-dim", "32", "--hidden-layers", "2", "--eval-episodes", "4", "--final-episodes", "8")


def test_the_command_line_from_an_empty_folder(tmp_path, expert):
    (tmp_path / "expert.npz").symlink_to(expert)
    result = run(tmp_path, *SMALL, "--steps", "30", "--eval-every", "10")
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr and "normalised score" in result.stdout
    folder = tmp_path / "runs" / "world-expert-seed0"
    assert sorted(os.listdir(folder)) == FILES
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    assert [(int(row["step"]), int(row["episodes"])) for row in rows] == [(10, 4), (20, 4), (30, 4), (30, 8)]
    assert all(math.isfinite(float(x)) for row in rows[:-1] for x in row.values())
    assert f"{float(rows[-1]['return']):.1f} +-" in result.stdout
    config = json.loads((folder / "config.json").read_text())
    assert config["hidden_dim"] == 32 and config["eta"] == 100.0 and config["data_meta"]["env"] == "world"
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert state["step"] == 30 and len(state["agents"]) == 3
    policy = MeanFlowPolicy(24, 2, 32, 2)
    policy.load_state_dict(state["agents"][0]["policy"])
    assert run(tmp_path, *SMALL, "--steps", "2").returncode == 0
    assert (tmp_path / "runs" / "world-expert-seed0.1" / "rollout.gif").exists(), "the earlier run is kept"


@pytest.mark.parametrize(
    ("name", "quality"),
    [
        ("spread", "medium-replay"),
        ("tag", "medium"),
        ("world", "medium-expert"),
        ("halfcheetah", "medium-replay"),
        ("halfcheetah", "expert"),
    ],
)
def test_cells_of_table_1_make_the_data_they_lack(name, quality, tmp_path, monkeypatch, capsys):
    """A quick subset of what notebooks/cells.py runs in full: little data, few steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "TRANSITIONS", 2000)
    if quality == "medium-replay":
        monkeypatch.setattr(envs, "save_gif", lambda agents, env, path, seed: path.touch())
    file = f"{name}-{quality}.npz"
    options = ["--hidden-dim", "16", "--steps", "2", "--eval-episodes", "1", "--final-episodes", "2"]
    assert om2p.main(["--env", name, "--data", file, *options]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith(f"making {file}: {quality} data of {name}") and "MB" in first
    made = data.Dataset.load(file, name)
    assert len(made) == 2000 and made.meta["quality"] == quality
    assert Path(f"runs/{name}-{quality}-seed0/rollout.gif").exists()
    assert om2p.main(["--env", "world" if name != "world" else "tag", "--data", file]) == 2
    assert f"holds data of {name}" in capsys.readouterr().err


def trained(tmp_path: Path, expert: Path, name: str, **options) -> torch.Tensor:
    """Weights after 20 steps."""
    config = {"steps": 20, "hidden_dim": 32, "hidden_layers": 2, "final_episodes": 2, "eval_episodes": 2} | options
    agents, _ = om2p.train(Config(data=str(expert), out=str(tmp_path / name), **config))
    return torch.cat([weights(a.policy) for a in agents])


def test_same_seed_same_weights_whatever_the_evaluation(tmp_path, expert):
    first = trained(tmp_path, expert, "a", eval_every=20)
    torch.rand(5)
    assert torch.equal(first, trained(tmp_path, expert, "b", eval_every=3, eval_episodes=5, save_every=7))
    assert not torch.equal(first, trained(tmp_path, expert, "c", seed=1))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_prints_the_same(signum, tmp_path, expert):
    (tmp_path / "expert.npz").symlink_to(expert)
    command = [sys.executable, str(ROOT / "om2p.py"), *SMALL, "--steps", "1000000", "--eval-every", "10"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, **pipes)
    metrics = tmp_path / "runs" / "world-expert-seed0" / "metrics.csv"
    deadline = time.time() + 60
    while not metrics.exists() and time.time() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signum)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert "normalised score" in out
    assert sorted(os.listdir(metrics.parent)) == FILES


# ------------------------------------------------------------------------------------------------ resume and faults

TINY = ("--hidden-dim", "16", "--hidden-layers", "2", "--eval-episodes", "2", "--final-episodes", "3")
TINY += ("--eval-every", "7", "--save-every", "5", "--batch-size", "32")


def same_run(a: Path, b: Path) -> bool:
    """Whether two run folders hold the same metrics, byte for byte, and the same checkpoint but for the clock."""
    first, second = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (a, b))
    for state in (first, second):
        for name in ("seconds", "config"):
            state.pop(name)
    flat = [torch.utils._pytree.tree_flatten(state) for state in (first, second)]
    same = flat[0][1] == flat[1][1] and all(
        torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in zip(flat[0][0], flat[1][0])
    )
    return same and (a / "metrics.csv").read_bytes() == (b / "metrics.csv").read_bytes()


@pytest.fixture(scope="session")
def whole_run(expert, tmp_path_factory) -> Path:
    """An uninterrupted run of 30 steps."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert om2p.main([*TINY, "--data", str(expert), "--steps", "30", "--out", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("steps", [3, 5, 12, 14, 30])
def test_a_resumed_run_equals_an_uninterrupted_one(steps, whole_run, expert, tmp_path, monkeypatch):
    """A run that ends early is continued, by nothing but its folder."""
    monkeypatch.setattr(envs, "save_gif", lambda *_: None)
    out = str(tmp_path / "run")
    assert om2p.main([*TINY, "--data", str(expert), "--steps", str(steps), "--out", out]) == 0
    assert om2p.main(["--resume", "--out", out, "--steps", "30"]) == 0
    assert same_run(tmp_path / "run", whole_run)


def test_a_killed_run_equals_an_uninterrupted_one(whole_run, expert, tmp_path):
    """The short form of notebooks/stress.py: kill -9 at different moments, resume, until the end."""
    sys.path.insert(0, str(ROOT / "notebooks"))
    import stress

    kills = stress.run_killed([*TINY, "--data", str(expert), "--steps", "30"], tmp_path / "run", kills=2, seed=0)
    assert kills == 2 and same_run(tmp_path / "run", whole_run)


def test_resuming_names_what_contradicts(whole_run, expert, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    other = spoil(expert, tmp_path / "other.npz", rewards=lambda x: x + np.float32(1e-3))
    for options, message in (
        (["--hidden-dim", "32"], "--hidden-dim 32 contradicts"),
        (["--seed", "1"], "--seed 1 contradicts"),
        (["--xi", "1", "0", "0", "0"], "--xi (1.0, 0.0, 0.0, 0.0) contradicts"),
        (["--steps", "20"], "has made 30 already"),
        (["--data", str(other)], "not the data"),
        (["--evaluate", str(run)], "no effect"),
    ):
        try:
            assert om2p.main(["--resume", "--out", str(run), *options]) == 2
        except SystemExit as stop:
            assert stop.code == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
        assert same_run(run, whole_run)
    assert om2p.main(["--resume", "--out", str(tmp_path / "nowhere")]) == 2
    assert "nothing to continue" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_refused_in_one_line(whole_run, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    path = run / "checkpoint.pt"
    good = path.read_bytes()
    flips = [len(good) * k // 40 for k in range(40)]
    damaged = [good[:k] for k in (0, 10, len(good) // 2, len(good) - 1)]
    tensor = good.rfind(b"/data/0")  # in the zip file's directory, whose entries have 46 bytes before the name
    flips += [good.rfind(b"PK\1\2", 0, tensor) + 38]  # its attributes: no checksum covers them
    damaged += [good[:k] + bytes([good[k] ^ 255]) + good[k + 1 :] for k in flips]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        if om2p.main(["--evaluate", str(run), "--episodes", "1"]):
            error = capsys.readouterr().err
            assert error.count("\n") == 1 and "checkpoint.pt" in error, error
            refused += 1
        else:  # a byte of the padding between tensors: nothing was lost
            assert same_run(run, whole_run)
    assert refused > len(damaged) // 2
    path.write_bytes(good)
    assert om2p.main(["--evaluate", str(run), "--episodes", "1"]) == 0


def test_a_hostile_checkpoint_executes_nothing(whole_run, tmp_path, capsys):
    run, touched = tmp_path / "run", tmp_path / "touched"
    shutil.copytree(whole_run, run)
    state = torch.load(run / "checkpoint.pt", weights_only=True) | {"threads": Evil(f"touch {touched}")}
    torch.save(state, run / "checkpoint.pt")
    for command in (["--evaluate", str(run)], ["--resume", "--out", str(run)]):
        assert om2p.main(command) == 2
        assert "checkpoint" in capsys.readouterr().err
    assert not touched.exists()


def test_two_processes_cannot_share_a_run_folder(whole_run, expert, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    descriptor = data.lock(run)
    for options in (["--resume"], ["--data", str(expert)]):
        assert om2p.main([*options, "--out", str(run)]) == 2
        assert "in use by another process" in capsys.readouterr().err
    os.close(descriptor)
    assert same_run(run, whole_run) and not (tmp_path / "run.1").exists()
    assert om2p.main(["--resume", "--out", str(run)]) == 0


def test_nan_in_a_loss_stops_the_run_and_keeps_the_last_checkpoint(expert, tmp_path, capsys, monkeypatch):
    update, calls = Agent.update, []

    def spoiled(self, batch):
        calls.append(1)  # three agents a step: the 26th update is that of agent 1 in step 9
        return update(self, batch) | ({"critic_loss": torch.tensor(math.nan)} if len(calls) == 26 else {})

    monkeypatch.setattr(Agent, "update", spoiled)
    run = tmp_path / "run"
    assert om2p.main([*TINY, "--data", str(expert), "--steps", "30", "--out", str(run)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "step 9, agent 1: critic_loss is nan" in error and "checkpoint of step 5 is kept" in error
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] == 5


def test_an_evaluation_that_raises_ends_in_one_line(expert, tmp_path, capsys, monkeypatch, whole_run):
    rewards, calls = envs.ParticleWorld.rewards, []

    def broken(self):
        calls.append(1)
        if len(calls) > 60:
            raise ZeroDivisionError("a broken\nenvironment")
        return rewards(self)

    monkeypatch.setattr(envs.ParticleWorld, "rewards", broken)
    run = tmp_path / "run"
    options = [*TINY, "--data", str(expert), "--steps", "30", "--out", str(run)]
    assert om2p.main(options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "evaluating after step 21 failed (ZeroDivisionError: a broken)" in error
    monkeypatch.undo()
    monkeypatch.setattr(envs, "save_gif", lambda *_: None)
    assert om2p.main(["--resume", "--out", str(run)]) == 0
    assert same_run(run, whole_run)


def test_an_environment_that_cannot_be_drawn_ends_in_one_line(own_task, capsys):
    collect = ["collect", "--env", "task:unseen", "--transitions", "50", "--out", "own.npz"]
    assert data.main(collect) == 0
    assert om2p.main([*TINY, "--env", "task:unseen", "--data", "own.npz", "--steps", "2", "--out", "run"]) == 2
    assert "rollout.gif failed (RuntimeError: no licence)" in capsys.readouterr().err.splitlines()[-1]
    assert sorted(os.listdir("run")) == [name for name in FILES if name != "rollout.gif"]


def test_a_run_of_a_gpu_is_scored_anywhere_and_resumed_only_there(whole_run, tmp_path, capsys):
    """Such a run differs in the state of its random streams, 16 bytes for each, which a CPU cannot continue."""
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    for agent in state["agents"]:
        agent["generator"] = torch.zeros(16, dtype=torch.uint8)
    torch.save(state | {"device": "cuda"}, run / "checkpoint.pt")
    scores = []
    for folder in (whole_run, run):
        assert om2p.main(["--evaluate", str(folder), "--episodes", "3"]) == 0
        scores.append(capsys.readouterr().out)
    assert scores[0] == scores[1]
    assert om2p.main(["--resume", "--out", str(run), "--steps", "40"]) == 2
    assert "random streams of cuda" in capsys.readouterr().err.splitlines()[-1]


def test_the_learning_curve_shows_every_step_once(expert, tmp_path, monkeypatch):
    """Of two evaluations after the last step the earlier one is drawn, with as many episodes as all others."""
    from matplotlib.axes import Axes

    drawn, plot = [], Axes.plot
    monkeypatch.setattr(envs, "save_gif", lambda *_: None)
    monkeypatch.setattr(Axes, "plot", lambda self, x, y, **style: (drawn.append(list(x)), plot(self, x, y, **style))[1])
    for steps in ("14", "15"):
        assert om2p.main([*TINY, "--data", str(expert), "--steps", steps, "--out", str(tmp_path / steps)]) == 0
    assert drawn == [[7, 14], [7, 14, 15]]


def test_a_folder_that_cannot_be_written_ends_in_one_line(expert, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert om2p.main([*TINY, "--data", str(expert), "--out", str(tmp_path / "file" / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_scoring_drawing_and_exporting_a_checkpoint(whole_run, tmp_path, capsys):
    gif, program = tmp_path / "a.gif", tmp_path / "policy.pt2"
    command = ["--evaluate", str(whole_run), "--episodes", "3", "--gif", str(gif), "--export", str(program)]
    assert om2p.main(command) == 0
    last = list(csv.DictReader((whole_run / "metrics.csv").read_text().splitlines()))[-1]
    assert f"{float(last['return']):.1f} +- {float(last['return_std']):.1f}" in capsys.readouterr().out
    assert gif.read_bytes().startswith(b"GIF")
    # in a process that has nothing of this repository
    state = torch.load(whole_run / "checkpoint.pt", weights_only=True)
    obs, noise = torch.randn(5, 3, 24, generator=generator(1)), torch.randn(5, 3, 8, 2, generator=generator(2))
    torch.save((obs, noise), tmp_path / "inputs.pt")
    code = "import torch; obs, noise = torch.load('inputs.pt', weights_only=True); "
    code += "torch.save(torch.export.load('policy.pt2').module()(obs, noise), 'actions.pt')"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    actions = torch.load(tmp_path / "actions.pt", weights_only=True)
    for i, saved in enumerate(state["agents"]):
        agent = Agent(24, 2, Config(hidden_dim=16, hidden_layers=2))
        agent.load_state_dict(saved)
        assert torch.allclose(actions[:, i], agent.act(obs[:, i], noise[:, i]), atol=1e-6)
    for wrong in (["--gif", "a.gif"], ["--evaluate", str(whole_run), "--steps", "3"]):
        with pytest.raises(SystemExit) as stop:
            om2p.main(wrong)
        assert stop.value.code == 2
    assert om2p.main(["--evaluate", str(whole_run), "--export", str(tmp_path / "policy.onnx")]) == 2


def test_om2p_beats_its_data(tmp_path, expert):
    """The real thing, small: on 25,000 expert transitions it plays as well as the data within a minute."""
    options = {"steps": 600, "hidden_dim": 64, "hidden_layers": 2, "final_episodes": 400, "eval_every": 600}
    _, summary = om2p.train(Config(data=str(expert), out=str(tmp_path / "run"), learning_rate=1e-3, **options))
    assert summary["return"] > 0.9 * summary["data_return"]


def test_tuned_products_keep_float32_precision():
    before = torch.get_float32_matmul_precision()
    om2p.tune_cpu(torch.device("cpu"))
    a, b = torch.randn(256, 512, generator=generator(1)), torch.randn(512, 512, generator=generator(2))
    assert ((a @ b).double() - a.double() @ b.double()).abs().max() < 1e-3
    torch.set_float32_matmul_precision(before)


# One episode of each world: start positions, actions, rewards, last observations (padded to 24), float64, compressed.
GOLDEN = {
    "spread": """
c-pO$c{tSj9>*EWAXy^WPRP_jlH#5g^!>Tkd#htfC(E%U=aROYD4{#bTBw|Z${|ZyEQRERBcI>cMwZBOhGS=#F~(qIMBBa3eaxKaG5_}Y=k>fl&-?j)-
`~&o`+S-5oA7l98o-(|{pOCz0HWVpw$=VT3#uHk+XjdG!1s!#QPQuI5Yg5(ptXqwa<?XA9hK?eS79GhP~QbU3JShKXPN<9)W7(8xD55?FK;X?u7`|7zb
2b<8WQ<`%>kdBm4Ci^agQPBXNOHfrF9vo%VzM}{Ig)KUnPJu5i!mb_(yVGi%J(OQDlqqbu)BJX#ITrMMjs_Frsa<^b?(&2K7|`LnYO<5KJx&FQh#XTEF
$!Gvap^{b(SQS3;wWgTK;uVjfnZFtc-?*XGP7)bEii6J%2_@FysCdz(J%Mb5cTDLFqfprhwc=A<_TtY2D51;{s{yiD=4<&kxQT;A&m)Taug==*Py9B1X
35Ii-WlTCVzn4a%y(mfkc`1dC~IzM*_{P!zl|E-7*3G|Nc+rJdd7a=7gC4?wfi+0qqV$-bunnxvfY+5vC47t9Yl{t{k0RLN>iaNCO$hfb0MQW-N6*U&|
xN~%Y|C$eBrp>7z)v6|oS`H4tQhgt$ngWm{fBO1CUJc?Fef}^S@z?zXl#XATdq0L$IMpXh^~QnFzVwHy-T%%f8W6Hbh=b)ORzzwBN8mTwa93B!xd)}4x
^nb9eFT!WZVd7^q9D8DCR+1Hf8);)1^JMVYnaV~-(@-5eRF-tGripM@{I{NV$`XeN2fqK(y=WdT@m=hXd%>Vgc(p?(68FQy<M<hI`{M4t#zfyeD@}K<&
Xw`AECen(q5+lFfV3uXF3|umJ*`z;m#TGp@u4nk$*?;-kz7WjeP|pD)-tgq^1$JZohJK^(c6mjjqIaSEI^cC&uPpHYC-CKcpw;gM~HORjvLx=(pZDqH~
skI%a(J4*Cv4oz4i|b4R1#eURQJh{!uvfQgky_p)v_toLj-a!{rtiebzSUT-&C*x$t|FQ|g!KU7&Pe_(^1mwz51su-zP)-ZnBo&kObqpq6LX3-nd?6Xa
b9-u$^n6}{Bh+aMq+ReEz3+m*AWV!KV<cBV(|D*=M6>-u~bl@OXL~-0V(L;cns$WzSi$*7;F;R^fHqZ(zDC^oP;7(P231z+t5hw>^LZ#V=OjiA|xnvYH
b!)K3=7-4O>WJ1v85{P@ev0SOOOSu)*tpU9pWzYXo@5kr3fUJtYOjuLfl^PN!x)u<o@1qqC9hdHEVUpZqnira5hN#f)k3&LbWNcfjG;ScH#)k+48UHm-
?$lR`EcV<&grn?8PJwtrTjrE13b0RB{47y#k$|gH2O4)%6v@2Q_9{z^UXd<l_M=EV(~_UOwJ^%tR&kn3_L(>_CtA%z741quDK^(V<Wo=4b=0V26{)$Oq
SE0LC@TBLg3%0p+LbWndkos^vK+D=Qp)L7gv+?+QmTbZGVfM{?Y*=i;tA5wcL>X8SbVW@hLDRkP;_9N29Riz|&urD8P_#>>Oq8#MW}GOo1+uZXm=EPWh
D0ur9_LIMtO<qa>j5`>5MtrkgRJIik*DfVhB0`P5<joVF0t6)x0%p>GvpjP}o}4m3?n#*(z_{xeYl-E6bC=c1J`{G^eq7`+DgJQQVq>~YCE=+bWQ(Kl4
X`C4H{bB}rTN3b@du9x4bf%CP;Yfs0)7n0aon(zHkZxb(u^I1<7H><iNjtx5{>qOp^z~`PcDPYviIA5!#g|1YPwS-u7qJL&#iio>pkT%Gwh+urZ-&@CR
w}>>JX!+{!uU|ePz8+`gB|Yu^fYuUw8XUOPq>ZnoN}O~zl`YJeGvS6GEoE^YN%}D{VhQnedqKm4hJ89h44%ttb@3GD(nzqup-aMyPu`<fc2k(_C2wn&h
dOxiFj>(lRZc+tf4p`K?;k{Qwk^!7Pgt<ey?%bkxdRcb)ukfc#BqaaY7AJgfoFLBC2K?!JL%iH<?i)CDEg)4$ba68V_SDpB3=~y328msD0+@W4D(aZ*Z
#H*DcG^BJPR9<E>9{s(X;~@gGhnbM||}^`g#?o&#jIt97n-+sTP;rnBbP^WP5IM2qkCrn>2F>c%}idx2|p;qT_dun_d*btecC>QsgGVY&MbHlq81b8b1
!$l0^s7E+#u@LV}+kR`Y`~R!yywPe<BOi@d?EuCJcou=7^;RmK?lq1IpHST-Asp8ShaZZ(1y9jdrCCnfOv8rv8ILoP7)D(05V5ir{#mfMEmNyy4Nb--F
m63g2#5u1H(0^&y-3pw6W*y_Atb>3(-Kdk0QUpxPQ0SqNg#Q
""",
    "tag": """
c-pPjdo<Mf8wc>BM78PW)~~FZblWiNQt9Fu(MYW5f>IKNtaeN6W>Q&6lrFjnxl|ZtTq;sx=J^gYuA6qmU|ffpsW3tpRBHWxNB(er^Uv?MpMPHGd(QKGz
VGv#=X}rim8u3Y&5VbZoUW>9qb3l?3{iEyyg|(##Vad*YC!js^Yt&rNipczi>B{2I&sEj$#na<Vm$C<^H~P>1@@XZ_DRc1F?@OC0)>tTV0l{aqgFx@vL
9UZa(1kR3I930_{~n<8y#PRH*irB_=T(11W7%KS;4v7Z*`z{lYYdalz_Fam6xyIx{Krczty>?ZZk3AaKQVA=CzO2%EtQl&L<WxT$+n-e>Dozntly~3d_
wo9o=L7`~7<M8C-1xQP%kwWABHUq0x0RepU_GrD&dOJk|+bb5<$3SR6;0fvKx@d>OE*W;GE5)nomfPrXOYh6G^GF)p)DiN*=i-|K^HoZ#Tsp4-{}-7w*
@&3gKF8hCp;Y0DVJ=xUyu#GqG>_3zd)x@6Ulkhc7wd(O=Ys9&i^5AI{4XUgsfU48?^k|(P5(XU|WQkl*^?-Gp5v^*??(y=)<yw`uYzqt+u4}RTuJ3bAq
(;dv$YKfry>kqFACY6KN<@vJ~)*S_ML&Zns*ZGifs@vFZ%3ovs%85u{aIyu0*Hg(srq)Os=ni15Yz3v?yk%V}jSzZ%#;l?^#Oah=-wa<KF6r90Jbj`Vw
oT@hG)Bqr9_=@_|G7q>F)AmMey_papstp+=B*H1-oE-;01bkfOk%Ju6O#M1#1)}=aEu?YFMXf`0<W7X93Xe$UlnKU2d_k6^&1c2V*@@~?Db1T$9Bk5c@
fdGQvlobtLG+*IT#BIsf@)ZQE64S{hYxz5XawXs=pz^nVzH#n?B#eKYG)^ysQo9Z8CSiUBCy!^5^UYrseRj7LS_Z0s`*popRA&6@zT<hLu$1Ht?AoZ#1
`~24^$uH6x|Pz!shkF5C4dY9F{{Xz;ul;@h?7we?rvLv2pWItBqdS3i30s>i_sV>%H&wF6XKtr9h>nvv@>i!+J(3=$ZI?g@Eq=xKj5OP0|B2Qt_A=Gr{
R#rz8sRJT1rBMX<BAyN{q*!@h&lGhAIouQ}t8I9<z?H6ZvF$WGDlI_&s)Z*QUfb8a!c9?o=cuvO0SZuE;(YR1m1pWr}uxwQ(BsiDWDYB%{M)F%K>1;)Z
5{K460S}nuaxR{4MzGgCx;#$;g37r=^k1?tiN~tCDtUskO{C+Sg*;4Cr{AW$7l6mQ$OJ3(S`1N91;6AHn7K8?y}(k4K6#T>Mej!TBS6`U9GQu$-wcO;5
Z?!{<Lw>#-(AJS3udtLpappIGVgv45uly7=xi9B07mw;J^j~(Xt&@*j}x^Hh+{z?5<LsiDr9hl^`~N7kgIR)?7_xDU%QE{)#ael67E*~vICVHG*UZXm7
-^ytIKPm9uGe_dBRgV@*S|Te<fN>gUs;Xgwp3M7|yrykBWQ>H+(jp*;+1uxx*XlLv&tXFl3*Y%|8noqC-31Db-@=(IxfH+yXEdZ1lQ1@?OSFx2O+ZEL?
WF|IxOpBAlk>n?;pW!||@fSm%^h6ohOniWOC2O7sS`2X1`Szrsrudkf%(UZF7cYBkbq`9j~SQgAahG1t^hMq1P}U&q)AxTF;~l<}+?QyuCYYh|Tq&=+V
W*~Uk5Sg@1HRz6(06S5<KRfPWWi2-W<1(<V_uY2J*2OM$}Gad|=KxtO4=)yWaE~_w#U!$51hL>Dj4+j!RG-pfPf@*-++heJ)C>@uEW`Az*NWm2;q{Ktl
N+5Tg(jU%~5XzkT55#PGjyt07wA{0}1BNDI$z|RPT-LPy$24XgDDLZN`RgDPcGPzF=x<6x<D6FJmTqTw_a*df$EU|&h~cS=l-h89lv%ymsSIR0Fx?xIo
ABqSo|9|s1Yl9Hi&?lZ8749EB$Ih8<g&JWf2@!TwpPj&(tIwIHAjooEbDQwKtIAo<0-lnNZ*~4y+D4Ot+QE&5UMjKog0oUhu|%mE$1B(yb@O0dEIBgo$
reB9ZiJrQNb%Rcj{B1HlEPCzeI>vOvBZr1CG$j+q}%dqZ;DN&R@93u7c9#$#)xO7URGaiqzhx5TpM%`ba5;D^F0j>8Sq9=Aay5cINLJ9ZE<PITESUl$m
xlB#In~j)T+HHEKx|ITD`a!wTwNk5G;f#d13nQTY(%2pY6UrjhL=iX4d#X)$cUdn1Y*iOt<Vliv*(QRGPYONK426*Eze5VXSj^!JKcC`T~G7}Gv6i6Tc
L*R0twawLx&iA1%=zM+>SiW~{*kE{~vYZ66{L~eyg#+`rP_unNlt<GJx7`ac5gb%+$!D-}Kjs$Iz)~8h?^O7SWT)xye^Mes(ylaW3?OWFx6DpU6{dRYf
DC6C=cfZzfqb^a%UgM=bQa|2!Ss1H&*qDf!7bIFFBT>eiPJMfXHl#~*|7wzUVx)e&$cdY$sbE5EAkS$_u&x1aTR0^lioiK((%BccG{DIjZqAnOy%@H*b
5n41JF4^7(ENk@K$!Do$}?LLcGE2Ugpc0?)uVIECATWj`EJUhlFCdxvZB05cj^;JTD7J>td@;!bbpmc`=7uB<AomT5B35%k6AiVz{lg2^uT)Sr=$Nh|N
BXOPp<vALkK;#0R`2w#Ms!aH{WN27^KuA5qItT(212?f6t&3PpMcltAFW-4BPzJUhyk*%-Mc#P3nhl`EfKq%&0nh=!8oV>bM;$vTDsnM^$o3jzJL;>N>
S{`C0#Xem5;~OEI?-ek_mP!A@w!?EYJ4)PHJ)mr-X*Z*T3#8f%L$+*=Y1-m&NPpNHSVvIZw&mYo<Kzj%raQwCsk-Z(n%Z~0*~KTO!u%HVhGgd+u98yj2
v$McWBZ(6m*&X4Y`K&F<?uHW5@A^Dmw^X^HoOgYI|Ij|1|oAuHacZo6SA!Fq)_us?le&FbSe496n&KpPb<7oc>JMZ}OH_-U~TL
""",
    "world": """
c-n>5c{J4P9|v$H-FsWEYPeLAq7*JIqSW;nmt={eO)5(&6lF^Yxup$}CE`kpwLw|NPM`10*h6G2GnU3K%b;Y*_UrtP`kgcPcg}tOd7bAxpU*k(=X0Jvo
?bx_VyS8oYS8+t!ge-8XZWP1#Ox4?a`_+1=&|suhnW0>zq`@BvbK4>NFV+h(6#KaP$!<t*1An8ti@rqrjhQ_61=z7Z{5O<RLHFOg`JVviPt~OW+hp)VI
s*tFTt=44D3VxteEJ7v#VRQjXdk{RhHm}TIqTikFa$We$@r%g^M&ZbGw1>ziSx3+gCIsVWThv54v1u3x%8E8TaWcFKXfUIuH(xw^J`6K*i*3K*-}4$lL
$D?rfalu3a=5Sjo1iWC@r4=szPyNNtd&;^!+n@2p-H{EvQf2d=3?5C_^``GhN4rD2jtzsHl6Owf-Nz1!s22bLry{!{8MIH<74MEpr9(5X@WW7}JQ^wXw
>?Nul1;V@0H^l)q#@^xQpbk{ur=jXVQubl>fFF<!+{1G>>x^O~#kix*#pLE+g#~Xk2rzPkd>-(Auk^Z}Ew{y!Na(AB1#hg@ZxmD^<d%=Q;Z3~1);vb^7
^q_>PRWYiNo`*fq2!pAH@XA2?AnNw~b?NH)I(TR=uAk8qh}Ojlk6s?&zyZViwq-}l!7@N><%R}(*v2aV`t!#e5IY)cJlRBp9T~ELeBo_4oFrU5+s=l{o
qx|MFH8lQjT|fw=0Me)#*{lYgSXGGE9rkDE+bQIl5C1_i)XsUMum1LmFo{Jeq4pQp^GJ~H?kmRdxgDV;yaAc(340IXa~Z5{8wMoFz`xDBqkb?A!cNCXS
sJKG%j>2G}Y*VXI4&!-e$eWUQSoUit-3decbbhRV8AgK=--y=q_;Y7q_zgtsaiZzZZ(>q+tYX(4<ItV7NrK{qVYO(Aqrx+HOZRo|77NPIt?MMd!0F=;y
SfoOe${hIBI+FAi4C?xn%nRtqL0kAN4yd!7<0V1RqmB{^4m8^n~`|5iz=$A|Lwy4!tAVdm&zyCqx}MwK2>Rrjq2hz1!2)e=k-r?u{-5O7R6<DJRxGz_(
6M0OOlgDDY4sVih-oO+=lze)|LY!-+&P;Nt$jR}>GyX%0N@<H5QD;K3|eE9?ovvH^TDdwc)Gkj&e#KBFC4bkr;Bf4g5P>fpdE8mg}ZCVu)2iP@e&Y!--
jLwFPxeB5CfedJ87K`{+(ZNX}{?2Q`L?E_5_lsWF1tyH!my%D{V)gFevC?&gFwi4(IXt`p4_=85G+4-iEmuUxY}OF)tf-(Ws4E)>_e;8Hv5U}pdT3|eb
RBTz_=IF16d`NrKw#)kbP(hCabmmJD7N*&ddc*BXneHQXJ2p}C=bot8|zE~OPBTz`Q<^lFjjs+q;v;3aJr)Fxdetp#Chy*DutYcwR;#}S-4X))kJ%W1q
8>lW@6|i9Jo0lqdmpIbyRt6Ba1gULQ)-1e%=6<!x2NK@ocnvp3&JBOhNhr!}^xwI=tgOTRh~~0n1GsC=X7*h2(qA?Cy63Fq3n@DbOz$GLkFHRv9%x>v0
{W&75rPJt4xDxS0iSY=Ri_i{Ih7FISF*h<uw{D*q#;w^=}0VHP-MS%6z^e9ADaqNAs|Dy9v-2daZQ&6ZS$73Y>sMsQ2eTq!<k!O|K$bGvl*%)K&D+G5p
i_PG$<4%V=3s!G6Y&n`95O)=<dyKR==ydHK0C~RN$j)k3k)pu1WIoLJ!XY-L6CT^T)kl`3J!Dg`R)8a5XIz4%MRoE#H(?e@E`MS^`F`?p>vIGkRB5ZC2
=hUFHm*&2W?sU*U>m4FFT8>OJGo`T29PqmLOXvxAL}~BW(=3Zvl!=vmY8_k*3fH@*lxC{one=)KT~ZOAq(;Bi)@DFwq{nFb_7W6IFwbq%Y5|M7=joEf3
piRgz?I*hfQsoK5_JZQU`fx(up4DXaO6|)8W-<YJY?rmEl#b3`hI`WrS>g2o@P3#9?gO?tc`<V`=W6XC9_MQr~nHKbk;lO7eeo$O0Je{1+*5-L`*Gi#b
qZ3H5mtTpl2K|2e>q2biuL)`xGV|s2RE&?H&tWI-;#U#}O=}<n%35C~#5F`od@3b}+dXCotEThC;HQigJP_IOCHno1$NV<oo5Wo#72|r){sOlJP?**&6
eLwSs};Kasl+U(82`wI17?G#URe)p)o6Iz}N}W}eJ{z5<a~s-B;Y_*VkzPpvZQe?}tndZ@!$UMPe_XkRDNRo;-uyzY`~R|rWZ5lt-}Le6v&nb!v+l$9>
&B*H*FO5@VEJ+Gl{b=17qBqF+8jc!y%BJ(QxF@L>I28l>e{XKR?HHpmY0?#pTfm{-?Z%<Y9o4GjTHUHz*oICufV3r<dj)Rh9UaJmiDp$5i5<`;i%0_V%
<W(?6QEF0?3PqdGwA!^NAg@=yHZ-4HLWQ$#{JT!ok;uG;ok*??{C0o(=|=ODLy}}(&j_Nzg%(MohOs15$2tLd4d}6*qxofmL8)$IsdGH?TJ5fI*P%8Ov
X7QGZ01UmdF{QtfBErxNg_o1vWzI3MCP?sFN-x7Pa=d*wZ71*r68{v;YL!|T=T%O;yr~~MI!Smo0l8G7fd2<uT=@Y+C(Dr%JkkOB=Y3j{k_&EIWS3NUa
i{fl}-ndh>RO={JU5rGOwpUfy>@C!i4u<z6wF#>UpIc6iqX_^&4?xN?22&f<)%kGO}xRbK_cKB5LNMkz5m0bK^VS3N+wL8H;n7ly<oOhvfU8RR?j?6iZ
?_vKN!+Okr!cAxOEdv_3QCGxFtYDP~g}fOEy*0oyAUFEpI;xwv*3jI#{xw_6Y5OTS~=C%24(-OVEj6Kk@;ZmW}@>GUMXX{YX6;a3L4>${pyq$A+r!QQA
V75SjWv3BF%l7Vu1%I8JbSHkWb|7p>fJWTRg>A2Xp19sFVKNS`3|Hpq!BdYtd>9z*&kuPyk$t=cE_W;M-<sV^Yj@$FrW&rK<7H=D!<D&fSXR>lHxlk8V
v3Ym<7%o!dn5wR-2dP*Aj^;oW#%HSuSENnB`$cfjv3msjZ1?6H6Q7}1P_RaNCKpqe7>m$?f8@vc{8+l*jh&*KiMuP7R`jLjA)mxH4YkLS5Mn4Q%_l<p*
ZgUZdZ;IS`T-QGGH&T|aIYfSNJFC=yj|_oe(4y(tVLNuo=O8~Jok`J6&wK<zD=t=Jig#6#g0`uv&}%hS?X}Pn1L6sE~NL_&VaL7m}>T4!}v;O+RF9%7x
3D0gxypWgia-E3P0#ieV;eZ&l~3R!+d@y)w?50vo8R`BKYUy!{Ps$pZ9!pCdI@3(?>AyVNdKoIgEBy(khvqL)dpPeU0<A5jb|fMK=8CIO<=taeVWn6@r
-iz2l(<ztW}FB-PD;VbLK2rqL(d=ORv1>G%SpzROoeuB722;XlNlXHLQV`@s440rT_5`FVfOkMsHA|NsC0xBdfysD!W
""",
}
