"""The tasks of the OM2P paper, many episodes stepped at once as PyTorch tensors.

Three particle worlds: `spread` (Cooperative Navigation), `tag` (Predator-Prey) and `world` (World). They follow the
modified particle environment that made the public offline datasets; `mpe2` differs in integration order, rewards and
observations, so its scores do not compare. Nothing here needs a training library: `ParticleWorld` is the simulator,
`evaluate` scores policies on it, `save_gif` draws it, `ParticleParallelEnv` is its PettingZoo view.

Shapes: B worlds stepped together, N team agents (those that learn), A agents in all (the team, then the prey),
E entities (the agents, then the landmarks), O observation size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box
from pettingzoo import ParallelEnv
from torch import Tensor

MLPWeights = Sequence[tuple[Tensor, Tensor]]  # (weight, bias) of each layer


@dataclass(frozen=True)
class Scenario:
    """What tells one particle world from another. Lengths in world units; the arena is about [-1, 1]^2."""

    obs_dim: int  # observation size of a team agent
    team_size: float  # radius of a team agent
    gain: float  # force per unit of action, team
    landmark_sizes: tuple[float, ...]  # radii, in order of observation
    contacts: int  # how many of the first landmarks are solid
    spawn: float  # landmarks start uniformly in [-spawn, spawn]^2
    prey_size: float | None = None  # None: no prey
    touch_reward: float = 0.0  # reward of the team for each predator that touches the prey
    foods: tuple[int, int] = (0, 0)  # range of the landmarks that the prey may eat
    forests: tuple[int, int] = (0, 0)  # range of the landmarks whose inside an agent observes


SCENARIOS = {
    "spread": Scenario(18, 0.15, 5.0, (0.05, 0.05, 0.05), 0, 1.0),
    "tag": Scenario(16, 0.075, 9.0, (0.2, 0.2), 2, 0.9, prey_size=0.05, touch_reward=10.0),
    "world": Scenario(24, 0.075, 9.0, (0.2, 0.03, 0.03, 0.3, 0.3), 1, 0.9, 0.045, 5.0, (1, 3), (3, 5)),
}
EPISODE_STEPS = 25
DT, DAMPING = 0.1, 0.25
CONTACT_FORCE, CONTACT_MARGIN = 100.0, 1e-3
PREY_GAIN, TEAM_SPEED, PREY_SPEED = 16.0, 1.0, 1.3


class ParticleWorld:
    """A batch of independent episodes of one particle world, never terminal, 25 steps long.

    Positions in world units, velocities in units per second, 0.1 s a step, actions in [-1, 1]^2. The prey, where there
    is one, is played by the MLP `prey`; without it, `step` refuses and `advance` takes the prey's action too.
    """

    action_dim = 2
    num_agents = 3
    episode_steps = EPISODE_STEPS

    def __init__(
        self,
        name: str,
        prey: MLPWeights | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if name not in SCENARIOS:
            raise ValueError(f"unknown particle world {name!r}: choose from {', '.join(SCENARIOS)}")
        self.name, self.scenario = name, SCENARIOS[name]
        self.device, self.dtype = torch.device(device), dtype
        tensor = {"device": self.device, "dtype": dtype}
        self.prey = None if prey is None else [(w.to(**tensor), b.to(**tensor)) for w, b in prey]
        s, team = self.scenario, self.num_agents
        self.obs_dim = s.obs_dim
        self.has_prey = s.prey_size is not None
        self.prey_obs_dim = s.obs_dim - 2 if self.has_prey else 0  # it does not observe its own velocity twice
        self.total_agents = A = team + self.has_prey
        agent_sizes = [s.team_size] * team + ([s.prey_size] if self.has_prey else [])
        sizes = torch.tensor([*agent_sizes, *s.landmark_sizes], **tensor)
        self.sizes = sizes  # (E,)
        self.contact_distance = sizes[:A, None] + sizes[None, :]  # (A, E)
        self.solid = A + s.contacts  # the first entities, those that collide
        gains = [s.gain] * team + [PREY_GAIN] * self.has_prey
        self.gain = torch.tensor(gains, **tensor)[:, None]  # (A, 1)
        speeds = [TEAM_SPEED] * team + [PREY_SPEED] * self.has_prey
        self.max_speed = torch.tensor(speeds, **tensor) if self.has_prey else None  # (A,)
        self.foods = slice(A + s.foods[0], A + s.foods[1])
        self.forests = slice(A + s.forests[0], A + s.forests[1])
        self.others = torch.tensor([[j for j in range(A) if j != i] for i in range(A)], device=self.device)
        self.self_index = torch.arange(A, device=self.device)[:, None]

    def reset(self, num_worlds: int, generator: torch.Generator) -> Tensor:
        """Start `num_worlds` new episodes, drawn from `generator`, and return the team's observations (B, N, O)."""
        A, E = self.total_agents, len(self.sizes)
        position = torch.rand(num_worlds, E, 2, generator=generator, device=generator.device, dtype=self.dtype).to(
            self.device
        )
        position = position * 2 - 1
        position[:, A:] *= self.scenario.spawn
        return self.set_state(position)

    def set_state(self, position: Tensor, velocity: Tensor | None = None) -> Tensor:
        """Put entities at `position` (B, E, 2), agents moving with `velocity` (B, A, 2) or at rest."""
        self.position = position
        self.velocity = torch.zeros_like(position[:, : self.total_agents]) if velocity is None else velocity
        self._measure()
        return self.observations()[0]

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Move the team by `actions` (B, N, 2), and the prey by its own policy.

        Returns observations (B, N, O), rewards (B, N) and terminals (B, N), which are always 0.
        """
        if self.has_prey:
            actions = torch.cat([actions, self.prey_action()], 1)
        self.advance(actions)
        rewards = self.rewards()[:, : self.num_agents]
        return self.observations()[0], rewards, torch.zeros_like(rewards)

    def prey_action(self) -> Tensor:
        """Action (B, 1, 2) of the fixed prey: an MLP with ReLU, tanh at its end, over the prey's observation."""
        if self.prey is None:
            raise ValueError(f"{self.name} needs a prey policy: it comes with the data file")
        x = self.observations()[1]
        for weight, bias in self.prey[:-1]:
            x = F.relu(F.linear(x, weight, bias))
        return torch.tanh(F.linear(x, *self.prey[-1]))

    def advance(self, actions: Tensor) -> None:
        """One step of physics for the actions (B, A, 2) of every agent, the prey included."""
        A, S, k = self.total_agents, self.solid, CONTACT_MARGIN
        overlap = self.contact_distance[:, :S] - self.distance[:, :, :S]  # (B, A, S)
        # threshold: beyond it softplus(x) is taken for x, which must hold to the last bit in float64
        push = CONTACT_FORCE * k * F.softplus(overlap / k, threshold=40.0) / self.distance[:, :, :S]
        # an agent's offset to itself is zero, so it does not push itself
        contact = -(push[..., None] * self.offset[:, :, :S]).sum(2)  # (B, A, 2)
        force = self.gain * actions.clamp(-1.0, 1.0) + contact
        self.velocity = (1 - DAMPING) * self.velocity + DT * force
        if self.max_speed is not None:
            speed = torch.linalg.vector_norm(self.velocity, dim=-1).clamp_min(1e-12)
            self.velocity = self.velocity * (self.max_speed / speed).clamp(max=1.0)[..., None]
        agents = self.position[:, :A] + DT * self.velocity
        self.position = torch.cat([agents, self.position[:, A:]], 1)
        self._measure()

    def _measure(self) -> None:
        """Offsets and distances from every agent to every entity, which forces, rewards and observations share."""
        self.offset = self.position[:, None] - self.position[:, : self.total_agents, None]  # (B, A, E, 2)
        self.distance = torch.linalg.vector_norm(self.offset, dim=-1).clamp_min(1e-12)  # (B, A, E)
        self._observations: tuple[Tensor, Tensor | None] | None = None

    def observations(self) -> tuple[Tensor, Tensor | None]:
        """What the team (B, N, O) and the prey (B, 1, O - 2; None where there is none) observe."""
        if self._observations is None:
            A, N, B = self.total_agents, self.num_agents, len(self.position)
            landmarks = self.offset[:, :, A:].flatten(2)
            others = self.offset[:, self.self_index, self.others].flatten(2)
            common = torch.cat([self.velocity, self.position[:, :A], landmarks, others], -1)
            if not self.has_prey:  # the silent communication channel of the two other agents
                self._observations = torch.cat([common, common.new_zeros(B, A, 4)], -1), None
            else:
                prey_velocity = self.velocity[:, N:].expand(B, N, 2)
                near = self.distance[:, :, self.forests] < self.contact_distance[:, self.forests]
                inside = near.to(self.dtype) * 2 - 1  # (B, A, 2), or (B, A, 0) where there is no forest
                team = torch.cat([common[:, :N], prey_velocity, inside[:, :N]], -1)
                self._observations = team, torch.cat([common[:, N:], inside[:, N:]], -1)
        return self._observations

    def rewards(self) -> Tensor:
        """Rewards (B, A) of the present positions, the team's first."""
        A, N, s = self.total_agents, self.num_agents, self.scenario
        touching = self.distance[:, :, :A] < self.contact_distance[:, :A]  # (B, A, A), true for itself
        if not self.has_prey:
            nearest = self.distance[:, :, A:].amin(1)  # (B, L), from each landmark
            covered = (1 / nearest).clamp(max=10.0).sum(-1, keepdim=True)
            return covered - 5.0 * (touching.sum(-1) - 1)
        apart = 0.1 * self.distance[:, :N, N].sum(-1)
        caught = s.touch_reward * touching[:, :N, N].sum(-1)
        team = caught - apart
        out_of_bounds = _bound_penalty(self.position[:, N].abs()).sum(-1)
        prey = apart - caught - out_of_bounds
        if s.foods != (0, 0):
            food = self.distance[:, N, self.foods]
            eaten = (food < self.contact_distance[N, self.foods]).sum(-1)
            prey = prey - out_of_bounds + 2.0 * eaten + 0.05 * food.amin(-1)
        return torch.cat([team[:, None].expand(-1, N), prey[:, None]], 1)


def _bound_penalty(x: Tensor) -> Tensor:
    """0 below 0.9, 10 (x - 0.9) below 1, then min(exp(2x - 2), 10)."""
    outside = torch.exp(2 * x - 2).clamp(max=10.0)
    return torch.where(x < 1.0, (10 * (x - 0.9)).clamp_min(0.0), outside)


class Transition(NamedTuple):
    """One step of B episodes of N agents."""

    observations: Tensor  # (B, N, O)
    actions: Tensor  # (B, N, A)
    rewards: Tensor  # (B, N)
    next_observations: Tensor  # (B, N, O)
    terminals: Tensor  # (B, N): 1 where the episode truly ended; a time limit is no end


def rollout(
    act: Callable[[Tensor], Tensor], env: ParticleWorld, episodes: int, generator: torch.Generator
) -> Iterator[Transition]:
    """Play `episodes` whole episodes side by side, yielding every step. `act` maps (B, N, O) to (B, N, A)."""
    observations = env.reset(episodes, generator)
    for _ in range(env.episode_steps):
        actions = act(observations)
        next_observations, rewards, terminals = env.step(actions)
        yield Transition(observations, actions, rewards, next_observations, terminals)
        observations = next_observations


class Actor(Protocol):
    """What can be evaluated: one agent's policy."""

    def act(self, obs: Tensor, *, generator: torch.Generator) -> Tensor:
        """Map observations (B, O) to actions (B, A)."""


def joint(agents: Sequence[Actor], generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """One function from all observations (B, N, O) to all actions (B, N, A), each agent seeing only its own."""
    return lambda obs: torch.stack([a.act(obs[:, i], generator=generator) for i, a in enumerate(agents)], 1)


@torch.no_grad()
def evaluate(agents: Sequence[Actor], env: ParticleWorld, episodes: int, seed: int) -> Tensor:
    """Undiscounted returns (episodes,) of the team: the sum over steps of the mean reward over its agents.

    Starts and noise come from a random stream of their own, so that evaluating never changes a training.
    """
    generator = torch.Generator(env.device).manual_seed(seed)
    steps = rollout(joint(agents, generator), env, episodes, generator)
    return torch.stack([step.rewards.mean(1) for step in steps]).sum(0)


# -------------------------------------------------------------------------------------------------------- pictures

TEAM_COLOUR, PREY_COLOUR = "#0072b2", "#d55e00"  # apart for every kind of colour vision
LANDMARK_COLOURS = {"obstacle": "#555555", "food": "#e69f00", "forest": "#b5dfcc", "target": "#009e73"}


def save_gif(agents: Sequence[Actor], env: ParticleWorld, path: str | Path, seed: int, episodes: int = 4) -> None:
    """Draw `episodes` episodes side by side, with the return so far above each, as an animated GIF."""
    generator = torch.Generator(env.device).manual_seed(seed)
    frames, total = [], torch.zeros(episodes)
    with torch.no_grad():
        for step in rollout(joint(agents, generator), env, episodes, generator):
            total = total + step.rewards.mean(1).cpu()
            frames.append((env.position.cpu().numpy(), total.numpy()))
    _write_gif(frames, env, Path(path))


def _write_gif(frames: list[tuple[np.ndarray, np.ndarray]], env: ParticleWorld, path: Path) -> None:
    """Frames are (positions (B, E, 2), returns so far (B,))."""
    from matplotlib.animation import FuncAnimation, PillowWriter
    from matplotlib.figure import Figure

    episodes = len(frames[0][1])
    figure = Figure(figsize=(2.6 * episodes, 2.9), layout="constrained")
    farthest = max(np.abs(positions[:, : env.total_agents]).max() for positions, _ in frames)
    limit = float(np.clip(farthest + 0.1, 1.2, 2.0))  # who runs farther off leaves the picture
    panels = [_panel(axes, env, limit) for axes in figure.subplots(1, episodes, squeeze=False)[0]]

    def draw(k: int) -> None:
        positions, returns = frames[k]
        for (axes, circles), position, value in zip(panels, positions, returns):
            axes.set_title(f"step {k + 1}   return {value:.1f}", fontsize=9)
            for circle, centre in zip(circles, position):
                circle.center = centre

    FuncAnimation(figure, draw, frames=len(frames), init_func=lambda: None).save(
        path, writer=PillowWriter(fps=8), dpi=80
    )


def _panel(axes: Any, env: ParticleWorld, limit: float) -> tuple[Any, list[Any]]:
    """Empty axes with one circle for each entity of `env`, to be moved about."""
    from matplotlib.patches import Circle

    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
    A = env.total_agents
    kinds = {**dict.fromkeys(range(A, env.solid), "obstacle"), **dict.fromkeys(range(*env.foods.indices(99)), "food")}
    kinds |= dict.fromkeys(range(*env.forests.indices(99)), "forest")
    circles = []
    for i, size in enumerate(env.sizes.tolist()):
        colour = TEAM_COLOUR if i < env.num_agents else PREY_COLOUR
        colour = colour if i < A else LANDMARK_COLOURS[kinds.get(i, "target")]
        circles.append(axes.add_patch(Circle((0, 0), size, color=colour, lw=0, zorder=1 if i >= A else 2)))
    return axes, circles


# ------------------------------------------------------------------------------------------------------ PettingZoo


class ParticleParallelEnv(ParallelEnv):
    """One particle world as a PettingZoo `ParallelEnv`: agents agent_0 to agent_2, and prey_0 if nobody plays it.

    Observations are float32 arrays, actions arrays of 2 numbers in [-1, 1]; an episode is truncated after 25 steps.
    """

    render_mode = None

    def __init__(self, name: str, prey: MLPWeights | None = None) -> None:
        self.metadata = {"name": f"om2p_{name}", "render_modes": []}
        self.world = ParticleWorld(name, prey)
        self.possible_agents = [f"agent_{i}" for i in range(self.world.num_agents)]
        sizes = [self.world.obs_dim] * self.world.num_agents
        if self.world.has_prey and prey is None:
            self.possible_agents.append("prey_0")
            sizes.append(self.world.prey_obs_dim)
        self.observation_spaces = {a: Box(-np.inf, np.inf, (n,)) for a, n in zip(self.possible_agents, sizes)}
        self.action_spaces = {a: Box(-1.0, 1.0, (2,)) for a in self.possible_agents}
        self.agents: list[str] = []
        self._generator = torch.Generator()
        self._generator.seed()

    def observation_space(self, agent: str) -> Box:
        """The unbounded box of one agent's observations."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Box:
        """The box [-1, 1]^2."""
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        """Start an episode; a given `seed` starts the random stream anew."""
        if seed is not None:
            self._generator.manual_seed(seed)
        self.agents, self._steps = list(self.possible_agents), 0
        self.world.reset(1, self._generator)
        return self._observe(), {a: {} for a in self.agents}

    def step(self, actions: dict[str, np.ndarray]) -> tuple[dict, dict, dict, dict, dict]:
        """Move every agent; returns observations, rewards, terminations, truncations and infos by agent."""
        joint_action = torch.tensor(np.stack([actions[a] for a in self.agents]), dtype=torch.float32)[None]
        if len(self.agents) < self.world.total_agents:
            joint_action = torch.cat([joint_action, self.world.prey_action()], 1)
        self.world.advance(joint_action)
        self._steps += 1
        over = self._steps >= self.world.episode_steps
        rewards = dict(zip(self.agents, self.world.rewards()[0].tolist()))
        result = (
            self._observe(),
            rewards,
            dict.fromkeys(self.agents, False),
            dict.fromkeys(self.agents, over),
            {a: {} for a in self.agents},
        )
        if over:
            self.agents = []
        return result

    def _observe(self) -> dict[str, np.ndarray]:
        team, prey = self.world.observations()
        rows = [*team[0], *([] if prey is None else prey[0])]
        return {a: row.numpy().copy() for a, row in zip(self.agents, rows)}
