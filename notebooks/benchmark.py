"""How fast OM2P runs on this machine: `python notebooks/benchmark.py`, some minutes, with nothing else running.

Needs `pip install -r notebooks/requirements.txt` too. `--only latency start-up` measures these parts alone:

- update: one training step of three agents at full width (batch 256, four layers of 512) of OM2P with each derivative,
  and of the compared systems. Its own products are every matrix product of that same step, replayed alone with operands
  of the same shape and layout; the warm rate is that of one 256 x 512 x 512 product, repeated on the same operands.
  Memory is the bytes of live tensors: networks, targets, optimizers, and the most that one agent's update adds to them.
- budget: the training step of the systems in Table 1, at its width of 128 and with its one thread.
- latency: one agent's action, in one step, as the critics' best of eight such, in ten steps of a flow, in fifteen of a
  diffusion; networks of one size.
- growth: the time and memory of a training step with more agents, wider networks, larger batches.
- evaluation: episodes of every task, with the candidates of the default and with one.
- collection: transitions (one step of all agents) per second that the shipped expert makes, policy included, beside the
  steps per second of `mpe2`'s env of the same name with continuous random actions, drawn beforehand; for HalfCheetah
  beside MuJoCo's own steps of one episode, without anything around them.
- start-up: from the command to the help text, and to the first update with 1,000,000 transitions on the disk.

Prints medians of interleaved repetitions, writes them to `results/benchmark.csv` (rows of other parts stay) and draws
them as `results/benchmark.png`. Times are wall-clock.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import baselines  # noqa: E402

import data  # noqa: E402
import envs  # noqa: E402
import om2p  # noqa: E402

WIDTH, BATCH, OBS, ACTION, AGENTS = 512, 256, 24, 2, 3
SYSTEMS = {
    "om2p": {},
    "om2p, exact": {"derivative": "exact"},
    "om2p, zero": {"derivative": "zero"},
    "ma-fql": {"algorithm": "ma-fql"},
    "ma-sfbc": {"algorithm": "ma-sfbc"},
}
BUDGET = {  # as reproduce.py calls them
    "om2p": {},
    "om2p, weighted cloning": {"cloning": "weighted"},
    "om2p-paper": {"preset": "paper"},
    "ma-fql": {"algorithm": "ma-fql"},
    "ma-sfbc": {"algorithm": "ma-sfbc", "target_candidates": 4},
    "omar": {"algorithm": "omar"},
    "bc": {"algorithm": "bc"},
}
GROWTH = {"agents": (1, 2, 4, 8, 16), "width": (64, 128, 256, 512, 1024), "batch": (64, 256, 1024, 4096)}
DEVICE = om2p.pick_device("auto")
RESULTS = HERE / "results"
Row = tuple[str, float, str]  # what, how much, unit


# ----------------------------------------------------------------------------------------------------- measuring


class Products(TorchDispatchMode):
    """Counts the matrix products that run inside it, by operation and operands."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.seen[func, tuple((tuple(x.shape), x.stride()) for x in args)] += 1
        return func(*args, **(kwargs or {}))

    def replay(self) -> Callable[[], None]:
        """A function that runs the same products once."""
        calls = []
        for (func, operands), count in self.seen.items():
            calls += [(func, [strided(*operand) for operand in operands])] * count

        def run() -> None:
            for func, tensors in calls:
                func(*tensors)  # the result is dropped at once, so that its memory is used again

        return run

    def flop(self) -> float:
        """Floating-point operations of the products, 2 m k n each."""
        total = 0
        for (_, operands), count in self.seen.items():
            (m, k), (_, n) = (shape for shape, _ in operands[-2:])
            total += 2 * m * k * n * count
        return total


def strided(shape: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """A random tensor laid out so; a stride may be 0."""
    size = 1 + sum((n - 1) * step for n, step in zip(shape, stride))
    return torch.randn(size, device=DEVICE).as_strided(shape, stride)


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
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(seconds(function, calls[name]))
    return times


def peak_bytes(update: Callable[[], object]) -> int:
    """The most bytes that tensors made by one call hold at a time, beyond those that were there."""
    if DEVICE.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        update()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        update()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for size in (e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())):
        live += size
        peak = max(peak, live)
    return peak


def training_bytes(agents: list, batch: om2p.Batch) -> int:
    """Bytes of all tensors that the agents keep, and the most that an update of one adds; makes two updates."""
    step(agents, batch)  # only then the optimizers keep anything
    leaves = torch.utils._pytree.tree_leaves([agent.state_dict() for agent in agents])
    return sum(x.nbytes for x in leaves if isinstance(x, Tensor)) + peak_bytes(lambda: agents[0].update(batch))


# ------------------------------------------------------------------------------------------------------- updates


def make_agents(options: dict[str, object], count: int = AGENTS, sizes: tuple[int, int] = (OBS, ACTION)) -> list:
    """So many agents of OM2P, or of a baseline if the options name an `algorithm`; sizes of observation and action."""
    torch.manual_seed(0)
    if "algorithm" in options:
        config, make = baselines.BaselineConfig(**options).resolve(), baselines.make_agent
    else:
        config, make = om2p.Config(**options).resolve(), om2p.Agent
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


def time_updates(threads: int, rounds: int = 9) -> Iterator[Row]:
    """Every system's step, its own products, and the rate of one warm product."""
    torch.set_num_threads(threads)
    functions, flop = {}, {}
    for name, options in SYSTEMS.items():
        functions[name] = partial(step, make_agents(options), random_batch())
        functions[name]()
        with Products() as products:
            functions[name]()
        functions[f"{name}: products"], flop[name] = products.replay(), products.flop()
    a, b = torch.randn(BATCH, WIDTH, device=DEVICE), torch.randn(WIDTH, WIDTH, device=DEVICE)
    times = interleaved(functions | {"warm": lambda: a @ b}, rounds)
    suffix = f", {threads} thread{'s' * (threads > 1)}"
    rate = [2 * BATCH * WIDTH * WIDTH / t for t in times["warm"]]
    yield f"warm rate of one product{suffix}", statistics.median(rate) / 1e9, "GFLOP/s"
    for name in SYSTEMS:
        own, update = times[f"{name}: products"], times[name]
        yield f"{name}: update{suffix}", 1e3 * statistics.median(update), "ms"
        yield f"{name}: its own products{suffix}", 1e3 * statistics.median(own), "ms"
        yield f"{name}: update / own products{suffix}", statistics.median(u / p for u, p in zip(update, own)), "ratio"
        at_warm = (u * r / flop[name] for u, r in zip(update, rate))
        yield f"{name}: update / its FLOP at the warm rate{suffix}", statistics.median(at_warm), "ratio"
        to_om2p = (u / o for u, o in zip(update, times["om2p"]))
        yield f"{name}: update / om2p's{suffix}", statistics.median(to_om2p), "ratio"


def measure_updates() -> Iterator[Row]:
    """Time with one core and with all, and memory."""
    cores = torch.get_num_threads()
    for threads in sorted({1, cores}):
        yield from time_updates(threads)
    torch.set_num_threads(cores)
    for name, options in SYSTEMS.items():
        yield f"{name}: training memory", training_bytes(make_agents(options), random_batch()) / 1e6, "MB"


def measure_budget(rounds: int = 15) -> Iterator[Row]:
    """What a step of Table 1's systems costs there, and beside OM2P's."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    steps = {
        name: partial(step, make_agents(options | {"hidden_dim": 128}), random_batch())
        for name, options in BUDGET.items()
    }
    times = interleaved(steps, rounds)
    torch.set_num_threads(cores)
    for name in BUDGET:
        yield f"{name}: update at width 128", 1e3 * statistics.median(times[name]), "ms"
        ratio = statistics.median(t / o for t, o in zip(times[name], times["om2p"]))
        yield f"{name}: update at width 128 / om2p's", ratio, "ratio"


def measure_growth(rounds: int = 7) -> Iterator[Row]:
    """Time and memory of a step with more agents, wider networks, larger batches, the rest as above."""
    for what, values in GROWTH.items():
        steps, memory = {}, {}
        for value in values:
            options = {"hidden_dim": value if what == "width" else WIDTH}
            agents = make_agents(options, value if what == "agents" else AGENTS)
            batch = random_batch(value if what == "batch" else BATCH)
            steps[value], memory[value] = partial(step, agents, batch), training_bytes(agents, batch)
        times = interleaved(steps, rounds)
        for value in values:
            yield f"{value} {what}: update", 1e3 * statistics.median(times[value]), "ms"
            yield f"{value} {what}: training memory", memory[value] / 1e6, "MB"
        if what == "agents":
            few, more, most = values[0], values[1], values[-1]
            ratio = statistics.median(m / f * few / most for f, m in zip(times[few], times[most]))
            yield f"time per agent, {most} agents / {few}", ratio, "ratio"
            ratio = (memory[most] - memory[more]) / (most - more) / (memory[more] - memory[few]) * (more - few)
            yield f"memory of one more agent, of {most} agents / of {more}", ratio, "ratio"


@torch.no_grad()
def measure_latency(rounds: int = 25) -> Iterator[Row]:
    """One agent's actions for 1, 10 and 1,000 observations."""
    (agent,) = make_agents({"candidates": 8}, 1)
    policy = agent.acting()[0]
    timed = baselines.TimedNet(OBS, ACTION, WIDTH, 4).to(DEVICE)
    generator = torch.Generator(DEVICE).manual_seed(0)
    for count in (1, 10, 1000):
        obs, noise = torch.randn(count, OBS, device=DEVICE), torch.randn(count, ACTION, device=DEVICE)
        ways = {
            "mean flow, 1 step": partial(policy.act, obs, noise),
            "mean flow, the critics' best of 8": partial(agent.act, obs, torch.randn(count, 8, ACTION, device=DEVICE)),
            "flow, 10 steps": partial(baselines.flow_action, timed, obs, noise, 10),
            "diffusion, 15 steps": partial(baselines.diffusion_action, timed, obs, 15, generator),
        }
        times = interleaved(ways, rounds)
        for name in ways:
            yield f"{name}: {count} observations", 1e3 * statistics.median(times[name]), "ms"


# -------------------------------------------------------------------------------------------------- environments


def measure_evaluation(rounds: int = 5) -> Iterator[Row]:
    """Ten episodes of every task at full width."""
    for name in envs.DIMENSIONS:
        env = envs.make_env(name, data.collect(name, "expert", 1000, progress=False).prey, DEVICE)
        ways = {}
        for candidates in (8, 1):
            agents = make_agents({"candidates": candidates}, env.num_agents, (env.obs_dim, env.action_dim))
            ways[candidates] = partial(envs.evaluate, agents, env, 10, seed=0)
        times = interleaved(ways, rounds)
        for candidates in ways:
            yield f"{name}: 10 episodes, candidates {candidates}", 1e3 * statistics.median(times[candidates]), "ms"


def peer_steps(name: str) -> Callable[[int], None]:
    """A function that makes so many steps of `mpe2`'s, or for HalfCheetah of MuJoCo's, own environment."""
    if name == "halfcheetah":
        import mujoco

        model = envs.HalfCheetah().model
        state, controls = mujoco.MjData(model), torch.rand(1000, 6).double().numpy() * 2 - 1

        def simulate(count: int) -> None:
            for k in range(count):
                state.ctrl[:] = controls[k % 1000]
                mujoco.mj_step(model, state, nstep=5)

        return simulate
    from mpe2 import simple_spread_v3, simple_tag_v3, simple_world_comm_v3

    module, sides = {  # as many agents and landmarks as here, as far as its options go
        "spread": (simple_spread_v3, {"N": 3}),
        "tag": (simple_tag_v3, {"num_good": 1, "num_adversaries": 3, "num_obstacles": 2}),
        "world": (simple_world_comm_v3, {"num_good": 1, "num_adversaries": 3, "num_forests": 2}),
    }[name]
    env = module.parallel_env(continuous_actions=True, max_cycles=25, **sides)
    env.reset(seed=0)
    actions = [{agent: env.action_space(agent).sample() for agent in env.agents} for _ in range(25)]

    def play(count: int) -> None:
        for k in range(count):
            if k % 25 == 0:
                env.reset()
            env.step(actions[k % 25])

    return play


def measure_collection(rounds: int = 5) -> Iterator[Row]:
    """Collection of each task and its peer's stepping, in turns; and a whole data file."""
    for name in envs.DIMENSIONS:
        peer, size, steps = peer_steps(name), *((200_000, 20_000) if name == "halfcheetah" else (250_000, 1000))
        peer(100)
        data.collect(name, "expert", 1000, progress=False)
        ours, theirs = [], []
        collect = partial(data.collect, name, "expert", size, progress=False)
        for seed in range(rounds):
            ours.append(size / seconds(partial(collect, seed=seed)))
            theirs.append(steps / seconds(partial(peer, steps)))
        rival = "MuJoCo's steps of one episode" if name == "halfcheetah" else "mpe2's steps"
        yield f"{name}: collection", statistics.median(ours), "1/s"
        yield f"{name}: {rival}", statistics.median(theirs), "1/s"
        yield f"{name}: ratio", statistics.median(a / b for a, b in zip(ours, theirs)), "ratio"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "expert.npz"
        made, loaded = seconds(lambda: data.make("world", "expert", path)), seconds(lambda: data.Dataset.load(path))
    yield "1,000,000 World transitions collected and written", made, "s"
    yield "the same read and checked", loaded, "s"


FIRST_UPDATE = """
import os, sys
import om2p

class Once(om2p.Agent):
    def update(self, batch):
        super().update(batch)
        os._exit(0)

om2p.main(sys.argv[1:], make_agent=Once)
sys.exit("no update was made")
"""


def measure_start_up(rounds: int = 5) -> Iterator[Row]:
    """Processes from their start to their end: torch alone, the help text, and the first update of the first agent."""
    with tempfile.TemporaryDirectory() as folder:
        data.make("world", "expert", Path(folder) / "expert.npz")
        training = [FIRST_UPDATE, "--data", f"{folder}/expert.npz", "--out", f"{folder}/run"]
        commands = {
            "import torch": ["-c", "import torch"],
            "python om2p.py --help": [HERE.parent / "om2p.py", "--help"],
            "from the command to the first update, 1,000,000 transitions": ["-c", *training],
        }
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        run = partial(subprocess.run, check=True, capture_output=True, env=environment)
        times = interleaved({name: partial(run, [sys.executable, *c]) for name, c in commands.items()}, rounds)
    for name in commands:
        yield name, statistics.median(times[name]), "s"


# ------------------------------------------------------------------------------------------------------- results


PARTS: dict[str, Callable[[], Iterator[Row]]] = {
    "update": measure_updates,
    "budget": measure_budget,
    "latency": measure_latency,
    "growth": measure_growth,
    "evaluation": measure_evaluation,
    "collection": measure_collection,
    "start-up": measure_start_up,
}


def draw(rows: list[dict[str, str]], path: Path) -> None:
    """Updates and memory of the systems, latency, and growth, from the rows of the CSV."""
    from drawing import BLUE, GREY, ORANGE, SKY
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    value = {row["figure"]: float(row["value"]) for row in rows}
    figure = Figure(figsize=(12, 7), layout="constrained")
    (update, memory, latency), growth = figure.subplots(2, 3)
    names = list(SYSTEMS)
    for axes, label, unit in ((update, "update, 1 thread", "ms"), (memory, "training memory", "MB")):
        values = [value[f"{name}: {label}"] for name in names]
        limit = 1.3 * max(x for x in values if x < 3 * values[0])
        axes.barh(names, values, color=GREY)
        for k, x in enumerate(values):
            if x < limit:
                axes.text(x, k, f" {x:,.0f}", va="center")
        axes.set(xlim=(0, limit), xlabel=f"{unit} for 3 agents")
        axes.invert_yaxis()
    products = [value[f"{name}: its own products, 1 thread"] for name in names]
    update.barh(names, products, color=BLUE)
    for k, (name, part) in enumerate(zip(names, products)):
        if (x := value[f"{name}: update, 1 thread"]) > update.get_xlim()[1]:  # MA-SfBC's bar runs out of the picture
            text = f"{x:,.0f}, products {part:,.0f} $\\rightarrow$ "
            update.text(update.get_xlim()[1], k, text, va="center", ha="right", color="white")
    update.set_title("training step, 1 thread\n(blue: its own matrix products, grey: the rest)", fontsize=11)
    memory.set_title("training memory")
    counts = (1, 10, 1000)
    ways = {"mean flow, 1 step": BLUE, "mean flow, the critics' best of 8": SKY}
    for name, colour in (ways | {"flow, 10 steps": ORANGE, "diffusion, 15 steps": GREY}).items():
        latency.loglog(counts, [value[f"{name}: {n} observations"] for n in counts], "o-", color=colour, label=name)
    latency.set(xlabel="observations", ylabel="ms", title="one agent's action")
    latency.legend(fontsize=9)
    for axes, (what, values) in zip(growth, GROWTH.items()):
        for label, unit, colour in (("update", "ms", BLUE), ("training memory", "MB", ORANGE)):
            heights = [value[f"{v} {what}: {label}"] for v in values]
            axes.loglog(values, heights, "o-", color=colour, label=f"{label}, {unit}")
        start = value[f"{values[0]} {what}: update"]
        axes.loglog(values, [start * v / values[0] for v in values], ":", color=GREY, label="in proportion")
        axes.set(xlabel=what, ylabel="ms or MB", title=f"training step: {what}")
        axes.set_xticks(values, [str(v) for v in values])
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
    growth[0].legend(fontsize=9)
    figure.savefig(path, dpi=80)


def machine() -> str:
    """What the figures were measured on."""
    text = f"{platform.machine()}, {torch.get_num_threads()} threads, {DEVICE}, torch {torch.__version__}"
    return f"{text}, product precision {torch.get_float32_matmul_precision()}"


def main() -> None:
    """Measure, print, write the CSV and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parts = parser.parse_args().only
    om2p.tune_cpu(DEVICE)
    print(where := machine())
    path, rows = RESULTS / "benchmark.csv", []
    if path.exists():
        with open(path, newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["part"] not in parts]
    for part in parts:
        for figure, value, unit in PARTS[part]():
            print(f"{figure:<75} {value:10.4g} {unit}", flush=True)
            rows.append(dict(part=part, figure=figure, value=f"{value:.4g}", unit=unit, machine=where))
    rows.sort(key=lambda row: list(PARTS).index(row["part"]))
    with data.whole_file(path) as whole, open(whole, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    if {row["part"] for row in rows} == set(PARTS):
        draw(rows, RESULTS / "benchmark.png")


if __name__ == "__main__":
    main()
