"""Tests of the grids, the evidence and the benchmark: `pytest notebooks/lab`."""

import sys
from collections import Counter

import benchmark
import evidence
import pytest
import reproduce
import torch

import data
import om2p


def rows_of(run: reproduce.Run, *returns: float) -> list[dict]:
    """Made-up rows of a run, evaluated every 500 steps and at its end."""
    row = {"cell": run.cell, "system": run.system, "options": run.options, "seed": run.seed}
    row |= {"command": run.command, "return_std": 50.0, "training_seconds": "1.0", "episodes": 25}
    steps = [row | {"return": value, "step": 500 * k, "last": 0} for k, value in enumerate(returns, 1)]
    return [*steps, steps[-1] | {"last": 1}]


def test_a_grid_skips_what_is_done_and_goes_on_after_a_failure(tmp_path):
    runs, path, calls = reproduce.grid(reproduce.WORLD, [("bc", "")]), tmp_path / "grid.csv", []

    def engine(todo):
        for run in todo:
            calls.append(run)
            yield run, RuntimeError("nan in a loss") if run == runs[2] else rows_of(run, 1.0)

    rows = [rows_of(runs[0], 1.0)[1] | {"system": "bc@5c7f10a"}, *rows_of(runs[1], 1.0)]  # one of another method
    data.write_csv(path, rows)
    with pytest.raises(RuntimeError, match="1 of 3 runs failed, the others are done; the first: nan in a loss"):
        reproduce.run_all(runs[:4], path, engine)
    assert calls == [runs[0], *runs[2:4]] and len(reproduce.table(path)) == len(rows) + 4


@pytest.mark.parametrize("name", ["local_engine", "ray_engine"])
def test_engines_give_the_same_rows(name, tmp_path, monkeypatch):
    """Two runs, in processes here or in a real local Ray, end as `train` does here."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(reproduce, "DATA", tmp_path)
    data.collect("world", "expert", 1000).save(tmp_path / "world-expert.npz")
    tiny, grid = "--steps 4 --eval-every 2 --final-episodes 3 --hidden-dim 8", tmp_path / "grid.csv"
    runs = [reproduce.Run(system, "world/expert", 7, tiny) for system in ("om2p", "bc")]
    reproduce.run_all(runs, grid, getattr(reproduce, name))
    steps = Counter(row["system"] + row["step"] for row in reproduce.table(grid))
    assert steps == {"om2p2": 1, "om2p4": 2, "bc2": 1, "bc4": 2}
    places = {"data": str(tmp_path / "world-expert.npz"), "out": str(tmp_path / "run")}
    same = dict(seed=7, hidden_dim=8, steps=4, eval_every=2, final_episodes=3, learning_rate=1e-3)
    _, last = om2p.train(om2p.Config.of("world", "expert", **places, **same))
    assert last["return"] == pytest.approx(float(reproduce.ended(grid)[runs[0].key]["return"]), rel=1e-4)


def test_the_search_takes_the_nearest_to_the_data_of_equals(tmp_path, monkeypatch):
    """MA-FQL, alpha 3 to 0.3, returns on two kinds of data: 170 is further from 200 than the standard error of 20."""
    monkeypatch.setattr(reproduce, "RESULTS", tmp_path)
    runs = [run for pair in reproduce.trials("ma-fql", "spread/expert").values() for run in pair]
    tried = [rows_of(run, x) for run, x in zip(runs, (60, 110, 105, 80, 90, 110))]
    data.write_csv(tmp_path / "tune.csv", sum(tried[:5], []))
    with pytest.raises(RuntimeError, match="--tune"):
        reproduce.found("ma-fql", "spread/medium")
    reproduce.append(tmp_path / "tune.csv", tried[5])
    assert reproduce.found("ma-fql", "spread/medium") == "--alpha 1"


def test_the_settings_are_what_the_equal_search_found():
    counts = Counter((run.cell, run.system) for run in reproduce.tuning())
    assert all(counts[cell, "ma-fql"] == count for (cell, system), count in counts.items() if system == "om2p")
    assert all(counts[cell, "omar"] == count for (cell, system), count in counts.items() if system == "ma-sfbc")
    for cell in reproduce.CELLS:
        assert reproduce.tuned("om2p", cell).startswith(reproduce.found("om2p", cell))


def test_om2p_and_ma_fql_look_equally_far_ahead_in_table_1():
    given = {(run.cell, run.system): run.options.partition("--gamma ")[2] for run in reproduce.table_1()}
    for (cell, system), gamma in given.items():
        own = om2p.Config.of(*cell.split("/")).gamma  # what OM2P takes without the option
        assert float(gamma or 0.99) == (own if system in ("om2p", "ma-fql") else 0.99)


def test_the_grid_runner_takes_whole_words_and_says_errors_in_one_line(monkeypatch, capsys):
    def run_all(runs, *_):
        raise RuntimeError(f"{len(runs)} of {runs[0].system}")

    monkeypatch.setattr(reproduce, "run_all", run_all)
    for only, message in (
        (["world", "bc"], "reproduce.py: 12 of bc\n"),
        (["world/"], "--only world/: no run has that\n"),
    ):
        monkeypatch.setattr(sys, "argv", ["reproduce.py", "--table", "1", "--only", *only])
        with pytest.raises(SystemExit, match="2"):
            reproduce.main()
        assert capsys.readouterr().err.endswith(message)


def test_pictures_and_verdicts_of_whole_grids(tmp_path, monkeypatch):
    """Made-up returns in which MA-FQL is best on World medium and OM2P everywhere else."""
    monkeypatch.setattr(reproduce, "tuned", lambda *_: "")
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)

    def made_up(run: reproduce.Run) -> list[dict]:
        value = 100.0 + 5 * list(reproduce.SYSTEMS).index(run.system) + run.seed
        value += 20 * ((run.cell, run.system) == ("world/medium", "ma-fql")) - 30 * ("--objective q" in run.options)
        return rows_of(run, value + 9 * (" 0.1" in run.options) - 40 * ("zero" in run.options))

    for name, panels in {"table1": 4, "figure2": 2, "figure3": 1, "figure4": 1, "ablations": 3}.items():
        runs = sorted(reproduce.GRIDS[name](), key=lambda run: -run.seed)  # in whatever order they end
        data.write_csv(tmp_path / f"{name}.csv", sum(map(made_up, runs), []))
        figure = evidence.picture(name)
        figure.savefig(tmp_path / f"{name}.png")
        assert sum(axes.has_data() for axes in figure.axes) == panels
        # a curve for each way to clone, and the data's return; a point for each step
        assert name != "figure2" or [len(axes.lines) for axes in figure.axes] == [3, 8 * 3 + 1]
    (tmp_path / "gpu").mkdir()
    for name in ("table_2.csv", "gpu/table_2.csv"):
        (tmp_path / name).write_text((reproduce.RESULTS / name).read_text())
    claimed = evidence.text_claims()
    assert "| World: OM2P above MA-FQL | above | +5.0 ± 0.0 | yes |" in claimed  # MA-FQL 117 + 20 / 4
    assert "| World, expert: weight of Q 1000 above 0.1 | above | -9.0 ± 0.0 | no |" in claimed
    assert "| World: OM2P over OMAR | x 2.47 | x 1.19 | in part |" in claimed and len(claimed) == 2 + 38
    assert "127 ± 1 (203.1)" in evidence.text_table_1()[2]
    alone = "\n".join(evidence.text_ablations())
    assert alone.count("-40.0 ± 0.0*") == 3 and alone.count("+0.0 ± 0.0") == 8  # HalfCheetah has one less
    reproduce.append(tmp_path / "table1.csv", made_up(reproduce.Run("bc", "tag/medium", 1, "--alpha 3")))
    with pytest.raises(ValueError, match="two settings of bc on tag/medium"):
        evidence.table_1()


def test_differences_are_judged_seed_by_seed():
    """With three seeds t must be beyond 4.30: 2, 3, 7 have a mean of 4 and t = 2.6; 2, 3, 4 have t = 5.2."""
    b = {1: 10.0, 2: 20.0, 3: 30.0, 9: 0.0}
    assert evidence.starred({3: 37.0, 1: 12.0, 2: 23.0}, b) == "+4 ± 2"
    assert evidence.starred({3: 34.0, 1: 12.0, 2: 23.0}, b) == "+3.0 ± 0.6*"
    assert evidence.starred({1: 8.0, 4: 8.0}, b) == "-2"


def test_averages_and_differences_at_equal_steps_and_equal_time(tmp_path, monkeypatch):
    """MA-FQL costs twice as much and learns twice as fast; OMAR three times and half as fast again; BC costs less."""
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    slopes = {"om2p": 1.0, "om2p-paper": 1.0, "ma-fql": 2.0, "omar": 1.5, "ma-sfbc": 1.0, "bc": 0.5}
    costs = {"om2p": 1.0, "om2p-paper": 1.0, "ma-fql": 2.0, "omar": 3.0, "ma-sfbc": 1.0, "bc": 0.2}
    rows = []
    for run in reproduce.grid(reproduce.CELLS, [(system, "") for system in slopes]):
        rows += rows_of(run, *(slopes[run.system] * step / 10 + run.seed for step in range(500, 3000, 500)))
    data.write_csv(tmp_path / "table1.csv", rows)
    figures = [{"figure": f"{s}: update at width 128 / om2p's", "value": x} for s, x in costs.items()]
    data.write_csv(tmp_path / "benchmark.csv", figures)
    returns = "252 ± 1 | 252 ± 1 | 502 ± 1 | 377 ± 1 | 252 ± 1 | 127 ± 1"
    assert evidence.text_averages()[2:] == [
        "| training steps | | 2,500 | 2,500 | 2,500 | 2,500 | 2,500 | 2,500 |",
        f"| `tag`, Predator-Prey | 98 | {returns} |",
        f"| `world`, World | 44 | {returns} |",
        f"| `spread`, Cooperative Navigation | 305 | {returns} |",
        f"| `halfcheetah`, 2-agent HalfCheetah | 1,816 | {returns} |",
        "| time of a training step | | x 1.00 | x 1.00 | x 2.00 | x 3.00 | x 1.00 | x 0.20 |",
    ]
    after = "+0.0 ± 0.0 | -250.0 ± 0.0* | -125.0 ± 0.0* | +0.0 ± 0.0 | +125.0 ± 0.0*"
    equal_time = "| at equal time | - | +0.0 ± 0.0 | +125.0 ± 0.0* | - | - |"  # MA-FQL: 1,250 steps, OMAR: 833
    tasks = ("Predator-Prey", "World", "Cooperative Navigation", "2-agent HalfCheetah")
    assert evidence.text_differences()[2:] == [line for task in tasks for line in (f"| {task} | {after} |", equal_time)]
    assert len(evidence.picture("long").axes[1].lines) == 6 * 3 + 2  # World: a curve for each seed, and two levels


@pytest.mark.parametrize("page", evidence.PAGES, ids=["README", "report"])
def test_the_tables_of_the_pages_are_what_the_results_say(page):
    text = page.read_text()
    assert "<!-- text_" in text and evidence.filled(text) == text


def test_table_2_measures_what_is_missing_and_nothing_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "RESULTS", tmp_path)
    slow, printed = "om2p-paper, full Jacobian", []
    monkeypatch.setitem(benchmark.TABLE_2, slow, benchmark.TABLE_2[slow] | {"hidden_dim": 8})
    for _ in range(2):
        benchmark.table_2([slow], 100)
        printed.append((capsys.readouterr().out, (tmp_path / "table_2.csv").read_bytes()))
    assert printed[0] == printed[1] and printed[0][0].endswith("(1 steps)\n")


@pytest.mark.parametrize("name", list(benchmark.SYSTEMS))
def test_the_benchmark_weighs_every_system(name):
    agents, batch = benchmark.make_agents(benchmark.SYSTEMS[name] | {"hidden_dim": 8}, 2), benchmark.random_batch(16)
    one, two = benchmark.training_bytes(agents[:1], batch), benchmark.training_bytes(agents, batch)
    policy, critics = (sum(p.nbytes for p in getattr(agents[1], part).parameters()) for part in ("policy", "critics"))
    own = 4 * policy + (2 if name == "bc" else 4) * critics  # weights, targets, Adam's moments; BC trains no critics
    assert own <= two - one <= 1.05 * own + 8192  # Adam's counters and the random stream come on top
    assert benchmark.peak_bytes(lambda: torch.zeros(1000).neg()[:500].sqrt()) == 8000  # and never all three


def test_the_benchmark_draws_what_it_has(tmp_path):
    rows = reproduce.table(reproduce.RESULTS / "benchmark.csv")
    reproduce.picture(lambda figure: benchmark.draw(figure, rows), (13, 4)).savefig(tmp_path / "picture.png")
