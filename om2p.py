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

import argparse
import copy
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from data import Dataset

Info = dict[str, Tensor]
UNIFORM = (0.0, 0.0, 0.0, 0.0)

# Table 3 of the paper, for raw Q: eta for medium-replay, medium, medium-expert and expert data, and xi where not zero.
QUALITIES = ("medium-replay", "medium", "medium-expert", "expert")
TABLE_3_ETA = {
    "tag": (100.0, 10.0, 100.0, 1.0),
    "world": (100.0, 1000.0, 10000.0, 1.0),
    "spread": (1.0, 1.0, 0.1, 1.0),
    "halfcheetah": (1.0, 0.125, 0.02, 0.008),
}
TABLE_3_XI = {
    ("tag", "medium"): (0.0, 0.0, 0.2, 0.0),
    ("tag", "medium-expert"): (2.0, 0.0, 0.0, 0.0),
    ("world", "medium-replay"): (0.0, 0.0, 0.2, 0.0),
    ("world", "medium"): (0.0, 0.0, 0.2, 0.0),
    ("spread", "medium-expert"): (0.0, 0.0, 0.05, 0.0),
    ("spread", "expert"): (0.0, 0.0, 0.1, 0.0),
}


def option(default: Any, text: str, low: float = 0.0, high: float = sys.float_info.max) -> Any:
    """A field of `Config`: its default, its comment (also its help on the command line) and its bounds."""
    return field(default=default, metadata={"help": text, "low": low, "high": high})


@dataclass(frozen=True)
class Config:
    """Everything that decides a run. `None` means: as the preset, the data or the machine says (see `resolve`)."""

    env: Literal["world", "tag", "spread"] = option("world", "task; section 5.1")
    data: str = option("expert.npz", "data file; if missing, one of the quality that its name ends in is made")
    preset: Literal["recommended", "paper"] = option(
        "recommended", "the method as measured best here, or to the letter"
    )
    steps: int = option(5000, "training steps; each updates every agent once; paper 1,000,000, section 7.1")
    seed: int = option(0, "seeds networks, batches, noise and evaluation; paper: five seeds")
    # the method
    objective: Literal["both", "bc", "q"] = option("both", "terms of the policy loss, Eq. 6; bc and q are Figure 4's")
    eta: float | None = option(None, "weight of the Q term, Eq. 6; paper Table 3")
    normalise_q: bool | None = option(None, "divide Q by its mean absolute value in Eq. 6; paper: no")
    times: Literal["coupled", "ordered"] | None = option(None, "r = 1 - t as in Eq. 4, or r <= t; paper coupled")
    equal_share: float | None = option(None, "ordered times: share of samples with r = t; not in the paper")
    xi: tuple[float, float, float, float] | None = option(None, "coefficients of p(t; xi), Eq. 4; paper Table 3")
    derivative: Literal["finite_difference", "exact", "zero"] = option("finite_difference", "du/dr; paper Eq. 5")
    delta_r: float | None = option(None, "step of the difference, Eq. 5; paper 1e-12, Table 4")
    derivative_dtype: Literal["float32", "float64"] | None = option(None, "dtype of the difference; paper unstated")
    # networks and optimisation
    hidden_dim: int = option(512, "width of each hidden layer; paper 512, section 7.1")
    hidden_layers: int = option(4, "hidden layers of each network; paper 4, section 7.1")
    batch_size: int = option(256, "transitions per agent and update; paper 256, Table 4")
    learning_rate: float = option(3e-4, "Adam's, for policy and critics; paper 3e-4, section 7.1")
    gamma: float = option(0.99, "discount factor; paper 0.99, Table 4")
    rho: float = option(0.005, "target update rate; paper 0.005, Table 4")
    # running
    eval_every: int = option(100, "steps between evaluations; paper 100, section 7.1")
    eval_episodes: int = option(10, "episodes of each evaluation; paper 10, section 7.1")
    final_episodes: int = option(100, "episodes of the last evaluation")
    save_every: int = option(1000, "steps between checkpoints")
    device: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "where networks and data live")
    out: str | None = option(None, "folder of the run; default runs/ENV-QUALITY-seedSEED")

    def resolve(self, quality: str = "expert") -> Config:
        """Fill in what is `None` for data of this quality; refuse by name what is impossible or has no effect."""
        eta, xi = TABLE_3_ETA[self.env][QUALITIES.index(quality)], TABLE_3_XI.get((self.env, quality), UNIFORM)
        fill = {"eta": eta, "xi": xi, "normalise_q": False, "times": "coupled", "delta_r": 1e-12}  # paper
        if self.preset == "recommended":
            eta = 10.0 if quality == "medium-replay" else 1.0
            fill = {"eta": eta, "xi": UNIFORM, "normalise_q": True, "times": "ordered", "delta_r": 1e-3}
        delta_r = fill["delta_r"] if self.delta_r is None else self.delta_r
        # below 1e-5 the rounding of r + delta_r costs float32 the difference: 12% at 1e-6, all of it at 1e-8
        fill |= {"equal_share": 0.5, "derivative_dtype": "float32" if delta_r >= 1e-5 else "float64"}
        fill |= {"out": f"runs/{self.env}-{quality}-seed{self.seed}"}
        idle = {}  # the options that another one leaves without effect
        if (self.times or fill["times"]) != "ordered":
            idle |= {"equal_share": "--times coupled"}
        if self.derivative != "finite_difference":
            idle |= dict.fromkeys(("delta_r", "derivative_dtype"), f"--derivative {self.derivative}")
        if self.objective == "bc":
            idle |= dict.fromkeys(("eta", "normalise_q"), "--objective bc")
        if self.objective == "q":
            idle |= dict.fromkeys(("xi", "times", "equal_share", "delta_r", "derivative_dtype"), "--objective q")
        for name, reason in idle.items():
            if getattr(self, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} has no effect with {reason}: leave one of them out")
        fill = {k: v for k, v in fill.items() if k not in idle and getattr(self, k) is None}
        config = replace(self, **fill)
        config.check()
        return config

    def check(self) -> None:
        """Raise a ValueError that names the first setting that is impossible."""
        for f in fields(self):
            flag, value, choices = f"--{f.name.replace('_', '-')}", getattr(self, f.name), choices_of(f.name)
            if choices and value is not None and value not in choices:
                raise ValueError(f"{flag} {value}: choose from {', '.join(choices)}")
            low, high = f.metadata["low"], f.metadata["high"]
            if isinstance(value, (int, float)) and not low <= value <= high:
                raise ValueError(
                    f"{flag} {value}: must be at least {low:g}" + (f", at most {high:g}" if high < 1e9 else "")
                )
        if self.xi is not None:
            check_xi(self.xi)


def choices_of(name: str) -> tuple[str, ...]:
    """The named choices of a field of `Config`, none if it is a number or free text."""
    hint = get_type_hints(Config)[name]
    return tuple(c for h in (hint, *get_args(hint)) for c in get_args(h) if isinstance(c, str))


# ------------------------------------------------------------------------------------------------------- networks


def mlp(in_dim: int, out_dim: int, hidden_dim: int, hidden_layers: int) -> nn.Sequential:
    """Linear, GELU, layer normalisation, `hidden_layers` times, then linear (section 7.1)."""
    sizes = [in_dim] + [hidden_dim] * hidden_layers
    # the exact GELU: on a CPU PyTorch's tanh approximation is several times slower
    hidden = [[nn.Linear(i, o), nn.GELU(), nn.LayerNorm(o)] for i, o in zip(sizes, sizes[1:])]
    return nn.Sequential(*sum(hidden, []), nn.Linear(sizes[-1], out_dim))


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
        a = torch.randn(len(obs), self.action_dim, device=obs.device, dtype=obs.dtype) if noise is None else noise
        grid = torch.linspace(0, 1, steps + 1, device=obs.device, dtype=obs.dtype).expand(len(obs), 1, -1)
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


# ------------------------------------------------------------------------------------------------------ timesteps


def check_xi(xi: Sequence[float]) -> None:
    """Raise a ValueError unless p(t; xi) of Eq. 4 can be normalised."""
    if len(xi) != 4 or not np.isfinite(xi).all():
        raise ValueError(f"--xi {xi}: must be four finite numbers")
    for name, value in (("xi0", xi[0]), ("xi1", xi[1])):
        if value <= -1:
            raise ValueError(f"--xi {xi}: {name} must be greater than -1, else p(t; xi) has no finite integral")
    if abs(xi[2]) > 1e4:
        raise ValueError(f"--xi {xi}: xi2 must lie in [-10000, 10000]")


def sample_timesteps(
    xi: Sequence[float], size: int, generator: torch.Generator | None = None, device: str | torch.device = "cpu"
) -> Tensor:
    """Draw t (size, 1) from p(t; xi) of Eq. 4, exactly.

    exp(xi2 t) is the series of xi2^k t^k / k!, so for xi2 >= 0 p is a mixture of Beta(xi0 + 1 + k, xi1 + 1): draw k,
    then t. For xi2 < 0 draw 1 - t. The last coefficient, xi3, cancels in the normaliser.
    """
    check_xi(xi)
    device = generator.device if generator is not None else torch.device(device)
    if not any(xi[:3]):
        return torch.rand(size, 1, generator=generator, device=device)
    flip = xi[2] < 0
    a, b = (xi[1] + 1, xi[0] + 1) if flip else (xi[0] + 1, xi[1] + 1)
    rate = abs(xi[2])
    dtype = torch.float32 if device.type == "mps" else torch.float64  # small shapes underflow in float32
    k = torch.arange(0.0, 1 + rate + 10 * rate**0.5 + 30 * (rate > 0), device=device, dtype=dtype)
    if len(k) > 1:
        # log of xi2^k / k! times Beta(a + k, b), without what does not depend on k
        log_weight = k * np.log(rate) - torch.lgamma(k + 1) + torch.lgamma(a + k) - torch.lgamma(a + b + k)
        weight = torch.softmax(log_weight, 0)
        k = k[torch.multinomial(weight, size, replacement=True, generator=generator)]
    x = torch._standard_gamma((a + k).expand(size).contiguous(), generator=generator)
    y = torch._standard_gamma(torch.full_like(x, b), generator=generator)
    t = y / (x + y) if flip else x / (x + y)
    return t[:, None].float()


def sample_times(
    xi: Sequence[float],
    size: int,
    times: str = "ordered",
    equal_share: float | None = 0.5,
    generator: torch.Generator | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, Tensor]:
    """Draw r and t (size, 1): coupled, r = 1 - t (below Eq. 4), or ordered, r <= t with a share of r = t."""
    t = sample_timesteps(xi, size, generator, device)
    if times == "coupled":
        return 1 - t, t
    other = sample_timesteps(xi, size, generator, device)
    r = torch.minimum(t, other)
    equal = torch.rand(size, 1, generator=generator, device=t.device) < equal_share
    return torch.where(equal, t, r), torch.where(equal, t, torch.maximum(t, other))


# ----------------------------------------------------------------------------------------------------- derivative


@torch.no_grad()
def finite_difference(
    policy: nn.Module,
    obs: Tensor,
    a_r: Tensor,
    r: Tensor,
    t: Tensor,
    v: Tensor,
    delta_r: float,
    u: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """du/dr (B, A) along the path, t held fixed, from two evaluations of u (Eq. 5).

    `u` is the second of them where the caller has it already. `dtype` float64 evaluates both in double precision,
    which a delta_r below 1e-5 needs: in float32 r + 1e-12 is r, and the difference exactly zero.
    """
    evaluate = policy
    if dtype is not None and dtype != a_r.dtype:
        weights = {k: p.to(dtype) for k, p in policy.state_dict().items()}
        obs, a_r, r, t, v = (x.to(dtype) for x in (obs, a_r, r, t, v))
        evaluate, u = (lambda *x: torch.func.functional_call(policy, weights, x)), None
    u = evaluate(obs, a_r, r, t) if u is None else u
    shifted = evaluate(obs, a_r + delta_r * v, r + delta_r, t)  # a_{r + delta_r} lies on the path, at a_r + delta_r v
    return ((shifted - u) / delta_r).to(torch.float32)


@torch.no_grad()
def exact_derivative(policy: nn.Module, obs: Tensor, a_r: Tensor, r: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """du/dr (B, A) = (du/da) v + du/dr|_a, t held fixed, by one forward-mode product: no graph, no Jacobian."""
    return torch.func.jvp(lambda a, s: policy(obs, a, s, t), (a_r, r), (v, torch.ones_like(r)))[1]


# --------------------------------------------------------------------------------------------------------- losses


def mean_flow_loss(
    policy: nn.Module,
    obs: Tensor,
    action: Tensor,
    noise: Tensor,
    r: Tensor,
    t: Tensor,
    derivative: str = "finite_difference",
    delta_r: float | None = 1e-3,
    derivative_dtype: str | None = None,
) -> tuple[Tensor, Info]:
    """Mean-flow behaviour cloning, Eq. 2: E ||u - stopgrad(u_target)||^2 for noise (B, A) and times r, t (B, 1)."""
    a_r = (1 - r) * noise + r * action
    v = action - noise
    u = policy(obs, a_r, r, t)
    if derivative == "finite_difference":
        dtype = getattr(torch, derivative_dtype) if derivative_dtype else None
        du_dr = finite_difference(policy, obs, a_r, r, t, v, delta_r, u.detach(), dtype)
    elif derivative == "exact":
        du_dr = exact_derivative(policy, obs, a_r, r, t, v)
    elif derivative == "zero":
        du_dr = torch.zeros_like(v)
    else:
        raise ValueError(f"derivative {derivative!r}: choose from finite_difference, exact, zero")
    u_target = v - (r - t) * du_dr  # Eq. 2
    loss = (u - u_target.detach()).square().sum(-1).mean()
    return loss, {"bc_loss": loss.detach(), "du_dr": du_dr.abs().mean()}


class Batch(NamedTuple):
    """Transitions of one agent: obs (B, O), action (B, A), reward (B, 1), next_obs (B, O), terminal (B, 1)."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    terminal: Tensor


def critic_loss(
    critics: Sequence[nn.Module],
    target_critics: Sequence[nn.Module],
    target_policy: MeanFlowPolicy,
    batch: Batch,
    noise: Tensor,
    gamma: float = 0.99,
) -> tuple[Tensor, Info]:
    """Squared Bellman error, Eq. 7, of both critics; noise (B, A) becomes the target policy's next action."""
    with torch.no_grad():
        next_action = target_policy.act(batch.next_obs, noise)
        next_q = torch.stack([q(batch.next_obs, next_action) for q in target_critics]).mean(0)  # mean_j Q'_j
        # a time limit is no terminal: only a true end stops the bootstrap
        target = batch.reward + gamma * (1 - batch.terminal) * next_q
    loss = sum((q(batch.obs, batch.action) - target).square().mean() for q in critics)  # Eq. 7
    return loss, {"critic_loss": loss.detach(), "target_q": target.mean()}


def policy_loss(
    policy: MeanFlowPolicy,
    critics: Sequence[nn.Module],
    batch: Batch,
    noise: Tensor,
    r: Tensor | None,
    t: Tensor | None,
    act_noise: Tensor,
    eta: float | None = 1.0,
    normalise_q: bool | None = True,
    objective: str = "both",
    *derivative_options: Any,
) -> tuple[Tensor, Info]:
    """L_bc - eta E[Q(o, a~)], Eq. 6. `noise`, r and t belong to L_bc; `act_noise` (B, A) becomes a~.

    Differentiate it with respect to the policy only. With `normalise_q`, Q is divided by its mean absolute value, which
    makes eta mean the same for every reward scale (not in the paper; as FQL and TD3+BC do).
    """
    loss, info = torch.zeros((), device=batch.obs.device), {}
    if objective != "q":
        loss, info = mean_flow_loss(policy, batch.obs, batch.action, noise, r, t, *derivative_options)
    if objective != "bc":
        a = policy.act(batch.obs, act_noise)
        q = torch.stack([critic(batch.obs, a) for critic in critics]).mean(0)  # mean of both critics
        scale = q.abs().mean().clamp_min(1e-6).detach() if normalise_q else 1.0
        loss = loss - eta * q.mean() / scale  # Eq. 6
        info["q"] = q.detach().mean()
    return loss, info | {"policy_loss": loss.detach()}


# ---------------------------------------------------------------------------------------------------------- agent


class Agent:
    """One agent: its policy, its two critics, their targets and optimizers (Algorithm 1, lines 1 and 4 to 7)."""

    def __init__(self, obs_dim: int, action_dim: int, config: Config, device: str | torch.device = "cpu") -> None:
        self.config = config.resolve()
        sizes = (obs_dim, action_dim, config.hidden_dim, config.hidden_layers)
        self.policy = MeanFlowPolicy(*sizes).to(device)
        self.critics = nn.ModuleList([Critic(*sizes), Critic(*sizes)]).to(device)
        self.target_policy = copy.deepcopy(self.policy).requires_grad_(False)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        # fused: one pass over the weights; PyTorch has it for each of these devices
        adam = {"lr": config.learning_rate, "fused": True}
        self.policy_optimizer = torch.optim.Adam(self.policy.parameters(), **adam)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), **adam)

    def update(self, batch: Batch, generator: torch.Generator | None = None) -> Info:
        """One step of critics (Eq. 7), policy (Eq. 6) and targets; returns the losses as tensors, not yet read."""
        c = self.config
        noise = [torch.empty_like(batch.action).normal_(generator=generator) for _ in range(3)]
        loss, info = critic_loss(self.critics, self.target_critics, self.target_policy, batch, noise[0], c.gamma)
        descend(self.critic_optimizer, loss, self.critics)
        r = t = None
        if c.objective != "q":
            r, t = sample_times(c.xi, len(batch.obs), c.times, c.equal_share, generator, batch.obs.device)
        loss, policy_info = policy_loss(
            *(self.policy, self.critics, batch, noise[1], r, t, noise[2]),
            *(c.eta, c.normalise_q, c.objective, c.derivative, c.delta_r, c.derivative_dtype),
        )
        descend(self.policy_optimizer, loss, self.policy)
        soft_update(self.target_critics, self.critics, c.rho)
        soft_update(self.target_policy, self.policy, c.rho)
        return info | policy_info

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """One-step actions (B, A) for observations (B, O), from noise (B, A) or drawn from `generator`."""
        if noise is None:
            noise = torch.randn(len(obs), self.policy.action_dim, device=obs.device, generator=generator)
        return self.policy.act(obs, noise)

    def state_dict(self) -> dict[str, Any]:
        """All that continues a training, as plain tensors and types."""
        parts = ("policy", "critics", "target_policy", "target_critics", "policy_optimizer", "critic_optimizer")
        return {name: getattr(self, name).state_dict() for name in parts}


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, module: nn.Module) -> None:
    """One optimizer step on `loss`, with gradients for the weights of `module` only."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward(inputs=list(module.parameters()))
    optimizer.step()


@torch.no_grad()
def soft_update(target: nn.Module, online: nn.Module, rho: float) -> None:
    """target <- rho online + (1 - rho) target (Algorithm 1, line 7)."""
    for p_target, p in zip(target.parameters(), online.parameters()):
        p_target.lerp_(p, rho)


# ------------------------------------------------------------------------------------------------------- training


class Result(NamedTuple):
    """What `train` returns."""

    agents: list[Agent]
    history: list[dict[str, float]]  # the rows of metrics.csv
    summary: dict[str, Any]  # the figures of the printed table


def train(config: Config, dataset: Dataset | None = None) -> Result:
    """Algorithm 1: train every agent on one data set, evaluate on the way, leave a run folder.

    Ctrl-C ends it after the present step with everything saved. Sets the float32 product precision of the whole process
    (see `fast_products`).
    """
    from tqdm import tqdm

    from data import RunFolder, interruptible, load_or_make
    from envs import ParticleWorld, evaluate, save_gif

    device = pick_device(config.device)
    dataset = (dataset or load_or_make(config.data, config.env)).to(device)
    config = config.resolve(dataset.meta["quality"])
    fast_products(device)
    torch.manual_seed(config.seed)  # before the networks are built
    (_, N, O), A = dataset.observations.shape, dataset.actions.shape[-1]
    agents = [Agent(O, A, config, device) for _ in range(N)]
    generator = torch.Generator(device).manual_seed(config.seed)  # for batches, times and noise
    env = ParticleWorld(config.env, dataset.prey, device)
    run = RunFolder(config.out, asdict(config), dataset.meta)
    with interruptible() as stop, tqdm(total=config.steps, unit="step") as bar:
        for step in range(1, config.steps + 1):
            for i, agent in enumerate(agents):
                batch = sample_batch(dataset, i, config.batch_size, generator)
                run.log(agent.update(batch, generator))
            bar.update()
            last = step == config.steps or stop.is_set()
            if last or step % config.eval_every == 0:
                bar.set_postfix(run.record(step, lambda: evaluate(agents, env, config.eval_episodes, config.seed + 1)))
            if last or step % config.save_every == 0:
                state = {"agents": [a.state_dict() for a in agents], "generator": generator.get_state()}
                run.save_checkpoint({"step": step} | state)
            if last:
                break
    summary = run.finish(evaluate(agents, env, config.final_episodes, config.seed + 2))
    save_gif(agents, env, run.path / "rollout.gif", config.seed + 2)
    return Result(agents, run.history, summary)


def sample_batch(dataset: Dataset, agent: int, size: int, generator: torch.Generator) -> Batch:
    """A minibatch of one agent's transitions, drawn with replacement (Algorithm 1, line 4)."""
    d, rows = dataset, torch.randint(len(dataset), (size,), generator=generator, device=generator.device)
    reward, terminal = d.rewards[rows, agent, None], d.terminals[rows, agent, None]
    return Batch(
        d.observations[rows, agent], d.actions[rows, agent], reward, d.next_observations[rows, agent], terminal
    )


def pick_device(name: str) -> torch.device:
    """The named device, or for "auto" the best one that this machine has."""
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if not usable.get(name, name == "auto"):
        raise ValueError(f"--device {name}: not usable on this machine; use --device cpu")
    return torch.device(next(d for d in usable if usable[d]) if name == "auto" else name)


def fast_products(device: torch.device) -> None:
    """On a CPU, let float32 matrix products take oneDNN's path where it keeps float32's precision.

    That path doubles the speed of the products on some processors and leaves about twice the rounding error. On
    processors with bf16 matrix units it rounds the factors to 8 bits, which drowns the difference of Eq. 5: there it is
    switched off again. On other devices nothing changes (TF32 would harm Eq. 5 in the same way).
    """
    if device.type == "cpu":
        torch.set_float32_matmul_precision("medium")
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
        if ((a @ b).double() - a.double() @ b.double()).abs().max() > 1e-3:
            torch.set_float32_matmul_precision("highest")


# --------------------------------------------------------------------------------------------------- command line


def parse_config(argv: Sequence[str] | None = None) -> Config:
    """A `Config` from the command line, with one option for each of its fields."""
    from data import Parser

    parser = Parser(prog="om2p.py", description="Train OM2P (arXiv 2508.06269) on offline data.")
    for f in fields(Config):
        hint = get_type_hints(Config)[f.name]
        kind = next((k for k in get_args(hint) if get_args(hint)[-1] is type(None)), hint)  # X of X | None
        kwargs: dict[str, Any] = {"default": f.default, "help": f.metadata["help"].replace("%", "%%")}
        if f.default is not None:
            kwargs["help"] += f" [{f.default}]"
        if kind is bool:
            kwargs["action"] = argparse.BooleanOptionalAction
        elif get_origin(kind) is tuple:
            kwargs |= {"type": float, "nargs": len(get_args(kind)), "metavar": "XI"}
        elif get_origin(kind) is Literal:
            kwargs["choices"] = get_args(kind)
        else:
            kwargs |= {"type": kind, "metavar": kind.__name__.upper()}
        parser.add_argument(f"--{f.name.replace('_', '-')}", **kwargs)
    args = vars(parser.parse_args(argv))
    return Config(**args | {"xi": args["xi"] and tuple(args["xi"])})


def main(argv: Sequence[str] | None = None) -> int:
    """`python om2p.py ...`; returns the exit code, 2 for bad input."""
    from data import load_or_make

    config = parse_config(argv)
    try:
        config.resolve()  # refuse bad settings before any data is made
        pick_device(config.device)
        dataset = load_or_make(config.data, config.env)
        config.resolve(dataset.meta["quality"])
    except (ValueError, OSError) as error:
        print(f"om2p.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("om2p.py: interrupted, nothing was written", file=sys.stderr)
        return 130
    train(config, dataset)
    return 0


if __name__ == "__main__":
    sys.exit(main())
