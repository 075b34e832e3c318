"""Tests of the training of the shipped policies: `pytest notebooks/lab`."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import behaviour
import gymnasium
import numpy as np
import pytest
import torch

import data


def test_a_team_is_kept_when_it_first_reaches_a_return(capsys):
    """With low bars, to be quick; what is printed on the way says when they were reached."""
    torch.set_num_threads(1)
    shipped = data.Behaviour("world")
    bars = {"medium_return": -1.5, "expert_return": 0.0}
    recipe = dataclasses.replace(behaviour.RECIPES["world"], seed=shipped.meta["seed"], **bars)
    policies, meta = behaviour.train_team(shipped.env, recipe)
    lines = [line.replace(",", "").split() for line in capsys.readouterr().out.splitlines()]
    values = {int(step): float(value) for step, _, _, value in lines}  # rounded to a tenth
    assert meta["expert_steps"] == max(values)
    for quality in ("medium", "expert"):
        bar, step = bars[f"{quality}_return"], meta[f"{quality}_steps"]
        assert meta[f"{quality}_return"] >= bar
        assert values[step] == pytest.approx(meta[f"{quality}_return"], abs=0.051)
        assert all(value < bar + 0.051 for earlier, value in values.items() if earlier < step)
        act = partial(behaviour.act, policies[quality])
        assert data.mean_return(act, shipped.env) == pytest.approx(meta[f"{quality}_return"])


def test_the_cheetahs_critics_see_what_gymnasiums_agent_does():
    env, gym = data.Behaviour("halfcheetah").env, gymnasium.make("HalfCheetah-v5").unwrapped
    env.reset(2, torch.Generator().manual_seed(0))
    gym.set_state(env.qpos[1], env.qvel[1])
    torch.testing.assert_close(behaviour.observe(env)[1][1], torch.tensor(gym._get_obs()).float())
    recipe = dataclasses.replace(behaviour.RECIPES["halfcheetah"], worlds=1, updates=0)
    assert next(behaviour.train_td3(env, recipe, 1000, seed=0))[0] == 1000


def test_training_the_shipped_policies(tmp_path, monkeypatch, capsys):
    """With a low bar, to be quick: what is written is what the training measured; a bar out of reach leaves nothing."""
    recipe = behaviour.RECIPES["world"]
    low = dataclasses.replace(recipe, prey_age=800, medium_return=-math.inf, expert_return=-math.inf)
    monkeypatch.setitem(behaviour.RECIPES, "world", low)
    out = tmp_path / "behaviour.npz"
    np.savez(out, **{"world/old": np.ones(1), "tag/kept": np.ones(1)})
    assert behaviour.main(["--env", "world", "--out", str(out)]) == 0
    assert set(data.read_npz(out, "world/old|tag/.*")) == {"tag/kept"}
    monkeypatch.setattr(data, "BEHAVIOUR_FILE", out)
    written = data.Behaviour("world")
    assert written.meta["medium_steps"] == written.meta["random_steps"] == 800
    for quality in ("medium", "expert"):
        value = data.mean_return(written.policy(quality), written.env)
        assert value == pytest.approx(written.meta[f"{quality}_return"], rel=1e-5)
    obs = written.env.reset(8, torch.Generator().manual_seed(0))
    last = written.policy(f"replay_{data.REPLAY - 1}")(obs)
    assert last.shape == (8, 3, 2) and not torch.equal(last, written.policy("medium")(obs))
    before = out.read_bytes()
    monkeypatch.setitem(behaviour.RECIPES, "world", dataclasses.replace(low, expert_return=math.inf, steps=800))
    capsys.readouterr()
    assert behaviour.main(["--out", str(out)]) == 2
    assert "try another seed" in capsys.readouterr().err
    assert out.read_bytes() == before and list(tmp_path.iterdir()) == [out]
