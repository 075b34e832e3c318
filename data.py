"""The offline data of OM2P: the file format, the policies that make it, and the files that a run leaves.

    python data.py collect --env world --quality expert --out expert.npz --transitions 1000000
    python data.py convert FOLDER --env tag --out tag-expert.npz      # OMAR's obs_i.npy, acs_i.npy, ...
    python data.py info expert.npz
    python data.py train --env world      # trains the behaviour policies that ship in behaviour.npz

A data file is one `.npz` without pickles. M transitions of N agents, float32:

    observations (M, N, O)   actions (M, N, A) in [-1, 1]   rewards (M, N)
    next_observations (M, N, O)   terminals (M, N), 1 where an episode truly ended (a time limit is no end)
    meta   JSON text: env, quality, seed, noise, episode_steps, mean_return, and the random_return, medium_return and
           expert_return of this env with the shipped prey; seed and noise are null for data made by others
    prey_weight_0, prey_bias_0, ...   the fixed prey that the data was made with: an MLP with ReLU, tanh at its end
"""

from __future__ import annotations

import argparse
import copy
import csv
import functools
import itertools
import json
import math
import os
import pickle
import re
import shutil
import signal
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs import (
    DIMENSIONS,
    SCENARIOS,
    Env,
    MLPWeights,
    ParticleWorld,
    check_name,
    evaluate,
    import_function,
    make_env,
    one_line,
    returns_of,
    rollout,
    save_gif,
)
from om2p import QUALITIES, check_xi, descend, soft_update

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

BEHAVIOUR_FILE = Path(__file__).parent / "behaviour.npz"
LONGEST_FIRST = sorted(QUALITIES, key=len, reverse=True)  # so that "medium-expert" is not taken for "expert"
ARRAYS = {"observations": 3, "actions": 3, "rewards": 2, "next_observations": 3, "terminals": 2}  # name: rank
NUMBER = (int, float)
META = {"env": str, "quality": str, "seed": (int, type(None)), "noise": (*NUMBER, type(None)), "episode_steps": int}
META |= {"mean_return": NUMBER, "random_return": NUMBER, "expert_return": (*NUMBER, type(None))}
CUSTOM = "custom"  # the quality of data from one's own environment
TRANSITIONS = 1_000_000
# what a file that is not what its name says may raise when it is loaded
BAD_FILE = (pickle.UnpicklingError, RuntimeError, LookupError, TypeError, AttributeError, ValueError, EOFError)
MAY_CHANGE = {"steps", "save_every", "data", "out"}  # options of a run that is resumed

# ----------------------------------------------------------------------------------------------------------- files


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
    finally:
        part.unlink(missing_ok=True)


@dataclass
class Dataset:
    """Transitions of all agents and what is known of them; the arrays of the module's docstring as tensors."""

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    terminals: Tensor
    meta: dict[str, Any]
    prey: MLPWeights | None = None

    def __len__(self) -> int:
        return len(self.observations)

    def sample(self, agent: int, size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """A minibatch of one agent, drawn with replacement: observation, action, reward, next observation, terminal.

        Shapes (B, O), (B, A), (B, 1), (B, O), (B, 1).
        """
        rows = torch.randint(len(self), (size,), generator=generator, device=generator.device)
        obs, action, reward, next_obs, terminal = (getattr(self, name)[rows, agent] for name in ARRAYS)
        return obs, action, reward[:, None], next_obs, terminal[:, None]

    def to(self, device: str | torch.device) -> Dataset:
        """The same data on another device."""
        prey = None if self.prey is None else [(w.to(device), b.to(device)) for w, b in self.prey]
        return Dataset(*(getattr(self, name).to(device) for name in ARRAYS), self.meta, prey)

    @staticmethod
    def quality_of(config: Any) -> str:
        """The quality of the data that a configuration names, without reading or making the data."""
        path = Path(config.data)
        if path.is_file() and not config.quality:
            return _read_meta(path, read_npz(path, only="meta"), None, ("meta",))["quality"]
        return config.quality or _named_quality(path) or "expert"

    def fingerprint(self) -> int:
        """A checksum of all transitions."""
        arrays = (getattr(self, name).cpu().numpy() for name in ARRAYS)
        return functools.reduce(lambda crc, x: zlib.crc32(np.ascontiguousarray(x).data.cast("B"), crc), arrays, 0)

    def check_fits(self, env: Env) -> None:
        """Raise ValueError unless the data has the agents and sizes of `env`."""
        _, N, O = self.observations.shape
        sizes, expected = (N, O, self.actions.shape[2]), (env.num_agents, env.obs_dim, env.action_dim)
        if sizes != expected:
            raise ValueError(f"the data has (agents, observations, actions) {sizes}, {env.name} has {expected}")

    def save(self, path: str | Path) -> None:
        """Write the `.npz`; a file of that name is replaced only by a complete one."""
        arrays = {name: getattr(self, name).cpu().numpy() for name in ARRAYS}
        for k, (weight, bias) in enumerate(self.prey or ()):
            arrays |= {f"prey_weight_{k}": weight.cpu().numpy(), f"prey_bias_{k}": bias.cpu().numpy()}
        with whole_file(path) as part:
            np.savez(part, meta=np.array(json.dumps(self.meta)), **arrays)

    @classmethod
    def load(cls, path: str | Path, env: str | None = None) -> Dataset:
        """Read and check a data file; raises ValueError with one line that says what is wrong with it."""
        arrays = read_npz(path, only=r"prey_(weight|bias)_\d+|" + "|".join((*ARRAYS, "meta")))
        return cls.from_arrays(path, arrays, _read_meta(path, arrays, env))

    @classmethod
    def from_arrays(cls, path: str | Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> Dataset:
        """Check the arrays of a data file or folder, named as in a file, and wrap them without copying."""
        _check_arrays(path, arrays, meta)
        prey = [(arrays[f"prey_weight_{k}"], arrays[f"prey_bias_{k}"]) for k in range(_layers(arrays))]
        tensors = (torch.from_numpy(arrays[name]) for name in ARRAYS)
        return cls(*tensors, meta, [(torch.from_numpy(w), torch.from_numpy(b)) for w, b in prey] or None)


def read_npz(path: str | Path, only: str = "") -> dict[str, np.ndarray]:
    """The arrays of a `.npz` whose names match the pattern `only`, never unpickling anything.

    Raises ValueError for a file that is no whole `.npz` of plain arrays, before memory is taken for what it claims.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a .npz file")
    if not Path(path).exists():
        raise ValueError(f"{path} does not exist")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no .npz file (empty, cut short or of another format): make it anew")
    try:
        with zipfile.ZipFile(path) as file:
            members = [m for m in file.infolist() if re.fullmatch(only or ".*", m.filename.removesuffix(".npy"))]
            if len({m.filename for m in members}) < len(members):
                raise ValueError("it has two arrays of one name")
            if sum(m.file_size for m in members) > max(2**26, 200 * path.stat().st_size):
                raise ValueError("it claims to unpack to more than 200 times its size")
            return {m.filename.removesuffix(".npy"): _read_member(file, m) for m in members}
    except (ValueError, OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read: {error or type(error).__name__}") from error


def _read_member(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array of an open `.npz`, once its header agrees with the size of the member."""
    with file.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"{member.filename} has version {version} of the .npy format")
        shape, _, dtype = readers[version](stream)
        if dtype.hasobject or dtype.names or dtype.kind not in "fiubUc":
            raise ValueError(f"{member.filename} holds {dtype}, not numbers or text")
        if math.prod(shape) * dtype.itemsize != member.file_size - stream.tell():
            raise ValueError(f"{member.filename} is cut short, or claims a wrong size")
    with file.open(member) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _read_meta(
    path: str | Path, arrays: dict[str, np.ndarray], env: str | None, needed: Sequence[str] = (*ARRAYS, "meta")
) -> dict[str, Any]:
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise ValueError(f"{path} has no array {', '.join(missing)}: see the format at the top of data.py")
    try:
        meta = json.loads(str(arrays["meta"]))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: meta is no JSON text ({error})") from error
    absent = [key for key in META if not isinstance(meta, dict) or key not in meta]
    if absent:
        raise ValueError(f"{path}: meta lacks {', '.join(absent)}")
    for key, kind in META.items():
        if not isinstance(meta[key], kind) or (isinstance(meta[key], float) and not math.isfinite(meta[key])):
            raise ValueError(f"{path}: meta: {key} is {meta[key]!r}")
    if meta["quality"] not in (*QUALITIES, CUSTOM):
        raise ValueError(f"{path}: meta: quality is {meta['quality']!r}, not one of {', '.join(QUALITIES)}, {CUSTOM}")
    if meta["expert_return"] == meta["random_return"]:
        raise ValueError(f"{path}: meta: expert_return equals random_return, so no score can be normalised")
    if env is not None and meta["env"] != env:
        raise ValueError(
            f"{path} holds data of {meta['env']}: use --env {meta['env']} or --data {env}-{Path(path).name}"
        )
    return meta


def _check_arrays(path: str | Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Raise ValueError unless ranks, sizes, dtypes and values are as the format says."""
    for name, rank in ARRAYS.items():
        x = arrays[name]
        if x.ndim != rank or x.dtype != np.float32:
            raise ValueError(f"{path}: {name} is {x.dtype} of shape {x.shape}, not float32 with {rank} dimensions")
    obs, actions = arrays["observations"], arrays["actions"]
    pair = obs.shape[:2]
    if len(obs) == 0:
        raise ValueError(f"{path} holds no transitions")
    shapes = {"observations": obs.shape, "next_observations": obs.shape, "actions": (*pair, *actions.shape[2:])}
    for name in ARRAYS:
        if arrays[name].shape != (shape := shapes.get(name, pair)):
            raise ValueError(f"{path}: {name} has shape {arrays[name].shape}, expected {shape}")
    if meta["env"] in DIMENSIONS:
        expected = DIMENSIONS[meta["env"]]
        if (*obs.shape[1:], actions.shape[2]) != expected:
            raise ValueError(
                f"{path}: {obs.shape[1]} agents, {obs.shape[2]} observations and {actions.shape[2]} actions; "
                f"{meta['env']} has {expected[0]}, {expected[1]} and {expected[2]}"
            )
        if meta["env"] in SCENARIOS and (prey_obs_dim := ParticleWorld(meta["env"]).prey_obs_dim):
            _check_prey(path, arrays, prey_obs_dim)
    for name in ARRAYS:
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{path}: {name} holds NaN or infinite numbers")
    if np.abs(actions).max() > 1:
        raise ValueError(f"{path}: actions reach {np.abs(actions).max():g}; they must lie in [-1, 1]")
    if not ((arrays["terminals"] == 0) | (arrays["terminals"] == 1)).all():
        raise ValueError(f"{path}: terminals must be 0 or 1")


def _layers(arrays: dict[str, np.ndarray]) -> int:
    return next(k for k in itertools.count() if f"prey_weight_{k}" not in arrays)


def _check_prey(path: str | Path, arrays: dict[str, np.ndarray], width: int) -> None:
    """Raise ValueError unless the prey is a chain of layers from `width` observations to 2 actions."""
    if not _layers(arrays):
        raise ValueError(f"{path} has no prey_weight_0: data of a world with a prey carries the one it was made with")
    for k in range(_layers(arrays)):
        weight, bias = arrays[f"prey_weight_{k}"], arrays.get(f"prey_bias_{k}", np.empty(0))
        if weight.ndim != 2 or bias.shape != weight.shape[:1] or weight.shape[1] != width:
            raise ValueError(f"{path}: the prey's layer {k} has weights {weight.shape} and biases {bias.shape}")
        if weight.dtype != np.float32 or not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise ValueError(f"{path}: the prey's layer {k} is not all finite float32 numbers")
        width = len(weight)
    if width != 2:
        raise ValueError(f"{path}: the prey's last layer gives {width} actions, not 2")


# ---------------------------------------------------------------------------------------------- behaviour policies


class StackedMLP(nn.Module):
    """`copies` independent MLPs of one shape, evaluated together: (copies, B, in) to (copies, B, out), ReLU between."""

    def __init__(self, copies: int, *sizes: int) -> None:
        super().__init__()
        pairs = list(zip(sizes, sizes[1:]))
        self.weights = nn.ParameterList([_uniform(copies, i, o, fan_in=i) for i, o in pairs])
        self.biases = nn.ParameterList([_uniform(copies, 1, o, fan_in=i) for i, o in pairs])

    def forward(self, x: Tensor) -> Tensor:
        for weight, bias in zip(self.weights[:-1], self.biases[:-1]):
            x = F.relu(torch.baddbmm(bias, x, weight))
        return torch.baddbmm(self.biases[-1], x, self.weights[-1])


def _uniform(*shape: int, fan_in: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).uniform_(-1, 1) / math.sqrt(fan_in))


class BehaviourPolicy:
    """Deterministic policies tanh(MLP) of several agents, with Gaussian exploration noise on top."""

    def __init__(self, actors: StackedMLP) -> None:
        self.actors = actors

    @torch.no_grad()
    def __call__(self, obs: Tensor, noise: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        """Actions (B, N, A) for observations (B, N, O), clipped to [-1, 1]; `noise` is a standard deviation."""
        action = torch.tanh(self.actors(obs.transpose(0, 1))).transpose(0, 1)
        if noise:
            action = action + noise * torch.empty_like(action).normal_(generator=generator)
        return action.clamp(-1, 1)

    def layers(self, agent: int) -> list[tuple[Tensor, Tensor]]:
        """(weight, bias) of each layer of one agent, as `torch.nn.functional.linear` takes them."""
        pairs = zip(self.actors.weights, self.actors.biases)
        return [(w[agent].detach().T.contiguous(), b[agent, 0].detach().clone()) for w, b in pairs]


class TD3:
    """TD3 (arXiv 1802.09477) for one side of a game: its actors, and twin critics that see the whole state."""

    def __init__(self, agents: int, obs_dim: int, state_dim: int, action_dim: int, width: int, recipe: Recipe) -> None:
        self.recipe = recipe
        self.actors = StackedMLP(agents, obs_dim, width, width, action_dim)
        self.critics = StackedMLP(2, state_dim + agents * action_dim, recipe.width, recipe.width, 1)
        with torch.no_grad():
            self.actors.weights[-1].mul_(0.1)  # start far from the saturated ends of tanh
        self.target_actors, self.target_critics = copy.deepcopy(self.actors), copy.deepcopy(self.critics)
        self.act, self.target_act = BehaviourPolicy(self.actors), BehaviourPolicy(self.target_actors)
        self.actor_optimizer = torch.optim.Adam(self.actors.parameters(), lr=recipe.learning_rate, fused=True)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), lr=recipe.learning_rate, fused=True)
        self.updates = 0

    def q(self, critics: StackedMLP, state: Tensor, actions: Tensor) -> Tensor:
        """Q (2, B) of states (B, S) and the side's actions (B, N, A)."""
        x = torch.cat([state, actions.flatten(1)], 1)
        return critics(x.expand(2, *x.shape)).squeeze(-1)

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> None:
        """One step of the critics, every second time also of the actors and all targets."""
        with torch.no_grad():
            next_actions = self.target_act(batch["next_obs"])
            smoothing = 0.2 * torch.empty_like(next_actions).normal_(generator=generator)
            next_actions = (next_actions + smoothing.clamp(-0.5, 0.5)).clamp(-1, 1)
            next_q = self.q(self.target_critics, batch["next_state"], next_actions).amin(0)
            target = batch["reward"] + self.recipe.gamma * next_q
        error = self.q(self.critics, batch["state"], batch["actions"]) - target
        descend(self.critic_optimizer, error.square().mean(1).sum())
        self.updates += 1
        if self.updates % 2:
            return
        logits = self.actors(batch["obs"].transpose(0, 1)).transpose(0, 1)
        # the penalty on logits keeps tanh out of saturation, where its gradient dies
        loss = 1e-3 * logits.square().mean() - self.q(self.critics, batch["state"], torch.tanh(logits))[0].mean()
        descend(self.actor_optimizer, loss)
        soft_update(self.target_actors, self.actors, self.recipe.rho)
        soft_update(self.target_critics, self.critics, self.recipe.rho)


@dataclass(frozen=True)
class Recipe:
    """How the behaviour policies of one env are trained; the returns are those of the public data sets."""

    prey_age: int  # environment steps after which the prey, trained together with the team, is frozen
    steps: int  # environment steps of the team against that prey, at most
    medium_return: float  # the team is medium, or expert, once it reaches this
    expert_return: float
    seed: int
    worlds: int = 32  # episodes played side by side
    updates: int = 1  # of each side after each step of all of them
    warm_up: int = 1600  # environment steps with uniform actions, at the start
    batch: int = 512
    width: int = 128  # of the team's and the critics' hidden layers
    learning_rate: float = 1e-3
    gamma: float = 0.95
    rho: float = 0.01
    reward_scale: float = 0.1


RECIPES = {  # seeds: of ten, those whose three predators all stay close to the prey
    "world": Recipe(16_000, 160_000, 43.3, 79.5, seed=7),
    "tag": Recipe(24_000, 160_000, 88.7, 185.6, seed=8),
    "spread": Recipe(0, 480_000, 259.9, 516.8, seed=0),
    "halfcheetah": Recipe(0, 480_000, 1850, 3700, 1, 4, 2, 4000, 256, 256, 3e-4, 0.99, 0.005, 1.0),
}
NOISE = 0.1
REPLAY = 8  # policies, evenly spaced on the way to medium, that play medium-replay data


class Replay:
    """Everything that a training has seen: each side's observations, actions, rewards and next observations."""

    def __init__(self, env: ParticleWorld, sides: int, capacity: int) -> None:
        N, S = env.num_agents, env.state_dim
        shapes = [(N, env.obs_dim, env.action_dim), (1, env.prey_obs_dim, env.action_dim)][:sides]
        self.sides = [
            {
                "obs": torch.zeros(capacity, n, o),
                "actions": torch.zeros(capacity, n, a),
                "rewards": torch.zeros(capacity, n),
                "next_obs": torch.zeros(capacity, n, o),
            }
            for n, o, a in shapes
        ]
        if S:
            self.sides[0] |= {"state": torch.zeros(capacity, S), "next_state": torch.zeros(capacity, S)}
        self.size = 0

    def add(self, *steps: dict[str, Tensor]) -> None:
        """Append one batched step of every side."""
        count = len(steps[0]["obs"])
        for side, step in zip(self.sides, steps):
            for name, value in step.items():
                side[name][self.size : self.size + count] = value
        self.size += count

    def sample(self, side: int, rows: Tensor, reward_scale: float) -> dict[str, Tensor]:
        """A minibatch for one side; its state is what the whole team observes, where the env has none of its own."""
        batch = {name: value[rows] for name, value in self.sides[side].items()}
        state, next_state = (self.sides[0][k][rows].flatten(1) for k in ("obs", "next_obs"))
        reward = reward_scale * batch["rewards"].mean(1)
        return {"state": state, "next_state": next_state, "reward": reward} | batch


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads for PyTorch. One is enough for small networks, and sums then do not depend on the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@threads(1)
def train_td3(
    env: Env,
    recipe: Recipe,
    steps: int,
    seed: int,
    check: Callable[[int, TD3], bool] = lambda step, team: False,
) -> list[TD3]:
    """Train the team, and the prey where `env` has none of its own, until `check(steps, team)` or for `steps` steps.

    Several episodes run side by side, with updates of each side after each batched step; `steps` counts single
    environment steps, and `check` is called after each round of episodes. Returns the learners, team first.
    """
    generator = torch.Generator().manual_seed(seed)
    N, state_dim = env.num_agents, env.state_dim or env.num_agents * env.obs_dim
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sides = [TD3(N, env.obs_dim, state_dim, env.action_dim, recipe.width, recipe)]
        if env.has_prey and env.prey is None:
            sides.append(TD3(1, env.prey_obs_dim, state_dim, env.action_dim, 64, recipe))
    replay = Replay(env, len(sides), steps)
    while replay.size < steps:
        env.reset(recipe.worlds, generator)
        for _ in range(env.episode_steps):
            replay.add(*_explore(env, sides, generator, uniform=replay.size < recipe.warm_up))
            for _ in range(recipe.updates):
                rows = torch.randint(replay.size, (recipe.batch,), generator=generator)
                for k, side in enumerate(sides):
                    side.update(replay.sample(k, rows, recipe.reward_scale), generator)
        if check(replay.size, sides[0]):
            break
    return sides


@torch.no_grad()
def _explore(env: Env, sides: Sequence[TD3], generator: torch.Generator, uniform: bool) -> list[dict[str, Tensor]]:
    """One batched step with noisy, or uniformly random, actions; what each side saw and got."""
    before = env.observations()
    state = env.state() if env.state_dim else None
    actions = [side.act(obs, NOISE, generator) for side, obs in zip(sides, before)]
    if uniform:
        actions = [a.uniform_(-1, 1, generator=generator) for a in actions]
    prey = [env.prey_action()] if env.has_prey and len(sides) == 1 else []
    env.advance(torch.cat([*actions, *prey], 1))
    rewards = env.rewards().split([env.num_agents, env.total_agents - env.num_agents], 1)
    seen = [
        {"obs": o, "actions": a, "rewards": r, "next_obs": o2}
        for o, a, r, o2 in zip(before, actions, rewards, env.observations())
    ]
    if state is not None:
        seen[0] |= {"state": state, "next_state": env.state()}
    return seen


def mean_return(act: Callable[[Tensor], Tensor], env: Env, episodes: int | None = None, seed: int = 0) -> float:
    """Mean undiscounted return of the team over fresh episodes: 1,000, or 20 where they are long."""
    episodes = episodes or (1000 if isinstance(env, ParticleWorld) else 20)
    return returns_of(act, env, episodes, torch.Generator().manual_seed(seed)).mean().item()


def random_actions(env: Env, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """Uniform actions in [-1, 1], the reference of normalised score 0."""
    generator = torch.Generator().manual_seed(seed)
    return lambda obs: torch.rand(*obs.shape[:2], env.action_dim, generator=generator) * 2 - 1


def train_team(env: Env, recipe: Recipe) -> tuple[dict[str, StackedMLP], dict[str, Any]]:
    """Train a fresh team, against the fixed prey of `env` if it has one, until it is expert.

    Returns its policies "medium" and "expert", the first at the returns of the recipe, and "replay_0", "replay_1", ...,
    those that explored on the way to medium; with what `Behaviour.meta` says of them. ValueError if it stays below.
    """
    kept: dict[str, StackedMLP] = {}
    meta: dict[str, Any] = {}
    on_the_way: list[StackedMLP] = []

    def keep(step: int, team: TD3) -> bool:
        value = mean_return(team.target_act, env)
        print(f"{step:>8,} steps  return {value:7.1f}", flush=True)
        if "medium" not in kept:
            on_the_way.append(copy.deepcopy(team.actors))
        for quality, level in (("medium", recipe.medium_return), ("expert", recipe.expert_return)):
            if value >= level and quality not in kept:
                kept[quality] = copy.deepcopy(team.target_actors)
                meta.update({f"{quality}_return": value, f"{quality}_steps": step})
        return "expert" in kept

    train_td3(env, recipe, recipe.steps, recipe.seed + 1, keep)
    if "expert" not in kept:
        raise ValueError(f"no return of {recipe.expert_return:g} in {recipe.steps:,} steps: try another seed")
    middles = [(2 * k + 1) * len(on_the_way) // (2 * REPLAY) for k in range(REPLAY)]
    return kept | {f"replay_{k}": on_the_way[i] for k, i in enumerate(middles)}, meta


def train_behaviour(env_name: str, seed: int | None = None) -> dict[str, np.ndarray]:
    """Train prey and team of one env as its recipe says; returns the arrays of `behaviour.npz`.

    The team of a public data set does not face a prey at its best: a prey that trained to the end is caught too seldom
    for the published returns. So the prey is frozen young, and a fresh team is trained against it from scratch.
    """
    recipe = RECIPES[env_name] if seed is None else replace(RECIPES[env_name], seed=seed)
    env = make_env(env_name)
    if env.has_prey:
        print(f"training team and prey together for {recipe.prey_age:,} steps; the prey is then frozen", flush=True)
        _, prey = train_td3(env, recipe, recipe.prey_age, recipe.seed)
        env = make_env(env_name, prey.act.layers(0))
    policies, meta = train_team(env, recipe)
    meta |= {"seed": recipe.seed, "random_return": mean_return(random_actions(env), env)}
    arrays = {f"{env_name}/meta": np.array(json.dumps(meta))}
    layers = {name: _stacked_layers(actors) for name, actors in policies.items()}
    for name, pairs in (layers | {"prey": env.prey or []}).items():
        dtype = np.float16 if name.startswith("replay") else np.float32  # they explore with noise, so half will do
        for k, pair in enumerate(pairs):
            for part, values in zip(("weight", "bias"), pair):
                arrays[f"{env_name}/{name}/{part}_{k}"] = values.numpy().astype(dtype)
    return arrays


def _stacked_layers(actors: StackedMLP) -> list[tuple[Tensor, Tensor]]:
    return [(w.detach(), b.detach()) for w, b in zip(actors.weights, actors.biases)]


class Behaviour:
    """The shipped policies of one env: its prey, its teams (see `train_team`), their reference returns."""

    def __init__(self, env_name: str, path: str | Path = BEHAVIOUR_FILE) -> None:
        arrays = read_npz(path, f"{env_name}/.*")
        if f"{env_name}/meta" not in arrays:
            raise ValueError(f"{path} has no policies for {env_name}: run python data.py train --env {env_name}")
        self.meta = json.loads(str(arrays[f"{env_name}/meta"]))
        self._arrays = {
            k.removeprefix(f"{env_name}/"): torch.from_numpy(v).float() for k, v in arrays.items() if v.ndim
        }
        self.env = make_env(env_name, self._layers("prey") or None)

    def _layers(self, name: str) -> list[tuple[Tensor, Tensor]]:
        count = sum(key.startswith(f"{name}/weight_") for key in self._arrays)
        return [(self._arrays[f"{name}/weight_{k}"], self._arrays[f"{name}/bias_{k}"]) for k in range(count)]

    def policy(self, name: str) -> BehaviourPolicy:
        """The team "medium" or "expert", or one that explored on the way to medium, "replay_0" to "replay_7"."""
        layers = self._layers(name)
        copies, _, width = layers[0][0].shape
        actors = StackedMLP(copies, self.env.obs_dim, *[width] * (len(layers) - 1), self.env.action_dim)
        for (weight, bias), w, b in zip(layers, actors.weights, actors.biases):
            w.data, b.data = weight, bias
        return BehaviourPolicy(actors.requires_grad_(False))


# ---------------------------------------------------------------------------------------------------- collecting


def collect(
    env_name: str,
    quality: str,
    transitions: int = TRANSITIONS,
    seed: int = 0,
    noise: float = NOISE,
    progress: bool = True,
) -> Dataset:
    """Make a data set with the shipped policies; `noise` is the standard deviation of their exploration.

    `medium-expert` is 90% medium and 10% expert (99.9% and 0.1% for HalfCheetah). `medium-replay` is what a training
    run sees until it is medium: as long as that (at most `transitions`), played by random actions for as long as it
    began with, then by policies on its way. The run itself, repeated, would go another way on every processor.
    """
    from tqdm import tqdm

    behaviour = Behaviour(env_name)
    share = 1000 if env_name == "halfcheetah" else 10
    expert = {"expert": transitions, "medium-expert": transitions // share}.get(quality, 0)
    parts = {"medium": transitions - expert, "expert": expert}
    if quality == "medium-replay":
        parts = _replay_parts(behaviour, transitions)
    size = sum(parts.values())
    with tqdm(total=size, unit="transition", unit_scale=True, disable=None if progress else True) as bar:
        pieces = [_roll(behaviour, name, n, seed + k, noise, bar) for k, (name, n) in enumerate(parts.items()) if n]
    arrays = [torch.cat(x) if len(x) > 1 else x[0] for x in zip(*(p[0] for p in pieces))]
    returns = torch.cat([p[1] for p in pieces])
    meta = {"env": env_name, "quality": quality, "seed": seed, "noise": noise}
    meta |= {"episode_steps": behaviour.env.episode_steps, "mean_return": returns.mean().item()}
    meta |= {k: v for k, v in behaviour.meta.items() if k.endswith("_return")}
    return Dataset(*arrays, meta, behaviour.env.prey)


def _replay_parts(behaviour: Behaviour, transitions: int) -> dict[str, int]:
    """How many transitions, in whole episodes, each policy plays of what a training saw until it was medium."""
    T, total = behaviour.env.episode_steps, behaviour.meta["medium_steps"]
    start = min(RECIPES[behaviour.env.name].warm_up, total)
    ends = [start + (total - start) * k // REPLAY // T * T for k in range(REPLAY + 1)]
    ends = [min(end, transitions) for end in ends]
    names = ["random", *(f"replay_{k}" for k in range(REPLAY))]
    return {name: end - begin for name, begin, end in zip(names, [0, *ends], ends)}


@torch.no_grad()
def _roll(
    behaviour: Behaviour, policy: str, transitions: int, seed: int, noise: float, bar: Any
) -> tuple[list[Tensor], Tensor]:
    """Arrays of `transitions` steps of one policy, whole episodes in order, and the return of every whole episode."""
    env, T = behaviour.env, behaviour.env.episode_steps
    generator = torch.Generator().manual_seed(seed)
    act = random_actions(env, seed)
    if policy != "random":
        act = functools.partial(behaviour.policy(policy), noise=noise, generator=generator)
    episodes = -(-transitions // T)
    N, O, A = env.num_agents, env.obs_dim, env.action_dim
    arrays = [torch.empty(episodes, T, N, *last) for last in ((O,), (A,), (), (O,), ())]
    for start in range(0, episodes, 1000):
        count = min(1000, episodes - start)
        steps = rollout(act, env, count, generator)
        for k, step in enumerate(steps):
            for array, value in zip(arrays, step):
                array[start : start + count, k] = value
        bar.update(count * T)
    returns = arrays[2].mean(2).sum(1)
    return [x.flatten(0, 1)[:transitions] for x in arrays], returns


def collect_own(
    env_name: str,
    transitions: int = TRANSITIONS,
    seed: int = 0,
    noise: float = NOISE,
    policy: str | None = None,
    progress: bool = True,
) -> Dataset:
    """Data of anyone's PettingZoo parallel environment `MODULE:FUNCTION`, whole episodes in order.

    They are played by `policy`, a `MODULE:FUNCTION` that maps the observations of all agents (N, O) to their actions
    (N, A) in [-1, 1], as NumPy arrays, with Gaussian `noise` on top; without it by uniformly random actions.
    """
    from tqdm import tqdm

    env, generator = make_env(env_name), torch.Generator().manual_seed(seed)
    act = random_actions(env, seed) if policy is None else _own_actions(policy, env, noise, generator)
    episodes, returns, longest, size = [], [], 0, 0
    options = {"unit": "transition", "unit_scale": True, "disable": None if progress else True}
    with tqdm(total=transitions, **options) as bar, one_line(f"playing {env_name}"):
        while size < transitions:
            episodes.append([torch.cat(x) for x in zip(*rollout(act, env, 1, generator))])
            rewards = episodes[-1][2]
            returns.append(rewards.mean(1).sum().item())
            longest, size = max(longest, len(rewards)), size + len(rewards)
            bar.update(min(size, transitions) - bar.n)
    meta = {"env": env_name, "quality": CUSTOM, "seed": seed, "noise": None if policy is None else noise}
    meta |= {"episode_steps": longest, "mean_return": float(np.mean(returns))}
    meta |= {"random_return": mean_return(random_actions(env), env), "expert_return": None}
    if policy is not None:
        with one_line(f"playing {env_name}"):
            expert = mean_return(_own_actions(policy, env, 0.0, generator), env)
        meta["expert_return"] = expert if expert != meta["random_return"] else None  # else there is no scale
    return Dataset(*(torch.cat(x)[:transitions] for x in zip(*episodes)), meta)


def _own_actions(policy: str, env: Env, noise: float, generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Actions (B, N, A) for observations (B, N, O) from a function of one episode's arrays, with noise."""
    function = import_function(policy)

    def act(obs: Tensor) -> Tensor:
        action = torch.stack([torch.as_tensor(function(x), dtype=torch.float32) for x in obs.numpy()])
        if action.shape[1:] != (env.num_agents, env.action_dim):
            raise ValueError(f"{policy} gives {tuple(action.shape[1:])}, expected {(env.num_agents, env.action_dim)}")
        return (action + noise * torch.empty_like(action).normal_(generator=generator)).clamp(-1, 1)

    return act


def load_or_make(
    path: str | Path, env_name: str, quality: str | None = None, prey: str | Path | None = None
) -> Dataset:
    """Load a data file or a folder (see `load_folder`); if there is none, make the quality that the name ends in."""
    path = Path(path)
    if path.is_dir():
        return load_folder(path, env_name, quality, prey)
    if quality or prey:
        what = f"{path} " + ("tells its own" if path.exists() else "does not exist")
        raise ValueError(f"--{'quality' if quality else 'prey'} is for folders of .npy files: {what}")
    if path.exists():
        return Dataset.load(path, env_name)
    if env_name not in DIMENSIONS:
        raise ValueError(f"{path} does not exist: make it with python data.py collect --env {env_name} --out {path}")
    prefix, quality = next(((path.stem[: -len(q)], q) for q in LONGEST_FIRST if path.stem.endswith(q)), (path.stem, ""))
    if path.suffix != ".npz" or prefix.strip("-_") not in ("", env_name):
        raise ValueError(
            f"{path} does not exist, and its name does not say what to make: name your own data file, or one of "
            f"{', '.join(f'{q}.npz' for q in sorted(QUALITIES))} to have it made"
        )
    return make(env_name, quality, path, TRANSITIONS)


def check_npz(path: Path) -> None:
    """Raise ValueError unless a `.npz` can be written there."""
    if path.suffix != ".npz":
        raise ValueError(f"{path}: the name of a data file ends in .npz")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")


def make(
    env_name: str,
    quality: str,
    path: Path,
    transitions: int = TRANSITIONS,
    seed: int = 0,
    noise: float = NOISE,
    policy: str | None = None,
) -> Dataset:
    """Collect a data set and write it to `path`, saying so in one line."""
    env = None if env_name in DIMENSIONS else make_env(env_name)
    agents, obs_dim, action_dim = (env.num_agents, env.obs_dim, env.action_dim) if env else DIMENSIONS[env_name]
    if quality == "medium-replay":
        transitions = min(transitions, Behaviour(env_name).meta["medium_steps"])
    size = 4 * transitions * agents * (2 * obs_dim + action_dim + 2)
    check_npz(path)
    if (free := shutil.disk_usage(path.parent).free) < size:
        raise ValueError(f"{path} will take {size / 1e6:.0f} MB, but only {free / 1e6:.0f} MB are free there")
    how = "played by the shipped policies"
    if quality == CUSTOM:
        how = f"played by {policy or 'uniformly random actions'}"
    what = f"{quality} data of {env_name}, {how}, {size / 1e6:.0f} MB"
    print(f"making {path}: {what} (use your own with --data FILE)", flush=True)
    if quality == CUSTOM:
        dataset = collect_own(env_name, transitions, seed, noise, policy)
    else:
        dataset = collect(env_name, quality, transitions, seed, noise)
    dataset.save(path)
    return dataset


# ------------------------------------------------------------------------------------------- data made by others

FOLDER = {  # files of agent i, in OMAR's layout
    "observations": "obs_{}.npy",
    "actions": "acs_{}.npy",
    "rewards": "rews_{}.npy",
    "next_observations": "next_obs_{}.npy",
    "terminals": "dones_{}.npy",
}


def _named_quality(path: Path) -> str | None:
    """The quality that the path of a folder, or the name of a file, speaks of."""
    parts = reversed(path.absolute().parts) if path.is_dir() else (path.stem,)
    return next((q for part in parts for q in LONGEST_FIRST if q in part), None)


def load_folder(
    folder: str | Path, env_name: str, quality: str | None = None, prey: str | Path | None = None
) -> Dataset:
    """The data of a folder in OMAR's layout (also on Hugging Face): five `.npy` files for each agent, any number type.

    The team's arrays are read piece by piece into float32, so that memory never holds more than the files do; those of
    the prey are not needed. Without `quality` the folder's path must name it; without `prey` (the checkpoint
    `pretrained_adv_model.pt`) the shipped prey plays, and a line says so.
    """
    if env_name not in DIMENSIONS:
        raise ValueError(f"{folder} is a folder: data of {env_name} is a .npz file")
    folder, behaviour = Path(folder), Behaviour(env_name)
    env = behaviour.env
    arrays = _read_folder(folder, env)
    quality = quality or _named_quality(folder)
    if quality is None:
        raise ValueError(f"{folder}: its path names no quality, so say which with --quality")
    if env.has_prey and prey is None:
        print(f"note: the shipped prey plays, not the one that made {folder}: scores do not compare (--prey FILE)")
    elif prey is not None and not env.has_prey:
        raise ValueError(f"--prey {prey}: {env_name} has no prey")
    layers = env.prey if prey is None else load_prey(prey, env.prey_obs_dim)
    for k, (weight, bias) in enumerate(layers or ()):
        arrays |= {f"prey_weight_{k}": weight.numpy(), f"prey_bias_{k}": bias.numpy()}
    T = env.episode_steps
    meta = {"env": env_name, "quality": quality, "seed": None, "noise": None, "episode_steps": T}
    meta |= {"mean_return": T * float(arrays["rewards"].mean(dtype=np.float64)) if arrays["rewards"].size else 0.0}
    meta |= {k: v for k, v in behaviour.meta.items() if k.endswith("_return")}
    return Dataset.from_arrays(folder, arrays, meta)


def _read_folder(folder: Path, env: Env) -> dict[str, np.ndarray]:
    """The team's arrays, as in a data file. A particle world never ends: a set `done` is a time limit, and dropped."""
    sizes = {"observations": (env.obs_dim,), "next_observations": (env.obs_dim,), "actions": (env.action_dim,)}
    M, arrays = len(_open(folder / FOLDER["observations"].format(0))), {}
    for name, file in FOLDER.items():
        shape = (M, *sizes.get(name, ()))
        arrays[name] = np.zeros((M, env.num_agents, *shape[1:]), np.float32)
        for i in range(env.num_agents):
            source = _open(folder / file.format(i))
            if source.shape != shape and source.shape != (*shape, 1):
                raise ValueError(f"{folder / file.format(i)} has shape {source.shape}, expected {shape}")
            for start in range(0, M if name != "terminals" else 0, 100_000):
                piece = slice(start, start + 100_000)
                arrays[name][piece, i] = source[piece].reshape(-1, *shape[1:])
    return arrays


def _open(path: Path) -> np.ndarray:
    """One `.npy` file of plain numbers, mapped into memory and not read yet."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise ValueError(
            f"{path.parent} has no {path.name}: a folder of data holds {', '.join(FOLDER.values())}"
        ) from error
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub" or array.ndim == 0:
        raise ValueError(f"{path} holds no array of real numbers")
    return array


def load_prey(path: str | Path, obs_dim: int) -> list[tuple[Tensor, Tensor]]:
    """The prey of OMAR's `pretrained_adv_model.pt`, as (weight, bias) of three layers; nothing in it is executed.

    The last of its `agent_params` is the prey. Its input normalisation, used with running statistics, is folded into
    the first layer: (x - mean) / sqrt(var + 1e-5) * weight + bias.
    """
    try:
        policy = torch.load(path, map_location="cpu", weights_only=True)["agent_params"][-1]["policy"]
        layers = [(policy[f"fc{k}.weight"].float(), policy[f"fc{k}.bias"].float()) for k in (1, 2, 3)]
        scale = policy["in_fn.weight"] / (policy["in_fn.running_var"] + 1e-5).sqrt()
        shift = policy["in_fn.bias"] - policy["in_fn.running_mean"] * scale
        layers[0] = (layers[0][0] * scale.float(), layers[0][1] + layers[0][0] @ shift.float())
    except BAD_FILE as error:
        reason = f"{type(error).__name__} {error}".splitlines()[0][:100]
        raise ValueError(
            f"{path} is no prey checkpoint (agent_params[-1]['policy'] with in_fn, fc1-3): {reason}"
        ) from error
    if layers[0][0].shape[1] != obs_dim:
        raise ValueError(f"{path} holds a prey of {layers[0][0].shape[1]} observations, not {obs_dim}")
    return layers


# ----------------------------------------------------------------------------------------------------- run folders


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that a run ends between two steps; a second one ends it at once."""
    stop = threading.Event()

    def handler(signum: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield stop
        return
    previous = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for s, old in previous.items():
            signal.signal(s, old)


def lock(folder: Path) -> int | None:
    """Hold `folder` until the returned descriptor is closed or the process ends; ValueError if another one holds it."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ValueError(f"{folder} is in use by another process: wait for it, or name another --out") from error
    return descriptor


def load_checkpoint(folder: str | Path) -> dict[str, Any]:
    """The checkpoint of a run folder, checked and without unpickling; ValueError with one line if it is not whole."""
    path = Path(folder) / "checkpoint.pt"
    if not path.exists():
        raise ValueError(f"{folder} has no checkpoint.pt: there is nothing to continue or to score")
    try:
        with zipfile.ZipFile(path) as file:
            if (damaged := file.testzip()) is not None:
                raise ValueError(f"the checksum of {damaged} is wrong")
            # no checksum covers the flag of a folder (16), and torch leaves the tensor of such a member uninitialised
            if folders := [member.filename for member in file.infolist() if member.external_attr & 16]:
                raise ValueError(f"{folders[0]} is marked as a folder")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if missing := {"step", "agents", "config", "sizes", "data", "rows", "device"} - set(state):
            raise ValueError(f"it has no {min(missing)}")
    except (*BAD_FILE, zipfile.BadZipFile, OSError, NotImplementedError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:100]
        raise ValueError(f"{path} is damaged or no checkpoint ({reason}): train anew, without --resume") from error
    return state


def config_of(folder: str | Path, kind: type, state: dict[str, Any]) -> dict[str, Any]:
    """The configuration in the checkpoint `state` of a run folder; ValueError if it is not of the dataclass `kind`."""
    if foreign := set(state["config"]) ^ names_of(kind):
        raise ValueError(f"{folder} was trained by another program: its configuration differs in {min(foreign)}")
    return state["config"]


def stored_config(config: Any, given: set[str]) -> Any:
    """The configuration of the run that `config` would continue, which only `MAY_CHANGE` of the `given` options change.

    Raises ValueError for a given option that contradicts the run.
    """
    out = config.out or config.resolve(Dataset.quality_of(config)).out
    stored = config_of(out, type(config), load_checkpoint(out))
    for name in sorted(given - MAY_CHANGE):
        if (new := getattr(config, name)) != stored.get(name):
            raise ValueError(
                f"{_flag(name)} {new} contradicts the run in {out}, which has {stored.get(name)}: leave it out"
            )
    stored |= {name: getattr(config, name) for name in given & MAY_CHANGE} | {"out": out}
    return type(config)(**stored)


class RunFolder:
    """What a training leaves: config.json, metrics.csv (a row per evaluation), timing.csv, checkpoint.pt, pictures.

    An earlier folder of the same name is kept under another one; with `resume`, it is continued from its checkpoint
    (`state`), to which the other files are cut back. Another process cannot use the folder meanwhile.
    """

    def __init__(self, config: dict[str, Any], dataset: Dataset, resume: bool = False) -> None:
        self.path, self.config, self.meta = Path(config["out"]), config, dataset.meta
        self.history: list[dict[str, float]] = []
        self.step, self.seconds, self.state = 0, 0.0, None
        self._infos: list[dict[str, Tensor]] = []
        self._data, self._prey, self._device = dataset.fingerprint(), dataset.prey, dataset.observations.device
        self._sizes = [*dataset.observations.shape[1:], dataset.actions.shape[2]]
        self._lock = None
        try:
            self._continue() if resume else self._begin()
        except BaseException:
            self.__exit__()
            raise
        described = json.dumps(config | {"data_meta": self.meta}, indent=2) + "\n"
        self._write_whole("config.json", described.encode())
        self._tick = time.perf_counter()
        self.refresh = 0.1 if sys.stderr.isatty() else 30.0  # seconds between two states of a progress bar

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def _begin(self) -> None:
        """Make the folder, setting an earlier one aside."""
        if self.path.exists():
            held = lock(self.path)
            names = (self.path.with_name(f"{self.path.name}.{n}") for n in itertools.count(1))
            print(f"keeping the earlier {self.path} as {self.path.rename(next(p for p in names if not p.exists()))}")
            if held is not None:
                os.close(held)
        self.path.mkdir(parents=True)
        self._lock = lock(self.path)

    def _continue(self) -> None:
        """Read the checkpoint, and cut the tables back to the rows that it knows of."""
        self._lock = lock(self.path)
        self.state = state = load_checkpoint(self.path)
        if state["step"] > self.config["steps"]:
            raise ValueError(f"--steps {self.config['steps']}: the run in {self.path} has made {state['step']} already")
        if state["data"] != self._data:
            raise ValueError(f"{self.config['data']} is not the data that the run in {self.path} began with")
        if state["device"] != self._device.type:
            raise ValueError(f"the run in {self.path} had random streams of {state['device']}: resume it on one")
        if state["threads"] != torch.get_num_threads():
            now = torch.get_num_threads()
            print(f"note: the run had {state['threads']} threads, now there are {now}: sums may round differently")
        self.step, self.seconds, rows = state["step"], state["seconds"], state["rows"]
        for name in ("metrics.csv", "timing.csv"):
            lines = (self.path / name).read_bytes().splitlines(keepends=True) if rows else []
            if len(lines) < (rows + 1) * bool(rows):
                raise ValueError(f"{self.path / name} has lost rows that the checkpoint knows of: train anew")
            if rows:
                self._write_whole(name, b"".join(lines[: rows + 1]))
            else:
                (self.path / name).unlink(missing_ok=True)
        if rows:
            with open(self.path / "metrics.csv", newline="") as file:
                self.history = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
        losses = {k: x.to(self._device) for k, x in state["losses"].items()}
        self._infos = [{k: x[i] for k, x in losses.items()} for i in range(len(next(iter(losses.values()), ())))]

    def _write_whole(self, name: str, content: bytes) -> None:
        with whole_file(self.path / name) as part:
            part.write_bytes(content)

    def log(self, info: dict[str, Tensor]) -> None:
        """Keep the losses of one update, as tensors: reading them at once would stall an accelerator."""
        self._infos.append(info)

    def _losses(self, step: int) -> dict[str, Tensor]:
        """All losses since the last row of metrics.csv; ValueError for the first that is no finite number."""
        losses = {k: torch.stack([info[k] for info in self._infos]).cpu() for k in (self._infos or [{}])[0]}
        for name, x in losses.items():
            if len(bad := (~x.isfinite()).nonzero()):
                agents, k = self._sizes[0], bad[0].item()
                where = f"step {step - (len(x) - 1 - k) // agents}, agent {k % agents}: {name} is {x[k].item()}"
                kept = f"the checkpoint of step {self.step} is kept" if self.step else "no checkpoint was written yet"
                raise ValueError(f"{where}: the training diverged (try a lower --learning-rate or --eta); {kept}")
        return losses

    def record(self, step: int, score: Callable[[], Tensor]) -> dict[str, str]:
        """Append a row to metrics.csv: mean losses since the last one, and the returns that `score` evaluates.

        Returns what a progress bar shows. Evaluating and saving do not count as training time.
        """
        losses = {k: x.mean().item() for k, x in self._losses(step).items()}
        self.seconds += time.perf_counter() - self._tick
        with one_line(f"{self.path} is whole, but evaluating after step {step}"):
            returns = score()
        row = {"step": step, "episodes": len(returns), "return": returns.mean().item()}
        row |= {"return_std": returns.std(correction=0).item()} | losses
        self._append("metrics.csv", list(self.history[0] if self.history else row), row)
        self._append("timing.csv", ["step", "training_seconds"], {"step": step, "training_seconds": self.seconds})
        self.history.append(row)
        self._infos, self._tick = [], time.perf_counter()
        return {k: f"{row[k]:.3g}" for k in ("return", "bc_loss", "critic_loss", "q") if k in row}

    def _append(self, name: str, columns: list[str], row: dict[str, float]) -> None:
        """Add a row to a table, or nothing at all."""
        with open(self.path / name, "a", newline="") as file:
            size = file.tell()
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            try:
                if not size:
                    writer.writeheader()
                writer.writerow(row)
                file.flush()
            except OSError:
                os.truncate(file.fileno(), size)
                raise

    def save_checkpoint(self, step: int, agents: Sequence[Any]) -> None:
        """Write tensors and plain types; the previous checkpoint survives until this one is whole."""
        losses = self._losses(step)
        self.seconds += time.perf_counter() - self._tick
        state = {"step": step, "agents": [agent.state_dict() for agent in agents], "config": self.config}
        state |= {"sizes": self._sizes, "prey": self._prey, "meta": self.meta, "data": self._data, "losses": losses}
        state |= {"rows": len(self.history), "seconds": self.seconds, "threads": torch.get_num_threads()}
        state["device"] = self._device.type
        with whole_file(self.path / "checkpoint.pt") as part:
            try:
                torch.save(state, part)
            except RuntimeError as error:  # what torch raises where the disk is full
                raise OSError(f"{self.path / 'checkpoint.pt'} could not be written: is the disk full?") from error
        self.step, self._tick = step, time.perf_counter()

    def finish(self, score: Callable[[], Tensor]) -> dict[str, Any]:
        """Print the table for the last policy's returns, draw the learning curve, return the figures.

        These returns also become the last row of metrics.csv.
        """
        self.record(self.step, score)
        summary = report(self.history[-1], self.meta)
        seconds, steps = self.seconds, self.step
        summary |= {"steps": steps, "training_seconds": seconds, "ms_per_step": 1000 * seconds / steps}
        training = f"{steps} steps, {seconds:.1f} s, {summary['ms_per_step']:.1f} ms per step"
        print(f"{'training':>20}  {training}\n{'left in':>20}  {self.path}/")
        self._draw()
        return summary

    def _draw(self) -> None:
        """curve.png: return against training steps, with the return of the data as a line."""
        from matplotlib.figure import Figure

        rows = self.history
        if len(rows) > 1 and rows[-2]["step"] == rows[-1]["step"]:  # the same step with more episodes
            rows = rows[:-1]
        steps, mean, std = (np.array([row[k] for row in rows]) for k in ("step", "return", "return_std"))
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.fill_between(
            steps, mean - std, mean + std, alpha=0.2, color="#0072b2", lw=0, label="standard deviation of the episodes"
        )
        axes.plot(steps, mean, color="#0072b2", label="policy")
        axes.axhline(self.meta["mean_return"], color="#d55e00", ls="--", label="data")
        axes.set(xlabel="training steps", ylabel="return of an episode")
        axes.set_title(f"{self.meta['env']}, {self.meta['quality']} data")
        axes.legend(frameon=False, loc="lower right")
        axes.spines[["top", "right"]].set_visible(False)
        with whole_file(self.path / "curve.png") as part:
            figure.savefig(part, dpi=120)


def report(row: dict[str, float], meta: dict[str, Any]) -> dict[str, Any]:
    """Print what an evaluation (a row of metrics.csv) says beside the data's returns, and return the figures."""
    low, high, mean, std = meta["random_return"], meta["expert_return"], row["return"], row["return_std"]
    score = None if high is None else 100 * (mean - low) / (high - low)
    lines = {"return": f"{mean:.1f} +- {std:.1f} (mean and standard deviation of {row['episodes']} episodes)"}
    lines["normalised score"] = f"none: the return of an expert is not known (random actions get {low:.1f})"
    if score is not None:
        lines["normalised score"] = f"{score:.1f} (random {low:.1f} is 0, expert {high:.1f} is 100)"
    lines["return of the data"] = f"{meta['mean_return']:.1f}"
    print("\n".join(f"{name:>20}  {text}" for name, text in lines.items()))
    return {"return": mean, "return_std": std, "normalised_score": score, "data_return": meta["mean_return"]}


def score_run(
    folder: str | Path, kind: type, make_agent: Callable[..., Any], episodes: int, gif: str | None, export: str | None
) -> dict[str, Any]:
    """Score the checkpoint of a run folder over fresh episodes; draw it and export its policies where asked."""
    state = load_checkpoint(folder)
    config, (_, obs_dim, action_dim) = kind(**config_of(folder, kind, state)), state["sizes"]
    check_options(config)
    agents = [make_agent(obs_dim, action_dim, config, index=i) for i in range(len(state["agents"]))]
    for agent, saved in zip(agents, state["agents"]):
        agent.load_state_dict({k: v for k, v in saved.items() if k != "generator"})  # which may be of a GPU
    if export:
        check_export(agents, Path(export))
    env = make_env(config.env, state["prey"])
    with one_line(f"evaluating {folder}"):
        returns = evaluate(agents, env, episodes, config.seed + 2)
    row = {"return": returns.mean().item(), "return_std": returns.std(correction=0).item(), "episodes": episodes}
    summary = report(row, state["meta"]) | {"steps": state["step"]}
    if gif:
        save_gif(agents, env, gif, config.seed + 2)
    if export:
        export_agents(agents, obs_dim, (config.candidates or 1, action_dim), Path(export))
    return summary


class Team(nn.Module):
    """All agents as one function of observations (B, N, O) and noise (B, N, K, A), K the candidates of each."""

    def __init__(self, agents: Sequence[Any]) -> None:
        super().__init__()
        self.agents = agents
        self.networks = nn.ModuleList(nn.ModuleList(agent.acting()) for agent in agents)

    def forward(self, obs: Tensor, noise: Tensor) -> Tensor:
        return torch.stack([agent.act(obs[:, i], noise[:, i]) for i, agent in enumerate(self.agents)], 1)


def check_export(agents: Sequence[Any], path: Path) -> None:
    """Raise ValueError unless `export_agents` can write these agents there."""
    if path.suffix != ".pt2":
        raise ValueError(f"--export {path}: the name of an exported program ends in .pt2")
    if not all(hasattr(agent.acting()[0], "act") for agent in agents):
        raise ValueError(f"--export {path}: these policies do not act in one step")


def export_agents(agents: Sequence[Any], obs_dim: int, noise_shape: tuple[int, int], path: Path) -> None:
    """Write a `torch.export` program: obs (B, N, O) and Gaussian noise (B, N, K, A) to actions (B, N, A), for any B."""
    check_export(agents, path)
    example = (torch.zeros(2, len(agents), obs_dim), torch.zeros(2, len(agents), *noise_shape))
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        program = torch.export.export(Team(agents), example, dynamic_shapes=({0: batch}, {0: batch}))
    with whole_file(path) as part:
        torch.export.save(program, part)


# ---------------------------------------------------------------------------------------------------- command line


class Parser(argparse.ArgumentParser):
    """Bad arguments end with one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists every option)\n")


def parse_config(
    kind: type, argv: Sequence[str] | None, prog: str = "om2p.py"
) -> tuple[Any, set[str], argparse.Namespace]:
    """From the command line: an instance of the configuration dataclass `kind`, which has one option for each field;
    the names of those that were given; and what is to be done: resume, evaluate, episodes, gif, export."""
    parser = Parser(prog=prog, description="OM2P (arXiv 2508.06269): train on offline data, score, draw.")
    for f in fields(kind):
        hint, choices = _kind_of(kind, f.name)
        options: dict[str, Any] = {"type": hint, "metavar": "|".join(choices) or getattr(hint, "__name__", "").upper()}
        if hint is bool:
            options = {"action": argparse.BooleanOptionalAction}
        if get_origin(hint) is tuple:
            options = {"type": float, "nargs": len(get_args(hint)), "metavar": "X"}
        text = f.metadata["help"] + ("" if f.default is None else f" [{f.default}]")
        parser.add_argument(_flag(f.name), default=argparse.SUPPRESS, help=text, **options)
    parser.add_argument("--resume", action="store_true", help="continue the run in its folder from its last checkpoint")
    parser.add_argument("--evaluate", metavar="FOLDER", help="train nothing: score the checkpoint of a run folder")
    parser.add_argument("--episodes", type=int, help="with --evaluate: how many episodes [100]")
    parser.add_argument("--gif", metavar="FILE", help="with --evaluate: also draw it")
    parser.add_argument("--export", metavar="FILE", help="with --evaluate: also write the policies, as torch.export")
    args = parser.parse_args(argv)
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in vars(args).items() if k in names_of(kind)}
    extra = [name for name in ("episodes", "gif", "export") if getattr(args, name) is not None]
    if extra and not args.evaluate:
        parser.error(f"--{extra[0]} needs --evaluate FOLDER")
    if args.evaluate and (given or args.resume):
        parser.error(f"{_flag(min(given, default='resume'))} has no effect with --evaluate: leave it out")
    if args.episodes is not None and args.episodes < 1:
        parser.error(f"--episodes {args.episodes}: must be at least 1")
    config = kind(**given)
    check_options(config)
    return config, set(given), args


def names_of(kind: type) -> set[str]:
    """The names of a dataclass's fields."""
    return {f.name for f in fields(kind)}


def check_options(config: Any) -> None:
    """Raise a ValueError that names the first field of a configuration that is out of its choices or bounds."""
    for f in fields(config):
        value, (_, choices) = getattr(config, f.name), _kind_of(type(config), f.name)
        low, high = f.metadata["low"], f.metadata["high"]
        if choices and value is not None and value not in choices:
            raise ValueError(f"{_flag(f.name)} {value}: choose from {', '.join(choices)}")
        if isinstance(value, (int, float)) and not (low <= value <= high and math.isfinite(value)):
            raise ValueError(f"{_flag(f.name)} {value}: must be a number from {low:g} to {high:g}")
    check_name(config.env)
    if config.xi is not None:
        check_xi(config.xi)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _kind_of(config: type, name: str) -> tuple[Any, tuple[str, ...]]:
    """Type and named choices of a field of a configuration, `None` set aside."""
    hint = get_type_hints(config)[name]
    kind = get_args(hint)[0] if type(None) in get_args(hint) else hint
    return (str, get_args(kind)) if get_origin(kind) is Literal else (kind, ())


def info(path: Path, plot: bool = False) -> None:
    """Print what a data file holds; with `plot`, draw its returns and actions into a PNG beside it."""
    data = Dataset.load(path)
    M, N, O = data.observations.shape
    meta = data.meta
    lines = {
        "env, quality": f"{meta['env']}, {meta['quality']}",
        "transitions": f"{M:,} of {N} agents, in episodes of {meta['episode_steps']} steps",
        "observations": f"{O} numbers, from {data.observations.min():.2f} to {data.observations.max():.2f}",
        "actions": f"{data.actions.shape[2]} numbers, {100 * (data.actions.abs() >= 1).float().mean():.1f}% at a bound",
        "rewards": f"mean {data.rewards.mean():.3f}, from {data.rewards.min():.2f} to {data.rewards.max():.2f}",
        "terminals": f"{int(data.terminals[:, 0].sum())}",
        "mean return": f"{meta['mean_return']:.1f}",
        "reference returns": f"random {meta['random_return']:.1f}, expert "
        + ("unknown" if meta["expert_return"] is None else f"{meta['expert_return']:.1f}"),
        "collected with": f"seed {meta['seed']}, noise {meta['noise']}",
        "prey": "in the file" if data.prey else "none",
    }
    print("\n".join(f"{name:>18}  {text}" for name, text in lines.items()))
    if plot:
        _plot(data, path.with_suffix(".png"))


def episode_returns(data: Dataset) -> Tensor:
    """The return of every whole episode: one ends where the next observation is not the one that follows."""
    goes_on = (data.next_observations[:-1] == data.observations[1:]).flatten(1).all(1)
    ends = torch.cat([(~goes_on).nonzero().flatten() + 1, torch.tensor([len(data)])])
    lengths = ends.diff(prepend=torch.zeros(1, dtype=torch.long)).tolist()
    sums = torch.stack([x.mean(1).sum() for x in data.rewards.split(lengths)])
    whole = lengths[-1] >= data.meta["episode_steps"] or data.terminals[-1].any()
    return sums if whole else sums[:-1]


def _plot(data: Dataset, path: Path) -> None:
    """The distribution of episode returns, and of the first two numbers of every agent's action."""
    from matplotlib.figure import Figure

    returns, N = episode_returns(data), data.rewards.shape[1]
    figure = Figure(figsize=(3 * (N + 1), 3.2), layout="constrained")
    left, *others = figure.subplots(1, N + 1)
    left.hist(returns.numpy(), bins=60, color="#0072b2")
    left.axvline(returns.mean().item() if len(returns) else 0.0, color="#d55e00", ls="--")
    left.set(xlabel="return of an episode (dashed: mean)", ylabel="episodes")
    for i, axes in enumerate(others):
        x = data.actions[:200_000, i, :2].T.numpy()
        axes.set(title=f"agent {i}", xlabel="action 0")
        if len(x) == 1:
            axes.hist(x[0], bins=60, range=(-1, 1), color="#0072b2")
            axes.set(ylabel="transitions")
        else:
            axes.hist2d(*x, bins=60, range=[[-1, 1], [-1, 1]], norm="log", cmap="cividis")
            axes.set(ylabel="action 1", aspect="equal")
    figure.suptitle(f"{data.meta['env']}, {data.meta['quality']}")
    with whole_file(path) as part:
        figure.savefig(part, dpi=110)
    print(f"{'picture':>18}  {path}")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """The commands: collect, convert, info, train."""
    parser = Parser(prog="data.py", description="Make, inspect and check offline data.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    add = commands.add_parser("collect", help="play the shipped policies and write a data file")
    add.add_argument("--env", default="world", help=f"{', '.join(RECIPES)}, or MODULE:FUNCTION; default: world")
    add.add_argument("--quality", choices=sorted(QUALITIES), help="default: expert")
    add.add_argument("--policy", help="MODULE:FUNCTION that plays your own environment; default: random actions")
    add.add_argument("--out", type=Path, help="default: QUALITY.npz")
    add.add_argument("--transitions", type=int, default=TRANSITIONS, help="default: 1,000,000; medium-replay has less")
    add.add_argument("--seed", type=int, default=0)
    add.add_argument("--noise", type=float, default=NOISE, help="exploration noise, standard deviation; default: 0.1")
    add = commands.add_parser("convert", help="turn a folder of .npy files in OMAR's layout into a data file")
    add.add_argument("folder", type=Path)
    add.add_argument("--env", choices=sorted(RECIPES), required=True)
    add.add_argument("--out", type=Path, required=True)
    add.add_argument("--quality", choices=sorted(QUALITIES), help="default: as the folder's path says")
    add.add_argument("--prey", type=Path, help="pretrained_adv_model.pt; default: the shipped prey")
    add = commands.add_parser("info", help="show what a data file holds")
    add.add_argument("file", type=Path)
    add.add_argument("--plot", action="store_true", help="also draw returns and actions, as a PNG beside the file")
    add = commands.add_parser("train", help="train the behaviour policies and write them to behaviour.npz")
    add.add_argument("--env", choices=sorted(RECIPES), default="world")
    add.add_argument("--seed", type=int, help="default: the recorded one")
    add.add_argument("--out", type=Path, default=BEHAVIOUR_FILE, help="default: the shipped file")
    args = parser.parse_args(argv)
    if args.command == "collect":
        if not (args.transitions > 0 and 0 <= args.noise < float("inf")):
            parser.error("--transitions must be at least 1, --noise finite and not negative")
        if (name := "quality" if args.env not in RECIPES else "policy") and getattr(args, name):
            parser.error(f"--{name} has no effect with --env {args.env}: leave it out")
        args.quality = args.quality or ("expert" if args.env in RECIPES else CUSTOM)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    args = parse_args(argv)
    try:
        if args.command == "collect":
            check_name(args.env)
            out = args.out or Path(f"{args.quality}.npz")
            dataset = make(args.env, args.quality, out, args.transitions, args.seed, args.noise, args.policy)
            print(f"wrote {len(dataset):,} transitions with a mean return of {dataset.meta['mean_return']:.1f}")
        elif args.command == "convert":
            check_npz(args.out)
            dataset = load_folder(args.folder, args.env, args.quality, args.prey)
            dataset.save(args.out)
            print(f"wrote {len(dataset):,} transitions with a mean return of {dataset.meta['mean_return']:.1f}")
        elif args.command == "info":
            info(args.file, args.plot)
        else:
            check_npz(args.out)
            arrays = read_npz(args.out) if args.out.exists() else {}
            arrays = {k: v for k, v in arrays.items() if not k.startswith(f"{args.env}/")}
            arrays |= train_behaviour(args.env, args.seed)
            with whole_file(args.out) as part:
                np.savez_compressed(part, **arrays)
            print(f"wrote {args.out}: {arrays[f'{args.env}/meta']}")
    except (ValueError, OSError) as error:
        print(f"data.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("data.py: interrupted, nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
