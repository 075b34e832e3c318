"""Runs the grids behind Table 1 and Figures 2 to 4, ablations, and the search for each system's coefficients.

    python notebooks/lab/reproduce.py --table 1              # likewise --figure 2, 3 or 4, --ablations, --tune
    python notebooks/lab/reproduce.py --table 1 --only world/expert ma-fql
    python notebooks/lab/reproduce.py --table 1 --engine ray # on a Ray cluster: this machine, or that of RAY_ADDRESS
                                                             # (pip install -r notebooks/lab/requirements.txt)

Every run is one command (`om2p.py` or `baselines.py`) in a process with one thread, as many at once as there are cores.
As it ends, its evaluations are added to `results/GRID.csv`: a row each, with command, seed, version and machine. A run
that stands there is skipped, so a grid can be stopped at any time and goes on where it was. Rows of a system such as
om2p@ff26fe7 are of the method at that commit. `evidence.py` draws and judges whole grids. Table 2 is timed, one
system after the other: `benchmark.py --table 2`.

The other programs here read, write and draw with its functions.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import astuple, dataclass
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))

from data import QUALITIES, make, write_csv  # noqa: E402
from om2p import TABLE_3, UNIFORM, Config  # noqa: E402

RESULTS, DATA = HERE / "results", Path(os.environ.get("OM2P_DATA", HERE.parent / "data"))
ENVS = ("tag", "world", "spread", "halfcheetah")
CELLS = [f"{env}/{quality}" for env in ENVS for quality in QUALITIES[1:]]  # the paper has no random data
# many times fewer steps than the paper's, so a higher learning rate
BUDGET = "--hidden-dim 128 --learning-rate 1e-3 --steps 2500 --eval-every 500"
SYSTEMS = {  # name in a table: script and options
    "bc": "notebooks/lab/baselines.py --algorithm bc",
    "omar": "notebooks/lab/baselines.py --algorithm omar",
    # four candidates instead of its paper's 16 in the target, which would take four times as long
    "ma-sfbc": "notebooks/lab/baselines.py --algorithm ma-sfbc --target-candidates 4",
    "ma-fql": "notebooks/lab/baselines.py --algorithm ma-fql",
    "om2p-paper": "om2p.py --preset paper",
    "om2p": "om2p.py",
}
Row = dict[str, str]
Ended = tuple["Run", list[Row] | RuntimeError]  # a run and its rows, or why there are none


# -------------------- files, pictures


def table(path: Path) -> list[Row]:
    """The rows of a CSV; none if there is no such file."""
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def append(path: Path, rows: list[dict]) -> None:
    """Add rows to a CSV; at no moment is it half written."""
    write_csv(path, [*table(path), *rows])


def picture(draw: Callable[[Figure], None], size: tuple[float, float]) -> Figure:
    """A figure of so many inches, filled by `draw`."""
    figure = Figure(figsize=size, layout="constrained")
    draw(figure)
    return figure


# -------------------- one run


@dataclass(frozen=True)
class Run:
    """One training: a system on a cell (task/quality) with a seed, and options on top of the budget."""

    system: str
    cell: str
    seed: int
    options: str

    @property
    def command(self) -> str:
        """The command line, from the top of the repository and without the places of data and output."""
        env = self.cell.split("/")[0]
        budget = f"{BUDGET} --final-episodes {20 if env == 'halfcheetah' else 100}"
        return f"{SYSTEMS[self.system]} --env {env} --seed {self.seed} {budget} {self.options}".strip()

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies the run in a CSV."""
        return (self.system, self.cell, self.command)


def ended(path: Path) -> dict[tuple[str, str, str], Row]:
    """The last row of every run in a CSV."""
    return {(row["system"], row["cell"], row["command"]): row for row in table(path) if row["last"] == "1"}


def execute(run: Run, version: str) -> list[Row] | RuntimeError:
    """Train in a process of its own with one thread; the rows of its metrics.csv, or why it failed."""
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, *run.command.split(), "--data", data_file(run.cell), "--out", out]
        process = subprocess.run(command, cwd=ROOT, env=one_thread, capture_output=True, text=True)
        if process.returncode:
            return RuntimeError(f"{run.command}: exit code {process.returncode}\n{process.stderr[-2000:]}")
        rows = table(out / "metrics.csv")
    same = {
        "cell": run.cell,
        "system": run.system,
        "options": run.options,
        "seed": str(run.seed),
        "command": run.command,
        "version": version,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
    }
    figures = ("step", "episodes", "return", "return_std", "training_seconds")
    return [{**{k: row[k] for k in figures}, **same, "last": str(int(row is rows[-1]))} for row in rows]


def data_file(cell: str) -> Path:
    """Where the data of a cell are: up to 0.7 GB."""
    return DATA / f"{cell.replace('/', '-')}.npz"


def make_data(runs: Iterable[Run]) -> None:
    """Make what is missing, once for all processes."""
    DATA.mkdir(parents=True, exist_ok=True)
    for cell in sorted({run.cell for run in runs}):
        if not data_file(cell).exists():
            make(*cell.split("/"), data_file(cell))


# -------------------- many runs


def this_version() -> str:
    """The commit that runs, with a plus sign if files were changed since."""
    command = ("git", "describe", "--always", "--dirty=+", "--exclude=*")
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip() or "unknown"


def local_engine(runs: list[Run], jobs: int | None = os.cpu_count()) -> Iterator[Ended]:
    """So many processes at a time on this machine."""
    make_data(runs)
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(execute, run, this_version()): run for run in runs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def ray_engine(runs: list[Run]) -> Iterator[Ended]:
    """One core of a Ray cluster for each run: the cluster of RAY_ADDRESS, else one on this machine.

    The repository travels to the workers; a cluster elsewhere makes the data anew, each node once.
    """
    import ray

    code = {
        "working_dir": str(ROOT),
        "excludes": ["/*.npz", "!/behaviour.npz", "/.git", "/.venv", "/runs", "/notebooks/data"],
        "env_vars": {},
    }
    if "RAY_ADDRESS" not in os.environ:
        make_data(runs)
        code["env_vars"]["OM2P_DATA"] = str(DATA)
    ray.init(runtime_env=code, log_to_driver=False, include_dashboard=False)

    @ray.remote(num_cpus=1)
    def far(version: str, *run: object) -> list[Row] | RuntimeError:
        from notebooks.lab import reproduce

        run = reproduce.Run(*run)
        reproduce.make_data([run])
        return reproduce.execute(run, version)

    waiting = {far.remote(this_version(), *astuple(run)): run for run in runs}
    try:
        while waiting:
            (future,), _ = ray.wait(list(waiting))
            yield waiting.pop(future), ray.get(future)
    finally:
        ray.shutdown()


def run_all(runs: list[Run], path: Path, engine: Callable[[list[Run]], Iterator[Ended]]) -> None:
    """Execute what is not in the CSV yet, adding each result as it comes; RuntimeError at the end if any failed."""
    done, failed = ended(path), []
    todo = [run for run in runs if run.key not in done]
    print(f"{path.name}: {len(runs) - len(todo)} of {len(runs)} runs are done", flush=True)
    for count, (run, rows) in enumerate(engine(todo), 1):
        if isinstance(rows, RuntimeError):
            failed.append(rows)
        else:
            append(path, rows)
            figures = "  ".join(f"{float(rows[-1][k]):8.1f}" for k in ("return", "return_std", "training_seconds"))
            print(f"{count}/{len(todo)}  {run.cell:<26} {run.system:<11} seed {run.seed} {figures} s", flush=True)
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(todo)} runs failed, the others are done; the first: {failed[0]}")


# -------------------- grids


SEEDS = (1, 2, 3)
WORLD = [f"world/{quality}" for quality in QUALITIES[1:]]


def grid(cells: list[str], variants: list[tuple[str, str]]) -> list[Run]:
    """Every variant, a system and its options, on every cell with every seed."""
    return [Run(s, cell, seed, o.strip()) for seed, cell, (s, o) in itertools.product(SEEDS, cells, variants)]


def table_1() -> list[Run]:
    """All systems on all cells, with the settings that the searches found."""
    runs = []
    for cell in CELLS:
        runs += grid([cell], [(s, settings(s, cell)) for s in SYSTEMS])
    return sorted(runs, key=lambda run: run.seed)


def settings(system: str, cell: str) -> str:
    """Those of a system in Table 1: steps, what the searches found, discount."""
    return f"{length(system, cell)} {tuned(system, cell)} {discount(system, cell)}".strip()


def length(system: str, cell: str) -> str:
    """How long a system is trained and how often it is scored: the budget; OM2P and MA-FQL four times its steps."""
    if system not in ("om2p", "om2p-paper", "ma-fql"):
        return ""
    return f"--steps 10000 --eval-every 1000 --eval-episodes {20 if cell.startswith('halfcheetah') else 100}"


def discount(system: str, cell: str) -> str:
    """The task's discount if it is not the paper's, for OM2P and MA-FQL."""
    gamma = Config.of(*cell.split("/")).gamma
    return f"--gamma {gamma:g}" if gamma != Config.gamma and system in ("om2p", "ma-fql") else ""


CLONING = {"Beta(6, 6)": "--objective bc --xi 5 5 0 0", "uniform": "--objective bc --xi 0 0 0 0"}
DIFFERENCES = {
    f"{delta_r}, {dtype}": f"--delta-r {delta_r} --derivative-dtype {dtype}"
    for dtype, steps in (("float64", "0.1 1e-2 1e-4 1e-8 1e-12"), ("float32", "1e-3 1e-8 1e-12"))
    for delta_r in steps.split()
}
EXACT = "--derivative exact"
ETAS = {f"$\\eta$ = {eta}": f"--eta {eta}" for eta in ("0.1", "1000")}
UNIFORM_TIMES = "--xi 0 0 0 0"
PARTS = {"only Q": "--objective q", "only cloning": "--objective bc", "uniform times": UNIFORM_TIMES, "everything": ""}


def figure_2() -> list[Run]:
    """World expert: cloning alone with Beta(6, 6) against uniform times; the whole loss with several steps of Eq. 5."""
    variants = [*CLONING.values(), *DIFFERENCES.values(), EXACT]
    return grid(["world/expert"], [("om2p-paper", f"--steps 1000 --eval-every 100 {o}") for o in variants])


def figure_3() -> list[Run]:
    """The weight of Q on World."""
    return grid(WORLD, [("om2p-paper", o) for o in ETAS.values()])


def figure_4() -> list[Run]:
    """World: only Q, only cloning, everything; uniform times where Table 3 has others."""
    other_times = [cell for cell in WORLD if TABLE_3[cell][1] != UNIFORM]
    runs = grid(WORLD, [("om2p-paper", o) for o in PARTS.values() if o != UNIFORM_TIMES])
    return runs + grid(other_times, [("om2p-paper", UNIFORM_TIMES)])


ABLATED = [f"{env}/medium-expert" for env in ("world", "spread", "halfcheetah")]  # the data of the search
CHANGES = ("", "--derivative zero", "--times coupled", "--objective bc", "--candidates 1")  # "": the default


def ablations() -> list[Run]:
    """The default with one choice changed at a time, and the paper's settings where they collapse.

    Where Q pulls is changed in runs as long as Table 1's: shorter ones do not tell.
    What the search (eta, act_noise), results/scales.csv (q_scale) and Figure 2 (exact derivative) change is left out.
    """
    runs = grid(ABLATED, [("om2p", change) for change in CHANGES])
    one_already = ("halfcheetah/medium-expert", "--candidates 1")  # it acts without noise
    runs = [run for run in runs if (run.cell, run.options) != one_already]
    for cell in [*ABLATED, "tag/medium-expert", "spread/expert"]:
        runs += grid([cell], [("om2p", f"{settings('om2p', cell)} --q-start noise")])
    return runs + grid(["halfcheetah/expert"], [("om2p-paper", o) for o in ("", "--objective bc", "--times ordered")])


# -------------------- search


def tries(**values: str) -> list[str]:
    """Options for every combination of a value of each."""
    options = [[f"--{name.replace('_', '-')} {value}" for value in some.split()] for name, some in values.items()]
    return [" ".join(combination) for combination in itertools.product(*options)]


TUNED = {  # per system and task, or cell: the settings that are tried, those nearest to the data first
    "om2p": {
        "tag": tries(eta="0.3 1 3 10"),
        "world": tries(eta="1 3 10 30"),
        "spread": tries(eta="0.03 0.1 0.3"),
        "halfcheetah": tries(eta="0.01 0.03 0.1", act_noise="0"),
    },
    "ma-fql": {
        "tag": tries(alpha="1 0.3 0.1 0.03"),
        "world": tries(alpha="1 0.3 0.1 0.03"),
        "spread": tries(alpha="3 1 0.3"),
        "halfcheetah": tries(alpha="300 100 30", act_noise="0"),
    },
    "ma-sfbc": {
        "tag": tries(alpha="100 300 1000 3000"),
        "world": tries(alpha="100 300 1000 3000"),
        "spread": tries(alpha="100 300 1000 3000"),
        "spread/expert": tries(alpha="30 100 300 1000"),
        "halfcheetah": tries(alpha="1 3 10 30"),
        "halfcheetah/medium-expert": tries(alpha="10 30 100 300"),
    },
    "omar": {  # the second weight is that of its release, which has other data
        "tag": tries(alpha="0.1 0.03", search_weight="0.5 0.9"),
        "tag/expert": tries(alpha="1 0.1", search_weight="0.5 0.9"),
        "world": tries(alpha="0.1 0.03", search_weight="0.5 0.9"),
        "world/expert": tries(alpha="1 0.1", search_weight="0.5 0.9"),
        "spread": tries(alpha="3 1", search_weight="0.5 1"),
        "spread/expert": tries(alpha="10 3", search_weight="0.5 1"),
        "halfcheetah": tries(alpha="3 1", search_weight="0.5 0.9"),
    },
}


def trials(system: str, cell: str) -> dict[str, list[Run]]:
    """The runs of the search for one system's setting on a cell, by setting; their seed is that of no table.

    OM2P and MA-FQL have one setting for a task, searched at the table's length on its medium-expert data, and on expert
    data too where these are hard to better. The others' search made 2,500 steps on each kind of data; medium shares
    medium-expert's. All have the paper's discount: the tasks' own was searched afterwards (results/discount.csv).
    """
    task = cell.split("/")[0]
    if system in ("om2p", "ma-fql"):
        kinds = ["medium-expert", "expert"] if task in ("spread", "halfcheetah") else ["medium-expert"]
        cells, steps = [f"{task}/{kind}" for kind in kinds], length(system, cell)
        steps += " --gamma 0.99" if system == "om2p" else ""  # MA-FQL's default
    else:
        cells, steps = [f"{cell}-expert" if cell.endswith("/medium") else cell], "--steps 2500"
    settings = TUNED[system].get(cells[0]) or TUNED[system].get(task, [])
    return {setting: [Run(system, kind, 101, f"{steps} {setting}") for kind in cells] for setting in settings}


def tuning() -> list[Run]:
    """OM2P's as many as MA-FQL's, OMAR's as many as MA-SfBC's."""
    searches = (trials(system, cell).values() for cell in CELLS for system in TUNED)
    return list(dict.fromkeys(run for search in searches for runs in search for run in runs))


@functools.cache
def tuned(system: str, cell: str) -> str:
    """The setting for a cell; OM2P's is said as well as built in, so that a run is known by it."""
    if system == "om2p":
        config = Config.of(*cell.split("/"))
        return f"--eta {config.eta:g} --act-noise {config.act_noise:g}"
    return found(system, cell) if system in TUNED else ""


def found(system: str, cell: str) -> str:
    """Of the settings in tune.csv that are less than a standard error below the best, the one nearest to the data.

    The standard error is that of the difference; returns on two kinds of data are added. The best of several that
    cannot be told apart is luck. RuntimeError if not all were tried.
    """
    last, scores = ended(RESULTS / "tune.csv"), {}
    for setting, runs in trials(system, cell).items():
        if any(run.key not in last for run in runs):
            raise RuntimeError(f"{cell} {system}: run reproduce.py --tune first")
        rows = [last[run.key] for run in runs]
        variance = sum(float(row["return_std"]) ** 2 / int(row["episodes"]) for row in rows)
        scores[setting] = sum(float(row["return"]) for row in rows), variance
    best, best_variance = max(scores.values())
    return next(
        setting for setting, (mean, variance) in scores.items() if mean >= best - (variance + best_variance) ** 0.5
    )


GRIDS = {
    "table1": table_1,
    "figure2": figure_2,
    "figure3": figure_3,
    "figure4": figure_4,
    "ablations": ablations,
    "tune": tuning,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--table", dest="grid", type="table{}".format, choices=["table1"], metavar="1")
    which.add_argument("--figure", dest="grid", type="figure{}".format, choices=list(GRIDS)[1:4], metavar="2|3|4")
    which.add_argument("--ablations", dest="grid", action="store_const", const="ablations", help="one choice changed")
    which.add_argument("--tune", dest="grid", action="store_const", const="tune", help="the search")
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    parser.add_argument("--only", nargs="+", default=[], help='runs of all these, such as world expert om2p "seed 1"')
    args = parser.parse_args()
    engine = {"ray": ray_engine, "local": functools.partial(local_engine, jobs=args.jobs)}[args.engine]
    try:
        named = {run: {run.cell, *run.cell.split("/"), run.system, f"seed {run.seed}"} for run in GRIDS[args.grid]()}
        if unknown := set(args.only).difference(*named.values()):
            parser.error(f"--only {sorted(unknown)[0]}: no run has that")
        runs = [run for run, names in named.items() if names.issuperset(args.only)]
        run_all(runs, RESULTS / f"{args.grid}.csv", engine)
    except RuntimeError as error:
        parser.exit(2, f"reproduce.py: {error}\n")


if __name__ == "__main__":
    main()
