"""Tests of the grid runner, of what the evidence says, and of the benchmark: `pytest notebooks/lab`."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
import scipy.stats
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import benchmark  # noqa: E402
import evidence  # noqa: E402
import reproduce  # noqa: E402

import data  # noqa: E402
import om2p  # noqa: E402

MARKED = {"om2p": evidence.OURS, "om2p-paper": evidence.PAPERS}


def rows_of(run: reproduce.Run, *returns: float) -> list[dict]:
    """Made-up rows of a run, evaluated every 500 steps and at its end."""
    row = {"cell": run.cell, "system": run.system, "options": run.options, "seed": run.seed, "command": run.command}
    row |= {"return_std": 50.0, "training_seconds": "1.0", "episodes": 25}
    steps = [row | {"return": value, "step": 500 * k, "last": 0} for k, value in enumerate(returns, 1)]
    return [*steps, steps[-1] | {"last": 1}]


def test_a_grid_skips_what_is_done_and_goes_on_after_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "tuned", lambda *_: "")
    assert len(set(reproduce.table_1())) == 16 * 6 * 3
    trials = Counter((run.cell, run.system) for run in reproduce.tuning())
    assert set(trials.values()) == {4}, "every system gets as many trials"
    runs, path, calls = reproduce.figure_3(), tmp_path / "grid.csv", []

    def engine(todo):
        for run in todo:
            calls.append(run)
            yield run, RuntimeError("nan in a loss") if run == runs[2] else rows_of(run, 1.0)

    rows = [rows_of(runs[0], 1.0)[1] | {"system": evidence.OURS}, *rows_of(runs[1], 1.0)]  # one of another method
    reproduce.write(path, rows)
    with pytest.raises(RuntimeError, match="1 of 3 runs failed, the others are done; the first: nan in a loss"):
        reproduce.run_all(runs[:4], path, engine)
    assert calls == [runs[0], *runs[2:4]] and len(reproduce.table(path)) == len(rows) + 4


@pytest.mark.parametrize("name", ["local_engine", "ray_engine"])
def test_engines_give_the_same_rows(name, tmp_path, monkeypatch):
    """Two runs, in processes here or in a real local Ray, end as `train` does here."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(reproduce, "DATA", tmp_path)
    data.collect("world", "expert", 1000, progress=False).save(tmp_path / "world-expert.npz")
    tiny = "--steps 4 --eval-every 2 --final-episodes 3 --hidden-dim 8"
    runs, grid = [reproduce.Run(s, "world/expert", 7, tiny) for s in ("om2p", "bc")], tmp_path / "grid.csv"
    reproduce.run_all(runs, grid, getattr(reproduce, name))
    steps = Counter(row["system"] + row["step"] + row["seed"] for row in reproduce.table(grid))
    assert steps == {"om2p27": 1, "om2p47": 2, "bc27": 1, "bc47": 2}
    given = {"data": str(tmp_path / "world-expert.npz"), "out": str(tmp_path / "run"), "seed": 7, "hidden_dim": 8}
    given |= {"steps": 4, "eval_every": 2, "final_episodes": 3, "learning_rate": 1e-3}
    _, summary = om2p.train(om2p.Config.of("world", "expert", **given))
    assert summary["return"] == pytest.approx(float(reproduce.ended(grid)[runs[0].key]["return"]), rel=1e-4)


def test_the_search_takes_the_nearest_to_the_data_of_equals(tmp_path, monkeypatch):
    """MA-FQL, alpha 0.01 to 0.0003: 81 is further from 100 than the standard error of 10, 91 is not."""
    rows = reproduce.table(reproduce.RESULTS / "tune.csv")
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    tried = [rows_of(run, x) for run, x in zip(reproduce.trials("ma-fql", "world/medium-expert"), (81, 91, 100, 95))]
    reproduce.append(tmp_path / "tune.csv", sum(tried[:3], []))
    with pytest.raises(RuntimeError, match="--tune"):
        reproduce.found("ma-fql", "world/medium")
    reproduce.append(tmp_path / "tune.csv", tried[3])
    assert reproduce.found("ma-fql", "world/medium") == "--alpha 0.003"
    for row in rows:  # of the method at that commit, until the search is run anew
        row |= {k: row[k].replace("@5c7f10a", "").replace(" --cloning plain", "") for k in ("system", "command")}
    reproduce.write(tmp_path / "tune.csv", rows)
    for cell in reproduce.CELLS:  # OM2P's table has what the search found
        assert reproduce.tuned.__wrapped__("om2p", cell).startswith(reproduce.found("om2p", cell))


def test_the_grid_runner_takes_whole_words_and_says_errors_in_one_line(monkeypatch, capsys):
    """`bc` is not `ma-sfbc`; what no run has, or a search that is not complete, ends in one line."""

    def run(only: str, grid: object = reproduce.table_1) -> list[tuple[str, str, int]]:
        chosen = []
        monkeypatch.setattr(reproduce, "run_all", lambda runs, *_: chosen.extend(runs))
        monkeypatch.setattr(sys, "argv", ["reproduce.py", "--table", "1", "--only", *only.split(",")])
        monkeypatch.setitem(reproduce.GRIDS, "table1", grid)
        reproduce.main()
        return [(run.cell, run.system, run.seed) for run in chosen]

    assert run("world,bc,seed 1") == [(cell, "bc", 1) for cell in reproduce.WORLD]
    for arguments in (("world/",), ("world", lambda: reproduce.found("omar", "world/no"))):
        with pytest.raises(SystemExit, match="2"):
            run(*arguments)
    *_, unknown, incomplete = capsys.readouterr().err.splitlines()
    assert unknown.endswith("--only world/: no run has that")
    assert incomplete == "reproduce.py: world/no omar: run reproduce.py --tune first"


def test_pictures_and_verdicts_of_whole_grids(tmp_path, monkeypatch):
    """Made-up returns in which MA-FQL is best on World medium and OM2P everywhere else."""
    monkeypatch.setattr(reproduce, "tuned", lambda *_: "")
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)

    def made_up(run: reproduce.Run) -> list[dict]:
        value = 100.0 + 5 * list(reproduce.SYSTEMS).index(run.system) + run.seed
        value += 20 * ((run.cell, run.system) == ("world/medium", "ma-fql")) - 30 * ("--objective q" in run.options)
        value += 9 * (" 0.1" in run.options and "expert" in run.cell) - 40 * ("zero" in run.options)
        return [row | {"system": MARKED.get(run.system, run.system)} for row in rows_of(run, value)]

    for name, panels in {"table1": 4, "figure2": 2, "figure3": 2, "figure4": 2, "ablations": 5}.items():
        runs = sorted(reproduce.GRIDS[name](), key=lambda run: -run.seed)  # in whatever order they end
        reproduce.write(tmp_path / f"{name}.csv", sum(map(made_up, runs), []))
        figure = evidence.picture(name)
        figure.savefig(tmp_path / f"{name}.png")
        assert sum(axes.has_data() for axes in figure.axes) == panels
        if name == "figure2":  # a curve for each step and the exact derivative, and the data's return
            assert [len(axes.lines) for axes in figure.axes] == [5, 10]
    one, _, two, three, four, alone = ("\n".join(verdicts()) for verdicts in evidence.VERDICTS.values())
    assert "127 +- 1 (203.1)" in evidence.text_table_1()[1]
    assert one.count("    MA-FQL: +5.0 +- 0.0, above (3 seeds); x 1.04 (paper x 1.09)") == 1  # World: 127 / 122
    assert one.count("    OMAR: +20.0 +- 0.0, above (3 seeds); x 1.19") == 4  # 127 / 107
    assert one.count("best MA-FQL, OM2P 10 behind (MA-FQL's standard deviation: 1)") == 1
    equal, higher = "+0.0 +- 0.0, not told apart (3 seeds)", "+9.0 +- 0.0, above (3 seeds)"
    assert f"{evidence.OURS_NAME}: {equal}; along the curve {equal}" in two
    assert f"    0.1, float64: {higher}; along the curve {higher}" in two
    assert f"{evidence.PAPERS_NAME}, expert: -9.0 +- 0.0, below (3 seeds); best 0.1" in three
    assert f"{evidence.OURS_NAME}, only Q: -30.0 +- 0.0, below (3 seeds)" in four
    assert f"{evidence.PAPERS_NAME}, uniform times on medium-replay, medium: {equal}" in four
    changes = {line[4:28].strip(): line[28:].split() for line in alone.splitlines()}
    assert changes["--derivative zero"] == ["-40.0", "+-", "0.0*"] * 5
    assert changes["MA-FQL"] == changes["MA-FQL, best of eight"] == ["-10.0", "+-", "0.0*"] * 5
    reproduce.append(tmp_path / "table1.csv", made_up(reproduce.Run("bc", "tag/medium", 1, "--alpha 3")))
    with pytest.raises(ValueError, match="two settings of bc on tag/medium"):
        evidence.table_1()


def test_differences_are_judged_seed_by_seed():
    """With three seeds t must be beyond 4.30: 2, 3, 7 have a mean of 4 and t = 2.6; 2, 3, 4 have t = 5.2."""
    assert evidence.T_95 == tuple(scipy.stats.t.ppf(0.975, range(1, 10)).round(2))
    b = {1: 10.0, 2: 20.0, 3: 30.0, 9: 0.0}
    assert evidence.above({3: 37.0, 1: 12.0, 2: 23.0}, b) == "+4 +- 2, not told apart (3 seeds)"
    assert evidence.above({3: 34.0, 1: 12.0, 2: 23.0}, b) == "+3.0 +- 0.6, above (3 seeds)"
    assert evidence.above({1: 8.0, 4: 8.0}, b) == "-2, not told apart (1 seed)"
    assert evidence.above({4: 8.0}, b) == "-, not told apart (0 seeds)"


def test_equal_training_time(tmp_path, monkeypatch):
    """MA-FQL costs twice as much and learns twice as fast; OMAR three times and half as fast again; BC costs less."""
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    slopes, costs = {"om2p": 1.0, "ma-fql": 2.0, "omar": 1.5, "bc": 9.0}, {"ma-fql": 2.0, "omar": 3.0, "bc": 0.2}
    for run in reproduce.grid(reproduce.WORLD, [(system, "") for system in slopes]):
        rows = rows_of(run, *(slopes[run.system] * step / 10 + run.seed for step in range(500, 3000, 500)))
        reproduce.append(
            tmp_path / "table1.csv", [row | {"system": MARKED.get(run.system, run.system)} for row in rows]
        )
    figures = [{"figure": f"{s}: update at width 128 / {evidence.OURS}'s", "value": x} for s, x in costs.items()]
    reproduce.write(tmp_path / "benchmark.csv", figures)
    assert evidence.verdicts_equal_time()[1:] == [
        "    World, OMAR after 833 steps: +125.0 +- 0.0, above (3 seeds)",
        "    World, MA-FQL after 1250 steps: +0.0 +- 0.0, not told apart (3 seeds)",
    ]


def test_table_2_measures_what_is_missing_and_nothing_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    name = "om2p-paper, full Jacobian"
    monkeypatch.setitem(benchmark.TABLE_2, name, benchmark.EXACT | {"hidden_dim": 8, "batch_size": 8})
    printed = []
    for _ in range(2):
        benchmark.table_2([name], 200)
        printed.append((capsys.readouterr().out, (tmp_path / "table_2.csv").read_bytes()))
    assert printed[0] == printed[1] and printed[0][0].endswith("(2 steps)\n")


@pytest.mark.parametrize("name", list(benchmark.SYSTEMS))
def test_the_benchmark_weighs_every_system(name):
    agents, batch = benchmark.make_agents(benchmark.SYSTEMS[name] | {"hidden_dim": 8}, 2), benchmark.random_batch(16)
    one, two = benchmark.training_bytes(agents[:1], batch), benchmark.training_bytes(agents, batch)
    policy, critics = (sum(p.nbytes for p in getattr(agents[1], part).parameters()) for part in ("policy", "critics"))
    own = (
        4 * policy + (2 if name == "bc" else 4) * critics
    )  # weights, targets, two moments of Adam; BC trains no critics
    assert own <= two - one <= 1.05 * own + 8192  # Adam's counters and the random stream come on top
    assert benchmark.peak_bytes(lambda: torch.zeros(1000).neg()[:500].sqrt()) == 8000  # and never all three


def test_the_benchmark_draws_what_it_has(tmp_path):
    rows = reproduce.table(reproduce.RESULTS / "benchmark.csv")
    reproduce.picture(lambda figure: benchmark.draw(figure, rows), (12, 4)).savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
