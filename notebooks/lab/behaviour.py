"""Trains the policies that ship in behaviour.npz and play all data: for each task a prey, a medium and an expert team.

    python notebooks/lab/behaviour.py --env world                 # half an hour on one core; rewrites behaviour.npz
    python notebooks/lab/behaviour.py --env tag --seed 3 --out mine.npz

The teams are trained by TD3 until they reach the returns of the public data sets. Every sum is made by one thread, but
another processor may still round otherwise, and a training then goes another way.

Shapes: B episodes side by side, or rows of a minibatch; N agents of a side; O observation, S state, A action.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import (  # noqa: E402
    BEHAVIOUR_FILE,
    NOISE,
    REPLAY,
    Parser,
    check_npz,
    mean_return,
    random_actions,
    read_npz,
    stacked_mlp,
    whole_file,
)
from envs import Env, HalfCheetah, make_env  # noqa: E402
from om2p import descend, soft_update  # noqa: E402


@dataclass(frozen=True)
class Recipe:
    """How the policies of one task are trained; the returns are those of the public data sets."""

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


class StackedMLP(nn.Module):
    """`copies` independent MLPs of one shape, evaluated together: (copies, B, in) to (copies, B, out), ReLU between."""

    def __init__(self, copies: int, *sizes: int) -> None:
        super().__init__()
        pairs = list(zip(sizes, sizes[1:]))
        self.weights = nn.ParameterList(torch.empty(copies, i, o).uniform_(-1, 1) / math.sqrt(i) for i, o in pairs)
        self.biases = nn.ParameterList(torch.empty(copies, 1, o).uniform_(-1, 1) / math.sqrt(i) for i, o in pairs)
        self.layers = list(zip(self.weights, self.biases))  # (weight, bias) of each, as behaviour.npz has them

    def forward(self, x: Tensor) -> Tensor:
        return stacked_mlp(self.layers, x)


class TD3:
    """TD3 (arXiv 1802.09477) for one side of a game: its actors, and twin critics that see the whole state."""

    def __init__(self, agents: int, obs_dim: int, state_dim: int, action_dim: int, width: int, recipe: Recipe) -> None:
        self.recipe, self.updates = recipe, 0
        self.actors = StackedMLP(agents, obs_dim, width, width, action_dim)
        self.critics = StackedMLP(2, state_dim + agents * action_dim, recipe.width, recipe.width, 1)
        with torch.no_grad():
            self.actors.weights[-1].mul_(0.1)  # start far from the saturated ends of tanh
        self.target_actors, self.target_critics = copy.deepcopy(self.actors), copy.deepcopy(self.critics)
        adam = {"lr": recipe.learning_rate, "fused": True}
        self.actor_optimizer = torch.optim.Adam(self.actors.parameters(), **adam)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), **adam)

    def q(self, critics: StackedMLP, state: Tensor, actions: Tensor) -> Tensor:
        """Q (2, B) of states (B, S) and the side's actions (B, N, A)."""
        return critics(torch.cat([state, actions.flatten(1)], 1).expand(2, -1, -1)).squeeze(-1)

    def update(self, batch: dict[str, Tensor], generator: torch.Generator) -> None:
        """One step of the critics, every second time also of the actors and all targets."""
        with torch.no_grad():
            next_actions = act(self.target_actors, batch["next_obs"])
            smoothing = 0.2 * torch.empty_like(next_actions).normal_(generator=generator)
            next_actions = (next_actions + smoothing.clamp(-0.5, 0.5)).clamp(-1, 1)
            next_q = self.q(self.target_critics, batch["next_state"], next_actions).amin(0)
            target = self.recipe.reward_scale * batch["reward"] + self.recipe.gamma * next_q
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


def act(actors: StackedMLP, obs: Tensor) -> Tensor:
    """Actions (B, N, A) of deterministic policies tanh(MLP) for observations (B, N, O)."""
    return torch.tanh(actors(obs.transpose(0, 1))).transpose(0, 1)


def observe(env: Env) -> tuple[tuple[Tensor, Tensor | None], Tensor]:
    """What each side observes, the team first, and what its critics see (B, S).

    That is what the whole team observes; of HalfCheetah what Gymnasium's single agent would.
    """
    sides = env.observations()
    if isinstance(env, HalfCheetah):
        return sides, torch.from_numpy(np.concatenate([env.qpos[:, 1:], env.qvel], 1)).float()
    return sides, sides[0].flatten(1)


@torch.no_grad()
def explore(env: Env, sides: Sequence[TD3], generator: torch.Generator, uniform: bool) -> list[dict[str, Tensor]]:
    """One batched step with noisy, or uniformly random, actions; what each side saw and got."""
    before, state = observe(env)
    best = (act(side.actors, obs) for side, obs in zip(sides, before))
    actions = [(a + NOISE * torch.empty_like(a).normal_(generator=generator)).clamp(-1, 1) for a in best]
    if uniform:
        actions = [a.uniform_(-1, 1, generator=generator) for a in actions]
    if len(sides) == 1:
        rewards = [env.step(actions[0])[1]]
    else:
        env.advance(torch.cat(actions, 1))
        rewards = env.rewards().tensor_split([env.num_agents], 1)
    after, next_state = observe(env)
    return [
        {"obs": o, "state": state, "actions": a, "reward": r.mean(1), "next_obs": next_o, "next_state": next_state}
        for o, a, r, next_o in zip(before, actions, rewards, after)
    ]


def train_td3(env: Env, recipe: Recipe, steps: int, seed: int) -> Iterator[tuple[int, list[TD3]]]:
    """Train the team, and the prey where `env` has none of its own, for `steps` environment steps.

    Several episodes run side by side, with updates of each side after each batched step. After each round of episodes
    it yields the number of steps so far, each episode's counted, and the learners, team first.
    """
    generator, size = torch.Generator().manual_seed(seed), 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        state_dim = 17 if isinstance(env, HalfCheetah) else env.num_agents * env.obs_dim
        sides = [TD3(env.num_agents, env.obs_dim, state_dim, env.action_dim, recipe.width, recipe)]
        if env.has_prey and env.prey is None:
            sides.append(TD3(1, env.prey_obs_dim, state_dim, env.action_dim, 64, recipe))
    while size < steps:
        env.reset(recipe.worlds, generator)
        for _ in range(env.episode_steps):
            new = explore(env, sides, generator, uniform=size < recipe.warm_up)
            if not size:  # all that is seen, for each side
                replay = [{name: x.new_empty(steps, *x.shape[1:]) for name, x in step.items()} for step in new]
            for seen, step in zip(replay, new):
                for name, x in step.items():
                    seen[name][size : size + recipe.worlds] = x
            size += recipe.worlds
            for _ in range(recipe.updates):
                rows = torch.randint(size, (recipe.batch,), generator=generator)
                for side, seen in zip(sides, replay):
                    side.update({name: x[rows] for name, x in seen.items()}, generator)
        yield size, sides


def train_team(env: Env, recipe: Recipe) -> tuple[dict[str, StackedMLP], dict[str, Any]]:
    """Train a fresh team, against the fixed prey of `env` if it has one, until it is expert.

    Returns its policies "medium" and "expert", the first at the returns of the recipe, and "replay_0", "replay_1", ...,
    those that explored on the way to medium; what `data.Behaviour.meta` says of them. ValueError if it stays below.
    """
    kept, on_the_way, meta = {}, [], {}
    for step, (team,) in train_td3(env, recipe, recipe.steps, recipe.seed + 1):
        value = mean_return(partial(act, team.target_actors), env)
        print(f"{step:>8,} steps  return {value:7.1f}", flush=True)
        if "medium" not in kept:
            on_the_way.append(copy.deepcopy(team.actors))
        for quality, level in (("medium", recipe.medium_return), ("expert", recipe.expert_return)):
            if value >= level and quality not in kept:
                kept[quality] = copy.deepcopy(team.target_actors)
                meta |= {f"{quality}_return": value, f"{quality}_steps": step}
        if "expert" in kept:
            replay = {f"replay_{k}": on_the_way[(2 * k + 1) * len(on_the_way) // (2 * REPLAY)] for k in range(REPLAY)}
            return kept | replay, meta
    raise ValueError(f"no return of {recipe.expert_return:g} in {recipe.steps:,} steps: try another seed")


def train_behaviour(env_name: str, seed: int | None = None) -> dict[str, np.ndarray]:
    """Train prey and team of one task as its recipe says; returns the arrays of `behaviour.npz`.

    The team of a public data set does not face a prey at its best: a prey that trained to the end is caught too seldom
    for the published returns. So the prey is frozen young, and a fresh team is trained against it from scratch.
    """
    recipe = RECIPES[env_name] if seed is None else replace(RECIPES[env_name], seed=seed)
    env = make_env(env_name)
    if env.has_prey:
        print(f"training team and prey together for {recipe.prey_age:,} steps; the prey is then frozen", flush=True)
        *_, (_, (_, prey)) = train_td3(env, recipe, recipe.prey_age, recipe.seed)
        env = make_env(env_name, [(w[0].detach().T.contiguous(), b[0, 0].detach()) for w, b in prey.actors.layers])
    policies, meta = train_team(env, recipe)
    meta |= {
        "seed": recipe.seed,
        "random_return": mean_return(random_actions(env), env),
        "random_steps": min(recipe.warm_up, meta["medium_steps"]),
    }
    arrays = {f"{env_name}/meta": np.array(json.dumps(meta))}
    for name, layers in ({k: p.layers for k, p in policies.items()} | {"prey": env.prey or []}).items():
        dtype = np.float16 if name.startswith("replay") else np.float32  # they explore with noise, so half will do
        arrays |= {
            f"{env_name}/{name}/{part}_{k}": x.detach().numpy().astype(dtype)
            for k, pair in enumerate(layers)
            for part, x in zip(("weight", "bias"), pair)
        }
    return arrays


def main(argv: Sequence[str] | None = None) -> int:
    """Train one task's policies and put them in place of those in the file; returns the exit code."""
    parser = Parser(prog="behaviour.py", description="Train the policies that ship in behaviour.npz.")
    parser.add_argument("--env", choices=sorted(RECIPES), default="world")
    parser.add_argument("--seed", type=int, help="default: the recorded one")
    parser.add_argument("--out", type=Path, default=BEHAVIOUR_FILE, help="default: the shipped file")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # enough for small networks, and sums then do not depend on the number of cores
    try:
        check_npz(args.out)
        kept = read_npz(args.out, rf"(?!{args.env}/).*") if args.out.exists() else {}
        arrays = train_behaviour(args.env, args.seed)
        with whole_file(args.out) as part:
            np.savez_compressed(part, **kept, **arrays)
    except (ValueError, OSError) as error:
        print(f"behaviour.py: {error}", file=sys.stderr)
        return 2
    print(f"wrote {args.out}: {arrays[f'{args.env}/meta']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
