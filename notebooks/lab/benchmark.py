"""How fast OM2P runs on this machine, and the workload of the paper's Table 2.

    python notebooks/lab/benchmark.py                          # some minutes, with nothing else running
    python notebooks/lab/benchmark.py --only latency --device cuda --out FOLDER
    python notebooks/lab/benchmark.py --table 2                # hours: 10,000 steps of each system
    python notebooks/lab/benchmark.py --table 2 --steps 100 --only om2p ma-fql

The parts:

- update: a training step of three agents, batch 256, of OM2P with each derivative and of the compared systems, at width
  512 with one thread and with all, at Table 1's 128 with one. Memory: the bytes of live tensors at width 512, which are
  networks, targets, optimizers, and the most that one agent's update adds to them.
- busy: a training step alone, beside one and beside two processes that compute without end. The agents in turn, on all
  cores and on one; and as `om2p.train` does it, each in a thread of its own, ten updates at a time.
- latency: one agent's action, in one step, as the critics' best of eight, in ten steps of a flow, in fifteen of a
  diffusion.
- evaluation: ten episodes of World, with the candidates of the default and with one.
- collection: transitions (one step of all agents) per second that the shipped expert makes; and a whole data file.

Medians of interleaved repetitions go to `results/benchmark.csv`, where rows of other parts stay, and
`results/benchmark.png`.

Table 2 trains on World expert data at width 512 with 10 evaluation episodes every 100 steps, one system after another;
each is added to `results/table_2.csv`, and skipped if it stands there with as many steps. MA-SfBC makes a twentieth of
the steps, the full Jacobian a hundredth, scaled.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from matplotlib.figure import Figure
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]

import baselines  # noqa: E402
from drawing import BLUE, GREY, ORANGE, SKY  # noqa: E402
from reproduce import RESULTS, append, picture, table  # noqa: E402

import data  # noqa: E402
import envs  # noqa: E402
import om2p  # noqa: E402

WIDTH, BATCH, OBS, ACTION, AGENTS, COUNTS = 512, 256, 24, 2, 3, (1, 10, 1000)
SYSTEMS = {
    "om2p": {},
    "om2p, exact": {"derivative": "exact"},
    "om2p-paper": om2p.PAPER,
    "ma-fql": {"algorithm": "ma-fql"},
    "ma-sfbc": {"algorithm": "ma-sfbc", "target_candidates": 4},  # as in Table 1
    "ma-sfbc, 16 candidates": {"algorithm": "ma-sfbc"},  # as in its paper
    "omar": {"algorithm": "omar"},
    "bc": {"algorithm": "bc"},
}
EXACT = om2p.PAPER | {"derivative": "exact", "derivative_dtype": "float32"}
TABLE_2 = {
    "om2p": {},
    "om2p-paper": om2p.PAPER | {"eta": 1.0},  # and uniform times, as Table 3 has it for World expert
    "om2p-paper, torch.func.jvp": EXACT,
    "om2p-paper, full Jacobian": EXACT,
    "ma-fql": {"algorithm": "ma-fql"},
    "ma-sfbc": {"algorithm": "ma-sfbc"},
}
FEWER = {"ma-sfbc": 20, "om2p-paper, full Jacobian": 100}  # by so much, for they take hours
DEVICE = data.pick_device("auto")
Row = tuple[str, float, str]  # what, how much, unit


# -------------------- measuring


def seconds(function: Callable[[], object], calls: int = 1) -> float:
    """Wall-clock seconds of one call, averaged over `calls` in a row."""
    finish = getattr(torch, DEVICE.type).synchronize  # on a CPU it does nothing
    finish()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    finish()
    return (time.perf_counter() - start) / calls


def interleaved(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of a call of each function, in rounds in which every one takes its turn, after one that is not timed."""
    for function in functions.values():
        function()
    # a turn lasts a tenth of a second or more, as a shorter one mostly times the clock and the scheduler
    calls = {name: 1 + int(0.1 / seconds(function)) for name, function in functions.items()}
    turns = [{name: seconds(function, calls[name]) for name, function in functions.items()} for _ in range(rounds)]
    return {name: [turn[name] for turn in turns] for name in functions}


def medians(functions: dict[str, Callable[[], object]], rounds: int) -> Iterator[Row]:
    """The median of each, in milliseconds."""
    for name, times in interleaved(functions, rounds).items():
        yield name, 1e3 * statistics.median(times), "ms"


def peak_bytes(update: Callable[[], object]) -> int:
    """The most bytes that tensors made by one call hold at a time, beyond those that were there."""
    if DEVICE.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        update()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        update()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = (e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))
    return max(itertools.accumulate(sizes, initial=0))


def training_bytes(agents: list, batch: om2p.Batch) -> int:
    """Bytes of all tensors that the agents keep, and the most that an update of one adds; makes two updates."""
    step(agents, batch)  # only then the optimizers keep anything
    leaves = torch.utils._pytree.tree_leaves([agent.state_dict() for agent in agents])
    return sum(x.nbytes for x in leaves if isinstance(x, Tensor)) + peak_bytes(lambda: agents[0].update(batch))


# -------------------- steps and actions


def make_agents(options: dict[str, object], count: int = AGENTS, sizes: tuple[int, int] = (OBS, ACTION)) -> list:
    """So many agents of OM2P, or of a baseline if the options name an `algorithm`; sizes of observation and action."""
    torch.manual_seed(0)
    options = {"hidden_dim": WIDTH} | options
    if "algorithm" in options:
        config, make = baselines.BaselineConfig.of(**options), baselines.make_agent
    else:
        config, make = om2p.Config(**options), om2p.Agent
    return [make(*sizes, config, DEVICE, index=i) for i in range(count)]


def random_batch(size: int = BATCH) -> om2p.Batch:
    """Transitions without meaning."""
    obs, next_obs = torch.randn(2, size, OBS, device=DEVICE)
    action = torch.rand(size, ACTION, device=DEVICE) * 2 - 1
    return om2p.Batch(obs, action, torch.randn(size, 1, device=DEVICE), next_obs, torch.zeros(size, 1, device=DEVICE))


def step(agents: list, batch: om2p.Batch) -> None:
    """One training step: an update of every agent."""
    for agent in agents:
        agent.update(batch)


def measure_updates(rounds: int = 9) -> Iterator[Row]:
    """Every system's step, also beside OM2P's, and its memory."""
    cores = torch.get_num_threads()
    ways = {"update at width 128": (1, 128), "update, 1 thread": (1, WIDTH)}
    ways[f"update, {cores} thread{'s' * (cores > 1)}"] = (cores, WIDTH)
    for what, (threads, width) in ways.items():
        torch.set_num_threads(threads)
        agents = {name: make_agents(options | {"hidden_dim": width}) for name, options in SYSTEMS.items()}
        times = interleaved({name: partial(step, team, random_batch()) for name, team in agents.items()}, rounds)
        for name in SYSTEMS:
            yield f"{name}: {what}", 1e3 * statistics.median(times[name]), "ms"
            ratio = statistics.median(own / ours for own, ours in zip(times[name], times["om2p"]))
            yield f"{name}: {what} / om2p's", ratio, "ratio"
    torch.set_num_threads(cores)
    for name, options in SYSTEMS.items():
        yield f"{name}: training memory", training_bytes(make_agents(options), random_batch()) / 1e6, "MB"


def together(agents: list, batch_of: Callable[[int], om2p.Batch], pool: ThreadPoolExecutor, updates: int = 10) -> None:
    """So many training steps, the agents in the threads of `data.thread_each`."""

    def learn(i: int) -> None:
        for _ in range(updates):
            agents[i].update(batch_of(i))

    list(pool.map(learn, range(len(agents))))


def measure_busy(rounds: int = 5) -> Iterator[Row]:
    """A step in turn and in threads, beside other work."""
    cores = torch.get_num_threads()
    for width, busy in itertools.product((128, WIDTH), (0, 1, 2)):
        agents, batch = make_agents({"hidden_dim": width}), random_batch()
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:
            ways: dict[str, list[float]] = {"in turn, one core": [], f"in turn, {cores} cores": [], "threads": []}
            for _ in range(rounds + 1):
                for way, threads in zip(ways, (1, cores)):
                    torch.set_num_threads(threads)
                    ways[way].append(seconds(partial(step, agents, batch)))
                torch.set_num_threads(cores)
                with data.thread_each(agents, DEVICE) as pool:
                    ways["threads"].append(seconds(partial(together, agents, lambda i, batch=batch: batch, pool)) / 10)
        finally:
            for other in others:
                other.kill()
        for way, times in ways.items():
            yield f"width {width}, beside {busy}: {way}", 1e3 * statistics.median(times[1:]), "ms"


@torch.no_grad()
def measure_latency(rounds: int = 25) -> Iterator[Row]:
    """One agent's actions for 1, 10 and 1,000 observations."""
    (agent,) = make_agents({"candidates": 8}, 1)
    timed = baselines.TimedNet(OBS, ACTION, WIDTH, 4).to(DEVICE)
    generator = torch.Generator(DEVICE).manual_seed(0)
    for count in COUNTS:
        obs, noise = torch.randn(count, OBS, device=DEVICE), torch.randn(count, ACTION, device=DEVICE)
        best_of_8 = partial(agent.act, obs, torch.randn(count, 8, ACTION, device=DEVICE))
        ways = {
            f"mean flow, 1 step: {count} observations": partial(agent.target_policy.act, obs, noise),
            f"mean flow, the critics' best of 8: {count} observations": best_of_8,
            f"flow, 10 steps: {count} observations": partial(baselines.flow_action, timed, obs, noise, 10),
            f"diffusion, 15 steps: {count} observations": partial(
                baselines.diffusion_action, timed, obs, 15, generator
            ),
        }
        yield from medians(ways, rounds)


# -------------------- environments


def measure_evaluation(rounds: int = 5) -> Iterator[Row]:
    """Ten episodes of World at full width."""
    env = envs.make_env("world", data.Behaviour("world").env.prey, DEVICE)
    ways = {}
    for candidates in (8, 1):
        agents = make_agents({"candidates": candidates}, env.num_agents, (env.obs_dim, env.action_dim))
        ways[f"world: 10 episodes, candidates {candidates}"] = partial(envs.evaluate, agents, env, 10, seed=0)
    yield from medians(ways, rounds)


def measure_collection(rounds: int = 5) -> Iterator[Row]:
    """Transitions per second that each task's shipped expert makes; and a whole data file."""
    for name in envs.TASKS:
        size = 200_000 if name == "halfcheetah" else 250_000
        times = interleaved({name: partial(data.collect, name, "expert", size)}, rounds)[name]
        yield f"{name}: collection", size / statistics.median(times), "1/s"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "expert.npz"
        yield (
            "1,000,000 World transitions collected and written",
            seconds(lambda: data.make("world", "expert", path)),
            "s",
        )
        yield "the same read and checked", seconds(lambda: data.Dataset.load(path)), "s"


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "update": measure_updates,
    "busy": measure_busy,
    "latency": measure_latency,
    "evaluation": measure_evaluation,
    "collection": measure_collection,
}


# -------------------- Table 2


def jacobian_derivative(
    policy: torch.nn.Module, obs: Tensor, a_r: Tensor, r: Tensor, t: Tensor, v: Tensor, u: Tensor
) -> Tensor:
    """du/dr from the Jacobian of the whole batch, as in the authors' release (which is in JAX)."""
    by_action, by_time = torch.autograd.functional.jacobian(lambda a, s: policy(obs, a, s, t), (a_r, r))
    return (torch.einsum("biaj,aj->bi", by_action, v) + by_time.sum((2, 3))).detach()


def measure_training(name: str, steps: int) -> dict[str, object]:
    """Train so long, with 10 evaluation episodes every 100 steps and at the end."""
    dataset = data.collect("world", "expert", 100_000).to(DEVICE)
    env = envs.make_env("world", dataset.prey, DEVICE)
    agents = make_agents(TABLE_2[name], env.num_agents, (env.obs_dim, env.action_dim))
    training = evaluation = 0.0

    def batch_of(i: int) -> om2p.Batch:
        return om2p.Batch(*dataset.sample(i, BATCH, agents[i].generator))

    with mock.patch.object(
        om2p, "exact_derivative", jacobian_derivative if "Jacobian" in name else om2p.exact_derivative
    ):
        memory = training_bytes(agents, batch_of(0))
        with data.thread_each(agents, DEVICE) as pool:
            for done in range(0, steps, 100):
                training += seconds(partial(together, agents, batch_of, pool, min(100, steps - done)))
                evaluation += seconds(partial(envs.evaluate, agents, env, 10, seed=0))
    total = training * 10_000 / steps + evaluation * 100 / -(-steps // 100)
    row = {"system": name, "steps": steps, "seconds": training + evaluation, "seconds_per_10000_steps": total}
    return row | {"megabytes": memory / 1e6, "machine": machine()}


def table_2(names: list[str], steps: int) -> None:
    """Measure what is missing, print all of it."""
    path = RESULTS / "table_2.csv"
    for name in names:
        count = max(1, steps // FEWER.get(name, 1))
        row = next((row for row in table(path) if (row["system"], row["steps"]) == (name, str(count))), None)
        if row is None:
            row = measure_training(name, count)
            append(path, [row])
        figures = float(row["seconds_per_10000_steps"]), float(row["megabytes"])
        print(f"{name:<28} {figures[0]:10.0f} s  {figures[1]:8.1f} MB  ({count} steps)", flush=True)


# -------------------- results


def draw(figure: Figure, rows: list[dict[str, str]]) -> None:
    """Time and memory of the systems, and latency, from the rows of the CSV."""
    value = {row["figure"]: float(row["value"]) for row in rows}
    update, memory, latency = figure.subplots(1, 3)
    for axes, label, unit in ((update, "update, 1 thread", "ms"), (memory, "training memory", "MB")):
        bars = {name.split(":")[0]: x for name, x in value.items() if name.endswith(f": {label}")}
        limit = 1.3 * sorted(bars.values())[-2]  # MA-SfBC's time runs out of the picture
        axes.barh(list(bars), list(bars.values()), color=SKY)
        for k, x in enumerate(bars.values()):
            axes.text(0, k, f" {x:,.0f}", va="center")
        axes.set(xlim=(0, limit), xlabel=f"{unit} for 3 agents", title=label)
        axes.invert_yaxis()
    ways = ("mean flow, 1 step", "mean flow, the critics' best of 8", "flow, 10 steps", "diffusion, 15 steps")
    for name, colour in zip(ways, (BLUE, SKY, ORANGE, GREY)):
        latency.loglog(COUNTS, [value[f"{name}: {n} observations"] for n in COUNTS], "o-", color=colour, label=name)
    latency.set(xlabel="observations", ylabel="ms", title="one agent's action", ylim=(None, 2000))
    latency.legend(fontsize=9)


def machine() -> str:
    """What the figures were measured on."""
    return f"{platform.machine()}, {torch.get_num_threads()} threads, {DEVICE}, torch {torch.__version__}"


def main() -> None:
    """Measure, print, write the CSV and the picture."""
    global DEVICE, RESULTS
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=["2"], help="the paper's Table 2 instead")
    parser.add_argument("--steps", type=int, default=10_000, help="of Table 2")
    parser.add_argument("--only", nargs="+", help="these parts, or systems of Table 2")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV files")
    args = parser.parse_args()
    DEVICE, RESULTS = data.pick_device(args.device), args.out
    RESULTS.mkdir(parents=True, exist_ok=True)
    known = TABLE_2 if args.table else PARTS
    if unknown := set(args.only or ()).difference(known):
        parser.error(f"--only {sorted(unknown)[0]}: choose from {', '.join(known)}")
    print(machine())
    if args.table:
        return table_2(args.only or list(TABLE_2), args.steps)
    path, parts = RESULTS / "benchmark.csv", args.only or list(PARTS)
    rows = [row for row in table(path) if row["part"] in PARTS.keys() - parts]
    for part in parts:
        for figure, value, unit in PARTS[part]():
            print(f"{figure:<75} {value:10.4g} {unit}", flush=True)
            rows.append(dict(part=part, figure=figure, value=f"{value:.4g}", unit=unit, machine=machine()))
    rows.sort(key=lambda row: list(PARTS).index(row["part"]))
    data.write_csv(path, rows)
    if {row["part"] for row in rows} >= {"update", "latency"}:
        picture(partial(draw, rows=rows), (13, 4)).savefig(path.with_suffix(".png"), dpi=80)


if __name__ == "__main__":
    main()
