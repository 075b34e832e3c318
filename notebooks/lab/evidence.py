"""Tables and figures from results/*.csv: the paper's beside ours, and a verdict for each claim.

    python notebooks/lab/evidence.py

It draws the pictures and writes the tables of README.md here and above.
"""

from __future__ import annotations

import re
import statistics
import sys
from functools import partial
from pathlib import Path

import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import reproduce  # noqa: E402
import two_modes  # noqa: E402
from drawing import BLUE, GREEN, GREY, ORANGE, PINK, SKY, YELLOW  # noqa: E402
from reproduce import (  # noqa: E402
    ABLATED,
    CELLS,
    CHANGES,
    CLONING,
    DIFFERENCES,
    ENVS,
    ETAS,
    EXACT,
    PARTS,
    RESULTS,
    WORLD,
    table,
)

OURS, OURS_NAME = "om2p", "OM2P (ours)"
PAPERS, PAPERS_NAME = "om2p-paper", "OM2P (paper's settings)"
NAMES = {OURS: OURS_NAME, PAPERS: PAPERS_NAME, "ma-fql": "MA-FQL", "omar": "OMAR", "ma-sfbc": "MA-SfBC"}
NAMES |= {"bc": "cloning"}
COLOURS = dict(zip(NAMES, (BLUE, ORANGE, GREEN, YELLOW, PINK, GREY)))
TASKS = dict(tag="Predator-Prey", world="World", spread="Cooperative Navigation", halfcheetah="2-agent HalfCheetah")
TABLE_1 = {  # of the paper: mean return over 5 seeds, for data of each of QUALITIES
    "tag": {
        "omar": (86.8, 116.9, 128.3, 202.8),
        "ma-sfbc": (26.1, 127.0, 152.3, 256.0),
        "ma-fql": (203.8, 255.1, 233.0, 289.5),
        OURS: (203.1, 257.3, 230.2, 330.3),
    },
    "world": {
        "omar": (21.1, 45.6, 71.5, 84.8),
        "ma-sfbc": (9.1, 54.2, 60.6, 97.3),
        "ma-fql": (107.0, 136.1, 120.7, 139.4),
        OURS: (106.0, 142.0, 126.9, 175.0),
    },
    "spread": {
        "omar": (260.7, 348.7, 450.3, 564.6),
        "ma-sfbc": (196.1, 276.3, 299.8, 553.0),
        "ma-fql": (375.6, 469.6, 525.0, 582.6),
        OURS: (380.3, 441.2, 510.0, 614.0),
    },
    "halfcheetah": {
        "omar": (1675, 2797, 2900, 2964),
        "ma-sfbc": (-128, 1387, 1392, 2387),
        "ma-fql": (2554, 2172, 2655, 3870),
        OURS: (2526, 2674, 2917, 4152),
    },
}
CELLS_OF = {env: [cell for cell in CELLS if cell.startswith(f"{env}/")] for env in ENVS}
PAPER = {(c, s): x for env, rows in TABLE_1.items() for s, row in rows.items() for c, x in zip(CELLS_OF[env], row)}
OVER_DATA = {  # the paper's OM2P over the mean return of its data
    "spread/medium": 1.7,
    "tag/medium": 2.9,
    "world/medium": 3.3,
    "spread/expert": 1.19,
    "tag/expert": 1.78,
    "world/expert": 2.2,
}
DATA_RETURNS = dict(  # mean return of the data that data.py makes, likewise
    zip(
        CELLS,
        (
            *(18.12, 89.61, 99.32, 185.21),
            *(6.073, 43.75, 47.35, 79.56),
            *(164.454, 256.71, 282.68, 516.28),
            *(360.93, 1821.8, 1752.3, 3328.4),
        ),
    )
)
TABLE_2 = {  # of the paper: seconds and megabytes of 10,000 steps with 10 evaluation episodes every 100, on a GPU
    "ma-sfbc": (6242, 1036),
    "ma-fql": (715, 906),
    f"{PAPERS}, full Jacobian": (679, 2442),
    PAPERS: (576, 650),
}
PAGES = (HERE.parent.parent / "README.md", HERE / "README.md")
BySeed = dict[int, float]
Key = tuple[str, str, str]  # cell, system, options without those of the budget


# -------------------- scores


def curves(name: str, last: str = "0") -> dict[Key, dict[int, BySeed]]:
    """The returns of a grid's evaluations on the way (last "1": of those at the end), by step and seed."""
    found: dict[Key, dict[int, BySeed]] = {}
    for row in table(RESULTS / f"{name}.csv"):
        if row["last"] == last:
            change = re.sub(r"--(steps|eval-every) \d+ ?", "", row["options"])
            by_step = found.setdefault((row["cell"], row["system"], change), {})
            by_step.setdefault(int(row["step"]), {})[int(row["seed"])] = float(row["return"])
    return found


def finals(name: str) -> dict[Key, BySeed]:
    """The returns at the end of a grid's runs, by seed."""
    return {key: by_seed for key, by_step in curves(name, "1").items() for by_seed in by_step.values()}


def mean_and_spread(scores: BySeed) -> tuple[float, float]:
    """Mean and standard deviation over seeds (0 for one seed)."""
    return statistics.mean(scores.values()), statistics.stdev(scores.values()) if len(scores) > 1 else 0.0


def average(scores: list[BySeed]) -> BySeed:
    """The mean over cells (or steps), for the seeds that all of them have."""
    seeds = set.intersection(*map(set, scores))
    return {seed: statistics.mean(by_seed[seed] for by_seed in scores) for seed in seeds}


def difference(a: BySeed, b: BySeed) -> tuple[str, str]:
    """Mean of a - b over common seeds and its standard error; whether Student's t-test at 95% tells it from zero.

    Runs of one seed are scored on the same episodes; those of OM2P also start with the same weights.
    """
    differences = [a[seed] - b[seed] for seed in a.keys() & b.keys()]
    if len(differences) < 2:
        return "".join(f"{x:+.0f}" for x in differences) or "-", "not told apart"
    mean, error = statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5
    digits, noise = 1 if error < 1 else 0, scipy.stats.t.ppf(0.975, len(differences) - 1) * error
    word = "above" if mean > noise else "below" if mean < -noise else "not told apart"
    return f"{mean:+.{digits}f} ± {error:.{digits}f}", word


def starred(a: BySeed, b: BySeed) -> str:
    """Their difference, with a star where the seeds tell it from zero."""
    text, word = difference(a, b)
    return text + "*" * (word != "not told apart")


# -------------------- Table 1


def table_1() -> dict[tuple[str, str], BySeed]:
    """The returns by cell and system; ValueError if a system has two settings."""
    found: dict[tuple[str, str], BySeed] = {}
    for (cell, system, _), by_seed in finals("table1").items():
        if (cell, system) in found:
            raise ValueError(f"table1.csv has two settings of {system} on {cell}: delete one")
        found[cell, system] = by_seed
    return found


def on_the_way() -> dict[tuple[str, str], dict[int, BySeed]]:
    """The returns of Table 1's evaluations on the way, by cell and system, then by step."""
    return {(cell, system): by_step for (cell, system, _), by_step in curves("table1").items()}


def text_table_1() -> list[str]:
    """Ours beside the paper's (in brackets), a row of a Markdown table for each cell."""
    found, lines = table_1(), [f"| | data | {' | '.join(NAMES.values())} |", "|---" * (len(NAMES) + 2) + "|"]
    for cell, level in DATA_RETURNS.items():
        env, quality = cell.split("/")
        line = f"| {TASKS[env]}, {quality} | {level:.0f}"
        for system in NAMES:
            line += f" | {with_spread(found[cell, system])}"
            line += f" ({PAPER[cell, system]:g})" if (cell, system) in PAPER else ""
        lines.append(f"{line} |")
    return lines


def text_averages() -> list[str]:
    """Averages over the kinds of data of each task, and each system's steps, as Markdown."""
    found, ratios = table_1(), time_of_a_step()
    steps = {s: max(by_step) for (_, s), by_step in on_the_way().items()}
    lines = [f"| | data | {' | '.join(NAMES.values())} |", "|---" * (len(NAMES) + 2) + "|"]
    lines.append(f"| training steps | | {' | '.join(f'{steps[s]:,}' for s in NAMES)} |")
    for env, cells in CELLS_OF.items():
        texts = [with_spread(average([found[cell, s] for cell in cells])) for s in NAMES]
        level = statistics.mean(DATA_RETURNS[cell] for cell in cells)
        lines.append(f"| `{env}`, {TASKS[env]} | {level:,.0f} | {' | '.join(texts)} |")
    return [*lines, f"| time of a training step | | {' | '.join(f'x {ratios[s]:.2f}' for s in NAMES)} |"]


def time_of_a_step() -> dict[str, float]:
    """Of every system over that of OM2P, at Table 1's width."""
    figures = {row["figure"]: row["value"] for row in table(RESULTS / "benchmark.csv")}
    return {s: float(figures[f"{s}: update at width 128 / {OURS}'s"]) for s in NAMES}


def with_spread(scores: BySeed) -> str:
    """Mean and standard deviation over seeds; of one seed the mean alone."""
    mean, spread = mean_and_spread(scores)
    return f"{mean:,.0f} ± {spread:.0f}" if len(scores) > 1 else f"{mean:,.0f}"


def text_differences() -> list[str]:
    """OM2P's average over a task's kinds of data minus each other system's after as many steps, as Markdown.

    The second row of a task is at equal training time: OM2P at its end, a slower system after as many steps as it makes
    by then.
    """
    along, ratios, others = on_the_way(), time_of_a_step(), [s for s in NAMES if s != OURS]
    lines = [f"| {OURS_NAME} minus | {' | '.join(NAMES[s] for s in others)} |", "|---" * (len(others) + 1) + "|"]
    for env, cells in CELLS_OF.items():
        end = max(along[cells[0], OURS])
        ours = average([along[cell, OURS][end] for cell in cells])
        steps, time = ([starred(*at_equal_steps(cells, s)) for s in others], ["-"] * len(others))
        for k, s in enumerate(others):
            step, their_curves = end / ratios[s], [along[cell, s] for cell in cells]
            if ratios[s] > 1 and all(max(by_step) >= step for by_step in their_curves):
                time[k] = starred(ours, average([at_step(by_step, step) for by_step in their_curves]))
        lines += [f"| {TASKS[env]} | {' | '.join(steps)} |", f"| at equal time | {' | '.join(time)} |"]
    return lines


def at_equal_steps(cells: list[str], system: str) -> tuple[BySeed, BySeed]:
    """Averages over cells of OM2P and of another system: what made fewer steps at its end, the other on its way."""
    found, pair = table_1(), (OURS, system)
    along = {key: by_step for key, by_step in on_the_way().items() if key[0] in cells and key[1] in pair}
    last = min(max(by_step) for by_step in along.values())
    scores = {key: found[key] if max(by_step) == last else at_step(by_step, last) for key, by_step in along.items()}
    ours, theirs = (average([scores[cell, s] for cell in cells]) for s in pair)
    return ours, theirs


def at_step(by_step: dict[int, BySeed], step: float) -> BySeed:
    """The return of every seed at a step between two evaluations, on the line between them."""
    before, after = max(s for s in by_step if s <= step), min(s for s in by_step if s >= step)
    share = (step - before) / max(after - before, 1)
    return {seed: (1 - share) * x + share * by_step[after][seed] for seed, x in by_step[before].items()}


def panel(axes: Axes, title: str, cells: list[str], scores: dict[tuple[str, str], BySeed], colours: dict) -> None:
    """Mean and standard deviation over seeds, by cell and label; the paper's as rings, the data's as dotted lines."""
    for k, cell in enumerate(cells):
        axes.plot([k - 0.42, k + 0.42], [DATA_RETURNS[cell]] * 2, color="black", lw=1, ls=":")
        for j, (label, colour) in enumerate(colours.items()):
            x = k + (j - (len(colours) - 1) / 2) * 0.84 / len(colours)
            if by_seed := scores.get((cell, label)):
                axes.errorbar(x, *mean_and_spread(by_seed), color=colour, marker="o", ms=6, capsize=2)
            if (cell, label) in PAPER:
                axes.plot(x, PAPER[cell, label], "o", ms=6, mfc="none", color=colour, alpha=0.6)
    axes.set_title(title, fontsize=12)
    axes.set_xticks(range(len(cells)), [cell.split("/")[1] for cell in cells])
    axes.set_ylabel("return")


def legend(figure: Figure, colours: dict[str, str]) -> None:
    """What the colours mean, below all panels."""
    axes = figure.axes[0]
    for label, colour in colours.items():
        axes.plot([], [], "o", color=colour, label=NAMES.get(label, label))
    axes.plot([], [], color="black", lw=1, ls=":", label="return of the data")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)


def draw_table_1(figure: Figure) -> None:
    """A panel for each task: ours as filled dots, the paper's as rings."""
    for axes, (env, cells) in zip(figure.subplots(2, 2).flat, CELLS_OF.items()):
        panel(axes, TASKS[env], cells, table_1(), COLOURS)
    figure.axes[0].plot([], [], "o", mfc="none", color="black", label="the paper's")
    legend(figure, COLOURS)


def draw_long(figure: Figure) -> None:
    """Learning curves on expert data, a line for each seed; levels: the data, and the paper's OM2P."""
    found = on_the_way()
    for axes, (env, cells) in zip(figure.subplots(1, 4).flat, CELLS_OF.items()):
        for system in NAMES:
            by_step = found[cells[-1], system]
            for seed in {seed for by_seed in by_step.values() for seed in by_seed}:
                points = [(step, by_seed[seed]) for step, by_seed in sorted(by_step.items()) if seed in by_seed]
                axes.plot(*zip(*points), color=COLOURS[system], label=NAMES[system])
        axes.axhline(DATA_RETURNS[cells[-1]], color="black", lw=1, ls=":", label="return of the data")
        axes.axhline(PAPER[cells[-1], OURS], color="black", lw=1, ls="--", label="the paper's OM2P")
        axes.set_title(f"{TASKS[env]}, expert", fontsize=11)
        axes.set(xlabel="training steps", ylabel="return")
    handles = dict(zip(*reversed(figure.axes[0].get_legend_handles_labels())))
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=4)


# -------------------- Table 2


def costs() -> list[tuple[str, dict[str, float], dict[str, float]]]:
    """What is compared, ours and the paper's by system: seconds of 10,000 steps on a CPU and on a GPU, megabytes."""
    on_cpu, on_gpu = (
        {row["system"]: row for row in table(RESULTS / name)} for name in ("table_2.csv", "gpu/table_2.csv")
    )
    compared = (
        ("time of training on a CPU", on_cpu, "seconds_per_10000_steps", 0),
        ("time of training on a GPU", on_gpu, "seconds_per_10000_steps", 0),
        ("memory of training", on_cpu, "megabytes", 1),
    )
    return [
        (what, {s: float(row[column]) for s, row in rows.items()}, {s: figures[k] for s, figures in TABLE_2.items()})
        for what, rows, column, k in compared
    ]


def text_table_2() -> list[str]:
    """Time and memory of every system, and over those of OM2P as published (the paper's in brackets), as Markdown."""
    lines = ["| | seconds on a CPU | over OM2P | on a GPU | over OM2P | MB | over OM2P |", "|---" * 7 + "|"]
    compared = costs()
    for system in compared[0][1]:
        name, comma, way = system.partition(",")
        line = f"| {NAMES[name]}{comma}{way}"
        for _, ours, paper in compared:
            line += f" | {ours[system]:.0f} | {ours[system] / ours[PAPERS]:.2f}"
            line += f" ({paper[system] / paper[PAPERS]:.2f})" if system in paper else ""
        lines.append(f"{line} |")
    return lines


# -------------------- Figures


def draw_figure_2(figure: Figure) -> None:
    """World expert: cloning with two laws of times; the return with each step of Eq. 5 minus the exact derivative's."""
    cloning, steps = figure.subplots(1, 2)
    found = curves("figure2")
    for (label, options), colour in zip(CLONING.items(), (BLUE, ORANGE)):
        by_step = dict(sorted(found["world/expert", PAPERS, options].items()))
        means, spreads = zip(*map(mean_and_spread, by_step.values()))
        cloning.plot(by_step.keys(), means, color=colour, label=label)
        low, high = ([m + sign * s for m, s in zip(means, spreads)] for sign in (-1, 1))
        cloning.fill_between(by_step.keys(), low, high, color=colour, alpha=0.12, lw=0)
    cloning.axhline(DATA_RETURNS["world/expert"], color="black", lw=1, ls=":", label="return of the data")
    cloning.set(xlabel="training steps", ylabel="return", title="cloning: distribution of times")
    cloning.legend(fontsize=9)
    last = finals("figure2")
    exact = last["world/expert", PAPERS, EXACT]
    for row, options in enumerate(DIFFERENCES.values()):
        scores = last["world/expert", PAPERS, options]
        mean, spread = mean_and_spread({seed: scores[seed] - exact[seed] for seed in scores.keys() & exact.keys()})
        steps.errorbar(mean, row, xerr=spread, color=BLUE, marker="o", capsize=2)
    steps.axvline(0, color="black", lw=1, ls=":")
    steps.set(xlabel="return minus the exact derivative's", title=r"whole loss: step of the difference $\Delta r$")
    steps.set_yticks(range(len(DIFFERENCES)), DIFFERENCES)
    steps.invert_yaxis()


def draw_on_world(figure: Figure, name: str, variants: dict[str, str]) -> None:
    """Every variant on each kind of World's data."""
    colours, last = dict(zip(variants, (YELLOW, GREY, SKY, BLUE))), finals(name)
    scores = {(cell, label): last.get((cell, PAPERS, o), {}) for cell in WORLD for label, o in variants.items()}
    panel(figure.subplots(), PAPERS_NAME, WORLD, scores, colours)
    legend(figure, colours)


# -------------------- two modes


def text_two_modes() -> list[str]:
    """The share of samples near a mode with the fewest network evaluations, mean over seeds, as Markdown."""
    lines = ["| | network evaluations | share near a mode |", "|---|---|---|"]
    for name, by_count in two_modes.read(RESULTS / "two_modes.csv").items():
        fewest = min(by_count)
        lines.append(f"| {name.partition(' (from')[0]} | {fewest} | {statistics.mean(by_count[fewest]):.2f} |")
    return lines


# -------------------- ablations


def draw_ablations(figure: Figure) -> None:
    """A panel for each cell, a row for each change: mean and standard deviation over seeds; the default as a line."""
    last = finals("ablations")
    for axes, cell in zip(figure.subplots(1, len(ABLATED), sharey=True), ABLATED):
        for row, change in enumerate(CHANGES):
            if by_seed := last.get((cell, OURS, change)):
                mean, spread = mean_and_spread(by_seed)
                axes.errorbar(mean, row, xerr=spread, color=ORANGE if change else BLUE, marker="o", ms=6, capsize=2)
                if not change:
                    axes.axvline(mean, color=BLUE, lw=1, ls=":")
        axes.set_title("{}\n{}".format(TASKS[cell.split("/")[0]], cell.split("/")[1]), fontsize=11)
        axes.set_xlabel("return")
        axes.margins(x=0.15)
    axes.set_yticks(range(len(CHANGES)), [change or OURS_NAME for change in CHANGES])
    axes.invert_yaxis()


def text_ablations() -> list[str]:
    """What every change alone does to the return in each cell, as Markdown; a star where the seeds tell it apart."""
    last = finals("ablations")
    lines = [f"| the default, but | {' | '.join(ABLATED)} |", "|---" * (len(ABLATED) + 1) + "|"]
    for change in CHANGES[1:]:
        texts = [starred(last.get((cell, OURS, change), {}), last[cell, OURS, ""]) for cell in ABLATED]
        lines.append(f"| {change} | {' | '.join(texts)} |")
    return lines


# -------------------- the discount


def text_discount() -> list[str]:
    """Returns with the paper's discount and with the task's own, means over seeds, as Markdown."""
    found, systems = table_1(), (OURS, "ma-fql")
    before = {(c, s): scores for (c, s, change), scores in finals("discount").items() if change.endswith(" 0.99")}
    lines = [f"| 0.99 → the task's | {' | '.join(NAMES[s] for s in systems)} |", "|---" * (len(systems) + 1) + "|"]
    for cell in [*CELLS_OF["tag"], *CELLS_OF["world"]]:
        line = f"| {TASKS[cell.split('/')[0]]}, {cell.split('/')[1]}"
        for s in systems:
            old, new = (statistics.mean(scores.values()) for scores in (before[cell, s], found[cell, s]))
            line += f" | {old:.0f} → {new:.0f}"
        lines.append(f"{line} |")
    return lines


# -------------------- all claims

Claim = tuple[str, str, str, str]  # what the paper claims, its figure, ours, and whether it holds


def ratio_claim(what: str, paper: float, ours: float) -> Claim:
    """A claim that something is so many times something else; it holds if ours is nine tenths as far above 1."""
    holds = "yes" if ours - 1 >= 0.9 * (paper - 1) else "in part" if ours > 1.05 else "no"
    return what, f"x {paper:.2f}", f"x {ours:.2f}", holds


def order_claim(what: str, a: BySeed, b: BySeed, equal: bool = False) -> Claim:
    """A claim that a is above b, or with `equal` no different; "open" where the seeds do not tell."""
    text, word = difference(a, b)
    holds = "no" if word == "below" else "yes" if word == "above" else "open"
    if equal:
        holds = "not refuted" if holds == "open" else "no"
    return what, "equal" if equal else "above", text, holds


def text_claims() -> list[str]:
    """Those of Tables 1 and 2 and of Figures 2 to 4, the latter with the paper's settings, as Markdown."""
    found, rows = table_1(), []
    for env, cells in CELLS_OF.items():
        paper = {s: statistics.mean(PAPER[cell, s] for cell in cells) for s in TABLE_1[env]}
        if paper[OURS] > paper["ma-fql"]:
            rows.append(order_claim(f"{TASKS[env]}: OM2P above MA-FQL", *at_equal_steps(cells, "ma-fql")))
        for s in ("omar", "ma-sfbc"):
            ours, theirs = (mean_and_spread(x)[0] for x in at_equal_steps(cells, s))
            rows.append(ratio_claim(f"{TASKS[env]}: OM2P over {NAMES[s]}", paper[OURS] / paper[s], ours / theirs))
    for cell, times in OVER_DATA.items():
        env, quality = cell.split("/")
        over = mean_and_spread(found[cell, OURS])[0] / DATA_RETURNS[cell]
        rows.append(ratio_claim(f"{TASKS[env]}, {quality}: OM2P over its data", times, over))
    for what, ours, paper in costs():
        for s in (s for s in paper if s != PAPERS):
            name = NAMES.get(s, "exact gradients, as a full Jacobian")
            ratios = (x[s] / x[PAPERS] for x in (paper, ours))
            rows.append(ratio_claim(f"{what}, {name} over OM2P", *ratios))
    last = {name: finals(name) for name in ("figure2", "figure3", "figure4")}
    beta, uniform = (last["figure2"]["world/expert", PAPERS, options] for options in CLONING.values())
    rows.append(order_claim("World, expert: cloning with Beta(6, 6) times above uniform ones", beta, uniform))
    for label, options in DIFFERENCES.items():
        if label.startswith(("1e-8", "1e-12")):
            pair = (last["figure2"]["world/expert", PAPERS, x] for x in (options, EXACT))
            rows.append(order_claim(f"World, expert: a step of {label} as good as the exact derivative", *pair, True))
    for cell in WORLD:
        pair = (last["figure3"][cell, PAPERS, f"--eta {eta}"] for eta in (1000, 0.1))
        rows.append(order_claim(f"World, {cell.split('/')[1]}: weight of Q 1000 above 0.1", *pair))
    for label, part in PARTS.items():
        if part:
            cells = [cell for cell in WORLD if (cell, PAPERS, part) in last["figure4"]]
            pair = (average([last["figure4"][cell, PAPERS, change] for cell in cells]) for change in ("", part))
            rows.append(order_claim(f"World: everything above {label}", *pair))
    head = ["| the paper's claim | there | here | holds |", "|---|---|---|---|"]
    return head + [f"| {' | '.join(claim)} |" for claim in rows]


PICTURES = {
    "table1": (draw_table_1, (11, 8)),
    "long": (draw_long, (14, 4)),
    "figure2": (draw_figure_2, (12, 4.5)),
    "figure3": (partial(draw_on_world, name="figure3", variants=ETAS), (8, 4)),
    "figure4": (partial(draw_on_world, name="figure4", variants=PARTS), (8, 4)),
    "ablations": (draw_ablations, (11, 4)),
}


def filled(page: str) -> str:
    """A page in Markdown with its tables as the results say; each follows a comment with the name of its function."""

    def written(found: re.Match) -> str:
        return "\n".join([f"<!-- {found[1]} -->", *globals()[found[1]](), ""])

    return re.sub(r"<!-- (text_\w+) -->\n(\|.*\n)*", written, page)


def picture(name: str) -> Figure:
    """The picture of a table or figure."""
    return reproduce.picture(*PICTURES[name])


def main() -> None:
    """Draw all, write the tables."""
    for name in ("table1", "long", "ablations"):  # those that the pages show; lesson 6 draws the others too
        picture(name).savefig(RESULTS / f"{name}.png", dpi=100)
    for page in PAGES:
        page.write_text(filled(page.read_text()))


if __name__ == "__main__":
    main()
