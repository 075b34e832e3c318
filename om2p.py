"""OM2P, Offline Multi-Agent Mean-Flow Policy (arXiv 2508.06269), in one file.

    python om2p.py --env world --data expert.npz      # makes the data if it is missing, trains, scores, draws

Each agent learns from a fixed data set a policy that turns noise into an action in one network evaluation. Time runs
from noise (0) to data (1). A straight path joins one noise with one action, a_r = (1 - r) noise + r action, with the
velocity v = action - noise. Averaged over all pairs these velocities are a flow. The network u(a_r, r, t) is the flow's
mean velocity from r to t, so one step goes all the way: a_t = a_r + (t - r) u. Since (t - r) u is the integral of the
velocity from r to t, its derivative by r, along the path, is -v: -u + (t - r) du/dr = -v. So u = v - (r - t) du/dr. As
in flow matching, the squared loss does the averaging, so that the v of one pair can stand for that of the flow.

    Eq. 1-2  mean_flow_loss      behaviour cloning: u is pulled to u_target = v - (r - t) du/dr
    Eq. 3    MeanFlowPolicy.act  noise to action; in one step, noise + u(noise, 0, 1)
    Eq. 4    sample_timesteps    p(t; xi) proportional to t^xi0 (1 - t)^xi1 exp(xi2 t + xi3)
    Eq. 5    finite_difference   du/dr along the path, t held fixed (exact_derivative: by torch.func.jvp)
    Eq. 6    policy_loss         cloning - eta E[Q(o, a~)]
    Eq. 7    critic_loss         two critics, each bootstrapped from the mean of the two targets
    Alg. 1   Agent.update, train

Shapes: B batch, N agents, O observation, A action. Agents share nothing. The quality of data is that of the policy that
was recorded: expert, medium, ...; where a team hunts a prey, the prey is a fixed policy that comes with the data.

To use the parts elsewhere, copy this file: `from om2p import MeanFlowPolicy, mean_flow_loss` needs only torch and
numpy. Training needs data.py (files, run folders) and envs.py (the tasks) beside it.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

Info = dict[str, Tensor]

# -------------------- networks


def mlp(in_dim: int, out_dim: int, hidden_dim: int, hidden_layers: int) -> nn.Sequential:
    """Linear, GELU, layer normalisation, `hidden_layers` times, then linear (section 7.1)."""
    sizes = [in_dim] + [hidden_dim] * hidden_layers
    # the exact GELU: on a CPU PyTorch's tanh approximation is several times slower
    hidden = [layer for i, o in zip(sizes, sizes[1:]) for layer in (nn.Linear(i, o), nn.GELU(), nn.LayerNorm(o))]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], out_dim))


class MeanFlowPolicy(nn.Module):
    """Mean velocity u(a_r, r, t | o) of the flow from noise at time 0 to an action at time 1."""

    def __init__(self, obs_dim: int, action_dim: int, hidden_dim: int = 512, hidden_layers: int = 4) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.net = mlp(obs_dim + action_dim + 2, action_dim, hidden_dim, hidden_layers)

    def forward(self, obs: Tensor, a_r: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """u (B, A) for obs (B, O), noisy action a_r (B, A) and times r, t (B, 1)."""
        return self.net(torch.cat([obs, a_r, r, t], -1))

    def act(self, obs: Tensor, noise: Tensor | None = None, steps: int = 1) -> Tensor:
        """Actions (B, A) in [-1, 1] from noise (B, A), Gaussian if not given, in equal steps of Eq. 3."""
        B = obs.shape[0]
        a = torch.randn(B, self.action_dim, device=obs.device, dtype=obs.dtype) if noise is None else noise
        grid = torch.linspace(0, 1, steps + 1, device=obs.device, dtype=obs.dtype).expand(B, 1, -1)
        for k in range(steps):
            r, t = grid[..., k], grid[..., k + 1]
            a = a + (t - r) * self(obs, a, r, t)  # Eq. 3
        return a.clamp(-1, 1)


class Critic(nn.Module):
    """One Q-network: the expected discounted sum of rewards after an action."""

    def __init__(self, obs_dim: int, action_dim: int, hidden_dim: int = 512, hidden_layers: int = 4) -> None:
        super().__init__()
        self.net = mlp(obs_dim + action_dim, 1, hidden_dim, hidden_layers)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """Q (B, 1) for obs (B, O) and action (B, A)."""
        return self.net(torch.cat([obs, action], -1))


def mean_q(critics: Sequence[nn.Module], obs: Tensor, action: Tensor) -> Tensor:
    """The mean of the critics (B, 1) for obs (B, O) and action (B, A)."""
    return torch.stack([q(obs, action) for q in critics]).mean(0)


# -------------------- timesteps


def check_xi(xi: Sequence[float]) -> None:
    """Raise a ValueError unless p(t; xi) of Eq. 4 can be normalised."""
    if len(xi) != 4 or not (np.abs(xi) <= 1e4).all() or min(xi[:2]) <= -1:
        text = "must be four numbers up to 10000, the first two above -1, else p(t; xi) has no finite integral"
        raise ValueError(f"--xi {xi}: {text}")


def sample_timesteps(xi: Sequence[float], size: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw t (size, 1) from p(t; xi) of Eq. 4, exactly, on the device of `generator`.

    For xi2 = 0 p is Beta(xi0 + 1, xi1 + 1), drawn as x / (x + y) with two gamma variables. exp(xi2 t) is the series of
    xi2^k t^k / k!, so for xi2 > 0 p is a mixture of Beta(xi0 + 1 + k, xi1 + 1): draw k first. For xi2 < 0 draw 1 - t
    likewise. xi3 cancels in the normaliser.
    """
    check_xi(xi)
    generator = generator or torch.default_generator
    if not any(xi[:3]):
        return torch.rand(size, 1, generator=generator, device=generator.device)
    alpha, beta, rate = xi[0] + 1, xi[1] + 1, abs(xi[2])
    if xi[2] < 0:
        alpha, beta = beta, alpha
    terms = int(rate + 10 * rate**0.5) + 30 if rate else 1  # so many that the rest is beyond float64
    k = torch.arange(terms, device=generator.device, dtype=torch.float64)  # float32 underflows for alpha near 0
    # log of xi2^k / k! times the integral of t^(alpha + k - 1) (1 - t)^(beta - 1), up to a constant
    log_weight = torch.xlogy(k, rate) - torch.lgamma(k + 1) + torch.lgamma(alpha + k) - torch.lgamma(alpha + beta + k)
    chosen = torch.multinomial(torch.softmax(log_weight, 0), size, replacement=True, generator=generator)
    x = torch._standard_gamma(alpha + k[chosen], generator=generator)
    y = torch._standard_gamma(torch.full_like(x, beta), generator=generator)
    return ((y if xi[2] < 0 else x) / (x + y)).float()[:, None]


def sample_interval(
    xi: Sequence[float], size: int, times: str, equal_share: float = 0.5, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw the times r and t (size, 1).

    "coupled", as in the paper: t from Eq. 4 and r = 1 - t, so that u learns on the line r + t = 1 alone. "ordered": two
    draws from Eq. 4, r the smaller; but r = t in a share `equal_share` of the rows, where u learns the velocity itself.
    """
    t = sample_timesteps(xi, size, generator)
    if times == "coupled":
        return 1 - t, t
    other = sample_timesteps(xi, size, generator)
    n = round(equal_share * size)
    other[:n] = t[:n]
    return torch.minimum(t, other), torch.maximum(t, other)


# -------------------- derivative
# Each gives du/dr (B, A), the change of u as r grows and a_r moves along the path with v; t is held fixed, and there is
# no graph. `u` is u(a_r, r, t), which the loss has anyway.


@torch.no_grad()
def finite_difference(
    policy: Callable[..., Tensor],
    obs: Tensor,
    a_r: Tensor,
    r: Tensor,
    t: Tensor,
    v: Tensor,
    u: Tensor,
    delta_r: float = 1e-3,
) -> Tensor:
    """Eq. 5: a second evaluation of u, a step of delta_r further on the path."""
    ahead = policy(obs, a_r + delta_r * v, r + delta_r, t)  # a_{r + delta_r} = a_r + delta_r v
    return (ahead - u) / delta_r


one_at_a_time = threading.Lock()  # PyTorch's forward mode has one state for all threads


@torch.no_grad()
def exact_derivative(
    policy: Callable[..., Tensor], obs: Tensor, a_r: Tensor, r: Tensor, t: Tensor, v: Tensor, u: Tensor
) -> Tensor:
    """The exact one, as one forward-mode product: no Jacobian."""
    with one_at_a_time:
        return torch.func.jvp(lambda a, s: policy(obs, a, s, t), (a_r, r), (v, torch.ones_like(r)))[1]


def in_float64(derivative: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same derivative from a policy evaluated in double precision.

    A delta_r below 1e-5 needs it: in float32 r + 1e-12 is r, and the difference exactly zero. It copies the policy.
    """

    def precise_derivative(
        policy: nn.Module, obs: Tensor, a_r: Tensor, r: Tensor, t: Tensor, v: Tensor, u: Tensor
    ) -> Tensor:
        precise = copy.deepcopy(policy).double()
        inputs = [x.double() for x in (obs, a_r, r, t)]
        with torch.no_grad():
            return derivative(precise, *inputs, v.double(), precise(*inputs)).to(u.dtype)

    return precise_derivative


# -------------------- losses


class Batch(NamedTuple):
    """Transitions of one agent."""

    obs: Tensor  # (B, O)
    action: Tensor  # (B, A), in [-1, 1]
    reward: Tensor  # (B, 1)
    next_obs: Tensor  # (B, O)
    terminal: Tensor  # (B, 1): 1 where the episode truly ended; a time limit is no terminal


def path(action: Tensor, noise: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    """The point a_r (B, A) at time r (B, 1) of the straight path from noise to action, and its velocity v."""
    return (1 - r) * noise + r * action, action - noise


def mean_flow_loss(
    policy: nn.Module,
    obs: Tensor,
    action: Tensor,
    noise: Tensor,
    r: Tensor,
    t: Tensor,
    derivative: Callable[..., Tensor] = finite_difference,
) -> tuple[Tensor, Info]:
    """L_bc, mean-flow behaviour cloning, for noise (B, A) and times r, t (B, 1). Where r = t the target is just v."""
    a_r, v = path(action, noise, r)
    u = policy(obs, a_r, r, t)
    du_dr = derivative(policy, obs, a_r, r, t, v, u.detach())
    u_target = v - (r - t) * du_dr  # Eq. 2; no gradient flows through it
    loss = (u - u_target).square().sum(-1).mean()  # Eq. 1
    return loss, {"bc_loss": loss.detach(), "du_dr": du_dr.abs().mean()}


def critic_loss(
    critics: Sequence[nn.Module],
    target_critics: Sequence[nn.Module],
    target_policy: nn.Module,
    batch: Batch,
    noise: Tensor,
    gamma: float = 0.99,
) -> tuple[Tensor, Info]:
    """Squared Bellman error of both critics, Eq. 7; noise (B, A) becomes the target policy's next action."""
    with torch.no_grad():
        next_action = target_policy.act(batch.next_obs, noise)
        next_q = mean_q(target_critics, batch.next_obs, next_action)  # mean_j Q'_j
        target = batch.reward + gamma * (1 - batch.terminal) * next_q
    loss = sum((q(batch.obs, batch.action) - target).square().mean() for q in critics)  # Eq. 7
    return loss, {"critic_loss": loss.detach(), "target_q": target.mean()}


def policy_loss(
    policy: MeanFlowPolicy,
    critics: Sequence[nn.Module],
    batch: Batch,
    bc_noise: Tensor,
    q_noise: Tensor,
    r: Tensor,
    t: Tensor,
    config: Config,
) -> tuple[Tensor, Info]:
    """A loss with the gradient of L_bc - eta E[Q(o, a~)], Eq. 6, with respect to the policy only.

    bc_noise (B, A) and the times r, t (B, 1) belong to L_bc. The action a~ is the end of one step of Eq. 3 to time 1.
    In the paper the step starts at time 0, from q_noise (B, A). Then all rows of Q pull u at (0, 1), where L_bc has
    hardly a row, and u gets a spike there. By default it starts at the same r, on the path from q_noise to the recorded
    action: Q pulls u at (r, 1) for every r.
    `config.objective` leaves out one of the two terms, an ablation.
    """
    loss, info = 0.0, {}
    if config.objective != "q":
        loss, info = mean_flow_loss(policy, batch.obs, batch.action, bc_noise, r, t, choose_derivative(config))
    if config.objective != "bc":
        start = r if config.q_start == "path" else torch.zeros_like(r)
        a_r, _ = path(batch.action, q_noise, start)
        a = a_r + (1 - start) * policy(batch.obs, a_r, start, torch.ones_like(start))  # Eq. 3
        q_loss, q_info = ascent_loss(critics, batch.obs, a.clamp(-1, 1), config.q_scale)
        loss, info = loss + config.eta * q_loss, info | q_info  # Eq. 6
    return loss, info | {"policy_loss": loss.detach()}


def ascent_loss(critics: Sequence[nn.Module], obs: Tensor, action: Tensor, q_scale: str) -> tuple[Tensor, Info]:
    """A loss whose gradient is that of -E[Q(o, a)] for actions (B, A), over a scale of Q in this batch.

    A scale lets eta mean the same for every size of reward. "gradient": the mean length of dQ/da, so that eta is a pull
    in units of an action. "value": mean |Q|, as in FQL and TD3+BC; it grows as the critics bootstrap.
    """
    a = action.detach().requires_grad_()
    q = mean_q(critics, obs, a)
    (dq_da,) = torch.autograd.grad(q.sum(), a)
    length = dq_da.norm(dim=-1).mean()
    scale = {"none": torch.ones_like(length), "value": q.detach().abs().mean(), "gradient": length}[q_scale]
    loss = -(dq_da / scale.clamp_min(1e-6) * action).sum(-1).mean()
    return loss, {"q": q.detach().mean(), "dq_da": length}


# -------------------- settings

UNIFORM = (0.0, 0.0, 0.0, 0.0)


def option(
    default: Any, text: str, low: float = 0.0, high: float = 1e12, choices: tuple[str, ...] = (), group: str = ""
) -> Any:
    """A field of `Config`: default, comment (its --help), bounds or choices, the group of options that begins here."""
    return field(default=default, metadata={"help": text, "low": low, "high": high, "choices": choices, "group": group})


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. The defaults are for a task of one's own; for the four there is `Config.of`."""

    env: str = option(
        "world",
        "world, tag, spread, halfcheetah (section 5.1), MODULE:FUNCTION that makes a PettingZoo environment, or none",
        group="task and data",
    )
    data: str = option("expert.npz", "file or folder; a missing QUALITY.npz or ENV-QUALITY.npz is made")
    seed: int = option(0, "seeds networks, batches, noise and evaluation; paper: five seeds", high=1e9)
    objective: str = option(
        "both", "terms of Eq. 6; bc, q: ablations, Figure 4", choices=("both", "bc", "q"), group="method"
    )
    eta: float = option(0.1, "weight of the Q term, Eq. 6; if left out, by task; paper Table 3")
    q_scale: str = option(
        "gradient",
        "what Q is divided by: mean |Q|, or the mean length of dQ/da; paper none",
        choices=("none", "value", "gradient"),
    )
    q_start: str = option(
        "path",
        "Q rates one step to time 1: from the path at r, or from noise; paper noise, Eq. 6",
        choices=("path", "noise"),
    )
    times: str = option("ordered", "r <= t, or r = 1 - t (paper, below Eq. 4)", choices=("ordered", "coupled"))
    xi: tuple[float, ...] = option(UNIFORM, "coefficients of p(t; xi), Eq. 4; paper Table 3")
    derivative: str = option("finite_difference", "du/dr; paper Eq. 5", choices=("finite_difference", "exact", "zero"))
    delta_r: float = option(1e-3, "step of the difference, Eq. 5; paper 1e-12, Table 4", low=1e-300)
    derivative_dtype: str = option("float32", "of du/dr; paper does not say", choices=("float32", "float64"))
    candidates: int = option(8, "one-step actions drawn when acting, the critics' best is taken; paper 1", low=1)
    act_noise: float = option(1.0, "scale of the noise in Agent.act; if left out, by task; paper 1")
    hidden_dim: int = option(
        128, "width of each hidden layer; paper 512, section 7.1", low=1, group="networks and optimisation"
    )
    hidden_layers: int = option(4, "hidden layers of each network; paper 4, section 7.1", low=1)
    batch_size: int = option(256, "transitions per agent and update; paper 256, Table 4", low=1, high=1e6)
    learning_rate: float = option(1e-3, "Adam's, for policy and critics; paper 3e-4, section 7.1")
    gamma: float = option(0.99, "discount factor; if left out, by task; paper 0.99, Table 4", high=1)
    rho: float = option(0.005, "target update rate; paper 0.005, Table 4", high=1)
    steps: int = option(5000, "training steps; paper 1,000,000, section 7.1", low=1, group="running")
    eval_every: int = option(100, "steps between evaluations; paper 100, section 7.1", low=1)
    eval_episodes: int = option(10, "episodes of each evaluation; paper 10, section 7.1", low=1)
    final_episodes: int = option(100, "episodes of the last evaluation; not in the paper", low=1)
    save_every: int = option(1000, "steps between checkpoints; not in the paper", low=1)
    device: str = option("auto", "where networks and data live; paper: one GPU", choices=("auto", "cpu", "cuda"))
    out: str = option("runs/om2p", "new folder of the run; if left out, runs/ENV-QUALITY-seedSEED")

    def __post_init__(self) -> None:
        """Raise a ValueError that names the first setting out of its choices or bounds."""
        for f in fields(self):
            value, flag, choices = getattr(self, f.name), f"--{f.name.replace('_', '-')}", f.metadata["choices"]
            if choices and value not in choices:
                raise ValueError(f"{flag} {value}: choose from {', '.join(choices)}")
            low, high = f.metadata["low"], f.metadata["high"]
            if isinstance(value, (int, float)) and not low <= value <= high:
                raise ValueError(f"{flag} {value}: must be a number from {low:g} to {high:g}")
        check_xi(self.xi)

    @classmethod
    def of(cls, env: str, quality: str, /, preset: str = "recommended", **given: Any) -> Config:
        """Settings for data of a task and quality: those of the preset, then what is given."""
        settings = RECOMMENDED.get(env, {})
        if preset == "paper":
            paper_eta, paper_xi = TABLE_3.get(f"{env}/{quality}", (1.0, UNIFORM))
            settings = PAPER | {"eta": paper_eta, "xi": paper_xi}
        return cls(**settings | {"env": env} | given)


PAPER = {
    "hidden_dim": 512,
    "learning_rate": 3e-4,
    "times": "coupled",
    "delta_r": 1e-12,
    "derivative_dtype": "float64",
    "q_scale": "none",
    "q_start": "noise",
    "candidates": 1,
}
TABLE_3 = {  # of the paper: eta and xi by task/quality
    "tag/medium-replay": (100.0, UNIFORM),
    "tag/medium": (10.0, (0.0, 0.0, 0.2, 0.0)),
    "tag/medium-expert": (100.0, (2.0, 0.0, 0.0, 0.0)),
    "tag/expert": (1.0, UNIFORM),
    "world/medium-replay": (100.0, (0.0, 0.0, 0.2, 0.0)),
    "world/medium": (1000.0, (0.0, 0.0, 0.2, 0.0)),
    "world/medium-expert": (10000.0, UNIFORM),
    "world/expert": (1.0, UNIFORM),
    "spread/medium-replay": (1.0, UNIFORM),
    "spread/medium": (1.0, UNIFORM),
    "spread/medium-expert": (0.1, (0.0, 0.0, 0.05, 0.0)),
    "spread/expert": (1.0, (0.0, 0.0, 0.1, 0.0)),
    "halfcheetah/medium-replay": (1.0, UNIFORM),
    "halfcheetah/medium": (0.125, UNIFORM),
    "halfcheetah/medium-expert": (0.02, UNIFORM),
    "halfcheetah/expert": (0.008, UNIFORM),
}
RECOMMENDED = {  # by task
    "tag": {"eta": 3.0, "gamma": 0.9},
    "world": {"eta": 10.0, "gamma": 0.7},
    "spread": {"eta": 0.1},
    "halfcheetah": {"eta": 0.01, "act_noise": 0.0},
}


def choose_derivative(config: Config) -> Callable[..., Tensor]:
    """The function that gives du/dr."""
    derivative = {
        "finite_difference": partial(finite_difference, delta_r=config.delta_r),
        "exact": exact_derivative,
        # what Eq. 5 gives in float32 with the paper's delta_r
        "zero": lambda policy, obs, a_r, r, t, v, u: torch.zeros_like(v),
    }[config.derivative]
    return in_float64(derivative) if config.derivative_dtype == "float64" else derivative


# -------------------- agent


class Agent:
    """One agent: its policy and two critics, their targets, optimizers and random stream (Algorithm 1)."""

    policy_kind: type[nn.Module] = MeanFlowPolicy

    def __init__(
        self, obs_dim: int, action_dim: int, config: Config, device: str | torch.device = "cpu", index: int = 0
    ) -> None:
        self.config = c = config
        sizes = (obs_dim, action_dim, c.hidden_dim, c.hidden_layers)
        self.generator = torch.Generator(device).manual_seed(1000 * c.seed + index)
        self.policy = self.policy_kind(*sizes).to(device)
        self.critics = nn.ModuleList([Critic(*sizes), Critic(*sizes)]).to(device)
        self.target_policy = copy.deepcopy(self.policy).requires_grad_(False)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        adam = {"lr": c.learning_rate, "fused": True}  # one pass over memory for each weight
        self.policy_optimizer = torch.optim.Adam(self.policy.parameters(), **adam)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), **adam)

    def update(self, batch: Batch) -> Info:
        """One step of critics (Eq. 7), policy (Eq. 6) and targets; returns the losses as tensors, not read yet."""
        c, (B, A) = self.config, batch.action.shape
        if not batch.reward.shape == batch.terminal.shape == (B, 1):  # (B,) would broadcast to (B, B)
            raise ValueError(f"rewards {[*batch.reward.shape]} or terminals {[*batch.terminal.shape]} are not [{B}, 1]")
        bc_noise, q_noise, next_noise = torch.randn(3, B, A, generator=self.generator, device=batch.action.device)
        r, t = sample_interval(c.xi, B, c.times, generator=self.generator)

        loss, info = critic_loss(self.critics, self.target_critics, self.target_policy, batch, next_noise, c.gamma)
        descend(self.critic_optimizer, loss)
        loss, policy_info = policy_loss(self.policy, self.critics, batch, bc_noise, q_noise, r, t, c)
        descend(self.policy_optimizer, loss)
        soft_update(self.target_critics, self.critics, c.rho)
        soft_update(self.target_policy, self.policy, c.rho)
        return info | policy_info

    @property
    def candidates(self) -> int:
        """How many actions there are to choose from when acting: one if all would be the same, or Q has no say."""
        return self.config.candidates if self.config.act_noise and self.config.objective != "bc" else 1

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Actions (B, A) for observations (B, O): of `candidates` one-step actions, the one with the highest mean Q.

        `noise` is (B, candidates, A), or (B, A) for one; if it is not given, Gaussian, from `generator`. `act_noise`
        scales it. The target networks act: they are running averages of the trained ones.
        """
        B, A = obs.shape[0], self.target_policy.action_dim
        if noise is None:
            noise = torch.randn(B, self.candidates, A, device=obs.device, generator=generator)
        noise = noise.view(B, -1, A) * self.config.act_noise
        rows = obs.repeat_interleave(noise.shape[1], 0)
        actions = self.target_policy.act(rows, noise.flatten(0, 1))
        if noise.shape[1] == 1:
            return actions
        best = mean_q(self.target_critics, rows, actions).view(B, -1).argmax(1)
        return actions.view(noise.shape)[torch.arange(B, device=obs.device), best]

    PARTS = ("policy", "critics", "target_policy", "target_critics", "policy_optimizer", "critic_optimizer")

    def state_dict(self) -> dict[str, Any]:
        """All that continues a training, as tensors and plain types."""
        parts = {name: getattr(self, name).state_dict() for name in self.PARTS}
        return parts | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        for name in self.PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One optimizer step on `loss`, with gradients for the optimizer's own weights only."""
    loss.backward(inputs=optimizer.param_groups[0]["params"])
    optimizer.step()
    optimizer.zero_grad()  # frees the gradients at once, for the next loss


@torch.no_grad()
def soft_update(target: nn.Module, online: nn.Module, rho: float) -> None:
    """target <- rho online + (1 - rho) target (Algorithm 1, line 7)."""
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rho)


# -------------------- training


def train(
    config: Config, dataset: Any = None, resume: bool = False, make_agent: Callable[..., Agent] = Agent
) -> tuple[list[Agent], dict[str, float]]:
    """Algorithm 1: train every agent on one `data.Dataset`, evaluate on the way, leave a new run folder.

    The folder `config.out` gets config.json, metrics.csv, checkpoint.pt, curve.png and rollout.gif (`data.RunFolder`);
    without an environment there are no returns and no pictures.
    Returns the agents and the last row of metrics.csv. Ctrl-C ends the training within ten steps, with all of these;
    `resume` continues from there, bit for bit. `make_agent` may build another kind of agent.
    """
    from tqdm import tqdm

    from data import check_fits, load_or_make, open_run, pick_device, thread_each
    from envs import evaluate, make_env, save_gif

    device = pick_device(config.device)
    dataset = (dataset or load_or_make(config.data, config.env)).to(device)
    env = make_env(config.env, dataset.prey, device)
    if env is not None:
        check_fits(dataset.sizes, env)
    N, O, A = dataset.sizes
    torch.manual_seed(config.seed)  # before the networks are built
    agents = [make_agent(O, A, config, device, index=i) for i in range(N)]

    def learn(i: int, updates: int) -> list[Info]:
        """Algorithm 1, lines 4 to 7, for agent i: sample, then critics, policy and targets."""
        sample = partial(dataset.sample, i, config.batch_size, agents[i].generator)
        return [agents[i].update(Batch(*sample())) for _ in range(updates)]

    seconds = 0.1 if sys.stderr.isatty() else 30.0  # between two states of the progress bar
    with open_run(config, dataset, agents, resume) as run, thread_each(agents, device) as pool:
        with tqdm(total=config.steps, initial=run.step, unit="step", mininterval=seconds) as bar:
            while run.step < config.steps and not run.stop.is_set():
                # agents share nothing: each makes some updates in a thread of its own, until something else is due
                due = (every - run.step % every for every in (config.eval_every, config.save_every, 10))
                updates = min(config.steps - run.step, *due)
                for infos in zip(*pool.map(learn, range(N), [updates] * N)):
                    for info in infos:
                        run.log(info)
                run.step += updates
                bar.update(updates)
                if run.step % config.eval_every == 0:
                    row = run.record(partial(evaluate, agents, env, config.eval_episodes, config.seed + 1))
                    bar.set_postfix(row, refresh=False)
                if run.step % config.save_every == 0:
                    run.save()
        run.save()
        last = run.finish(partial(evaluate, agents, env, config.final_episodes, config.seed + 2))
        save_gif(agents, env, run.path / "rollout.gif", config.seed + 2)
    return agents, last


def load_agents(folder: str, **changes: Any) -> tuple[list[Agent], dict[str, Any]]:
    """The trained agents of a run folder, on the CPU and with `changes` of settings, and its checkpoint."""
    from data import load_checkpoint

    state = load_checkpoint(folder)
    if other := set(state["config"]) ^ {f.name for f in fields(Config)}:
        raise ValueError(f"{folder} was trained by another program or version: its settings differ in {min(other)}")
    config, (N, O, A) = Config(**state["config"] | changes), state["sizes"]
    agents = [Agent(O, A, config, index=i) for i in range(N)]
    for agent, saved in zip(agents, state["agents"]):
        agent.load_state_dict(saved | {"generator": agent.generator.get_state()})  # the saved one may be of a GPU
    return agents, state


# -------------------- command line


def main(argv: Sequence[str] | None = None) -> int:
    """`python om2p.py ...`; returns the exit code: 2 for bad input, 130 if stopped by Ctrl-C."""
    from data import free_folder, load_or_make, parse_options, pick_device, score

    given, args = parse_options(Config, argv)
    try:
        if args.evaluate:
            score(*load_agents(args.evaluate, **given), args.episodes, args.gif, args.export)
            return 0
        if args.resume:
            agents, _ = load_agents(args.resume)
            config = replace(agents[0].config, out=args.resume, **given)
            dataset = load_or_make(config.data, config.env)
        else:
            config = Config(**given)  # refuses bad settings before any data is made
            pick_device(config.device)
            dataset = load_or_make(config.data, config.env)
            quality = dataset.meta["quality"]
            out = free_folder(f"{config.env}-{quality}-seed{config.seed}")
            config = Config.of(config.env, quality, args.preset, **{"out": out} | given)
        _, last = train(config, dataset, resume=bool(args.resume))
    except (ValueError, OSError, MemoryError, torch.cuda.OutOfMemoryError) as error:
        print(f"om2p.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("om2p.py: interrupted", file=sys.stderr)
        return 130
    return 0 if last["step"] == config.steps else 130


if __name__ == "__main__":
    sys.exit(main())
