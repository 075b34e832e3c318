"""The offline data of OM2P: the file format, how data is made, and the files that a run leaves.

    python data.py collect --env world --quality expert --out expert.npz --transitions 1000000
    python data.py convert FOLDER --env tag --out tag-expert.npz      # OMAR's obs_i.npy, acs_i.npy, ...
    python data.py convert mine.npz --env MODULE:FUNCTION --out task.npz   # the five arrays alone
    python data.py info expert.npz

A data file is one `.npz` without pickles. M transitions of N agents, float32:

    observations (M, N, O)   actions (M, N, A) in [-1, 1]   rewards (M, N)
    next_observations (M, N, O)   terminals (M, N), 1 where an episode truly ended (a time limit is no end)
    meta   JSON text: env, quality, seed, noise, episode_steps, mean_return, and the random_return, medium_return and
           expert_return of this env with the shipped prey; null where nobody knows
    prey_weight_0, prey_bias_0, ...   the fixed prey that the data was made with: an MLP with ReLU, tanh at its end

A file without meta is read too, also with the array names and number types of other projects; `--env` names its task.
There the actions of one's own environment are in the units of its box, as its `step` takes them.
"""

from __future__ import annotations

import argparse
import csv
import functools
import importlib.metadata
import itertools
import json
import os
import platform
import re
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envs import (
    NO_ENV,
    TASKS,
    Env,
    MLPWeights,
    ParticleWorld,
    check_name,
    evaluate,
    import_function,
    in_one_line,
    make_env,
    returns_of,
    rollout,
    save_gif,
    user_code,
    whole_file,
)

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

VERSION = "2.0"
BEHAVIOUR_FILE = Path(__file__).parent / "behaviour.npz"
QUALITIES = ("random", "medium-replay", "medium", "medium-expert", "expert")
EXPERT_ONE_IN = {"tag": 10, "world": 10, "spread": 10, "halfcheetah": 1000}  # transitions of medium-expert data
CUSTOM = "custom"  # the quality of data from one's own environment
TRANSITIONS = 1_000_000
NOISE = 0.1  # of the policies that play data: standard deviation
REPLAY = 8  # policies, evenly spaced on the way to medium, that play medium-replay data
# other names of the arrays (D4RL's equal ours); the first are OMAR's, whose files of agent i end in _i.npy
SYNONYMS = {
    "observations": ("obs", "states"),
    "actions": ("acs",),
    "rewards": ("rews",),
    "next_observations": ("next_obs", "next_states"),
    "terminals": ("dones",),
}
ARRAYS = tuple(SYNONYMS)
META = ("env", "quality", "episode_steps", "mean_return", "random_return", "expert_return")
ROUNDING = 1e-5  # how far rounding may take an action out of [-1, 1]

# -------------------- files


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
        obs, action, reward, next_obs, terminal = (x[rows, agent] for x in self.arrays().values())
        return obs, action, reward[:, None], next_obs, terminal[:, None]

    def to(self, device: str | torch.device) -> Dataset:
        """The same data on another device."""
        return replace(self, **{name: x.to(device) for name, x in self.arrays().items()})

    def arrays(self) -> dict[str, Tensor]:
        """The five arrays by name."""
        return {name: getattr(self, name) for name in ARRAYS}

    @property
    def sizes(self) -> tuple[int, int, int]:
        """N, O and A."""
        return (*self.observations.shape[1:], self.actions.shape[2])

    def save(self, path: str | Path) -> None:
        """Write the `.npz`; a file of that name is replaced only by a complete one."""
        arrays = {name: x.cpu().numpy() for name, x in self.arrays().items()}
        for k, (weight, bias) in enumerate(self.prey or ()):
            arrays |= {f"prey_weight_{k}": weight.numpy(), f"prey_bias_{k}": bias.numpy()}
        with whole_file(path) as part:
            np.savez(part, meta=np.array(json.dumps(self.meta)), **arrays)

    @classmethod
    def load(
        cls, path: str | Path, env: str = NO_ENV, quality: str | None = None, prey: str | Path | None = None
    ) -> Dataset:
        """Read and check a data file or a folder; ValueError with one line that says what is wrong with it.

        `quality` and `prey` are for a folder or a file without meta (see `adopt`).
        """
        if Path(path).is_dir():
            return adopt(path, read_folder(Path(path), env), env, quality, prey)
        names = [*itertools.chain(SYNONYMS, *SYNONYMS.values()), "meta", r"prey_(weight|bias)_\d+"]
        found = read_npz(path, only="|".join(names))  # others are let alone
        ours = {name: next((x for x in (name, *more) if x in found), None) for name, more in SYNONYMS.items()}
        if missing := [name for name, own in ours.items() if own is None]:
            raise ValueError(f"{path} has no array {', '.join(missing)}: see the format at the top of data.py")
        with reading(path):
            arrays = {name: found[own].astype(np.float32, copy=False) for name, own in ours.items()}
            prey_layers = layers_in(found, "prey_")
        if "meta" not in found:
            return adopt(path, arrays, env, quality, prey)
        with reading(f"{path}: meta"):
            meta = json.loads(str(found["meta"]))
            task, *_ = [meta[key] for key in META]  # all of them must be there
        if env not in (NO_ENV, task) and {env, task} & TASKS.keys():
            raise ValueError(f"{path} holds data of {task}: use --env {task}, or other data")
        return cls.checked(path, arrays, meta, prey_layers or None)

    @classmethod
    def checked(
        cls, path: str | Path, arrays: dict[str, np.ndarray], meta: dict[str, Any], prey: MLPWeights | None
    ) -> Dataset:
        """Wrap the arrays of a data file or folder without copying; clips what rounding adds to actions.

        ValueError unless sizes and values are as the format says.
        """
        obs, actions, terminals = arrays["observations"], arrays["actions"], arrays["terminals"]
        if obs.ndim != 3 or actions.ndim != 3 or not obs.size or not actions.size:
            raise ValueError(
                f"{path}: observations {obs.shape} and actions {actions.shape} are no (M, N, O) and (M, N, A)"
            )
        pair = obs.shape[:2]
        shapes = dict(zip(ARRAYS, (obs.shape, (*pair, actions.shape[2]), pair, obs.shape, pair)))
        for name, shape in shapes.items():
            x = arrays[name]
            if x.shape != shape:
                raise ValueError(f"{path}: {name} is of shape {x.shape}, not {shape}")
            refuse(path, name, x, ~np.isfinite(x), "is NaN or infinite")
        refuse(path, "actions", actions, np.abs(actions) > 1 + ROUNDING, "is not in [-1, 1]")
        np.clip(actions, -1, 1, out=actions)
        refuse(path, "terminals", terminals, (terminals != 0) & (terminals != 1), "is neither 0 nor 1")
        return cls(*(torch.from_numpy(arrays[name]) for name in ARRAYS), meta, prey)


def check_fits(sizes: Sequence[int], env: Env, what: str | Path = "the data") -> None:
    """Raise ValueError unless the sizes (N, O, A) of data or of a run are those of `env`."""
    expected = (env.num_agents, env.obs_dim, env.action_dim)
    if tuple(sizes) != expected:
        raise ValueError(f"{what} has (agents, observations, actions) {tuple(sizes)}, {env.name} has {expected}")


@contextmanager
def reading(what: str | Path) -> Iterator[None]:
    """Whatever a file that is not what its name says may raise becomes a ValueError of one line."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{what} is missing, damaged or not what its name says: {in_one_line(error)}") from error


def read_npz(path: str | Path, only: str = ".*") -> dict[str, np.ndarray]:
    """The arrays of a `.npz` whose names match the pattern `only`; nothing is unpickled."""
    with reading(path), np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files if re.fullmatch(only, name)}


def write_csv(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """A table of rows, the columns of which may differ; at no moment is it half written."""
    columns = dict.fromkeys(name for row in rows for name in row)
    with whole_file(path) as part, open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def layers_in(arrays: dict[str, np.ndarray], prefix: str) -> list[tuple[Tensor, Tensor]]:
    """The layers of an MLP among arrays: PREFIXweight_0, PREFIXbias_0, PREFIXweight_1, ..."""
    numbers = range(sum(name.startswith(f"{prefix}weight_") for name in arrays))
    weights, biases = (
        [torch.from_numpy(arrays[f"{prefix}{kind}_{k}"]).float() for k in numbers] for kind in ("weight", "bias")
    )
    return list(zip(weights, biases))


def refuse(path: str | Path, name: str, x: np.ndarray, bad: np.ndarray, why: str) -> None:
    """Raise a ValueError that names the first number of an array (M, N, ...) that is `bad`, if there is one."""
    if bad.any():
        first = tuple(np.unravel_index(bad.argmax(), bad.shape))
        raise ValueError(f"{path}: {name}: {x[first]:.9g} in row {first[0]}, agent {first[1]}, {why}")


# -------------------- making data


def stacked_mlp(layers: MLPWeights, x: Tensor) -> Tensor:
    """Several MLPs of one shape at once, ReLU between: x (copies, B, in) to (copies, B, out)."""
    for weight, bias in layers[:-1]:
        x = F.relu(torch.baddbmm(bias, x, weight))
    weight, bias = layers[-1]
    return torch.baddbmm(bias, x, weight)


class Behaviour:
    """The shipped policies of one task: its prey, its teams, and `meta` with their reference returns.

    `notebooks/lab/behaviour.py` trains them.
    """

    def __init__(self, env_name: str) -> None:
        self._arrays = read_npz(BEHAVIOUR_FILE, f"{env_name}/.*")
        self._name, self.meta = env_name, json.loads(str(self._arrays[f"{env_name}/meta"]))
        self.env = make_env(env_name, layers_in(self._arrays, f"{env_name}/prey/") or None)

    def policy(self, name: str) -> Callable[..., Tensor]:
        """The team "medium" or "expert", or one that explored on the way to medium, "replay_0" to "replay_7".

        It maps observations (B, N, O) to actions (B, N, A) in [-1, 1]; its `noise` is a standard deviation.
        """
        layers = layers_in(self._arrays, f"{self._name}/{name}/")

        def act(obs: Tensor, noise: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
            action = torch.tanh(stacked_mlp(layers, obs.transpose(0, 1))).transpose(0, 1)
            if noise:
                action = action + noise * torch.empty_like(action).normal_(generator=generator)
            return action.clamp(-1, 1)

        return act


def mean_return(act: Callable[[Tensor], Tensor], env: Env) -> float:
    """Mean undiscounted return of the team over fresh episodes: 1,000, or 20 where they are long."""
    episodes = 1000 if isinstance(env, ParticleWorld) else 20
    return returns_of(act, env, episodes, torch.Generator().manual_seed(0)).mean().item()


def random_actions(env: Env, seed: int = 0) -> Callable[[Tensor], Tensor]:
    """Uniform actions in [-1, 1], the reference of normalised score 0."""
    generator = torch.Generator().manual_seed(seed)
    return lambda obs: torch.rand(*obs.shape[:2], env.action_dim, generator=generator) * 2 - 1


@torch.no_grad()
def play(
    act: Callable[[Tensor], Tensor], env: Env, transitions: int, generator: torch.Generator, bar: Any
) -> tuple[list[Tensor], Tensor, int]:
    """Play whole episodes for `transitions` steps: arrays in their order, all returns, and the longest episode."""
    arrays, returns, longest, size = [], [], 0, 0
    while size < transitions:
        T = env.episode_steps
        episodes = min(1000, -(-(transitions - size) // T)) if T else 1
        steps = [torch.stack(x, 1) for x in zip(*rollout(act, env, episodes, generator))]  # each (B, T, N, ...)
        returns.append(steps[2].mean(2).sum(1))
        arrays.append([x.flatten(0, 1) for x in steps])
        longest, size = max(longest, steps[0].shape[1]), size + len(arrays[-1][0])
        bar.update(len(arrays[-1][0]))
    return [torch.cat(x)[:transitions] for x in zip(*arrays)], torch.cat(returns), longest


def collect(
    env_name: str,
    quality: str = CUSTOM,
    transitions: int = TRANSITIONS,
    seed: int = 0,
    noise: float = NOISE,
    policy: str | None = None,
) -> Dataset:
    """Make a data set; `noise` is the standard deviation of the exploration of the policies that play.

    On the four tasks those are the shipped ones. `medium-expert` is 90% medium and 10% expert (99.9% and 0.1% for
    HalfCheetah). `medium-replay` is what a training run sees until it is medium: as long as that (at most
    `transitions`), played by random actions for as long as it began with, then by policies on its way. The run itself,
    repeated, would go another way on every processor.
    One's own environment, of which the quality is `custom`, is played by `policy`, a `MODULE:FUNCTION` that maps the
    observations of all agents (N, O) to their actions (N, A) in [-1, 1], as NumPy arrays; else by random actions.
    """
    from tqdm import tqdm

    behaviour = None if quality == CUSTOM else Behaviour(env_name)
    env = behaviour.env if behaviour else make_env(env_name)
    known = behaviour.meta if behaviour else references(env, policy)
    parts = {policy or "random": transitions}
    if quality == "medium-replay":
        parts = replay_parts(behaviour, transitions)
    elif quality not in ("random", CUSTOM):
        expert = {"expert": transitions, "medium-expert": transitions // EXPERT_ONE_IN[env_name]}.get(quality, 0)
        parts = {"medium": transitions - expert, "expert": expert}
    pieces = []
    with tqdm(total=sum(parts.values()), unit="transition", unit_scale=True, disable=None) as bar:
        for k, (name, count) in enumerate(parts.items()):
            if count:
                generator, act = torch.Generator().manual_seed(seed + k), random_actions(env, seed + k)
                if name != "random":
                    act = behaviour.policy(name) if behaviour else own_policy(name, env)
                    act = functools.partial(act, noise=noise, generator=generator)
                pieces.append(play(act, env, count, generator, bar))
    arrays, returns, lengths = zip(*pieces)
    meta = {"env": env_name, "quality": quality, "seed": seed, "noise": None if set(parts) == {"random"} else noise}
    meta |= {"episode_steps": env.episode_steps or max(lengths), "mean_return": torch.cat(returns).mean().item()}
    meta |= {k: v for k, v in known.items() if k.endswith("_return")}
    return Dataset(*(torch.cat(x) for x in zip(*arrays)), meta, env.prey)


def replay_parts(behaviour: Behaviour, transitions: int) -> dict[str, int]:
    """How many transitions, in whole episodes, each policy plays of what a training saw until it was medium."""
    T, total, start = behaviour.env.episode_steps, behaviour.meta["medium_steps"], behaviour.meta["random_steps"]
    ends = [min(start + (total - start) * k // REPLAY // T * T, transitions) for k in range(REPLAY + 1)]
    names = ["random", *(f"replay_{k}" for k in range(REPLAY))]
    return {name: end - begin for name, begin, end in zip(names, [0, *ends], ends)}


def own_policy(policy: str, env: Env) -> Callable[..., Tensor]:
    """Actions (1, N, A) for observations (1, N, O) from a function of one step's arrays, with noise."""
    function, shape = import_function(policy), (env.num_agents, env.action_dim)

    def act(obs: Tensor, noise: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
        with user_code(f"playing {policy}"):
            action = torch.as_tensor(function(obs[0].numpy().copy()), dtype=torch.float32)  # it may change its copy
        if action.shape != shape or not (action.abs() <= 1 + ROUNDING).all():
            found = f"up to {action.abs().max():g}" if action.shape == shape else tuple(action.shape)
            raise ValueError(f"{policy} gives actions {found}, expected {shape} of numbers in [-1, 1]")
        return (action + noise * torch.empty_like(action).normal_(generator=generator)).clamp(-1, 1)[None]

    return act


def references(env: Env, policy: str | None) -> dict[str, float | None]:
    """The returns of random actions and of `policy` on one's own environment; None where they give no scale."""
    if policy is None:
        return {"random_return": None, "expert_return": None}
    print(f"random actions and {policy} are played first, to compare with", flush=True)
    low, high = mean_return(random_actions(env), env), mean_return(own_policy(policy, env), env)
    return {"random_return": low, "expert_return": high if high != low else None}


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
    check_npz(path)
    if env_name == NO_ENV:
        raise ValueError(f"--env {env_name}: there is nothing to play")
    if policy and env_name in TASKS:
        raise ValueError(f"--policy {policy}: only your own environment is played by it; leave it out")
    player = (policy or "uniformly random actions") if quality in ("random", CUSTOM) else "the shipped policies"
    what = f"{quality} data of {env_name}, played by {player}"
    print(f"making {path}: {what} (use your own with --data FILE)", flush=True)
    dataset = collect(env_name, quality, transitions, seed, noise, policy)
    dataset.save(path)
    return dataset


def check_npz(path: Path) -> None:
    """Raise ValueError unless a `.npz` can be written there."""
    if path.suffix != ".npz" or not path.parent.is_dir() or path.is_dir():
        raise ValueError(f"{path}: a data file is named .npz, and lies in a folder that exists")


def load_or_make(path: str | Path, env_name: str) -> Dataset:
    """Load a data file or a folder; a missing QUALITY.npz or ENV-QUALITY.npz is made."""
    check_name(env_name)
    path = Path(path)
    if path.exists():
        return Dataset.load(path, env_name)
    if env_name == NO_ENV:
        raise ValueError(f"{path} does not exist")
    if env_name not in TASKS:
        raise ValueError(f"{path} does not exist: make it with python data.py collect --env {env_name} --out {path}")
    names = {f"{prefix}{quality}.npz": quality for quality in QUALITIES for prefix in ("", f"{env_name}-")}
    if path.name not in names:
        raise ValueError(f"{path} does not exist; to have data made, name it one of {', '.join(sorted(names)[:4])}")
    return make(env_name, names[path.name], path)


# -------------------- data made by others


def read_folder(folder: Path, env_name: str) -> dict[str, np.ndarray]:
    """The team's arrays of a folder in OMAR's layout, {env}/{quality}/seed_K_data: five `.npy` files for each agent.

    They are read piece by piece into float32, so that memory never holds more than the files do; those of the prey are
    not needed.
    """
    if inner := sorted(folder.glob("seed_*_data")):
        raise ValueError(f"{folder} holds folders of data: name one of {', '.join(x.name for x in inner)}")
    if env_name == "halfcheetah":
        print("note: public HalfCheetah data is of MuJoCo 2.0; CFCQL's authors report a large drop under later ones")
    team, arrays = TASKS.get(env_name), {}
    for name, others in SYNONYMS.items():
        stem = next((x for x in others if (folder / f"{x}_0.npy").exists()), others[0])
        agents = []
        for i in range(team or len([*folder.glob(f"{stem}_*.npy")]) or 1):
            path = folder / f"{stem}_{i}.npy"
            with reading(path):
                source = np.load(path, mmap_mode="r", allow_pickle=False)
                agents.append(source.reshape(len(source), -1))
        with reading(f"{folder}: {stem}"):
            stacked = np.stack(agents, 1, dtype=np.float32, casting="unsafe")
            arrays[name] = stacked.squeeze(2) if name in ("rewards", "terminals") else stacked
    return arrays


def adopt(
    path: str | Path,
    arrays: dict[str, np.ndarray],
    env_name: str,
    quality: str | None,
    prey: str | Path | None,
) -> Dataset:
    """A data set from arrays without meta: `env_name` names the task.

    Of the four tasks quality and prey (the checkpoint {env}/pretrained_adv_model.pt) are those of the path if they are
    not given; without a checkpoint the shipped prey plays, and a line says so. Their episodes only run out of time, so
    their terminals become 0.
    """
    meta = dict.fromkeys((*META, "seed", "noise")) | {"env": env_name, "quality": quality or CUSTOM}
    if env_name == NO_ENV:
        return Dataset.checked(path, arrays, meta, None)
    behaviour, theirs = Behaviour(env_name) if env_name in TASKS else None, arrays["actions"]
    env = behaviour.env if behaviour else make_env(env_name)
    check_fits((*arrays["observations"].shape[1:], theirs.shape[-1]), env, path)
    if behaviour is None:
        arrays["actions"] = env.from_box(theirs)
        refuse(path, "actions", theirs, np.abs(arrays["actions"]) > 1 + ROUNDING, f"is outside the box of {env_name}")
        return Dataset.checked(path, arrays, meta, None)
    where = Path(path).absolute()
    quality = quality or quality_in(where, env_name)
    print(f"{path}: taken for {quality} data of {env_name}")
    T, rewards = env.episode_steps, arrays["rewards"]
    arrays["terminals"] = np.zeros_like(arrays["terminals"])
    mean = T * float(rewards.mean(dtype=np.float64)) if rewards.size else 0.0
    meta |= {"quality": quality, "episode_steps": T, "mean_return": mean}
    meta |= {k: v for k, v in behaviour.meta.items() if k.endswith("_return")}
    return Dataset.checked(path, arrays, meta, prey_of(where, env, prey))


def quality_in(path: Path, env_name: str) -> str:
    """The quality that the innermost part of an absolute path names; ValueError if none does."""
    named = (part.replace("_", "-").removeprefix(f"{env_name}-") for part in reversed(path.with_suffix("").parts))
    quality = next((part for part in named if part in QUALITIES), None)
    if quality is None:
        raise ValueError(f"{path}: its path names no quality: python data.py convert {path} --quality ...")
    return quality


def prey_of(path: Path, env: Env, prey: str | Path | None) -> MLPWeights | None:
    """The prey of data at an absolute path: of a checkpoint, given or in its place; else the one that ships."""
    beside = path.parent.parent / "pretrained_adv_model.pt"
    if not env.has_prey:
        return None
    if prey is None and not beside.exists():
        print(f"note: there is no {beside}, so the shipped prey plays, and scores do not compare")
        return env.prey
    return load_prey(prey or beside, env.prey_obs_dim)


def mixed(parts: Sequence[Dataset]) -> Dataset:
    """Medium-expert data from medium and from expert data, in the paper's proportions (see `collect`)."""
    by_quality, tasks = {part.meta["quality"]: part for part in parts}, {part.meta["env"] for part in parts}
    if len(parts) != 2 or by_quality.keys() != {"medium", "expert"} or len(tasks) != 1 or not tasks <= {*TASKS}:
        found = ", ".join("{quality} of {env}".format(**part.meta) for part in parts)
        raise ValueError(f"medium and expert data of one of the four tasks can be mixed, not {found}")
    medium, expert = by_quality["medium"], by_quality["expert"]
    one_in = EXPERT_ONE_IN[medium.meta["env"]]
    many = min(len(medium), (one_in - 1) * len(expert))
    few = many // (one_in - 1)
    arrays = [torch.cat([a[:many], b[:few]]) for a, b in zip(medium.arrays().values(), expert.arrays().values())]
    mean = float(np.average([medium.meta["mean_return"], expert.meta["mean_return"]], weights=[many, few]))
    return Dataset(*arrays, medium.meta | {"quality": "medium-expert", "mean_return": mean}, medium.prey)


def load_prey(path: str | Path, obs_dim: int) -> list[tuple[Tensor, Tensor]]:
    """The prey of OMAR's `pretrained_adv_model.pt`, as (weight, bias) of three layers; nothing in it is executed.

    The last of its `agent_params` is the prey. Its input normalisation, used with running statistics, is folded into
    the first layer: (x - mean) / sqrt(var + 1e-5) * weight + bias.
    """
    with reading(path):
        policy = torch.load(path, map_location="cpu", weights_only=True)["agent_params"][-1]["policy"]
        layers = [(policy[f"fc{k}.weight"].float(), policy[f"fc{k}.bias"].float()) for k in (1, 2, 3)]
        scale = policy["in_fn.weight"] / (policy["in_fn.running_var"] + 1e-5).sqrt()
        shift = policy["in_fn.bias"] - policy["in_fn.running_mean"] * scale
        layers[0] = (layers[0][0] * scale.float(), layers[0][1] + layers[0][0] @ shift.float())
    if layers[0][0].shape[1] != obs_dim:
        raise ValueError(f"{path} holds a prey of {layers[0][0].shape[1]} observations, not {obs_dim}")
    return layers


# -------------------- run folders


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C or SIGTERM sets, so that a run ends between two steps; a second one ends it at once."""
    stop, main_thread = threading.Event(), threading.current_thread() is threading.main_thread()

    def handler(*_: Any) -> None:
        if stop.is_set():
            for s in previous:
                signal.signal(s, signal.SIG_IGN)  # the threads end in a moment
            raise KeyboardInterrupt
        stop.set()
        with suppress(OSError):  # the reader of a pipe may be gone; and not print, which the signal may interrupt
            os.write(2, b"\nending with a last evaluation; Ctrl-C again leaves at once\n")

    # signals reach the main thread only
    previous = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM) if main_thread}
    try:
        yield stop
    finally:
        for s, old in previous.items():
            signal.signal(s, old)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; ValueError if another one holds it."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ValueError(f"{folder} is in use by another process: wait for it, or name another --out") from error
    finally:
        os.close(descriptor)


def free_folder(name: str) -> str:
    """runs/`name`, or the first of runs/`name`.2, runs/`name`.3, ... that does not exist."""
    names = itertools.chain([f"runs/{name}"], (f"runs/{name}.{k}" for k in itertools.count(2)))
    return next(folder.replace(":", ".") for folder in names if not Path(folder.replace(":", ".")).exists())


def load_checkpoint(folder: str | Path) -> dict[str, Any]:
    """The checkpoint of a run folder, checked and without unpickling; ValueError with one line if it is not whole."""
    path = Path(folder) / "checkpoint.pt"
    if not path.exists():
        raise ValueError(f"{folder} has no checkpoint.pt: there is nothing to continue or to score")
    with reading(path):
        return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def open_run(config: Any, dataset: Dataset, agents: Sequence[Any], resume: bool) -> Iterator[RunFolder]:
    """The folder `config.out` of a run: a new one, or with `resume` as its checkpoint says.

    No other process can use it meanwhile. Ctrl-C or SIGTERM only sets `stop`; a second one ends the program.
    """
    path = Path(config.out)
    if not resume:
        if path.exists():
            raise ValueError(f"{path} exists: name another --out, or continue it with --resume {path}")
        path.mkdir(parents=True)
    with locked(path), interruptible() as stop:
        run = RunFolder(config, dataset, agents, stop)
        if resume:
            run.restore()
        run.describe()
        yield run


class RunFolder:
    """What a training leaves: config.json, metrics.csv, checkpoint.pt, curve.png, rollout.gif.

    metrics.csv has a row per evaluation: step, episodes, mean and standard deviation of their returns (return,
    return_std), the means of all losses since the last row (see the losses in om2p.py), and the seconds of training so
    far, without evaluating and saving (training_seconds).
    """

    CONTINUED = ("step", "seconds", "history", "losses", "count")  # in the checkpoint, besides agents and data

    def __init__(self, config: Any, dataset: Dataset, agents: Sequence[Any], stop: threading.Event) -> None:
        self.path, self.agents, self.stop = Path(config.out), agents, stop
        # the absolute path, so that resuming from another folder finds the data
        self.config = asdict(config) | {"data": str(Path(config.data).absolute())}
        device = dataset.observations.device.type
        self.data = {"sizes": list(dataset.sizes), "meta": dataset.meta, "prey": dataset.prey, "device": device}
        rows = slice(None, None, 1 + len(dataset) // 1000)
        self.data["checksum"] = zlib.crc32(b"".join(x[rows].cpu().numpy().tobytes() for x in dataset.arrays().values()))
        self.step = self.saved_step = self.count = 0
        self.seconds, self._tick = 0.0, time.perf_counter()
        self.history: list[dict[str, float]] = []  # the rows of metrics.csv
        self.losses: dict[str, Tensor] = {}  # means over `count` updates since the last row

    def describe(self) -> None:
        """Write config.json: settings, data, and the versions of all that decides a result."""
        packages = ("torch", "numpy", "mujoco", "gymnasium", "pettingzoo")
        versions = {name: importlib.metadata.version(name) for name in packages}
        versions |= {"om2p": VERSION, "python": platform.python_version()}
        text = json.dumps(self.config | {"data_meta": self.data["meta"], "versions": versions}, indent=2)
        with whole_file(self.path / "config.json") as part:
            part.write_text(text + "\n")

    def log(self, info: dict[str, Tensor]) -> None:
        """Take the losses of one update into their means; reading them would stall an accelerator."""
        self.count += 1
        self.losses = {k: self.losses.get(k, x).lerp(x, 1 / self.count) for k, x in info.items()}

    def finite_losses(self) -> dict[str, float]:
        """The means of all losses since the last row; ValueError for one that is no finite number."""
        losses = {k: x.item() for k, x in self.losses.items()}
        self.seconds += time.perf_counter() - self._tick
        if bad := [k for k, x in losses.items() if not np.isfinite(x)]:
            advice = "try a lower --learning-rate or --eta"
            raise self.ended(f"up to step {self.step} {bad[0]} is no finite number: it diverged ({advice})")
        return losses

    def ended(self, why: object) -> ValueError:
        """The error that ends a run, with what is left of it."""
        kept = f"the checkpoint of step {self.saved_step} is kept" if self.saved_step else "there is no checkpoint"
        return ValueError(f"{why}; {kept}")

    def record(self, score: Callable[[], Tensor]) -> dict[str, str]:
        """Add a row to metrics.csv for the returns that `score` evaluates; returns what a progress bar shows."""
        losses = self.finite_losses()
        try:
            row = {"step": self.step} | figures(score()) | losses | {"training_seconds": self.seconds}
        except ValueError as error:  # one's own environment failed
            raise self.ended(error) from error
        self.history.append(row)
        self.losses, self.count = {}, 0
        write_csv(self.path / "metrics.csv", self.history)
        self._tick = time.perf_counter()
        return {k: f"{row[k]:.3g}" for k in ("return", "bc_loss", "critic_loss", "q") if k in row}

    def save(self) -> None:
        """Write the checkpoint, tensors and plain types; the previous one survives until this one is whole."""
        self.finite_losses()
        state = {"config": self.config, "agents": [agent.state_dict() for agent in self.agents]} | self.data
        state |= {name: getattr(self, name) for name in self.CONTINUED}
        with whole_file(self.path / "checkpoint.pt") as part:
            torch.save(state, part)
        self.saved_step, self._tick = self.step, time.perf_counter()

    def restore(self) -> None:
        """Continue from the checkpoint, and take metrics.csv back to what it knows of."""
        state = load_checkpoint(self.path)
        if state["step"] > self.config["steps"]:
            raise ValueError(f"--steps {self.config['steps']}: the run in {self.path} has made {state['step']} already")
        if any(state.get(k) != self.data[k] for k in ("sizes", "meta", "device", "checksum")):
            raise ValueError(f"{self.path} began with other data than {self.config['data']}, or on another device")
        for agent, saved in zip(self.agents, state["agents"]):
            agent.load_state_dict(saved)
        for name in self.CONTINUED:
            setattr(self, name, state[name])
        self.losses = {k: x.to(self.data["device"]) for k, x in self.losses.items()}
        self.saved_step = self.step
        write_csv(self.path / "metrics.csv", self.history)

    def finish(self, score: Callable[[], Tensor]) -> dict[str, float]:
        """Add the last row of metrics.csv, for the returns that `score` evaluates; print, draw and return it."""
        self.record(score)
        last = self.history[-1]
        if "return" in last:
            report(last, self.data["meta"])
            self.draw()
        training = f"{self.step} steps, {self.seconds:.1f} s, {1000 * self.seconds / max(self.step, 1):.1f} ms per step"
        print(f"{'training':>20}  {training}\n{'left in':>20}  {self.path}/")
        return last

    def draw(self) -> None:
        """curve.png: return against training steps, with the return of the data as a line."""
        from matplotlib.figure import Figure

        rows = {row["step"]: row for row in self.history}.values()  # of the last step, that with the most episodes
        steps, returns, std = (np.array([row[k] for row in rows]) for k in ("step", "return", "return_std"))
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot(xlabel="training steps", ylabel="return of an episode")
        spread = "standard deviation of the episodes"
        axes.fill_between(steps, returns - std, returns + std, alpha=0.2, color="#0072b2", lw=0, label=spread)
        axes.plot(steps, returns, color="#0072b2", label="policy")
        if (mean := self.data["meta"]["mean_return"]) is not None:
            axes.axhline(mean, color="#d55e00", ls="--", label="data")
        axes.set_title("{env}, {quality} data".format(**self.data["meta"]))
        axes.legend(frameon=False, loc="lower right")
        with whole_file(self.path / "curve.png") as part:
            figure.savefig(part, dpi=120)


def figures(returns: Tensor) -> dict[str, float]:
    """Number, mean and standard deviation of returns; only their number, 0, where there is no environment."""
    if not len(returns):
        return {"episodes": 0}
    return {
        "episodes": len(returns),
        "return": returns.mean().item(),
        "return_std": returns.std(correction=0).item(),
    }


def shown(number: float | None) -> str:
    """A figure with one decimal, or that nobody knows it."""
    return "not known" if number is None else f"{number:.1f}"


def report(row: dict[str, float], meta: dict[str, Any]) -> None:
    """Print what an evaluation (a row of metrics.csv) says, beside the data's returns."""
    low, high, mean, std = meta["random_return"], meta["expert_return"], row["return"], row["return_std"]
    score = f"not known (return of random actions: {shown(low)}, of an expert: {shown(high)})"
    if None not in (low, high):
        score = f"{100 * (mean - low) / (high - low):.1f} (random {low:.1f} is 0, expert {high:.1f} is 100)"
    print(f"{'return':>20}  {mean:.1f} +- {std:.1f} (mean and standard deviation of {row['episodes']} episodes)")
    print(f"{'normalised score':>20}  {score}\n{'return of the data':>20}  {shown(meta['mean_return'])}")


def score(
    agents: Sequence[Any], state: dict[str, Any], episodes: int, gif: str | None = None, export: str | None = None
) -> None:
    """Export the agents of a run's checkpoint where asked, score them over fresh episodes, draw them where asked."""
    if episodes < 1:
        raise ValueError(f"--episodes {episodes}: must be at least 1")
    for path, suffix in ((gif, ".gif"), (export, ".pt2")):
        if path and (Path(path).suffix != suffix or not Path(path).parent.is_dir()):
            raise ValueError(f"{path} does not end in {suffix}, or lies in no folder that exists")
    config = agents[0].config
    if export:
        export_agents(agents, state["sizes"], export)
    env = make_env(config.env, state["prey"])
    if env is None:
        print("without an environment there is no score")
        return
    check_fits(state["sizes"], env)
    report(figures(evaluate(agents, env, episodes, config.seed + 2)), state["meta"])
    if gif:
        save_gif(agents, env, gif, config.seed + 2)


class ExportedTeam(nn.Module):
    """All agents as one function of observations (B, N, O) and noise (B, N, K, A), K the candidates of each."""

    def __init__(self, agents: Sequence[Any]) -> None:
        super().__init__()
        self.agents = agents
        self.networks = nn.ModuleList(nn.ModuleList([a.target_policy, a.target_critics]) for a in agents)

    def forward(self, obs: Tensor, noise: Tensor) -> Tensor:
        return torch.stack([agent.act(obs[:, i], noise[:, i]) for i, agent in enumerate(self.agents)], 1)


def export_agents(agents: Sequence[Any], sizes: Sequence[int], path: str | Path) -> None:
    """Write a `torch.export` program: obs (B, N, O) and Gaussian noise (B, N, K, A) to actions (B, N, A), for any B."""
    N, O, A = sizes
    example = (torch.zeros(2, N, O), torch.zeros(2, N, agents[0].candidates, A))
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        program = torch.export.export(ExportedTeam(agents), example, dynamic_shapes=({0: batch}, {0: batch}))
    with whole_file(path) as part:
        torch.export.save(program, part)


def pick_device(name: str) -> torch.device:
    """The named device; "auto" is CUDA where there is one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch finds none on this machine; leave it out")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def thread_each(agents: Sequence[Any], device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Threads in which agents can learn at the same time: on a CPU one for each, on an accelerator one for all.

    They share the cores. With a core for each, no sum waits for another core, so that other work does not hold up the
    training.
    """
    before, workers = torch.get_num_threads(), len(agents) if device.type == "cpu" else 1
    # 31 MB, freed at once: from then on glibc keeps freed blocks up to this size for the next step, which is faster
    torch.empty(31 * 2**18)
    share = max(1, before // workers)
    torch.set_num_threads(share)
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


# -------------------- command line


class Parser(argparse.ArgumentParser):
    """Bad arguments end with one line and exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} (--help lists every option)\n")

    def add_settings(self, kind: type) -> None:
        """One option for each field of the settings `kind`, in groups; what is not given is left out of the result."""
        group: Any = self
        for f in fields(kind):
            if f.metadata["group"]:
                group = self.add_argument_group(f.metadata["group"])
            options: dict[str, Any] = {"type": type(f.default), "metavar": "|".join(f.metadata["choices"]) or None}
            if isinstance(f.default, tuple):
                options = {"type": float, "nargs": len(f.default), "metavar": "X"}
            text = f"{f.metadata['help']} [{f.default}]"
            group.add_argument(f"--{f.name.replace('_', '-')}", default=argparse.SUPPRESS, help=text, **options)


def parse_options(kind: type, argv: Sequence[str] | None) -> tuple[dict[str, Any], argparse.Namespace]:
    """The command line of om2p.py: the settings of `kind` that were given, and what is to be done."""
    parser = Parser(prog="om2p.py", description="OM2P (arXiv 2508.06269): train on offline data, score, draw.")
    parser.add_settings(kind)
    add = parser.add_argument_group("instead of the recommended settings, or of a new run").add_argument
    add("--preset", choices=["recommended", "paper"], default="recommended", help="paper: as it says, with Table 3")
    add(
        "--resume", metavar="FOLDER", help="continue this run from its checkpoint; --steps and --data may be given anew"
    )
    add("--evaluate", metavar="FOLDER", help="score this run; --seed, --candidates, --act-noise may be given anew")
    add("--episodes", type=int, default=100, help="with --evaluate: how many episodes [100]")
    add("--gif", metavar="FILE", help="with --evaluate: also draw the policies")
    add("--export", metavar="FILE", help="with --evaluate: also write the policies, as torch.export")
    args = parser.parse_args(argv)
    given = {f.name: getattr(args, f.name) for f in fields(kind) if f.name in args}
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    for option, own in (("resume", {"steps", "data"}), ("evaluate", {"seed", "candidates", "act_noise"})):
        if getattr(args, option) and (extra := given.keys() - own):
            parser.error(f"--{option} takes this from the folder: leave out --{min(extra).replace('_', '-')}")
    if (args.gif or args.export) and not args.evaluate:
        parser.error("--gif and --export need --evaluate FOLDER; a training draws its own rollout.gif")
    return given, args


def info(path: Path) -> None:
    """Print what a data file holds."""
    data = Dataset.load(path)
    for name, x in data.arrays().items():
        print(f"{name:>17}  {list(x.shape)}, mean {x.mean():.3f}, from {x.min():.3f} to {x.max():.3f}")
    for name, value in (data.meta | {"prey": "in the file" if data.prey else "none"}).items():
        print(f"{name:>17}  {value}")


def main(argv: Sequence[str] | None = None) -> int:
    """`python data.py collect|convert|info ...`; returns the exit code."""
    parser = Parser(prog="data.py", description="Make, inspect and check offline data.")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    add = commands.add_parser("collect", help="play the shipped policies and write a data file").add_argument
    add("--env", default="world", help=f"{', '.join(TASKS)}, or MODULE:FUNCTION [world]")
    add("--quality", choices=sorted(QUALITIES), default="expert", help="of the four tasks' data [expert]")
    add("--policy", help="MODULE:FUNCTION, gives your own environment actions in [-1, 1] [random ones]")
    add("--out", type=Path, help="[QUALITY.npz, of your own environment custom.npz]")
    add("--transitions", type=int, default=TRANSITIONS, help="[1,000,000; World: 0.6 GB, twice that in memory]")
    add("--seed", type=int, default=0)
    add("--noise", type=float, default=NOISE, help="exploration noise, standard deviation [0.1]")
    text = "turn a folder of .npy files in OMAR's layout, or a .npz of the five arrays alone, into a data file"
    add = commands.add_parser("convert", help=text).add_argument
    add("source", type=Path, nargs="+", help="two, of medium and of expert data, become medium-expert")
    add("--env", required=True, help=f"{', '.join(TASKS)}, MODULE:FUNCTION, or {NO_ENV}")
    add("--out", type=Path, required=True)
    add("--quality", choices=sorted(QUALITIES), help="[as the folder's path says]")
    add("--prey", type=Path, help="[pretrained_adv_model.pt two folders up, else the shipped prey]")
    commands.add_parser("info", help="show what a data file holds").add_argument("file", type=Path)
    args = parser.parse_args(argv)
    try:
        if args.command == "info":
            info(args.file)
            return 0
        check_name(args.env)
        if args.command == "collect":
            if args.transitions < 1 or not 0 <= args.noise < float("inf"):
                parser.error("--transitions must be at least 1, --noise finite and not negative")
            quality = args.quality if args.env in TASKS else CUSTOM
            out = args.out or Path(f"{quality}.npz")
            dataset = make(args.env, quality, out, args.transitions, args.seed, args.noise, args.policy)
        else:
            check_npz(args.out)
            parts = [Dataset.load(source, args.env, args.quality, args.prey) for source in args.source]
            dataset = parts[0] if len(parts) == 1 else mixed(parts)
            dataset.save(args.out)
        print(f"wrote {len(dataset):,} transitions with a mean return of {shown(dataset.meta['mean_return'])}")
    except (ValueError, OSError, MemoryError) as error:
        print(f"data.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("data.py: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
