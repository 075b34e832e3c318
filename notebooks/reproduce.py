"""Runs the grids behind Table 1 and Figures 2 to 4, ablations, and the search for the recommended settings.

    python notebooks/reproduce.py --table 1              # likewise --figure 2, 3 or 4, --ablations, --tune
    python notebooks/reproduce.py --table 1 --engine ray # on a Ray cluster, this machine or RAY_ADDRESS
    python notebooks/reproduce.py --table 1 --only world/expert ma-fql
    python notebooks/reproduce.py --table 1 --show       # the table of what is done so far
    python notebooks/reproduce.py --table 2              # timed one after the other: the same as table_2.py

Every run is one command (`om2p.py` or `baselines.py`) in a process with one thread, as many at once as there are cores.
As it ends, its evaluations are appended to `results/GRID.csv`: a row each, with command, seed, version and machine. A
run that stands there is skipped, so a grid can be stopped at any time and goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import astuple, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from data import whole_file  # noqa: E402
from om2p import QUALITIES, RECOMMENDED, TABLE_3_ETA, TABLE_3_XI, WEIGHTED  # noqa: E402

RESULTS, DATA = HERE / "results", Path(os.environ.get("OM2P_DATA", HERE / "data"))
ENVS = tuple(TABLE_3_ETA)
CELLS = [f"{env}/{quality}" for env in ENVS for quality in QUALITIES]
# for every system alike: 400 times fewer steps than the paper's, so a higher learning rate
BUDGET = ("--hidden-dim", "128", "--learning-rate", "1e-3", "--steps", "2500", "--eval-every", "500")
BASELINE = ("notebooks/baselines.py", "--act-with", "averaged", "--algorithm")  # as the recommended OM2P acts
SYSTEMS = {  # name in a table: script and options
    "bc": (*BASELINE, "bc"),
    "omar": (*BASELINE, "omar"),
    # four candidates instead of its paper's 16 in the target, which would take four times as long
    "ma-sfbc": (*BASELINE, "ma-sfbc", "--target-candidates", "4"),
    "ma-fql": (*BASELINE, "ma-fql"),
    "om2p-paper": ("om2p.py", "--preset", "paper"),
    "om2p": ("om2p.py",),
}


Result = list[dict[str, str]] | RuntimeError  # of a run: its rows, or why there are none


@dataclass(frozen=True)
class Run:
    """One training: a system on a cell with a seed, and options on top (None: those that the search found best)."""

    system: str
    cell: str
    seed: int
    options: tuple[str, ...] | None = ()

    @property
    def settings(self) -> tuple[str, ...]:
        """The options on top of the budget."""
        return tuned(self.system, self.cell) if self.options is None else self.options

    @property
    def command(self) -> tuple[str, ...]:
        """The command line, from the top of the repository and without the places of data and output."""
        env = self.cell.split("/")[0]
        episodes = ("--final-episodes", "20" if env == "halfcheetah" else "100")
        return (*SYSTEMS[self.system], "--env", env, "--seed", str(self.seed), *BUDGET, *episodes, *self.settings)

    @property
    def key(self) -> tuple[str, ...]:
        """What identifies the run in a CSV."""
        return (self.cell, shlex.join(self.command))


def execute(run: Run) -> list[dict[str, str]]:
    """Train in a process of its own and return the rows of its metrics.csv; if it fails, raise RuntimeError."""
    env, quality = run.cell.split("/")
    with tempfile.TemporaryDirectory() as folder:
        places = ("--data", str(DATA / f"{env}-{quality}.npz"), "--out", f"{folder}/run")
        script, *options = run.command
        result = subprocess.run(
            [sys.executable, HERE.parent / script, *options, *places],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if result.returncode:
            raise RuntimeError(f"{shlex.join(run.command)}: exit code {result.returncode}\n{result.stderr[-2000:]}")
        rows, times = (table(Path(folder) / "run" / f"{name}.csv") for name in ("metrics", "timing"))
    fixed = {"cell": run.cell, "system": run.system, "options": shlex.join(run.settings), "seed": str(run.seed)}
    fixed |= {"command": shlex.join(run.command)}
    fixed |= {"version": version(), "machine": f"{platform.machine()}, Python {platform.python_version()}"}
    figures, clock = ("step", "episodes", "return", "return_std"), "training_seconds"
    return [
        {**{k: row[k] for k in figures}, clock: time[clock], **fixed, "last": str(int(row is rows[-1]))}
        for row, time in zip(rows, times)
    ]


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def version() -> str:
    """The commit that runs, with a plus sign if files were changed since."""
    if given := os.environ.get("OM2P_VERSION"):
        return given
    git = ["git", "-C", str(HERE.parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip() or "unknown"


# --------------------------------------------------------------------------------------------------------- results


Engine = Callable[[list[Run]], Iterable[tuple[Run, Result]]]


def read(path: Path) -> list[dict[str, str]]:
    """The rows of all runs that ended, without those of one that was cut short while it was written."""
    rows = table(path) if path.exists() else []
    ended = {(row["cell"], row["command"]) for row in rows if row["last"] == "1"}
    return [row for row in rows if (row["cell"], row["command"]) in ended]


def append(path: Path, rows: list[dict[str, str]]) -> None:
    """Add rows, with a header where the file is new, and have them on the disk."""
    if not rows:
        return
    with open(path, "a", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        if not file.tell():
            writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())


def run_all(runs: list[Run], path: Path, engine: Engine) -> None:
    """Execute what is not in the CSV yet, appending each result as it comes; RuntimeError at the end if any failed."""
    whole, failed = read(path), []
    if path.exists() and len(whole) < len(table(path)):
        with whole_file(path) as part:
            part.touch()
            append(part, whole)
    done = {(row["cell"], row["command"]) for row in whole}
    todo = [run for run in runs if run.key not in done]
    print(f"{path.name}: {len(runs) - len(todo)} of {len(runs)} runs are done", flush=True)
    for count, (run, rows) in enumerate(engine(todo), 1):
        if isinstance(rows, RuntimeError):
            failed.append(rows)
            continue
        append(path, rows)
        last = rows[-1]
        figures = f"{float(last['return']):8.1f} +- {float(last['return_std']):6.1f}   {last['training_seconds'][:6]} s"
        print(f"{count}/{len(todo)}  {run.cell:<26} {run.system:<11} seed {run.seed} {figures}", flush=True)
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(todo)} runs failed, the others are done; the first: {failed[0]}")


def result_of(get: Callable[[], list[dict[str, str]]]) -> Result:
    """The rows of a run that ended, or why it failed."""
    try:
        return get()
    except RuntimeError as error:
        return error


def local_engine(jobs: int) -> Engine:
    """So many processes at a time on this machine; data that is missing is made first, once."""

    def engine(runs: list[Run]) -> Iterator[tuple[Run, Result]]:
        make_data(sorted({run.cell for run in runs}))
        with ThreadPoolExecutor(jobs) as pool:
            futures = {pool.submit(execute, run): run for run in runs}
            try:
                for future in as_completed(futures):
                    yield futures[future], result_of(future.result)
            finally:
                pool.shutdown(cancel_futures=True)

    return engine


def ray_engine(runs: list[Run]) -> Iterator[tuple[Run, Result]]:
    """One core of a Ray cluster for each run: the cluster of RAY_ADDRESS, else one on this machine.

    The repository travels to the workers; a cluster elsewhere makes the data anew, each node once.
    """
    import ray

    address = os.environ.get("RAY_ADDRESS")
    code = {"working_dir": str(HERE.parent), "env_vars": {"OM2P_VERSION": version()}}
    code["excludes"] = ["/*.npz", "!/behaviour.npz", "/.git", "/.venv", "/runs", "/notebooks/data"]
    if address is None:
        make_data(sorted({run.cell for run in runs}))
        code["env_vars"]["OM2P_DATA"] = str(DATA)
    local = {} if address else {"num_cpus": os.cpu_count(), "include_dashboard": False}
    ray.init(address=address, runtime_env=code, log_to_driver=False, **local)

    @ray.remote(num_cpus=1)
    def far(*run: object) -> list[dict[str, str]]:
        sys.path.insert(0, os.path.abspath("notebooks"))
        import reproduce

        run = reproduce.Run(*run)
        reproduce.make_data([run.cell])
        return reproduce.execute(run)

    waiting = {far.remote(*astuple(run)): run for run in runs}
    try:
        while waiting:
            ready, _ = ray.wait(list(waiting))
            for future in ready:
                yield waiting.pop(future), result_of(functools.partial(ray.get, future))
    finally:
        ray.shutdown()


def make_data(cells: Iterable[str]) -> None:
    """Make what is missing in notebooks/data: up to 0.7 GB a file."""
    from data import make

    DATA.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        env, quality = cell.split("/")
        if not (path := DATA / f"{env}-{quality}.npz").exists():
            make(env, quality, path)


# ----------------------------------------------------------------------------------------------------------- grids


SEEDS = (1, 2, 3)
WORLD = [f"world/{quality}" for quality in QUALITIES]
SHORT = ("--steps", "1000")  # for figures and ablations
CURVE = ("--eval-every", "100")


def table_1() -> list[Run]:
    """All systems on all cells, three seeds; those of the tuning are others."""
    return [Run(system, cell, seed, None) for seed, cell, system in itertools.product(SEEDS, CELLS, SYSTEMS)]


def figure_2() -> list[Run]:
    """World expert: cloning alone with Beta(6, 6) against uniform times; the whole loss with several steps of Eq. 5."""
    beta, cloning = ("--xi", "5", "5", "0", "0"), ("--objective", "bc")
    runs = [
        (system, (*cloning, *xi)) for system in ("om2p-paper", "om2p") for xi in (beta, ("--xi", "0", "0", "0", "0"))
    ]
    steps = [("--delta-r", d, "--derivative-dtype", "float64") for d in ("0.1", "1e-2", "1e-4", "1e-8", "1e-12")]
    steps += [("--delta-r", d, "--derivative-dtype", "float32") for d in ("1e-3", "1e-8", "1e-12")]
    runs += [("om2p-paper", options) for options in [*steps, ("--derivative", "exact")]]
    return [Run(system, "world/expert", seed, (*SHORT, *CURVE, *o)) for seed in SEEDS for system, o in runs]


def figure_3() -> list[Run]:
    """The weight of Q on World, on raw Q as in the paper and on normalised Q."""
    grid = itertools.product(SEEDS, WORLD, ("om2p-paper", "om2p"), ("0.1", "1", "10", "100", "1000"))
    return [Run(system, cell, seed, (*SHORT, "--eta", eta)) for seed, cell, system, eta in grid]


def figure_4() -> list[Run]:
    """Only Q, only cloning, everything, with the paper's settings and with ours; uniform times where its are not so."""
    runs = []
    for seed, quality, system in itertools.product(SEEDS, QUALITIES, ("om2p-paper", "om2p")):
        variants = [("--objective", "q"), ("--objective", "bc"), ()]
        if system == "om2p-paper" and ("world", quality) in TABLE_3_XI:
            variants.append(("--xi", "0", "0", "0", "0"))
        runs += [Run(system, f"world/{quality}", seed, (*SHORT, *variant)) for variant in variants]
    return runs


def ablations() -> list[Run]:
    """The default with one choice changed at a time; and MA-FQL choosing among candidates as the default does.

    What Figure 3 (Q's weight, and dividing Q by its mean) and the search (eta, act_noise) change is left out.
    """
    changes = ["", "--derivative exact", "--derivative zero", "--times coupled", "--velocity sampled", "--delta-r 1e-2"]
    changes += ["--equal-share 0.25", "--equal-share 0.75", "--act-with trained", "--objective bc"]
    changes += ["--candidates 1", "--candidates 4", "--candidates 32"]
    cells = [f"{env}/{quality}" for env in ("world", "spread") for quality in ("medium-replay", "medium-expert")]
    runs = []
    for seed, cell in itertools.product(SEEDS, [*cells, "halfcheetah/medium-expert"]):
        other = "--cloning plain" if tuple(cell.split("/")) in WEIGHTED else "--cloning weighted"
        runs += [Run("om2p", cell, seed, (*SHORT, *change.split())) for change in [*changes, other]]
        fql = (*SHORT, *tuned("ma-fql", cell))
        runs.append(Run("ma-fql", cell, seed, fql))
        if fql[-2:] != ("--act-noise", "0"):  # without noise all candidates are the same
            runs.append(Run("ma-fql", cell, seed, (*fql, "--candidates", "8")))
    return runs


TUNE_SEED = 101
TUNE_STEPS = "2500"  # as in the table: after 1,000 other settings are ahead


def two_by_two(name: str, values: str, other: str, others: str) -> list[str]:
    """Every pair of a value of one option and a value of another."""
    return [f"{name} {value} {other} {scale}" for value in values.split() for scale in others.split()]


def cloned(etas: str) -> list[str]:
    """Each of these weights of Q with plain cloning, then with weighted."""
    return [f"--eta {eta} --cloning {cloning}" for cloning in ("plain", "weighted") for eta in etas.split()]


TUNED = {  # per system and task, or cell: all options of its own that are tried, those nearest to the data first
    "om2p": {
        "world": cloned("30 100"),
        "world/medium-replay": cloned("300 1000"),
        "tag/medium-expert": cloned("100 300"),
        "tag/expert": cloned("10 30"),
        "spread": cloned("10 30"),
        "spread/medium-replay": cloned("30 100"),
        "spread/expert": cloned("1 3"),
        "halfcheetah": two_by_two("--eta", "0.01 0.1", "--act-noise", "0 0.5"),
    },
    "ma-fql": {
        "world": ["--alpha 0.01", "--alpha 0.003", "--alpha 0.001", "--alpha 0.0003"],
        "world/expert": ["--alpha 0.1", "--alpha 0.03", "--alpha 0.01", "--alpha 0.003"],
        "spread": ["--alpha 0.03", "--alpha 0.01", "--alpha 0.003", "--alpha 0.001"],
        "spread/expert": ["--alpha 0.3", "--alpha 0.1", "--alpha 0.03", "--alpha 0.01"],
        "halfcheetah/medium-expert": two_by_two("--alpha", "30 10", "--act-noise", "0 0.5"),
        "halfcheetah/medium-replay": two_by_two("--alpha", "100 3", "--act-noise", "0 0.5"),
        "halfcheetah/expert": two_by_two("--alpha", "100 30", "--act-noise", "0 0.5"),
    },
    "ma-sfbc": {
        "world": ["--alpha 100", "--alpha 300", "--alpha 1000", "--alpha 3000"],
        "spread": ["--alpha 100", "--alpha 300", "--alpha 1000", "--alpha 3000"],
        "spread/expert": ["--alpha 30", "--alpha 100", "--alpha 300", "--alpha 1000"],
        "halfcheetah": ["--alpha 1", "--alpha 3", "--alpha 10", "--alpha 30"],
        "halfcheetah/medium-expert": ["--alpha 10", "--alpha 30", "--alpha 100", "--alpha 300"],
    },
    "omar": {  # the second weight is that of its release, which has other data
        "world": two_by_two("--alpha", "0.1 0.03", "--search-weight", "0.5 0.9"),
        "world/expert": two_by_two("--alpha", "1 0.1", "--search-weight", "0.5 0.9"),
        "spread": two_by_two("--alpha", "3 1", "--search-weight", "0.5 1"),
        "spread/expert": two_by_two("--alpha", "10 3", "--search-weight", "0.5 1"),
        "halfcheetah": two_by_two("--alpha", "3 1", "--search-weight", "0.5 0.9"),
    },
}


def tuning() -> list[Run]:
    """As many settings of every system on three qualities of every task, with one seed that no table uses.

    Predator-Prey, whose predators are World's, tries World's settings where it has none of its own.
    """
    runs, qualities = [], ("medium-expert", "medium-replay", "expert")
    for env, quality in itertools.product(("world", "spread", "halfcheetah", "tag"), qualities):
        like = "world" if env == "tag" else env
        for system, tried in TUNED.items():
            names = (f"{env}/{quality}", f"{like}/{quality}", like)
            for options in next(tried[name] for name in names if name in tried):
                runs.append(Run(system, f"{env}/{quality}", TUNE_SEED, ("--steps", TUNE_STEPS, *options.split())))
    return runs


@functools.cache
def tuned(system: str, cell: str) -> tuple[str, ...]:
    """The setting that the search found; OM2P's is said as well as built in, so that a run is known by it."""
    if system == "om2p":
        env, quality = cell.split("/")
        eta, act_noise = RECOMMENDED[env][QUALITIES.index(quality)]
        setting = ("--eta", f"{eta:g}", "--act-noise", f"{act_noise:g}")
        return (*setting, "--cloning", "weighted") if (env, quality) in WEIGHTED else setting
    return found(system, cell) if system in TUNED else ()


def found(system: str, cell: str) -> tuple[str, ...]:
    """Of the settings in tune.csv within a standard error of the best return, the one nearest to the data.

    The best of several that cannot be told apart is luck, and medium shares medium-expert's setting. RuntimeError if
    not all were tried.
    """
    env, quality = cell.split("/")
    cell = f"{env}/{'medium-expert' if quality == 'medium' else quality}"
    last = {(row["cell"], row["command"]): row for row in read(RESULTS / "tune.csv") if row["last"] == "1"}
    tried = [(run, last.get(run.key)) for run in tuning() if (run.system, run.cell) == (system, cell)]
    if not all(row for _, row in tried):
        raise RuntimeError(f"{cell} {system}: run reproduce.py --tune first")
    best = max((row for _, row in tried), key=lambda row: float(row["return"]))
    enough = float(best["return"]) - float(best["return_std"]) / int(best["episodes"]) ** 0.5
    return next(run for run, row in tried if float(row["return"]) >= enough).options[2:]


GRIDS = {"table1": table_1, "figure2": figure_2, "figure3": figure_3, "figure4": figure_4}
GRIDS |= {"ablations": ablations, "tune": tuning}


# -------------------------------------------------------------------------------------------------------- pictures


BySeed = dict[int, float]


def finals(path: Path) -> dict[tuple[str, str, str], BySeed]:
    """The last return of every seed, by cell, system and options."""
    scores: dict[tuple[str, str, str], BySeed] = {}
    for row in read(path):
        if row["last"] == "1":
            by_seed = scores.setdefault((row["cell"], row["system"], row["options"]), {})
            by_seed[int(row["seed"])] = float(row["return"])
    return scores


def mean_and_spread(scores: BySeed) -> tuple[float, float]:
    """Mean and standard deviation over seeds (0 for one seed)."""
    return statistics.mean(scores.values()), statistics.stdev(scores.values()) if len(scores) > 1 else 0.0


def show(path: Path) -> None:
    """Print mean and standard deviation over seeds of every last evaluation."""
    for (cell, system, options), scores in sorted(finals(path).items()):
        mean, spread = mean_and_spread(scores)
        print(f"{cell:<26} {system:<11} {options:<40} {mean:8.1f} +- {spread:6.1f}   {len(scores)} seeds")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--table", choices=["1", "2"])
    which.add_argument("--figure", choices=["2", "3", "4"])
    which.add_argument("--ablations", action="store_true", help="every choice of the default changed alone")
    which.add_argument("--tune", action="store_true", help="the search for each system's coefficient")
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time on this machine")
    parser.add_argument("--only", nargs="+", default=[], help='runs of all these, such as world expert om2p "seed 1"')
    parser.add_argument("--show", action="store_true", help="print what is done so far, and run nothing")
    args = parser.parse_args()
    if args.table == "2":
        if args.show or args.engine == "ray":
            parser.error("--table 2 times one system after the other on this machine: leave out --show and --engine")
        only = ["--only", *args.only] if args.only else []
        sys.exit(subprocess.call([sys.executable, str(HERE / "table_2.py"), *only]))
    grids = {"tune": args.tune, "ablations": args.ablations, f"table{args.table}": args.table}
    grid = next((name for name, asked in grids.items() if asked), f"figure{args.figure}")
    path = RESULTS / f"{grid}.csv"
    if args.show:
        show(path)
        return
    try:
        named = {run: {run.cell, *run.cell.split("/"), run.system, f"seed {run.seed}"} for run in GRIDS[grid]()}
        if unknown := set(args.only).difference(*named.values()):
            parser.error(f"--only {sorted(unknown)[0]}: no run has that")
        runs = [run for run, names in named.items() if names.issuperset(args.only)]
        run_all(runs, path, ray_engine if args.engine == "ray" else local_engine(args.jobs))
    except RuntimeError as error:
        parser.exit(2, f"reproduce.py: {error}\n")


if __name__ == "__main__":
    main()
