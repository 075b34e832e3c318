"""OM2P, Offline Multi-Agent Mean-Flow Policy (arXiv 2508.06269), in one file.

    python om2p.py --env world --data expert.npz      # makes the data if it is missing, trains, scores, draws

Each agent learns from a fixed data set a policy that turns noise into an action in one network evaluation. Time runs
from noise (0) to data (1). On the straight path a_r = (1 - r) noise + r action the velocity is v = action - noise; the
network u(a_r, r, t) is the mean velocity from r to t, so that a_t = a_r + (t - r) u.

    Eq. 1-2  mean_flow_loss      behaviour cloning: u_target = v - (r - t) du/dr, with t held fixed
    Eq. 3    MeanFlowPolicy.act  noise to action; in one step, noise + u(noise, 0, 1)
    Eq. 4    sample_timesteps    p(t; xi) proportional to t^xi0 (1 - t)^xi1 exp(xi2 t)
    Eq. 5    finite_difference   du/dr from two evaluations of u (exact_derivative: from torch.func.jvp)
    Eq. 6    policy_loss         cloning - eta E[Q(o, a~)]
    Eq. 7    critic_loss         two critics, each bootstrapped from the mean of the two targets
    Alg. 1   Agent.update, train

Shapes: B batch, N agents, O observation, A action, M transitions. Agents share nothing. To use the parts elsewhere,
copy this file: `from om2p import MeanFlowPolicy, mean_flow_loss` needs only torch and numpy.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from data import Dataset

Info = dict[str, Tensor]

# --------------------------------------------------------------------------------------------------- configuration

UNIFORM = (0.0, 0.0, 0.0, 0.0)
QUALITIES = ("medium-replay", "medium", "medium-expert", "expert")
TABLE_3_ETA = {  # Table 3: eta on raw Q, for data of each of the qualities above
    "tag": (100.0, 10.0, 100.0, 1.0),
    "world": (100.0, 1000.0, 10000.0, 1.0),
    "spread": (1.0, 1.0, 0.1, 1.0),
    "halfcheetah": (1.0, 0.125, 0.02, 0.008),
}
TABLE_3_XI = {  # Table 3: xi where it is not zero
    ("tag", "medium"): (0.0, 0.0, 0.2, 0.0),
    ("tag", "medium-expert"): (2.0, 0.0, 0.0, 0.0),
    ("world", "medium-replay"): (0.0, 0.0, 0.2, 0.0),
    ("world", "medium"): (0.0, 0.0, 0.2, 0.0),
    ("spread", "medium-expert"): (0.0, 0.0, 0.05, 0.0),
    ("spread", "expert"): (0.0, 0.0, 0.1, 0.0),
}
PRESETS = {
    # with eta and xi of Table 3
    "paper": {
        "times": "coupled",
        "velocity": "sampled",
        "delta_r": 1e-12,
        "normalise_q": False,
        "candidates": 1,
        "act_noise": 1.0,
        "act_with": "trained",
    },
    "recommended": {
        "times": "ordered",
        "velocity": "own",
        "delta_r": 1e-3,
        "normalise_q": True,
        "candidates": 8,
        "act_noise": 0.5,
        "act_with": "averaged",
        "xi": UNIFORM,
    },
}
RECOMMENDED = {  # eta on normalised Q, and act_noise, from the search in notebooks/results/tune.csv
    "tag": ((300.0, 1.0), (100.0, 1.0), (100.0, 1.0), (10.0, 1.0)),
    "world": ((300.0, 1.0), (30.0, 1.0), (30.0, 1.0), (100.0, 1.0)),
    "spread": ((30.0, 1.0), (10.0, 1.0), (10.0, 1.0), (1.0, 1.0)),
    "halfcheetah": ((0.01, 0.0), (0.01, 0.5), (0.01, 0.5), (0.01, 0.0)),
}
WEIGHTED = (("spread", "medium"), ("spread", "medium-expert"))  # where that search found weighted cloning better


def option(default: Any, text: str, low: float = 0.0, high: float = float("inf")) -> Any:
    """A field of `Config`: its default, its comment (which is also its --help) and its bounds."""
    return field(default=default, metadata={"help": text, "low": low, "high": high})


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. `None` is filled in by `resolve`, from the preset and the data's quality."""

    env: str = option(
        "world", "world, tag, spread, halfcheetah (section 5.1), or MODULE:FUNCTION that makes a PettingZoo environment"
    )
    data: str = option(
        "expert.npz", "data file or folder; a missing file is made, of the quality that its name ends in"
    )
    quality: Literal["expert", "medium", "medium-expert", "medium-replay"] | None = option(None, "of a data folder")
    prey: str | None = option(
        None, "pretrained_adv_model.pt that a data folder was made with; default the shipped prey"
    )
    preset: Literal["recommended", "paper"] = option("recommended", "what measured best here, or the paper's letter")
    steps: int = option(5000, "training steps, each updates every agent once; paper 1,000,000, section 7.1", low=1)
    seed: int = option(0, "seeds networks, batches, noise and evaluation; paper: five seeds", high=1e9)
    # method
    objective: Literal["both", "bc", "q"] = option("both", "terms of the policy loss Eq. 6; bc, q: ablations, Figure 4")
    eta: float | None = option(None, "weight of the Q term, Eq. 6; paper Table 3")
    normalise_q: bool | None = option(None, "divide Q by its mean absolute value in Eq. 6; paper: no")
    times: Literal["coupled", "ordered"] | None = option(None, "r = 1 - t (paper, below Eq. 4), or r <= t")
    equal_share: float | None = option(None, "share of rows with r = t among ordered times; not in the paper", high=1)
    xi: tuple[float, float, float, float] | None = option(None, "coefficients of p(t; xi), Eq. 4; paper Table 3")
    derivative: Literal["finite_difference", "exact", "zero"] = option("finite_difference", "du/dr; paper Eq. 5")
    velocity: Literal["sampled", "own"] | None = option(
        None, "v in Eq. 2 where r < t: action - noise (paper), or the network's own u(a_r, r, r)"
    )
    delta_r: float | None = option(None, "step of the difference, Eq. 5; paper 1e-12, Table 4", low=1e-300)
    derivative_dtype: Literal["float32", "float64"] | None = option(None, "of the difference; paper does not say")
    cloning: Literal["plain", "weighted"] | None = option(
        None, "all rows of Eq. 2 count alike (paper), or the more, the better the critics hold their actions to be"
    )
    candidates: int | None = option(
        None, "one-step actions drawn when acting, of which the critics' best is taken; paper 1", low=1
    )
    act_noise: float | None = option(None, "scale of the noise that becomes an action when acting; paper 1")
    act_with: Literal["trained", "averaged"] | None = option(
        None, "the trained networks act, or their running averages (the targets of Algorithm 1); paper does not say"
    )
    # networks and optimisation
    hidden_dim: int = option(512, "width of each hidden layer; paper 512, section 7.1", low=1)
    hidden_layers: int = option(4, "hidden layers of each network; paper 4, section 7.1", low=1)
    batch_size: int = option(256, "transitions per agent and update; paper 256, Table 4", low=1, high=1e6)
    learning_rate: float = option(3e-4, "Adam's, for policy and critics; paper 3e-4, section 7.1")
    gamma: float = option(0.99, "discount factor; paper 0.99, Table 4", high=1)
    rho: float = option(0.005, "target update rate; paper 0.005, Table 4", high=1)
    # running
    eval_every: int = option(100, "steps between evaluations; paper 100, section 7.1", low=1)
    eval_episodes: int = option(10, "episodes of each evaluation; paper 10, section 7.1", low=1)
    final_episodes: int = option(100, "episodes of the last evaluation; not in the paper", low=1)
    save_every: int = option(1000, "steps between checkpoints; not in the paper", low=1)
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "where networks and data live; paper: one GPU")
    out: str | None = option(None, "folder of the run; default runs/ENV-QUALITY-seedSEED")

    def resolve(self, quality: str = "expert") -> Config:
        """Fill in each `None` for data of this quality; raise ValueError for an option that has no effect."""
        out = f"runs/{self.env.replace(':', '.')}-{quality}-seed{self.seed}"
        fill = {"eta": 1.0, "xi": UNIFORM, "out": out, "equal_share": 0.5, "cloning": "plain"} | PRESETS[self.preset]
        if self.env in TABLE_3_ETA and quality in QUALITIES:
            k = QUALITIES.index(quality)
            if self.preset == "paper":
                fill |= {"eta": TABLE_3_ETA[self.env][k], "xi": TABLE_3_XI.get((self.env, quality), UNIFORM)}
            else:
                fill |= dict(zip(("eta", "act_noise"), RECOMMENDED[self.env][k]))
                if (self.env, quality) in WEIGHTED:
                    fill["cloning"] = "weighted"
        # below 1e-5 float32's rounding of r + delta_r eats the difference: tens of percent at 1e-6, all at 1e-8
        fill["derivative_dtype"] = "float64" if (self.delta_r or fill["delta_r"]) < 1e-5 else "float32"
        coupled = (self.times or fill["times"]) == "coupled"
        share = fill["equal_share"] if self.equal_share is None else self.equal_share
        if coupled or not count_equal(share, self.batch_size):
            if self.velocity == "own":
                raise ValueError("--velocity own needs rows with r = t: set --times ordered, --equal-share above 0")
            fill["velocity"] = "sampled"
        idle = {"equal_share": "coupled times"} if coupled else {}  # options without effect, and why
        if (fill["act_noise"] if self.act_noise is None else self.act_noise) == 0:
            idle["candidates"] = "--act-noise 0"  # they would all be the same
        of_difference = ("delta_r", "derivative_dtype")
        if self.derivative != "finite_difference":
            idle |= dict.fromkeys(of_difference, f"--derivative {self.derivative}")
        if self.objective == "bc":
            idle |= dict.fromkeys(("eta", "normalise_q", "candidates", "cloning"), "--objective bc")
        if self.objective == "q":
            of_cloning = ("cloning", "xi", "times", "equal_share", "velocity", "derivative", *of_difference)
            idle |= dict.fromkeys(of_cloning, "--objective q")
        for name, reason in idle.items():
            if getattr(self, name) not in (None, getattr(Config, name)):
                raise ValueError(f"--{name.replace('_', '-')} has no effect with {reason}: leave one of them out")
        return replace(self, **{k: v for k, v in fill.items() if k not in idle and getattr(self, k) is None})


# ------------------------------------------------------------------------------------------------------- networks


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


# ------------------------------------------------------------------------------------------------------ timesteps


def check_xi(xi: Sequence[float]) -> None:
    """Raise a ValueError unless p(t; xi) of Eq. 4 can be normalised."""
    if len(xi) != 4 or not np.isfinite(xi).all():
        raise ValueError(f"--xi {xi}: must be four finite numbers")
    for name, value in zip(("xi0", "xi1", "xi2"), xi):
        if value <= -1 and name != "xi2":
            raise ValueError(f"--xi {xi}: {name} must be greater than -1, else p(t; xi) has no finite integral")
        if abs(value) > 1e4:
            raise ValueError(f"--xi {xi}: {name} must lie in [-10000, 10000]")


def sample_timesteps(xi: Sequence[float], size: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw t (size, 1) from p(t; xi) of Eq. 4, exactly, on the device of `generator`.

    exp(xi2 t) is the series of xi2^k t^k / k!, so for xi2 >= 0 p is a mixture of Beta(xi0 + 1 + k, xi1 + 1): draw k,
    then t. For xi2 < 0 draw 1 - t likewise. The last coefficient, xi3, cancels in the normaliser.
    """
    check_xi(xi)
    generator = generator or torch.default_generator
    device = generator.device
    if not any(xi[:3]):
        return torch.rand(size, 1, generator=generator, device=device)
    a, b, rate = xi[0] + 1, xi[1] + 1, abs(xi[2])
    if xi[2] < 0:
        a, b = b, a
    dtype = torch.float32 if device.type == "mps" else torch.float64  # shapes near 0 underflow in float32
    terms = int(rate + 10 * rate**0.5) + 30 if rate else 1  # k has lighter tails than Poisson(rate)
    k = torch.arange(terms, device=device, dtype=dtype)
    # log of xi2^k / k! times the integral of t^(a + k - 1) (1 - t)^(b - 1), up to a constant
    log_weight = torch.xlogy(k, rate) - torch.lgamma(k + 1) + torch.lgamma(a + k) - torch.lgamma(a + b + k)
    chosen = torch.multinomial(torch.softmax(log_weight, 0), size, replacement=True, generator=generator)
    x = torch._standard_gamma(a + k[chosen], generator=generator)
    y = torch._standard_gamma(torch.full_like(x, b), generator=generator)
    return ((y if xi[2] < 0 else x) / (x + y)).float()[:, None]


def count_equal(equal_share: float | None, size: int) -> int:
    """How many of `size` rows have r = t: the share of ordered times, none of coupled ones."""
    return round((equal_share or 0) * size)


def sample_times(
    xi: Sequence[float],
    size: int,
    times: str | None,
    equal_share: float | None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw r and t (size, 1).

    "coupled": t from Eq. 4 and r = 1 - t. "ordered": two draws from Eq. 4, r the smaller; but r = t in the first rows,
    which are the share `equal_share` of all.
    """
    t = sample_timesteps(xi, size, generator)
    if times not in ("coupled", "ordered"):
        raise ValueError(f"times {times!r}: choose from coupled, ordered")
    if times == "coupled":
        return 1 - t, t
    other = sample_timesteps(xi, size, generator)
    n = count_equal(equal_share, size)
    other[:n] = t[:n]
    return torch.minimum(t, other), torch.maximum(t, other)


# ------------------------------------------------------------------------------------------------------ derivative


@torch.no_grad()
def finite_difference(
    policy: nn.Module,
    obs: Tensor,
    a_r: Tensor,
    r: Tensor,
    t: Tensor,
    v: Tensor,
    delta_r: float = 1e-3,
    u: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """du/dr (B, A) along the path, t held fixed, from two evaluations of u (Eq. 5).

    `u` is u(a_r, r, t) where the caller has it. `dtype` torch.float64 evaluates both in double precision, which a
    delta_r below 1e-5 needs: in float32 r + 1e-12 is r, and the difference exactly zero.
    """
    evaluate, result_dtype = policy, a_r.dtype
    if dtype not in (None, a_r.dtype):
        weights = {k: p.to(dtype) for k, p in policy.state_dict().items()}
        obs, a_r, r, t, v = (x.to(dtype) for x in (obs, a_r, r, t, v))
        evaluate, u = (lambda *x: torch.func.functional_call(policy, weights, x)), None
    u = evaluate(obs, a_r, r, t) if u is None else u
    shifted = evaluate(obs, a_r + delta_r * v, r + delta_r, t)  # a_{r + delta_r} = a_r + delta_r v
    return ((shifted - u) / delta_r).to(result_dtype)


@torch.no_grad()
def exact_derivative(policy: nn.Module, obs: Tensor, a_r: Tensor, r: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """du/dr (B, A) = (du/da) v + du/dr|_a, t held fixed, as one forward-mode product: no graph, no Jacobian."""
    return torch.func.jvp(lambda a, s: policy(obs, a, s, t), (a_r, r), (v, torch.ones_like(r)))[1]


# ---------------------------------------------------------------------------------------------------------- losses


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
    derivative: str = "finite_difference",
    delta_r: float | None = 1e-3,
    dtype: torch.dtype | None = None,
    velocity: str | None = "sampled",
    equal_rows: int = 0,
    u: Tensor | None = None,
    weight: Tensor | None = None,
) -> tuple[Tensor, Info]:
    """Mean-flow behaviour cloning, Eq. 2, for noise (B, A) and times r, t (B, 1).

    `delta_r` and `dtype` are those of `finite_difference`; `u` is u(a_r, r, t), with its graph, if already known.
    Where r = t the target is v: that it is so in the first `equal_rows` spares their derivative.
    `velocity` "own" replaces v = action - noise where r < t by u(a_r, r, r), its mean at a_r as learned where r = t: a
    target without v's chance (not in the paper; Eulerian self-distillation, arXiv 2505.18825). `weight` (B, 1), of mean
    1, says how much each row counts.
    """
    a_r, v = path(action, noise, r)
    u = policy(obs, a_r, r, t) if u is None else u
    u_target = v.clone()  # and with the derivative in all rows but the first
    obs, a_r, r, t, v = (x[equal_rows:] for x in (obs, a_r, r, t, v))
    if velocity == "own":
        with torch.no_grad():
            v = torch.where(r == t, v, policy(obs, a_r, r, r))
    if derivative == "finite_difference":
        du_dr = finite_difference(policy, obs, a_r, r, t, v, delta_r, u[equal_rows:].detach(), dtype)
    elif derivative == "exact":
        du_dr = exact_derivative(policy, obs, a_r, r, t, v)
    elif derivative == "zero":
        du_dr = torch.zeros_like(v)
    else:
        raise ValueError(f"derivative {derivative!r}: choose from finite_difference, exact, zero")
    u_target[equal_rows:] = v - (r - t) * du_dr  # Eq. 2; no gradient flows through it
    error = (u - u_target).square().sum(-1, keepdim=True)
    loss = (error if weight is None else weight * error).mean()
    return loss, {"bc_loss": loss.detach(), "du_dr": du_dr.abs().sum() / max(du_dr.numel(), 1)}


def cloning_weights(advantage: Tensor, eta: float = 1.0) -> Tensor:
    """Weights (B, 1), of mean 1, for rows whose actions are better by `advantage` (B, 1) than the policy's own.

    exp(eta advantage) is by how much the policy that is best under Eq. 6, with a KL divergence for L_bc, prefers an
    action to the data's policy (not in the paper; as AWR does, arXiv 1910.00177). Where eta is so large that few rows
    would be left, it is lowered until the exponents have a standard deviation of 1.
    """
    exponent = eta * advantage
    return torch.softmax(exponent / exponent.std(correction=0).clamp_min(1.0), 0) * len(exponent)


def critic_loss(
    critics: Sequence[nn.Module],
    target_critics: Sequence[nn.Module],
    target_policy: MeanFlowPolicy,
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
    noise: Tensor,
    act_noise: Tensor,
    r: Tensor,
    t: Tensor,
    eta: float | None = 1.0,
    normalise_q: bool | None = True,
    objective: str = "both",
    cloning: str | None = "plain",
    **options: Any,
) -> tuple[Tensor, Info]:
    """L_bc - eta E[Q(o, a~)], Eq. 6, to be differentiated with respect to the policy only.

    noise (B, A), r and t (B, 1) and `options` belong to L_bc (`mean_flow_loss`), act_noise (B, A) becomes a~.
    `normalise_q` divides Q by its mean absolute value, so that eta means the same at every scale of reward (not in the
    paper; as in FQL and TD3+BC). `cloning` "weighted" gives the rows of L_bc `cloning_weights`.
    """
    a_r, _ = path(batch.action, noise, r)
    zero, one = torch.zeros_like(r), torch.ones_like(r)
    # u(a_r, r, t) and u(act_noise, 0, 1) in one pass over twice the rows
    pairs = ((batch.obs, batch.obs), (a_r, act_noise), (r, zero), (t, one))
    u, u_act = policy(*(torch.cat(pair) for pair in pairs)).chunk(2)
    loss, info, weight = torch.zeros((), device=u.device), {}, None
    if objective != "bc":
        a = (act_noise + u_act).clamp(-1, 1)  # a~, Eq. 3 in one step
        q = mean_q(critics, batch.obs, a)
        scale = q.detach().abs().mean().clamp_min(1e-6) if normalise_q else 1.0
        loss = loss - eta * q.mean() / scale  # Eq. 6
        info = {"q": q.detach().mean()}
        if cloning == "weighted":
            with torch.no_grad():
                weight = cloning_weights((mean_q(critics, batch.obs, batch.action) - q) / scale, eta)
        elif cloning not in ("plain", None):
            raise ValueError(f"cloning {cloning!r}: choose from plain, weighted")
    if objective != "q":
        bc_loss, bc_info = mean_flow_loss(policy, batch.obs, batch.action, noise, r, t, **options, u=u, weight=weight)
        loss, info = loss + bc_loss, bc_info | info
    return loss, info | {"policy_loss": loss.detach()}


# ----------------------------------------------------------------------------------------------------------- agent


PARTS = ("policy", "critics", "target_policy", "target_critics", "policy_optimizer", "critic_optimizer")


class Agent:
    """One agent: its policy and two critics, their targets, optimizers and random stream (Algorithm 1)."""

    def __init__(
        self, obs_dim: int, action_dim: int, config: Config, device: str | torch.device = "cpu", index: int = 0
    ) -> None:
        self.config = c = config.resolve()
        sizes = (obs_dim, action_dim, c.hidden_dim, c.hidden_layers)
        self.generator = torch.Generator(device).manual_seed(1000 * c.seed + index)
        self.policy = MeanFlowPolicy(*sizes).to(device)
        self.critics = nn.ModuleList([Critic(*sizes), Critic(*sizes)]).to(device)
        self.target_policy = copy.deepcopy(self.policy).requires_grad_(False)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        adam = {"lr": c.learning_rate, "fused": True}  # one pass over memory for each weight
        self.policy_optimizer = torch.optim.Adam(self.policy.parameters(), **adam)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), **adam)

    def update(self, batch: Batch) -> Info:
        """One step of critics (Eq. 7), policy (Eq. 6) and targets; returns the losses as tensors, not read yet."""
        c, shape = self.config, (3, *batch.action.shape)
        noise, act_noise, next_noise = torch.randn(shape, generator=self.generator, device=batch.action.device)
        loss, info = critic_loss(self.critics, self.target_critics, self.target_policy, batch, next_noise, c.gamma)
        descend(self.critic_optimizer, loss)
        r, t = sample_times(c.xi or UNIFORM, len(noise), c.times or "coupled", c.equal_share, self.generator)
        dtype = getattr(torch, c.derivative_dtype or "float32")
        options = {"derivative": c.derivative, "delta_r": c.delta_r, "dtype": dtype, "velocity": c.velocity}
        options |= {"eta": c.eta, "normalise_q": c.normalise_q, "objective": c.objective, "cloning": c.cloning}
        options["equal_rows"] = count_equal(c.equal_share, len(noise))
        loss, policy_info = policy_loss(self.policy, self.critics, batch, noise, act_noise, r, t, **options)
        descend(self.policy_optimizer, loss)
        soft_update(self.target_critics, self.critics, c.rho)
        soft_update(self.target_policy, self.policy, c.rho)
        return info | policy_info

    def acting(self) -> tuple[nn.Module, nn.Module]:
        """The policy and the critics that `act` uses."""
        averaged = self.config.act_with == "averaged"
        return (self.target_policy, self.target_critics) if averaged else (self.policy, self.critics)

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """Actions (B, A) for observations (B, O): of `candidates` one-step actions, the one with the highest mean Q.

        They come from Gaussian noise (B, candidates, A), or (B, A) for one, else drawn from `generator`, times
        `act_noise`.
        """
        policy, critics = self.acting()
        B, A = obs.shape[0], policy.action_dim
        if noise is None:
            noise = torch.randn(B, self.config.candidates or 1, A, device=obs.device, generator=generator)
        noise = noise.view(B, -1, A) * self.config.act_noise
        rows = obs.repeat_interleave(noise.shape[1], 0)
        actions = policy.act(rows, noise.flatten(0, 1))
        if noise.shape[1] == 1:
            return actions
        best = mean_q(critics, rows, actions).view(B, -1, 1).argmax(1, keepdim=True).expand(-1, 1, A)
        return actions.view(noise.shape).gather(1, best)[:, 0]

    def state_dict(self) -> dict[str, Any]:
        """All that continues a training, as tensors and plain types."""
        return {name: getattr(self, name).state_dict() for name in PARTS} | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken; without its "generator", with this agent's own random stream."""
        for name in PARTS:
            getattr(self, name).load_state_dict(state[name])
        if "generator" in state:
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


# -------------------------------------------------------------------------------------------------------- training


def train(
    config: Config, dataset: Dataset | None = None, make_agent: Callable[..., Agent] = Agent, resume: bool = False
) -> tuple[list[Agent], dict[str, Any]]:
    """Algorithm 1: train every agent on one data set, evaluate on the way, leave a run folder (`data.RunFolder`).

    Returns the agents and the figures of the printed table. Ctrl-C ends it after the present step, with everything
    saved; `resume` continues from there, bit for bit. Changes two settings of the whole process (see `tune_cpu`).
    `make_agent` may build another kind of agent.
    """
    from tqdm import tqdm

    from data import RunFolder, check_options, interruptible, load_or_make
    from envs import evaluate, make_env, save_gif

    check_options(config)
    device = pick_device(config.device)
    dataset = (dataset or load_or_make(config.data, config.env, config.quality, config.prey)).to(device)
    config = config.resolve(dataset.meta["quality"])
    if device.type == "mps" and config.derivative_dtype == "float64":
        raise ValueError(f"--device mps has no float64, which --delta-r {config.delta_r:g} needs: use --device cpu")
    half = np.array(0.5, config.derivative_dtype)
    if config.delta_r is not None and half + half.dtype.type(config.delta_r) == half:
        print(f"note: r + {config.delta_r:g} rounds to r in {half.dtype}, so Eq. 5 is zero or rounding noise")
    tune_cpu(device)
    torch.manual_seed(config.seed)  # before the networks are built
    _, N, O = dataset.observations.shape
    agents = [make_agent(O, dataset.actions.shape[-1], config, device, index=i) for i in range(N)]
    env = make_env(config.env, dataset.prey, device)
    dataset.check_fits(env)
    with RunFolder(asdict(config), dataset, resume) as run:
        for agent, state in zip(agents, run.state["agents"] if run.state else ()):
            agent.load_state_dict(state)
        options = {"total": config.steps, "initial": run.step, "unit": "step", "mininterval": run.refresh}
        with interruptible() as stop, tqdm(**options) as bar:
            for step in range(run.step + 1, config.steps + 1):
                for i, agent in enumerate(agents):
                    run.log(agent.update(Batch(*dataset.sample(i, config.batch_size, agent.generator))))
                bar.update()
                last = step == config.steps or stop.is_set()
                if step % config.eval_every == 0:
                    score = partial(evaluate, agents, env, config.eval_episodes, config.seed + 1)
                    bar.set_postfix(run.record(step, score), refresh=False)
                if last or step % config.save_every == 0:
                    run.save_checkpoint(step, agents)
                if last:
                    break
        summary = run.finish(partial(evaluate, agents, env, config.final_episodes, config.seed + 2))
        save_gif(agents, env, run.path / "rollout.gif", config.seed + 2)
    return agents, summary


def pick_device(name: str) -> torch.device:
    """The named device; for "auto" the first of cuda, mps and cpu that this machine has."""
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name != "auto" and not usable[name]:
        raise ValueError(f"--device {name}: this machine has none; leave it out")
    return torch.device(name if name != "auto" else next(d for d in usable if usable[d]))


def tune_cpu(device: torch.device) -> None:
    """Two settings of the whole process that make training on a CPU faster and change no result beyond rounding.

    Float32 matrix products may take oneDNN's path if that keeps float32's precision: it doubles their speed on some
    processors, for twice the rounding error. On processors with bf16 matrix units it would round the factors to 8
    bits, which drowns the difference of Eq. 5, so there the default stays (and on a GPU TF32 stays off likewise).
    """
    if device.type == "cpu":
        torch.empty(31 * 2**18)  # 31 MB, freed at once: glibc then keeps blocks up to this size for the next use
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
        torch.set_float32_matmul_precision("medium")
        if ((a @ b).double() - a.double() @ b.double()).abs().max() > 1e-3:
            torch.set_float32_matmul_precision("highest")


# ---------------------------------------------------------------------------------------------------- command line


def main(
    argv: Sequence[str] | None = None,
    kind: type[Config] = Config,
    make_agent: Callable[..., Agent] = Agent,
    prog: str = "om2p.py",
) -> int:
    """`python om2p.py ...`; returns the exit code: 2 for bad input, 130 if stopped by Ctrl-C."""
    from data import Dataset, load_or_make, parse_config, score_run, stored_config

    try:
        config, given, args = parse_config(kind, argv, prog)
        if args.evaluate:
            score_run(args.evaluate, kind, make_agent, args.episodes or 100, args.gif, args.export)
            return 0
        if args.resume:
            config = stored_config(config, given)
        pick_device(config.device)
        config.resolve(Dataset.quality_of(config))  # refuse bad settings before any data is made
        dataset = load_or_make(config.data, config.env, config.quality, config.prey)
        summary = train(config, dataset, make_agent, args.resume)[1]
    except (ValueError, OSError, MemoryError, torch.cuda.OutOfMemoryError) as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return 130
    return 0 if summary["steps"] == config.steps else 130


if __name__ == "__main__":
    sys.exit(main())
