"""The exact flow from Gaussian noise to actions in round clumps of equal size, which notebooks 1 and 2 compare with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def v_mean(a: Tensor, r: Tensor, modes: Tensor, spread: float) -> Tensor:
    """The mean of v (B, 2) over all straight paths through a (B, 2) at time r (B, 1).

    `modes` (K, 2) are the centres of the clumps, `spread` is the standard deviation of each.
    """
    modes, r = modes.to(a), r[:, None]
    variance = (1 - r) ** 2 + (r * spread) ** 2  # of a_r around r * mode
    offset = a[:, None] - r * modes  # (B, K, 2)
    share = torch.softmax(-offset.square().sum(-1, keepdim=True) / (2 * variance), 1)  # of paths to each clump
    # the mean action of the paths to one clump, and their mean noise
    action, noise = modes + r * spread**2 / variance * offset, (1 - r) / variance * offset
    return (share * (action - noise)).sum(1)


def mean_velocity(
    velocity: Callable[[Tensor, Tensor], Tensor], a: Tensor, r: Tensor, t: Tensor, steps: int = 100
) -> Tensor:
    """u (B, 2): `velocity(a, r)` averaged along its own path from r (B, 1) to t (B, 1), by Runge-Kutta steps."""
    h, total = (t - r) / steps, 0
    for k in range(steps):
        s = r + k * h
        k1 = velocity(a, s)
        k2 = velocity(a + h / 2 * k1, s + h / 2)
        k3 = velocity(a + h / 2 * k2, s + h / 2)
        k4 = velocity(a + h * k3, s + h)
        mean = (k1 + 2 * k2 + 2 * k3 + k4) / 6
        a, total = a + h * mean, total + mean
    return total / steps


def rms(x: Tensor) -> float:
    """Root of the mean squared length of the rows of x."""
    return x.square().sum(-1).mean().sqrt().item()


def fit(policy: nn.Module, loss: Callable[[], Tensor], steps: int) -> Tensor:
    """Train by Adam on `loss()`, with a learning rate that falls to zero; returns the loss of every step (steps,)."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=2e-3, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = torch.empty(steps)
    for k in range(steps):
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses[k] = value.detach()
    return losses
