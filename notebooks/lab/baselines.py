"""The systems that OM2P is compared with, built from the parts of om2p.py: same networks, critics, data, evaluation.

    python notebooks/lab/baselines.py --algorithm ma-fql --env world --data expert.npz

    bc       the mean action of the data at an observation, by least squares
    ma-fql   flow Q-learning, arXiv 2502.02538: a flow policy clones, a one-step policy is distilled from it
    ma-sfbc  SfBC, arXiv 2209.14548: a diffusion policy clones, its samples are chosen by softmax(alpha Q)
    omar     OMAR, arXiv 2111.11188: conservative Q-learning (arXiv 2006.04779) of a deterministic policy, which is also
             pulled to the best action of a zeroth-order search

Every agent learns by itself. Each update is critics, policy, targets, as in Algorithm 1 of OM2P, and the targets act; a
run leaves the same folder. Options that only OM2P has do nothing here.

Shapes: B batch, O observation, A action, K candidates.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import Parser, free_folder, load_or_make  # noqa: E402
from om2p import (  # noqa: E402
    Agent,
    Batch,
    Config,
    Info,
    ascent_loss,
    critic_loss,
    descend,
    mean_q,
    mlp,
    option,
    path,
    soft_update,
    train,
)

DIFFERS = {"ma-sfbc": {"alpha": 10.0, "candidates": 32}}  # settings other than the defaults below; its paper's


@dataclass(frozen=True)
class BaselineConfig(Config):
    """The settings of a baseline: those of OM2P, and its own."""

    algorithm: str = option("ma-fql", "which system", choices=("bc", "ma-fql", "ma-sfbc", "omar"), group="baseline")
    alpha: float = option(
        1.0,
        "ma-fql: of distillation; ma-sfbc: of Q in the softmax, its paper 10; omar: of the conservative term",
    )
    candidates: int = option(1, "actions drawn when acting, to choose from; ma-sfbc: its paper 32", low=1)
    act_noise: float = option(1.0, "ma-fql: scale of the noise when acting")
    gamma: float = option(0.99, "discount factor, for every task; Table 1 gives ma-fql that of OM2P", high=1)
    flow_steps: int = option(10, "ma-fql: Euler steps of the flow policy; its paper 10", low=1)
    diffusion_steps: int = option(15, "ma-sfbc: steps of the diffusion policy; its paper 15", low=1)
    target_candidates: int = option(16, "ma-sfbc: actions sampled for the critics' target; its paper 16", low=1)
    search_weight: float = option(0.5, "omar: weight of the searched action; its release 0.1 to 1, by data", high=1)

    @classmethod
    def of(cls, algorithm: str = "ma-fql", **given: Any) -> BaselineConfig:
        """Settings in three layers: the defaults, what differs for this algorithm, what is given."""
        return cls(**{"algorithm": algorithm} | DIFFERS.get(algorithm, {}) | given)


# ------------------------------------------------------------------------------------------------------- policies


class Network(nn.Module):
    """An MLP of an observation, and of `joined` numbers more, whose answer has the size of an action."""

    def __init__(
        self, obs_dim: int, action_dim: int, hidden_dim: int = 512, hidden_layers: int = 4, joined: int = 0
    ) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.net = mlp(obs_dim + joined, action_dim, hidden_dim, hidden_layers)

    def forward(self, *inputs: Tensor) -> Tensor:
        """(B, A) for an observation (B, O) and what is joined to it."""
        return self.net(torch.cat(inputs, -1))


class DeterministicPolicy(Network):
    """An action for an observation: tanh(MLP)."""

    def act(self, obs: Tensor, noise: Tensor | None = None) -> Tensor:
        """Actions (B, A); noise has no part in it."""
        return torch.tanh(self(obs))


class TimedNet(Network):
    """Of observation, action and time (B, 1): the velocity of a flow, or the noise in a diffused action."""

    def __init__(self, obs_dim: int, action_dim: int, *hidden: int) -> None:
        super().__init__(obs_dim, action_dim, *hidden, joined=action_dim + 1)


class DistilledPolicy(Network):
    """FQL's one-step policy mu(o, z), a plain function of noise that acts, and the flow that it is distilled from."""

    def __init__(self, obs_dim: int, action_dim: int, *hidden: int) -> None:
        super().__init__(obs_dim, action_dim, *hidden, joined=action_dim)
        self.flow = TimedNet(obs_dim, action_dim, *hidden)

    def act(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Actions (B, A) in [-1, 1] from noise (B, A)."""
        return self(obs, noise).clamp(-1, 1)


def flow_action(flow: TimedNet, obs: Tensor, noise: Tensor, steps: int) -> Tensor:
    """The flow's action (B, A) from noise (B, A), by Euler steps from time 0 to 1."""
    a = noise
    for k in range(steps):
        a = a + flow(obs, a, torch.full_like(obs[:, :1], k / steps)) / steps
    return a.clamp(-1, 1)


def signal_share(steps: int) -> Tensor:
    """alpha_bar (steps + 1,): the share of variance that is the action's after each step (VP, beta 0.1 to 20).

    The steps are shorter near the action: in equal ones the first mixes in so much noise (0.22) that sampling would
    lose most of a spread of 0.1, which is that of the data's exploration.
    """
    t = torch.linspace(0, 1, steps + 1) ** 2
    return torch.exp(-0.1 * t - 0.5 * (20 - 0.1) * t**2)


def diffusion_action(net: TimedNet, obs: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """The diffusion's action (B, A): ancestral sampling from Gaussian noise."""
    share = signal_share(steps).to(obs.device)
    a = torch.randn(len(obs), net.action_dim, generator=generator, device=obs.device)
    for k in range(steps, 0, -1):
        now, before = share[k], share[k - 1]
        noise = net(obs, a, torch.full_like(obs[:, :1], k / steps))
        clean = ((a - (1 - now).sqrt() * noise) / now.sqrt()).clamp(-1, 1)
        keep = now / before  # the posterior of step k - 1 given step k and the clean action
        mean = (before.sqrt() * (1 - keep) * clean + keep.sqrt() * (1 - before) * a) / (1 - now)
        scale = ((1 - keep) * (1 - before) / (1 - now)).sqrt()
        a = mean + scale * torch.randn(a.shape, generator=generator, device=a.device)
    return a.clamp(-1, 1)


# ---------------------------------------------------------------------------------------------------------- agents


class Baseline(Agent):
    """What all share: they are saved and act as OM2P's agents, but have a policy and two losses of their own."""

    policy_kind = DeterministicPolicy

    def update(self, batch: Batch) -> Info:
        """One step of critics, policy and targets."""
        loss, info = self.critic_loss(batch)
        descend(self.critic_optimizer, loss)
        loss, policy_info = self.policy_loss(batch)
        descend(self.policy_optimizer, loss)
        soft_update(self.target_critics, self.critics, self.config.rho)
        soft_update(self.target_policy, self.policy, self.config.rho)
        return info | policy_info | {"policy_loss": loss.detach()}

    def noise(self, *shape: int) -> Tensor:
        """Gaussian noise (*shape, A) for a training step."""
        return torch.randn(*shape, self.policy.action_dim, generator=self.generator, device=self.generator.device)


class BC(Baseline):
    """Behaviour cloning by least squares; its critics are not trained."""

    def update(self, batch: Batch) -> Info:
        """One step of the policy."""
        loss = (self.policy.act(batch.obs) - batch.action).square().sum(-1).mean()
        descend(self.policy_optimizer, loss)
        soft_update(self.target_policy, self.policy, self.config.rho)
        return {"bc_loss": loss.detach()}


class MAFQL(Baseline):
    """Flow Q-learning: the flow clones, the one-step policy follows its 10-step action and ascends Q.

    Q is divided by a scale as for OM2P (by its mean absolute value in the authors'), so that alpha means the same at
    every scale of reward.
    """

    policy_kind = DistilledPolicy

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Info]:
        """Eq. 7 with the present one-step policy: FQL keeps no target of it."""
        return critic_loss(
            self.critics, self.target_critics, self.policy, batch, self.noise(len(batch.obs)), self.config.gamma
        )

    def policy_loss(self, batch: Batch) -> tuple[Tensor, Info]:
        """Flow matching + alpha (distance of the one-step action from the flow's) - Q."""
        t = torch.rand(len(batch.obs), 1, generator=self.generator, device=batch.obs.device)
        a_t, v = path(batch.action, self.noise(len(batch.obs)), t)
        bc_loss = (self.policy.flow(batch.obs, a_t, t) - v).square().sum(-1).mean()
        noise = self.noise(len(batch.obs))
        with torch.no_grad():
            goal = flow_action(self.policy.flow, batch.obs, noise, self.config.flow_steps)
        action = self.policy(batch.obs, noise)
        distance = (action - goal).square().sum(-1).mean()
        loss, info = ascent_loss(self.critics, batch.obs, action.clamp(-1, 1), self.config.q_scale)
        loss = bc_loss + self.config.alpha * distance + loss
        return loss, info | {"bc_loss": bc_loss.detach(), "distance": distance.detach()}


class MASfBC(Baseline):
    """Selecting from behaviour candidates: nothing is trained to maximise Q, it only chooses among cloned samples."""

    policy_kind = TimedNet

    def sample(self, obs: Tensor, count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """The target policy's candidates (B, K, A), their Q (B, K), and softmax(alpha Q / mean |Q| of all rows)."""
        rows = obs.repeat_interleave(count, 0)
        actions = diffusion_action(self.target_policy, rows, self.config.diffusion_steps, generator)
        q = mean_q(self.target_critics, rows, actions).view(len(obs), count)
        weights = torch.softmax(self.config.alpha * q / q.abs().mean().clamp_min(1e-6), 1)
        return actions.view(len(obs), count, -1), q, weights

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Info]:
        """Bootstrap from sampled actions only, weighted by softmax(alpha Q).

        Its paper also takes the better of this value and of what the data's trajectory went on to earn; batches here
        are of single transitions, so that part is left out.
        """
        with torch.no_grad():
            _, q, weights = self.sample(batch.next_obs, self.config.target_candidates, self.generator)
            next_q = (weights * q).sum(1, keepdim=True)
            target = batch.reward + self.config.gamma * (1 - batch.terminal) * next_q
        loss = sum((critic(batch.obs, batch.action) - target).square().mean() for critic in self.critics)
        return loss, {"critic_loss": loss.detach(), "target_q": target.mean()}

    def policy_loss(self, batch: Batch) -> tuple[Tensor, Info]:
        """Predict the noise that was mixed into the action."""
        steps = self.config.diffusion_steps
        k = torch.randint(1, steps + 1, (len(batch.obs), 1), generator=self.generator, device=batch.obs.device)
        share = signal_share(steps).to(batch.obs.device)[k]
        noise = self.noise(len(batch.obs))
        mixed = share.sqrt() * batch.action + (1 - share).sqrt() * noise
        loss = (self.policy(batch.obs, mixed, k / steps) - noise).square().sum(-1).mean()
        return loss, {"bc_loss": loss.detach()}

    @torch.no_grad()
    def act(self, obs: Tensor, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        """One of the sampled candidates (B, A), drawn with the weights softmax(alpha Q)."""
        actions, _, weights = self.sample(obs, self.config.candidates, generator)
        chosen = torch.multinomial(weights, 1, generator=generator)
        return actions[torch.arange(len(obs), device=obs.device), chosen[:, 0]]


class OMAR(Baseline):
    """TD3 whose critics are pushed down at actions that the data lacks, and whose policy is pulled to searched ones.

    Its release searches by elites on HalfCheetah, and elsewhere takes only uniform actions for the conservative term.
    """

    def critic_loss(self, batch: Batch) -> tuple[Tensor, Info]:
        """TD3's clipped double-Q error + alpha (log-sum-exp of Q over sampled actions - Q of the data's)."""
        with torch.no_grad():
            smoothing = (0.2 * self.noise(len(batch.obs))).clamp(-0.5, 0.5)
            next_action = (self.target_policy.act(batch.next_obs) + smoothing).clamp(-1, 1)
            next_q = torch.stack([q(batch.next_obs, next_action) for q in self.target_critics]).amin(0)
            target = batch.reward + self.config.gamma * (1 - batch.terminal) * next_q
            few = Batch(*(x[: max(1, len(x) // 8)] for x in batch))  # the same mean, eight times cheaper
            actions, log_density = self.conservative_actions(few)
        rows = few.obs.repeat_interleave(actions.shape[1], 0)
        qs = [critic(batch.obs, batch.action) for critic in self.critics]
        strangers = [critic(rows, actions.flatten(0, 1)).view(actions.shape[:2]) for critic in self.critics]
        error = sum((q - target).square().mean() for q in qs)
        conservative = sum(
            (torch.logsumexp(other - log_density, 1) - q[: len(other), 0]).mean() for q, other in zip(qs, strangers)
        )
        loss = error + self.config.alpha * conservative
        return loss, {"critic_loss": error.detach(), "conservative": conservative.detach(), "target_q": target.mean()}

    def conservative_actions(self, batch: Batch, count: int = 10) -> tuple[Tensor, Tensor]:
        """Actions (B, 3 count, A) to be pushed down, and their log densities (3 count,).

        A third each is uniform, near the policy's action here, and near its action at the next observation.
        """
        B, A, scale = *batch.action.shape, 0.2
        uniform = torch.rand(B, count, A, generator=self.generator, device=batch.obs.device) * 2 - 1
        near = [
            (self.policy.act(obs)[:, None] + scale * self.noise(B, count)).clamp(-1, 1)
            for obs in (batch.obs, batch.next_obs)
        ]
        # the density of the two Gaussians at their mean stands for that at each sample
        density = torch.tensor([0.5] + 2 * [1 / (scale * math.sqrt(2 * math.pi))], device=batch.obs.device)
        return torch.cat([uniform, *near], 1), A * density.log().repeat_interleave(count)

    def policy_loss(self, batch: Batch) -> tuple[Tensor, Info]:
        """(1 - w) (-Q / mean |Q|) + w (squared distance from the searched action)."""
        w, action = self.config.search_weight, self.policy.act(batch.obs)
        loss, info = ascent_loss(self.critics[:1], batch.obs, action, "value")
        few = max(1, len(action) // 4)  # likewise
        distance = (action[:few] - self.search(batch.obs[:few], action[:few].detach())).square().mean()
        return (1 - w) * loss + w * distance, info | {"distance": distance.detach()}

    @torch.no_grad()
    def search(self, obs: Tensor, action: Tensor, rounds: int = 3, samples: int = 10, scale: float = 2.0) -> Tensor:
        """The best of the policy's action (B, A) and of Gaussian samples whose mean and spread follow their Q."""
        mean, std = torch.zeros_like(action), torch.full_like(action, scale)
        best, best_q = action, self.critics[0](obs, action)
        rows = obs.repeat_interleave(samples, 0)
        for _ in range(rounds):
            tried = (mean[:, None] + std[:, None] * self.noise(len(obs), samples)).clamp(-1, 1)  # (B, K, A)
            q = self.critics[0](rows, tried.flatten(0, 1)).view(len(obs), samples, 1)
            top_q, top = q.max(1)
            found = tried[torch.arange(len(obs), device=obs.device), top[:, 0]]
            best, best_q = torch.where(top_q > best_q, found, best), torch.maximum(top_q, best_q)
            mean = (torch.softmax(q, 1) * tried).sum(1)
            std = (tried - mean[:, None]).square().mean(1).sqrt()
        return best


AGENTS = {"bc": BC, "ma-fql": MAFQL, "ma-sfbc": MASfBC, "omar": OMAR}


def make_agent(obs_dim: int, action_dim: int, config: BaselineConfig, *place: Any, **options: Any) -> Baseline:
    """The agent of `config.algorithm`."""
    return AGENTS[config.algorithm](obs_dim, action_dim, config, *place, **options)


def main(argv: Sequence[str] | None = None) -> int:
    """`python notebooks/lab/baselines.py ...`; returns the exit code: 2 for bad input, 130 if stopped by Ctrl-C."""
    parser = Parser(prog="baselines.py", description="Train a system that OM2P is compared with, score and draw it.")
    parser.add_settings(BaselineConfig)
    given = vars(parser.parse_args(argv))
    try:
        config = BaselineConfig.of(**given)  # refuses bad settings before any data is made
        dataset = load_or_make(config.data, config.env)
        name = f"{config.algorithm}-{config.env}-{dataset.meta['quality']}-seed{config.seed}"
        config = BaselineConfig.of(**{"out": free_folder(name)} | given)
        _, last = train(config, dataset, make_agent=make_agent)
    except (ValueError, OSError, MemoryError, torch.cuda.OutOfMemoryError) as error:
        print(f"baselines.py: {error}", file=sys.stderr)
        return 2
    return 0 if last["step"] == config.steps else 130


if __name__ == "__main__":
    sys.exit(main())
