"""Tests of the compared systems, the grid runner and the benchmark: `pytest notebooks` (a minute)."""

from __future__ import annotations

import dataclasses
import itertools
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import scipy.stats
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import baselines  # noqa: E402
import benchmark  # noqa: E402
import evidence  # noqa: E402
import reproduce  # noqa: E402
import two_modes  # noqa: E402

import data  # noqa: E402
import om2p  # noqa: E402

BEST = torch.tensor([0.5, -0.5])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(algorithm: str, obs_dim: int = 3, **options) -> baselines.Baseline:
    sizes = {"hidden_dim": 64, "hidden_layers": 2, "learning_rate": 1e-3, "rho": 0.05}
    torch.manual_seed(0)
    return baselines.make_agent(obs_dim, 2, baselines.BaselineConfig(algorithm=algorithm, **sizes | options).resolve())


@pytest.mark.parametrize(("algorithm", "limit"), [("ma-fql", 0.25), ("ma-sfbc", 0.45), ("ma-cql", 0.3), ("omar", 0.3)])
def test_each_finds_the_better_actions_of_uniform_data(algorithm, limit):
    """One decision, reward - |action - best|^2, uniform data: who only clones stays 0.7 away, who learns comes near."""
    agent, g = make(algorithm), torch.Generator().manual_seed(5)
    for _ in range(600):
        obs, action = torch.randn(256, 3, generator=g), torch.rand(256, 2, generator=g) * 2 - 1
        reward = -(action - BEST).square().sum(-1, keepdim=True)
        agent.update(om2p.Batch(obs, action, reward, obs, torch.ones(256, 1)))
    action = agent.act(torch.randn(500, 3, generator=g), generator=g)
    assert (action - BEST).norm(dim=-1).mean() < limit


def test_cloning_learns_the_conditional_mean():
    agent, g = make("bc", act_with="averaged"), torch.Generator().manual_seed(5)
    for _ in range(300):
        obs = torch.randn(256, 3, generator=g)
        action = (0.5 * torch.sin(obs[:, :2]) + 0.3 * torch.randn(256, 2, generator=g)).clamp(-1, 1)
        agent.update(om2p.Batch(obs, action, torch.zeros(256, 1), obs, torch.ones(256, 1)))
    obs = torch.randn(500, 3, generator=g)
    assert (agent.act(obs) - 0.5 * torch.sin(obs[:, :2])).abs().mean() < 0.08


class Exact(torch.nn.Module):
    """The noise in, or the velocity of, actions around `BEST`: what a perfect network would answer."""

    action_dim = 2

    def __init__(self, kind: str, steps: int = 15, spread: float = 0.0) -> None:
        super().__init__()
        self.kind, self.steps, self.spread = kind, steps, spread

    def forward(self, obs, a_t, t):
        if self.kind == "velocity":
            return (BEST - a_t) / (1 - t)
        share = baselines.signal_share(self.steps)[(t * self.steps).round().long()]
        pull = share.sqrt() * self.spread**2 / (share * self.spread**2 + 1 - share)
        action = BEST + pull * (a_t - share.sqrt() * BEST)  # its mean, given a_t
        return (a_t - share.sqrt() * action) / (1 - share).sqrt()


def test_perfect_networks_generate_the_data():
    obs, g = torch.zeros(64, 3), torch.Generator().manual_seed(0)
    for steps in (5, 15):
        action = baselines.diffusion_action(Exact("noise", steps), obs, steps, g)
        assert torch.allclose(action, BEST.expand(64, 2), atol=1e-4)
    action = baselines.flow_action(Exact("velocity"), obs, torch.randn(64, 2, generator=g), 10)
    assert torch.allclose(action, BEST.expand(64, 2), atol=1e-5)


def test_the_diffusion_keeps_most_of_a_small_spread():
    g = torch.Generator().manual_seed(0)
    action = baselines.diffusion_action(Exact("noise", 15, 0.1), torch.zeros(5000, 3), 15, g)
    assert torch.allclose(action.mean(0), BEST, atol=0.01)
    assert 0.06 < (action - action.mean(0)).std() < 0.11


def test_the_diffusion_mixes_all_signal_into_noise():
    share = baselines.signal_share(15)
    assert share[0] == 1 and share[-1] < 1e-4 and (share.diff() < 0).all()


def test_the_conservative_term_is_zero_for_equal_values_and_punishes_strangers():
    """With constant critics, log-sum-exp of Q - log density over n samples, less Q, is their log-mean-density."""
    agent = make("ma-cql")
    batch = om2p.Batch(torch.randn(64, 3), torch.rand(64, 2), torch.zeros(64, 1), torch.randn(64, 3), torch.ones(64, 1))
    for critic in agent.critics:
        for p in critic.parameters():
            torch.nn.init.zeros_(p)
    _, log_density = agent.conservative_actions(batch)
    expected = 2 * torch.logsumexp(-log_density, 0)
    _, info = agent.critic_loss(batch)
    assert info["conservative"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert log_density[0].item() == pytest.approx(2 * math.log(0.5))  # uniform on a square of side 2


def test_omars_search_finds_better_actions():
    agent = make("omar")

    class Hill(torch.nn.Module):
        def forward(self, obs, action):
            return -(action - BEST).square().sum(-1, keepdim=True)

    agent.critics = torch.nn.ModuleList([Hill(), Hill()])
    start = torch.rand(256, 2) * 2 - 1
    found = agent.search(torch.zeros(256, 3), start)
    before, after = ((a - BEST).norm(dim=-1) for a in (start, found))
    assert (after <= before + 1e-6).all() and after.mean() < 0.35 * before.mean()


def test_sfbc_weights_candidates_by_softmax_of_q():
    agent = make("ma-sfbc", alpha=2.0)

    class First(torch.nn.Module):
        def forward(self, obs, action):
            return action[:, :1]

    actions = torch.tensor([[[0.1, 0.0], [0.5, 0.0], [-0.3, 0.0]]])
    weights, q = agent.weights([First()], torch.zeros(1, 3), actions)
    expected = torch.softmax(2.0 * actions[0, :, 0] / actions[0, :, 0].abs().mean(), 0)
    assert torch.allclose(weights[0], expected) and torch.equal(q, actions[..., 0])


def test_fql_may_choose_the_critics_best_of_several_actions():
    agent, obs, noise = make("ma-fql", candidates=4), torch.randn(6, 3), torch.randn(6, 4, 2)
    actions = torch.stack([agent.policy["one_step"].act(obs, noise[:, k]) for k in range(4)], 1)
    q = torch.stack([sum(critic(obs, actions[:, k]) for critic in agent.critics) for k in range(4)], 1)
    best = q[:, :, 0].argmax(1)
    torch.testing.assert_close(agent.act(obs, noise), actions[torch.arange(6), best])
    assert make("ma-fql").act(obs).shape == (6, 2) and len(best.unique()) > 1


def test_options_of_others_are_refused(capsys):
    wrong = dict.fromkeys(("--eta 3", "--times ordered", "--preset paper"), "is of OM2P")
    idle = ("--candidates 8", "--act-noise 0.5", "--alpha 3", "--flow-steps 5", "--search-weight 1")
    idle += ("--gamma 0.9", "--rho 0.1")
    wrong |= dict.fromkeys(idle, "has no effect with --algorithm bc")
    cases = [("bc", option, reason) for option, reason in wrong.items()]
    cases.append(("ma-fql", "--candidates 8 --act-noise 0", "has no effect with --act-noise 0"))
    for algorithm, options, reason in cases:
        argv = ["--algorithm", algorithm, *options.split()]
        assert om2p.main(argv, baselines.BaselineConfig, baselines.make_agent, "baselines.py") == 2
        assert f"{options.split()[0]} {reason}" in capsys.readouterr().err


def test_runs_are_continued_and_scored_by_the_program_that_made_them(tmp_path, capsys):
    file, run = tmp_path / "expert.npz", str(tmp_path / "run")
    data.make("world", "expert", file, transitions=100)
    entry = (baselines.BaselineConfig, baselines.make_agent, "baselines.py")
    small = ["--hidden-dim", "8", "--eval-every", "2", "--eval-episodes", "1", "--final-episodes", "1"]
    train = ["--algorithm", "ma-fql", "--data", str(file), *small, "--steps", "4"]
    assert om2p.main([*train, "--out", run], *entry) == 0
    assert om2p.main(["--resume", "--out", run, "--steps", "6"], *entry) == 0
    assert om2p.main(["--evaluate", run, "--episodes", "1"], *entry) == 0
    export = ["--episodes", "1", "--export", str(tmp_path / "a.pt2")]
    assert om2p.main(["--evaluate", run, *export], *entry) == 0
    obs, noise = torch.randn(5, 3, 24), torch.randn(5, 3, 1, 2)
    actions = torch.export.load(tmp_path / "a.pt2").module()(obs, noise)
    for i, saved in enumerate(torch.load(f"{run}/checkpoint.pt", weights_only=True)["agents"]):
        one_step = baselines.OneStepPolicy(24, 2, 8, 4)
        weights = {k.removeprefix("one_step."): x for k, x in saved["policy"].items() if "one_step." in k}
        one_step.load_state_dict(weights)
        assert torch.allclose(actions[:, i], one_step.act(obs[:, i], noise[:, i, 0]), atol=1e-6)
    many = str(tmp_path / "many")
    train[1] = "ma-sfbc"
    assert om2p.main([*train, "--steps", "1", "--diffusion-steps", "1", "--out", many], *entry) == 0
    for command, program, message in (
        (["--evaluate", many, *export], entry, "do not act in one step"),
        (["--evaluate", run], (), "another program"),
        (["--resume", "--out", run], (), "another program"),
    ):
        capsys.readouterr()
        assert om2p.main(command, *program) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_grids_have_the_right_runs_and_skip_what_is_done(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "tuned", lambda *_: ())
    runs = reproduce.table_1()
    assert len(runs) == len({run.key for run in runs}) == 16 * 6 * 3
    assert all(run.seed != reproduce.TUNE_SEED for run in runs)
    trials = Counter((run.cell, run.system) for run in reproduce.tuning())
    assert set(trials.values()) == {4}, "every system gets as many trials"
    path, calls = tmp_path / "grid.csv", []

    def engine(todo):
        for run in todo:
            calls.append(run)
            row = {"cell": run.cell, "command": " ".join(run.command), "system": run.system, "options": "", "seed": 1}
            row |= {"return": 1.0, "return_std": 0.0, "training_seconds": "1.0"}
            yield run, [row | {"last": "0"}, row | {"last": "1"}]

    path.write_text("cell,command,last\nworld/expert,om2p.py --seed 9,0\n")  # nothing but a run that was cut short
    reproduce.run_all(runs[:3], path, engine)
    whole = path.read_bytes()
    with open(path, "ab") as file:  # a run that was cut short while it was written
        file.write(whole.splitlines(keepends=True)[1].replace(b"--seed 1", b"--seed 9"))
    reproduce.run_all(runs[:5], path, engine)
    assert calls == runs[:5]
    assert len(reproduce.read(path)) == 10 and b"--seed 9" not in path.read_bytes()

    def failing(todo):
        for run in todo[:1]:
            yield run, RuntimeError("nan in a loss")
        yield from engine(todo[1:])

    with pytest.raises(RuntimeError, match="1 of 2 runs failed, the others are done; the first: nan in a loss"):
        reproduce.run_all(runs[:7], path, failing)
    assert calls == [*runs[:5], runs[6]] and len(reproduce.read(path)) == 12


@pytest.mark.parametrize("name", ["local", "ray"])
def test_engines_give_the_same_rows(name, tmp_path, monkeypatch):
    """Two runs at a time, in processes here or in a real local Ray of two workers, end as `train` does here."""
    if name == "ray":
        pytest.importorskip("ray")
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr(reproduce.os, "cpu_count", lambda: 2)
    data.collect("world", "expert", 1000, progress=False).save(tmp_path / "world-expert.npz")
    monkeypatch.setattr(reproduce, "DATA", tmp_path)
    tiny = ("--steps", "4", "--eval-every", "2", "--final-episodes", "3", "--hidden-dim", "8")
    runs = [reproduce.Run(system, "world/expert", 7, tiny) for system in ("om2p", "bc")]
    engine = reproduce.ray_engine if name == "ray" else reproduce.local_engine(2)
    reproduce.run_all(runs, tmp_path / "grid.csv", engine)
    rows = reproduce.read(tmp_path / "grid.csv")
    assert [row["step"] for row in rows if row["system"] == "om2p"] == ["2", "4", "4"]
    assert {row["system"] for row in rows} == {"om2p", "bc"} and {row["seed"] for row in rows} == {"7"}
    config = om2p.Config(data=str(tmp_path / "world-expert.npz"), out=str(tmp_path / "run"), seed=7)
    config = dataclasses.replace(config, steps=4, eval_every=2, final_episodes=3, hidden_dim=8, learning_rate=1e-3)
    last = next(row for row in rows if row["system"] == "om2p" and row["last"] == "1")
    assert om2p.train(config)[1]["return"] == pytest.approx(float(last["return"]), rel=1e-4)


def test_the_recommended_settings_are_those_that_the_search_found():
    for cell in reproduce.CELLS:
        env, quality = cell.split("/")
        eta, act_noise = om2p.RECOMMENDED[env][om2p.QUALITIES.index(quality)]
        best = reproduce.found("om2p", cell)
        given = {"--eta": f"{eta:g}", "--act-noise": f"{act_noise:g}"}
        given["--cloning"] = "weighted" if (env, quality) in om2p.WEIGHTED else "plain"
        assert all(given[name] == value for name, value in zip(best[::2], best[1::2], strict=True))


def test_the_search_takes_the_nearest_to_the_data_of_equals(tmp_path, monkeypatch):
    """MA-FQL, alpha 0.01 to 0.0003: 81 is further from 100 than the standard error of 10, 91 is not."""
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    runs = [run for run in reproduce.tuning() if (run.cell, run.system) == ("world/medium-expert", "ma-fql")]
    figures = {"return_std": 50.0, "episodes": 25, "last": 1}
    rows = [dict(zip(("cell", "command"), run.key)) | figures for run in runs]
    rows = [row | {"return": value} for row, value in zip(rows, (81, 91, 100, 95))]
    reproduce.append(tmp_path / "tune.csv", rows[:3])
    with pytest.raises(RuntimeError, match="--tune"):
        reproduce.found("ma-fql", "world/medium")
    reproduce.append(tmp_path / "tune.csv", rows[3:])
    assert reproduce.found("ma-fql", "world/medium") == ("--alpha", "0.003")


def test_the_grid_runner_takes_whole_words(monkeypatch, capsys):
    """`bc` is not `ma-sfbc`; what no run has, or a search that is not complete, ends in one line."""
    chosen = []
    monkeypatch.setattr(reproduce, "run_all", lambda runs, *_: chosen.extend(runs))
    for only in (["world", "bc", "seed 1"], ["world/expert", "om2p"]):
        monkeypatch.setattr(sys, "argv", ["reproduce.py", "--table", "1", "--only", *only])
        reproduce.main()
    found = [(run.cell, run.system, run.seed) for run in chosen]
    world = [f"world/{quality}" for quality in om2p.QUALITIES]
    assert found == [(cell, "bc", 1) for cell in world] + [("world/expert", "om2p", seed) for seed in (1, 2, 3)]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--table", "1", "--only", "world/"])
    with pytest.raises(SystemExit, match="2"):
        reproduce.main()
    assert "--only world/: no run has that" in capsys.readouterr().err

    def incomplete(*_):
        raise RuntimeError("world/expert omar: run reproduce.py --tune first")

    monkeypatch.setattr(reproduce, "run_all", incomplete)
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "--table", "1"])
    with pytest.raises(SystemExit, match="2"):
        reproduce.main()
    assert capsys.readouterr().err == "reproduce.py: world/expert omar: run reproduce.py --tune first\n"


def test_table_2_prints_what_is_there_and_runs_nothing_again():
    before = (reproduce.RESULTS / "table_2.csv").read_bytes()
    command = [sys.executable, reproduce.__file__, "--table", "2"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert out.returncode == 0 and out.stdout.count(" steps)\n") == 6, out.stderr
    assert (reproduce.RESULTS / "table_2.csv").read_bytes() == before
    refused = subprocess.run([*command, "--show"], capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2 and "--table 2 times one system after the other" in refused.stderr


def test_pictures_and_verdicts_of_whole_grids(tmp_path, monkeypatch):
    """Made-up returns in which MA-FQL is best on World medium and OM2P everywhere else."""
    monkeypatch.setattr(reproduce, "tuned", lambda *_: ())
    for name in evidence.PICTURES:
        rows = []
        for run in reproduce.GRIDS[name]():
            value = 100.0 + 5 * list(reproduce.SYSTEMS).index(run.system) + run.seed
            value += 20 if (run.cell, run.system) == ("world/medium", "ma-fql") else 0
            value -= 30 if "--objective q" in " ".join(run.settings) else 0
            value += 9 if "0.1" in run.settings and run.cell == "world/expert" else 0
            value -= 40 if "zero" in run.settings and run.cell.startswith("spread") else 0
            row = {"cell": run.cell, "system": run.system, "options": " ".join(run.settings), "seed": run.seed}
            row |= {"command": " ".join(run.command), "return": value}
            rows += [row | {"step": step, "last": str(int(step == 1000))} for step in (500, 1000)]
        rows.sort(
            key=lambda row: -row["seed"] if row["cell"] == "world/medium" else row["seed"]
        )  # as runs happen to end
        reproduce.append(tmp_path / f"{name}.csv", rows)
    (tmp_path / "cells.csv").write_bytes((evidence.RESULTS / "cells.csv").read_bytes())
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    for name in evidence.PICTURES:
        evidence.picture(name).savefig(tmp_path / f"{name}.png")
        drawn = [axes for axes in evidence.picture(name).axes if axes.has_data()]
        assert len(drawn) == {"table1": 4, "figure2": 2, "figure3": 4, "figure4": 2, "ablations": 5}[name]
        if name == "figure2":  # a curve for each step and the exact derivative, and the data's return
            assert [len(axes.lines) for axes in drawn] == [5, 10]
    text = "\n".join(evidence.verdicts_table_1())
    assert text.count("    MA-FQL: +5.0 +- 0.0, above (3 seeds); x 1.04 (paper x 1.09)") == 1  # World: 127 / 122
    assert text.count("    OMAR: +20.0 +- 0.0, above (3 seeds); x 1.19") == 4  # 127 / 107
    assert text.count("x 1.19 (paper x 2.47)") == 1
    assert text.count("best MA-FQL, OM2P 10 behind (MA-FQL's standard deviation: 1)") == 1
    assert text.count(": best OM2P, recommended") == 15 and "under BC" not in text
    two, three, four, alone = (verdicts() for verdicts in evidence.VERDICTS.values())
    equal, higher = (f"{verdict} (3 seeds)" for verdict in ("+0.0 +- 0.0, not told apart", "+9.0 +- 0.0, above"))
    assert two.count(f"    OM2P, paper: {equal}; along the curve {equal}") == 1 and len(two) == 12
    assert f"    --delta-r 0.1 --derivative-dtype float64: {higher}; along the curve {higher}" in two
    assert "    OM2P, paper, expert: -9.0 +- 0.0, below (3 seeds); best 0.1" in three and len(three) == 9
    assert "    OM2P, recommended, only Q: -30.0 +- 0.0, below (3 seeds)" in four and len(four) == 6
    assert "    OM2P, paper, uniform times on medium-replay, medium: +0.0 +- 0.0, not told apart (3 seeds)" in four
    changes = {line[4:28].strip(): line[28:].split() for line in alone[1:]}
    cells = ["world/medium-replay", "world/medium-expert", "spread/medium-replay", "spread/medium-expert"]
    assert changes[""] == [*cells, "cheetah/medium-expert"] and len(changes) == 17
    same, less = ["+0.0", "+-", "0.0"], ["-40.0", "+-", "0.0*"]
    assert changes["--derivative zero"] == same * 2 + less * 2 + same
    assert changes["MA-FQL"] == changes["MA-FQL, best of eight"] == ["-10.0", "+-", "0.0*"] * 5


def test_differences_are_judged_seed_by_seed():
    """With three seeds t must be beyond 4.30: 2, 3, 7 have a mean of 4 and t = 2.6; 2, 3, 4 have t = 5.2."""
    assert evidence.T_95 == tuple(scipy.stats.t.ppf(0.975, range(1, 10)).round(2))
    b = {1: 10.0, 2: 20.0, 3: 30.0, 9: 0.0}
    assert evidence.above({3: 37.0, 1: 12.0, 2: 23.0}, b) == "+4 +- 2, not told apart (3 seeds)"
    assert evidence.above({3: 34.0, 1: 12.0, 2: 23.0}, b) == "+3.0 +- 0.6, above (3 seeds)"
    assert evidence.above({1: 8.0}, b) == "-2 (one seed)" and evidence.ablation_text({1: 8.0}, b) == "-2"
    assert evidence.above({4: 8.0}, b) == "no seed in common" and evidence.ablation_text({4: 8.0}, b) == "-"


def test_table_1_says_what_it_has(tmp_path, monkeypatch):
    """A verdict uses the seeds that both have; a system with two settings is refused; without files there is none."""
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    (tmp_path / "cells.csv").write_bytes((reproduce.RESULTS / "cells.csv").read_bytes())
    assert "has not been run" in evidence.text_table_2()
    rows = []
    for system, quality in itertools.product(("bc", "ma-fql", "om2p"), om2p.QUALITIES):
        for seed in (1, 2) if system == "om2p" else (1,):
            row = {"cell": f"tag/{quality}", "system": system, "options": "", "seed": seed}
            value = 50 if seed == 2 else 90 if system == "ma-fql" else 80
            rows.append(row | {"command": f"{system} {seed}", "return": value, "last": 1})
    reproduce.append(tmp_path / "table1.csv", rows)
    text = "\n".join(evidence.verdicts_table_1())
    assert "Predator-Prey: not all four kinds of data run yet: OMAR, MA-SfBC, OM2P, paper" in text
    assert "    BC: +0 (one seed)\n    MA-FQL: -10 (one seed); x 0.89 (paper x 1.04)" in text
    assert "  expert: best MA-FQL, OM2P 10 behind; x" in text
    assert "World: not all four kinds of data run yet: BC, OMAR, MA-SfBC, MA-FQL, OM2P, paper, OM2P, rec" in text
    assert "World: average" not in text
    reproduce.append(tmp_path / "table1.csv", [rows[0] | {"options": "--alpha 3", "command": "other"}])
    with pytest.raises(ValueError, match="two settings of bc on tag/medium-replay"):
        evidence.table_1()


def test_equal_training_time(tmp_path, monkeypatch):
    """MA-FQL costs twice as much and learns twice as fast; OMAR three times and half as fast again; BC costs less."""
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    slopes, rows = {"om2p": 1.0, "ma-fql": 2.0, "omar": 1.5, "bc": 9.0}, []
    for system, quality, seed in itertools.product(slopes, om2p.QUALITIES, (1, 2, 3)):
        for step in (500, 1000, 1500, 2000, 2500, 2500):
            last = int(sum(row["step"] == 2500 for row in rows[-1:]) and step == 2500)
            row = {
                "cell": f"world/{quality}",
                "system": system,
                "options": "",
                "seed": seed,
                "last": last,
                "step": step,
            }
            value = -1 if last else slopes[system] * step / 10 + seed
            rows.append(row | {"command": f"{system} {quality} {seed}", "return": value})
    reproduce.append(tmp_path / "table1.csv", rows)
    costs = {
        "om2p": 1.0,
        "om2p, weighted cloning": 1.5,
        "om2p-paper": 2.0,
        "ma-fql": 2.0,
        "ma-sfbc": 9.0,
        "omar": 3.0,
        "bc": 0.2,
    }
    figures = [{"figure": f"{s}: update at width 128 / om2p's", "value": cost} for s, cost in costs.items()]
    reproduce.append(tmp_path / "benchmark.csv", figures)
    fql, omar = "+0.0 +- 0.0, not told apart (3 seeds)", "+125.0 +- 0.0, above (3 seeds)"
    assert evidence.verdicts_equal_time()[1:] == [
        f"    World, OMAR after 833 steps: {omar}",
        f"    World, MA-FQL after 1250 steps: {fql}",
    ]


def test_the_mean_of_two_modes_is_near_none():
    batch = two_modes.sample_data(2000, torch.Generator().manual_seed(0))
    assert two_modes.near_share(batch.action) > 0.99
    assert two_modes.near_share(batch.action.mean(0, keepdim=True)) == 0


def test_the_benchmark_counts_all_products():
    """Of a perceptron 3 - 5 - 2 on 4 rows: forward, weight gradients, and one input gradient."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.GELU(), torch.nn.Linear(5, 2))
    with benchmark.Products() as products:
        net(torch.randn(4, 3)).square().sum().backward()
    layers = [2 * 4 * 3 * 5, 2 * 4 * 5 * 2]
    assert products.flop() == 2 * sum(layers) + layers[1]
    calls = sum(products.seen.values())
    with benchmark.Products() as again:
        products.replay()()
    assert again.seen == products.seen and calls == 5


@pytest.mark.parametrize("name", list(benchmark.SYSTEMS))
def test_the_benchmark_replays_and_weighs_every_system(name):
    agents, batch = benchmark.make_agents(benchmark.SYSTEMS[name] | {"hidden_dim": 8}, 2), benchmark.random_batch(16)
    with benchmark.Products() as products:
        benchmark.step(agents, batch)
    products.replay()()
    one, two = benchmark.training_bytes(agents[:1], batch), benchmark.training_bytes(agents, batch)
    networks = [p for part in ("policy", "critics") for p in getattr(agents[1], part).parameters()]
    own = 4 * sum(p.nbytes for p in networks)  # weights, targets, and Adam's two moments
    assert own <= two - one <= 1.05 * own + 8192  # Adam's counters and the random stream come on top


def test_the_benchmark_sees_the_peak_of_memory():
    def update() -> None:
        first = torch.zeros(1000)
        second = first.neg()
        del first
        torch.zeros(500)
        del second

    assert benchmark.peak_bytes(update) == 8000


def test_the_benchmark_draws_every_part(tmp_path):
    systems = ["update, 1 thread", "its own products, 1 thread", "training memory"]
    figures = [f"{name}: {what}" for name in benchmark.SYSTEMS for what in systems]
    ways = ("mean flow, 1 step", "mean flow, the critics' best of 8", "flow, 10 steps", "diffusion, 15 steps")
    figures += [f"{way}: {n} observations" for way in ways for n in (1, 10, 1000)]
    grown = benchmark.GROWTH.items()
    figures += [f"{v} {what}: {y}" for what, values in grown for v in values for y in ("update", "training memory")]
    benchmark.draw([{"figure": figure, "value": "2.5"} for figure in figures], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
