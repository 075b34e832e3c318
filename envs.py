"""The tasks of the OM2P paper, many episodes stepped at once as PyTorch tensors, and anyone's own, one at a time.

`ParticleWorld`: `spread` (Cooperative Navigation), `tag` (Predator-Prey) and `world` (World). They follow the modified
particle environment that made the public offline datasets; `mpe2` differs in integration order, rewards and
observations, so its scores do not compare. `HalfCheetah`: Gymnasium's, shared by two agents. `PettingZooTask`: any
PettingZoo parallel environment with continuous actions. `make_env` makes one of them by its name, `evaluate` scores
policies on it, `save_gif` draws it; `ParticleParallelEnv` is the PettingZoo view of a particle world.

Shapes: B worlds stepped together, N team agents (those that learn), A agents in all (the team, then the prey),
E entities (the agents, then the landmarks), O observation size.
"""

from __future__ import annotations

import importlib
import itertools
import os
import re
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

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
LONGEST_EPISODE, LARGEST_ACTION = 100_000, 1e6  # of one's own environment
DT, DAMPING = 0.1, 0.25
CONTACT_FORCE, CONTACT_MARGIN = 100.0, 1e-3
PREY_GAIN, TEAM_SPEED, PREY_SPEED = 16.0, 1.0, 1.3
# in pictures, apart for every kind of colour vision
COLOURS = dict(team="#0072b2", prey="#d55e00", obstacle="#555555", food="#e69f00", forest="#b5dfcc", target="#009e73")


class ParticleWorld:
    """A batch of independent episodes of one particle world, never terminal, 25 steps long.

    Positions in world units, velocities in units per second, 0.1 s a step, actions in [-1, 1]^2. The prey, where there
    is one, is played by the MLP `prey`; without it, `step` refuses and `advance` takes the prey's action too.
    """

    action_dim = 2
    num_agents = 3
    episode_steps = EPISODE_STEPS
    over = False  # every episode lasts `episode_steps`

    def __init__(
        self,
        name: str,
        prey: MLPWeights | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.name, self.scenario = name, SCENARIOS[name]
        self.device, self.dtype = torch.device(device), dtype
        tensor = {"device": self.device, "dtype": dtype}
        self.prey = None if prey is None else [(w.to(**tensor), b.to(**tensor)) for w, b in prey]
        s, team = self.scenario, self.num_agents
        self.obs_dim = s.obs_dim
        self.has_prey = s.prey_size is not None
        self.prey_obs_dim = s.obs_dim - 2 if self.has_prey else 0  # it does not observe its own velocity twice
        self.total_agents = A = team + self.has_prey
        agent_sizes = [s.team_size] * team + [s.prey_size] * self.has_prey
        self.sizes = sizes = torch.tensor([*agent_sizes, *s.landmark_sizes], **tensor)  # (E,)
        self.contact_distance = sizes[:A, None] + sizes[None, :]  # (A, E)
        self.solid = A + s.contacts  # the first entities, those that collide
        self.gain = torch.tensor([s.gain] * team + [PREY_GAIN] * self.has_prey, **tensor)[:, None]  # (A, 1)
        speeds = [TEAM_SPEED] * team + [PREY_SPEED]
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

    panel_inches = (2.6, 2.9)

    def draw(self, axes: Any, episode: int) -> None:
        """Draw the present state of one episode; who runs farther off than 1.6 leaves the picture."""
        from matplotlib.patches import Circle

        A = self.total_agents
        kinds = ["team"] * self.num_agents + ["prey"] * self.has_prey + ["target"] * (len(self.sizes) - A)
        kinds[A : self.solid] = ["obstacle"] * (self.solid - A)
        kinds[self.foods] = ["food"] * len(kinds[self.foods])
        kinds[self.forests] = ["forest"] * len(kinds[self.forests])
        entities = list(zip(self.position[episode].tolist(), self.sizes.tolist(), kinds))
        for centre, radius, kind in entities[A:] + entities[:A]:  # agents above landmarks
            axes.add_patch(Circle(centre, radius, color=COLOURS[kind], lw=0))
        axes.set(xlim=(-1.6, 1.6), ylim=(-1.6, 1.6), aspect="equal", xticks=[], yticks=[])


def _bound_penalty(x: Tensor) -> Tensor:
    """0 below 0.9, 10 (x - 0.9) below 1, then min(exp(2x - 2), 10)."""
    outside = torch.exp(2 * x - 2).clamp(max=10.0)
    return torch.where(x < 1.0, (10 * (x - 0.9)).clamp_min(0.0), outside)


# -------------------- HalfCheetah


class HalfCheetah:
    """A batch of episodes of Gymnasium's HalfCheetah-v5 on MuJoCo, 1,000 steps of 0.05 s, never terminal.

    Two agents share the cheetah (2x3): agent 0 moves the back leg, agent 1 the front leg, each with three actions in
    [-1, 1] (thigh, shin, foot). Each observes angle (radians) and speed of its own joints only: foot, shin, thigh. Both
    get the reward of the environment, metres per second forwards - 0.1 |action|^2.
    """

    name = "halfcheetah"
    num_agents, obs_dim, action_dim = 2, 6, 3
    has_prey, prey = False, None
    episode_steps = 1000
    over = False

    def __init__(self, device: str | torch.device = "cpu") -> None:
        import gymnasium
        import mujoco
        from mujoco.rollout import Rollout

        warn = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(lambda text: None)  # Gymnasium's model has an outdated attribute
        env = gymnasium.make("HalfCheetah-v5").unwrapped
        mujoco.set_mju_user_warning(warn)
        self.device = torch.device(device)
        self.model, self.dt, self.frame_skip = env.model, env.dt, env.frame_skip
        threads = torch.get_num_threads()
        self._data = [mujoco.MjData(self.model) for _ in range(threads)]
        self._simulate = Rollout(nthread=threads).rollout
        self._start = np.empty(mujoco.mj_stateSize(self.model, mujoco.mjtState.mjSTATE_FULLPHYSICS))
        mujoco.mj_getState(self.model, self._data[0], self._start, mujoco.mjtState.mjSTATE_FULLPHYSICS)

    # MuJoCo's state is the time, then 9 coordinates (x and z of the torso, its pitch, the six joints), then 9 speeds
    @property
    def qpos(self) -> np.ndarray:
        """Coordinates (B, 9) in metres and radians."""
        return self._state[:, 1:10]

    @property
    def qvel(self) -> np.ndarray:
        """Speeds (B, 9) of the coordinates, per second."""
        return self._state[:, 10:19]

    def reset(self, num_worlds: int, generator: torch.Generator) -> Tensor:
        """Start `num_worlds` new episodes near rest, drawn as Gymnasium draws them; observations (B, 2, 6)."""
        draw = {"generator": generator, "device": generator.device, "dtype": torch.float64}
        offset = 0.2 * torch.rand(num_worlds, 9, **draw) - 0.1
        speed = 0.1 * torch.randn(num_worlds, 9, **draw)
        return self.set_state(self._start[1:10] + offset.cpu().numpy(), speed.cpu().numpy())

    def set_state(self, qpos: np.ndarray, qvel: np.ndarray) -> Tensor:
        """Put the cheetahs at coordinates (B, 9) with speeds (B, 9)."""
        self._state = np.tile(self._start, (len(qpos), 1))
        self.qpos[:], self.qvel[:] = qpos, qvel
        return self.observations()[0]

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Move all cheetahs by `actions` (B, 2, 3), every episode by itself, on as many cores as PyTorch uses.

        Returns observations (B, 2, 6), rewards (B, 2) and terminals (B, 2), which are always 0.
        """
        control = actions.clamp(-1, 1).flatten(1).cpu().double().numpy()
        before = self.qpos[:, 0]
        repeated = control[:, None].repeat(self.frame_skip, 1)
        self._state = self._simulate(self.model, self._data, self._state, repeated)[0][:, -1]
        forwards = (self.qpos[:, 0] - before) / self.dt
        rewards = self._tensor(forwards - 0.1 * np.square(control).sum(1))[:, None].expand(-1, 2)
        return self.observations()[0], rewards, torch.zeros_like(rewards)

    def observations(self) -> tuple[Tensor, None]:
        """What both agents observe (B, 2, 6); there is no prey."""
        joints = np.stack([self.qpos[:, 3:], self.qvel[:, 3:]], -1).reshape(-1, 2, 3, 2)  # (B, leg, joint, q or v)
        return self._tensor(joints[:, :, ::-1].reshape(-1, 2, 6)), None

    def _tensor(self, x: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).float().to(self.device)

    panel_inches = (2.6, 2.2)

    def draw(self, axes: Any, episode: int) -> None:
        """Draw one cheetah from the side, as polygons: that needs no OpenGL."""
        import mujoco
        from matplotlib.collections import PolyCollection

        parts = self.model.geom_type == mujoco.mjtGeom.mjGEOM_CAPSULE
        radius, half_length = self.model.geom_size[parts, :2].T[..., None]  # (parts, 1)
        turn = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        along = radius * np.cos(turn) + half_length * np.sign(np.cos(turn))
        local = np.stack([radius * np.sin(turn), along], -1)  # (parts, 32, x and z of the part itself)
        data = self._data[0]
        data.qpos[:] = self.qpos[episode]
        mujoco.mj_kinematics(self.model, data)
        rotation = data.geom_xmat[parts].reshape(-1, 3, 3)[:, ::2, ::2]
        outlines = data.geom_xpos[parts][:, None, ::2] + local @ rotation.transpose(0, 2, 1)
        colours = ["#555555"] * 2 + [COLOURS["team"]] * 3 + [COLOURS["food"]] * 3  # body, back leg, front leg
        axes.add_collection(PolyCollection(outlines, facecolors=colours, zorder=2))
        axes.axhspan(-0.2, 0, color="#cccccc", lw=0)
        x = outlines[0, :, 0].mean()
        axes.set(xlim=(x - 1.2, x + 1.2), ylim=(-0.2, 1.4), aspect="equal", xlabel="x in metres", yticks=[])


# -------------------- one's own task


class PettingZooTask:
    """Anyone's PettingZoo parallel environment, made by `MODULE:FUNCTION`; one copy plays one episode after the other.

    Its agents have one box of observations, flattened to O numbers, and one bounded box of actions, to which [-1, 1]^A
    is stretched; an episode is over for all of them at once. What it declares and returns is checked here and nowhere
    else: a ValueError names the step and the agent, and what helps.
    """

    has_prey, prey = False, None
    episode_steps = None  # as many as it takes
    panel_inches = (2.9, 2.9)

    def __init__(self, name: str, device: str | torch.device = "cpu") -> None:
        self.name, self.device = name, torch.device(device)
        make = import_function(name)
        with user_code(f"making {name}"):
            self._env = env = make()
            weakref.finalize(self, close, env)
        if not getattr(env, "possible_agents", None) or hasattr(env, "agent_iter"):
            kind = f"{name} makes a {type(env).__name__}, which is no PettingZoo parallel environment"
            raise ValueError(f"{kind} (of an AEC environment pettingzoo.utils.conversions.aec_to_parallel makes one)")
        with user_code(f"{name}: the spaces of its agents"):
            self.agents = list(env.possible_agents)
            observed, acted = ([space(a) for a in self.agents] for space in (env.observation_space, env.action_space))
        self.num_agents, self._observed = len(self.agents), self._one_box("observation", observed).shape
        box = self._one_box("action", acted)
        low, high = box.low.astype(np.float64), box.high.astype(np.float64)
        if not np.issubdtype(box.dtype, np.floating) or not (np.maximum(-low, high) <= LARGEST_ACTION).all():
            what = f"{name}: the action space {box}"
            raise ValueError(f"{what} is not of floating-point numbers with bounds of at most {LARGEST_ACTION:g}")
        self._box, self._middle, self._reach = box, (high + low) / 2, (high - low) / 2
        self.obs_dim, self.action_dim = int(np.prod(self._observed)), int(np.prod(box.shape))

    def _one_box(self, kind: str, spaces: list[Any]) -> Box:
        """The box that all agents have."""
        for agent, space in zip(self.agents, spaces):
            if not isinstance(space, Box):
                raise ValueError(f"{self.name}: the {kind} space of {agent} is {space}, not a gymnasium.spaces.Box")
            if space.shape != spaces[0].shape or (kind == "action" and space != spaces[0]):
                plural = "observations" if kind == "observation" else "action_space"
                raise ValueError(
                    f"{self.name}: the {kind} spaces of {self.agents[0]} and {agent} differ ({spaces[0]}, {space}); "
                    f"supersuit.pad_{plural}_v0 makes sizes equal"
                )
        return spaces[0]

    def reset(self, num_worlds: int, generator: torch.Generator) -> Tensor:
        """Start an episode (`num_worlds` is 1) with a seed from `generator`; observations (1, N, O)."""
        seed = torch.randint(2**31 - 1, (1,), generator=generator, device=generator.device).item()
        self.over, self._steps, self._doing = False, 0, f"{self.name}: reset"
        with user_code(self._doing):
            result = self._env.reset(seed=seed)
        with user_code(f"{self._doing}: taking what it returned for (observations, infos)"):
            observed, _ = result
        return self._checked("observation", observed, self._observed).reshape(1, self.num_agents, -1)

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Move all agents by `actions` (1, N, A) in [-1, 1]; observations (1, N, O), rewards and terminals (1, N)."""
        self._steps += 1
        self._doing = f"{self.name}: step {self._steps:,}"
        if self._steps == LONGEST_EPISODE:
            raise ValueError(f"{self._doing}: the episode does not end: give it a time limit")
        boxed = self.to_box(actions[0].cpu().double().numpy())
        with user_code(self._doing):
            result = self._env.step(dict(zip(self.agents, boxed)))
        what = "(observations, rewards, terminations, truncations, infos)"
        with user_code(f"{self._doing}: taking what it returned for {what}"):
            observed, rewards, terminated, truncated, _ = result
            terminals = {a: float(bool(terminated.get(a, True))) for a in self.agents}
            ends = {a: bool(terminals[a] or truncated.get(a, True)) for a in self.agents}
        self.over = all(ends.values())
        if any(ends.values()) != self.over:
            first, last = (next(a for a in self.agents if ends[a] is end) for end in (True, False))
            raise ValueError(
                f"{self._doing}: the episode is over for {first} but not for {last}; "
                "supersuit.black_death_v3 keeps everyone until the end"
            )
        return (
            self._checked("observation", observed, self._observed).reshape(1, self.num_agents, -1),
            self._checked("reward", rewards, ()),
            self._checked("termination", terminals, ()),
        )

    def _checked(self, what: str, values: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
        """What the environment returned for every agent, (1, N, *shape)."""
        rows = []
        for agent in self.agents:
            where = f"{self._doing}: {what} of {agent}"
            with user_code(f"{where}: taking it from the dictionary, as numbers,"):
                rows.append(np.array(values[agent], np.float32))
            if rows[-1].shape != shape:
                raise ValueError(f"{where} has shape {rows[-1].shape}, not {shape}")
            if not np.isfinite(rows[-1]).all():
                raise ValueError(f"{where} holds NaN or infinite numbers")
        return torch.from_numpy(np.stack(rows)).to(self.device)[None]

    def to_box(self, actions: np.ndarray) -> np.ndarray:
        """Actions (..., A) in [-1, 1] in the units of the environment's box, and in its shape."""
        shaped = np.clip(actions, -1, 1).reshape(*actions.shape[:-1], *self._box.shape)
        low, high = self._box.low, self._box.high  # rounding may leave them
        return np.clip((self._middle + shaped * self._reach).astype(self._box.dtype), low, high)

    def from_box(self, actions: np.ndarray) -> np.ndarray:
        """The reverse, in float32."""
        reach = np.where(self._reach > 0, self._reach, 1).ravel()
        return ((actions - self._middle.ravel()) / reach).astype(np.float32)

    def draw(self, axes: Any, episode: int) -> None:
        """Show what the environment renders."""
        with user_code(f"{self.name}: drawing what it renders (render_mode='rgb_array' gives pictures)"):
            axes.imshow(self._env.render())
        axes.set(xticks=[], yticks=[])


def close(env: Any) -> None:
    """End what someone's environment holds, such as a window, a port or a simulator; it may have nothing to end."""
    with suppress(Exception):
        env.close()


@contextmanager
def user_code(doing: str) -> Iterator[None]:
    """Whatever someone's own code raises meanwhile becomes a ValueError of one line, with its place in that code."""
    try:
        yield
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [
            f for f in frames if not re.search(r"(site|dist)-packages|importlib|[/\\](envs|data|om2p)\.py$", f.filename)
        ]
        place = f"{Path(own[-1].filename).name}, line {own[-1].lineno}: " if own else ""
        raise ValueError(f"{doing} failed ({place}{in_one_line(error)})") from error


def in_one_line(error: BaseException) -> str:
    """Kind and message of an error, in at most 200 characters."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def import_function(name: str) -> Callable[..., Any]:
    """The function that `MODULE:FUNCTION` names, of an installed module or one in the current folder."""
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    if module in ("envs", "data", "om2p"):
        raise ValueError(f"{name}: {module}.py is a file of this program; give yours another name")
    with user_code(f"importing {name}"):
        return getattr(importlib.import_module(module), function)


Env = ParticleWorld | HalfCheetah | PettingZooTask
# the paper's, and how many agents learn
TASKS = dict.fromkeys(SCENARIOS, ParticleWorld.num_agents) | {"halfcheetah": HalfCheetah.num_agents}
NO_ENV = "none"  # --env none: training on data alone


def check_name(name: str) -> None:
    """Raise ValueError unless `name` is one of the four tasks, "none", or looks like MODULE:FUNCTION."""
    if name not in (*TASKS, NO_ENV) and not all(name.partition(":")):
        raise ValueError(
            f"--env {name}: choose from {', '.join(TASKS)}, name a function that makes your own PettingZoo "
            f"parallel environment, as MODULE:FUNCTION, or {NO_ENV} where there is only data"
        )


def make_env(name: str, prey: MLPWeights | None = None, device: str | torch.device = "cpu") -> Env | None:
    """The environment `name`, with the fixed prey that its data was made with; None for "none"."""
    check_name(name)
    if name == NO_ENV:
        return None
    if ":" in name:
        return PettingZooTask(name, device)
    return HalfCheetah(device) if name == "halfcheetah" else ParticleWorld(name, prey, device)


# -------------------- playing and scoring


class Transition(NamedTuple):
    """One step of B episodes of N agents."""

    observations: Tensor  # (B, N, O)
    actions: Tensor  # (B, N, A)
    rewards: Tensor  # (B, N)
    next_observations: Tensor  # (B, N, O)
    terminals: Tensor  # (B, N): 1 where the episode truly ended; a time limit is no end


def rollout(
    act: Callable[[Tensor], Tensor], env: Env, episodes: int, generator: torch.Generator
) -> Iterator[Transition]:
    """Play `episodes` whole episodes side by side, yielding every step. `act` maps (B, N, O) to (B, N, A)."""
    observations = env.reset(episodes, generator)
    for step in itertools.count(1):
        actions = act(observations)
        next_observations, rewards, terminals = env.step(actions)
        yield Transition(observations, actions, rewards, next_observations, terminals)
        if step == env.episode_steps or env.over:
            return
        observations = next_observations


@torch.no_grad()
def returns_of(act: Callable[[Tensor], Tensor], env: Env, episodes: int, generator: torch.Generator) -> Tensor:
    """Undiscounted returns (episodes,) of the team: the sum over steps of the mean reward over its agents."""
    at_once = episodes if env.episode_steps else 1  # one's own environment plays them one after the other
    played = [rollout(act, env, at_once, generator) for _ in range(episodes // at_once)]
    return torch.cat([torch.stack([step.rewards.mean(1) for step in steps]).sum(0) for steps in played])


def act_together(agents: Sequence[Any], generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """One function from all observations (B, N, O) to all actions (B, N, A), each agent seeing only its own.

    An agent is anything with `act(obs (B, O), generator=...)` that gives actions (B, A).
    """
    return lambda obs: torch.stack([a.act(obs[:, i], generator=generator) for i, a in enumerate(agents)], 1)


def evaluate(agents: Sequence[Any], env: Env | None, episodes: int, seed: int) -> Tensor:
    """Undiscounted returns (episodes,) of the team that `agents` are; (0,) where there is no environment.

    Starts and noise come from a random stream of their own, so that evaluating never changes a training.
    """
    if env is None:
        return torch.empty(0)
    generator = torch.Generator(env.device).manual_seed(seed)
    return returns_of(act_together(agents, generator), env, episodes, generator)


# -------------------- pictures


def save_gif(agents: Sequence[Any], env: Env | None, path: str | Path, seed: int) -> None:
    """Draw the first 100 steps of four episodes side by side, with the return so far above each, as a GIF.

    Of one's own environment one episode is drawn, if it renders pictures; if not, a line says why there is no GIF.
    """
    from matplotlib.animation import PillowWriter
    from matplotlib.figure import Figure

    if env is None:
        return
    episodes = 4 if env.episode_steps else 1
    width, height = env.panel_inches
    figure = Figure(figsize=(width * episodes, height))
    panels = figure.subplots(1, episodes, squeeze=False, gridspec_kw={"left": 0.01, "right": 0.99, "wspace": 0.05})[0]
    writer = PillowWriter(fps=8)
    generator = torch.Generator(env.device).manual_seed(seed)
    steps = itertools.islice(rollout(act_together(agents, generator), env, episodes, generator), 100)
    returns = torch.zeros(episodes)
    try:
        with whole_file(path) as part, torch.no_grad():
            writer.setup(figure, part, dpi=80)
            for step in steps:
                returns += step.rewards.mean(1).cpu()
                for episode, axes in enumerate(panels):
                    axes.clear()
                    env.draw(axes, episode)
                    axes.set_title(f"return {returns[episode]:.1f}", fontsize=9)
                writer.grab_frame()
            writer.finish()
    except ValueError as error:
        print(f"note: no {Path(path).name}: {error}")


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Write to the yielded name; `path` appears only once the file is complete, and on failure nothing is left."""
    path = Path(path)
    part = path.with_name(f".{path.stem}.part{os.getpid()}{path.suffix}")
    try:
        yield part
        with open(part, "r+b") as file:  # Windows syncs only what can be written
            os.fsync(file.fileno())
        os.replace(part, path)
    except RuntimeError as error:  # of torch
        raise OSError(f"{path} could not be written ({in_one_line(error)}): is the disk full?") from error
    finally:
        part.unlink(missing_ok=True)


# -------------------- PettingZoo


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
        agents, over = self.agents, self._steps >= self.world.episode_steps
        observations, rewards = self._observe(), dict(zip(agents, self.world.rewards()[0].tolist()))
        self.agents = [] if over else agents
        terminations, truncations = dict.fromkeys(agents, False), dict.fromkeys(agents, over)
        return observations, rewards, terminations, truncations, {a: {} for a in agents}

    def _observe(self) -> dict[str, np.ndarray]:
        team, prey = self.world.observations()
        rows = [*team[0], *([] if prey is None else prey[0])]
        return {a: row.numpy().copy() for a, row in zip(self.agents, rows)}
