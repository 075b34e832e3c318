"""Tables and figures from results/*.csv: the paper's beside ours, as pictures, and a verdict for each claim.

    python notebooks/evidence.py     # prints the tables and verdicts; draws results/table1.png, figure2.png, ...

It uses what `reproduce.py` and `table_2.py` have written so far; what is missing is left out.
"""

from __future__ import annotations

import functools
import itertools
import statistics
import sys
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from drawing import BLUE, GREEN, GREY, ORANGE, PINK, SKY, YELLOW  # noqa: E402
from reproduce import CELLS, ENVS, RESULTS, SYSTEMS, BySeed, finals, mean_and_spread, read, table  # noqa: E402

from om2p import QUALITIES, WEIGHTED  # noqa: E402

PAPER = {  # Table 1: mean return over 5 seeds, for data of each of QUALITIES
    "tag": {
        "omar": (86.8, 116.9, 128.3, 202.8),
        "ma-sfbc": (26.1, 127.0, 152.3, 256.0),
        "ma-fql": (203.8, 255.1, 233.0, 289.5),
        "om2p": (203.1, 257.3, 230.2, 330.3),
    },
    "world": {
        "omar": (21.1, 45.6, 71.5, 84.8),
        "ma-sfbc": (9.1, 54.2, 60.6, 97.3),
        "ma-fql": (107.0, 136.1, 120.7, 139.4),
        "om2p": (106.0, 142.0, 126.9, 175.0),
    },
    "spread": {
        "omar": (260.7, 348.7, 450.3, 564.6),
        "ma-sfbc": (196.1, 276.3, 299.8, 553.0),
        "ma-fql": (375.6, 469.6, 525.0, 582.6),
        "om2p": (380.3, 441.2, 510.0, 614.0),
    },
    "halfcheetah": {
        "omar": (1675, 2797, 2900, 2964),
        "ma-sfbc": (-128, 1387, 1392, 2387),
        "ma-fql": (2554, 2172, 2655, 3870),
        "om2p": (2526, 2674, 2917, 4152),
    },
}
TASKS = dict(tag="Predator-Prey", world="World", spread="Cooperative Navigation", halfcheetah="2-agent HalfCheetah")
NAMES = {
    "bc": "BC",
    "omar": "OMAR",
    "ma-sfbc": "MA-SfBC",
    "ma-fql": "MA-FQL",
    "om2p-paper": "OM2P, paper",
    "om2p": "OM2P, recommended",
}
COLOURS = dict(zip(SYSTEMS, (GREY, YELLOW, PINK, GREEN, ORANGE, BLUE)))
OVER_DATA = {  # the paper's OM2P over the mean return of its data
    ("spread", "medium"): 1.7,
    ("tag", "medium"): 2.9,
    ("world", "medium"): 3.3,
    ("spread", "expert"): 1.19,
    ("tag", "expert"): 1.78,
    ("world", "expert"): 2.2,
}

PAPER_TABLE_2 = {  # seconds and megabytes of 10,000 steps with 10 evaluation episodes every 100, on a GPU
    "ma-sfbc": (6242, 1036),
    "ma-fql": (715, 906),
    "om2p-paper, full Jacobian": (679, 2442),
    "om2p-paper": (576, 650),
}

# --------------------------------------------------------------------------------------------------------- Table 1


def table_1() -> dict[tuple[str, str, str], BySeed]:
    """The last return of every seed, by task, quality and system; ValueError if a system has two settings."""
    scores: dict[tuple[str, str, str], BySeed] = {}
    for (cell, system, _), by_seed in finals(RESULTS / "table1.csv").items():
        key = (*cell.split("/"), system)
        if key in scores:
            raise ValueError(f"table1.csv has two settings of {system} on {cell}: delete the rows of one")
        scores[key] = by_seed
    return scores


def data_returns() -> dict[tuple[str, str], float]:
    """The mean return of the data of every task and quality."""
    return {tuple(row["cell"].split("/")): float(row["data_return"]) for row in table(RESULTS / "cells.csv")}


def text_table_1() -> str:
    """Ours beside the paper's (in brackets), one line for each cell."""
    scores, data = table_1(), data_returns()
    lines = [f"{'':<38}{'data':>8}" + "".join(f"{NAMES[s]:>24}" for s in SYSTEMS)]
    for env in ENVS:
        for k, quality in enumerate(QUALITIES):
            line = f"{TASKS[env] + ', ' + quality:<38}{data[env, quality]:8.1f}"
            for system in SYSTEMS:
                if values := scores.get((env, quality, system)):
                    mean, spread = mean_and_spread(values)
                    paper = f" ({PAPER[env][system][k]:g})" if system in PAPER[env] else ""
                    spread_text = f" +- {spread:.0f}" if len(values) > 1 else ""
                    line += f"{f'{mean:.0f}{spread_text}{paper}':>24}"
                else:
                    line += f"{'-':>24}"
            lines.append(line)
    return "\n".join(lines)


def verdicts_table_1() -> list[str]:
    """How OM2P stands to every system that has run on a whole task: on average, and in each cell."""
    scores, data = table_1(), data_returns()
    lines = []
    for env in ENVS:
        by_quality = {s: {q: scores.get((env, q, s), {}) for q in QUALITIES} for s in SYSTEMS}
        averages = {s: average(returns, list(QUALITIES)) for s, returns in by_quality.items()}
        if missing := [NAMES[s] for s in SYSTEMS if not averages[s]]:
            lines.append(f"{TASKS[env]}: not all four kinds of data run yet: {', '.join(missing)}")
        if not averages["om2p"]:
            continue
        ran = [s for s in SYSTEMS if averages[s]]
        lines.append(f"{TASKS[env]}: average of OM2P, recommended, minus that of")
        lines += [verdict_average(env, s, averages["om2p"], averages[s]) for s in ran if s != "om2p"]
        lines += [verdict_cell(env, q, {s: by_quality[s][q] for s in ran}, data[env, q]) for q in QUALITIES]
    return lines


def verdict_average(env: str, system: str, ours: BySeed, theirs: BySeed) -> str:
    """OM2P's average over the kinds of data beside that of another system, and their ratio beside the paper's."""
    text = f"    {NAMES[system]}: {above(ours, theirs)}"
    if system in PAPER[env] and (seeds := ours.keys() & theirs.keys()):
        ratio = sum(ours[seed] for seed in seeds) / sum(theirs[seed] for seed in seeds)
        text += f"; x {ratio:.2f} (paper x {sum(PAPER[env]['om2p']) / sum(PAPER[env][system]):.2f})"
    return text


def verdict_cell(env: str, quality: str, scores: dict[str, BySeed], data: float) -> str:
    """The best system of one cell, how OM2P stands to it and to cloning, and to the data where the paper says so."""
    seeds = set.intersection(*(set(by_seed) for by_seed in scores.values()))
    if not seeds:
        return f"  {quality}: no seed in common"
    common = {system: {seed: by_seed[seed] for seed in seeds} for system, by_seed in scores.items()}
    mean = {system: statistics.mean(by_seed.values()) for system, by_seed in common.items()}
    top = max(mean, key=mean.get)
    text = f"  {quality}: best {NAMES[top]}"
    if top != "om2p":
        spread = mean_and_spread(common[top])[1]
        text += f", OM2P {mean[top] - mean['om2p']:.0f} behind"
        text += f" ({NAMES[top]}'s standard deviation: {spread:.0f})" if spread else ""
    text += ", under BC" if mean["om2p"] < mean.get("bc", float("-inf")) else ""
    if (env, quality) in OVER_DATA:
        text += f"; x {mean['om2p'] / data:.2f} of the data (paper x {OVER_DATA[env, quality]})"
    return text


def along_the_way() -> dict[tuple[str, str], dict[int, BySeed]]:
    """Evaluations of 10 episodes while training, averaged over the kinds of data: by task and system, by step."""
    found: dict[tuple[str, str], dict[int, dict[str, BySeed]]] = {}
    for row in read(RESULTS / "table1.csv"):
        if row["last"] == "0":
            env, quality = row["cell"].split("/")
            by_quality = found.setdefault((env, row["system"]), {}).setdefault(int(row["step"]), {})
            by_quality.setdefault(quality, {})[int(row["seed"])] = float(row["return"])
    return {
        key: {step: average(by_quality, list(QUALITIES)) for step, by_quality in sorted(by_step.items())}
        for key, by_step in found.items()
        if all(len(by_quality) == len(QUALITIES) for by_quality in by_step.values())
    }


def at_step(by_step: dict[int, BySeed], step: float) -> BySeed:
    """The return of every seed at a step between two evaluations, on the line between them."""
    before, after = max(s for s in by_step if s <= step), min(s for s in by_step if s >= step)
    share = (step - before) / max(after - before, 1)
    return {seed: (1 - share) * x + share * by_step[after][seed] for seed, x in by_step[before].items()}


def step_costs() -> dict[str, float]:
    """How many of OM2P's training steps one step of each system in Table 1 takes (`benchmark.py --only budget`)."""
    ending = ": update at width 128 / om2p's"
    rows = table(RESULTS / "benchmark.csv")
    return {row["figure"].removesuffix(ending): float(row["value"]) for row in rows if row["figure"].endswith(ending)}


def verdicts_equal_time() -> list[str]:
    """OM2P after all steps beside a slower system after as many as it makes in the same training time."""
    curve, cost = along_the_way(), step_costs()
    if not cost:
        return ["Table 1 at equal training time: run benchmark.py --only budget first"]
    lines = ["Table 1 at equal training time: average of OM2P at its end, minus a slower system's by then:"]
    for env, system in itertools.product(ENVS, SYSTEMS):
        own = [cost["om2p, weighted cloning"] if (env, quality) in WEIGHTED else 1.0 for quality in QUALITIES]
        share = statistics.mean(own) / cost[system]
        if share < 1 and {(env, system), (env, "om2p")} <= curve.keys():
            ours, last = curve[env, "om2p"], max(curve[env, "om2p"])
            verdict = above(ours[last], at_step(curve[env, system], share * last))
            lines.append(f"    {TASKS[env]}, {NAMES[system]} after {share * last:.0f} steps: {verdict}")
    return lines


def draw_table_1(figure: Figure) -> None:
    """A panel for each task: ours as filled dots with the standard deviation over seeds, the paper's as rings."""
    scores, data = table_1(), data_returns()
    for axes, env in zip(figure.subplots(2, 2).flat, ENVS):
        for k, quality in enumerate(QUALITIES):
            axes.plot([k - 0.42, k + 0.42], [data[env, quality]] * 2, color="black", lw=1, ls=":")
            for j, system in enumerate(SYSTEMS):
                x = k + (j - 2.5) * 0.14
                if values := scores.get((env, quality, system)):
                    mean, spread = mean_and_spread(values)
                    axes.errorbar(x, mean, spread, color=COLOURS[system], marker="o", ms=6, capsize=2)
                if system in PAPER[env]:
                    axes.plot(x, PAPER[env][system][k], "o", ms=6, mfc="none", color=COLOURS[system], alpha=0.6)
        axes.set_title(TASKS[env], fontsize=12)
        axes.set_xticks(range(len(QUALITIES)), QUALITIES)
        axes.set_ylabel("return")
    for system in SYSTEMS:
        axes.plot([], [], "o", color=COLOURS[system], label=NAMES[system])
    axes.plot([], [], "o", mfc="none", color="black", label="the paper's (ring)")
    axes.plot([], [], color="black", lw=1, ls=":", label="return of the data")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4)


# --------------------------------------------------------------------------------------------------------- Table 2


def text_table_2() -> str:
    """Time and memory of every system, and their ratios to OM2P as published, beside the paper's ratios."""
    path = RESULTS / "table_2.csv"
    rows = {row["system"]: row for row in table(path)} if path.exists() else {}
    if "om2p-paper" not in rows:
        return "Table 2: om2p-paper has not been run"
    lines = [f"{'':<28}{'seconds':>9}{'MB':>8}{'time / OM2P':>14}{'(paper)':>9}{'memory / OM2P':>15}{'(paper)':>9}"]
    base, paper_base = rows["om2p-paper"], PAPER_TABLE_2["om2p-paper"]
    for name, row in rows.items():
        ours = [float(row[k]) for k in ("seconds_per_10000_steps", "megabytes")]
        ratios = [x / float(base[k]) for x, k in zip(ours, ("seconds_per_10000_steps", "megabytes"))]
        paper = ["", ""]
        if name in PAPER_TABLE_2:
            paper = [f"({x / y:.2f})" for x, y in zip(PAPER_TABLE_2[name], paper_base)]
        line = f"{name:<28}{ours[0]:9.0f}{ours[1]:8.1f}{ratios[0]:14.2f}{paper[0]:>9}{ratios[1]:15.2f}{paper[1]:>9}"
        lines.append(f"{line}   ({row['steps']} steps)")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------- Figures


def curves(path: Path) -> dict[tuple[str, str], dict[int, BySeed]]:
    """Returns by step of every seed, the final evaluation left out, by system and options."""
    found: dict[tuple[str, str], dict[int, BySeed]] = {}
    for row in read(path):
        if row["last"] == "0":
            by_step = found.setdefault((row["system"], row["options"]), {})
            by_step.setdefault(int(row["step"]), {})[int(row["seed"])] = float(row["return"])
    return found


def draw_curves(axes: Axes, wanted: dict[str, tuple[str, str]], found: dict) -> None:
    """Mean over seeds against steps, the standard deviation as a band."""
    colours = (BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, GREY, "black")
    styles = [(colour, "-") for colour in colours] + [("black", "--")]
    for (label, key), (colour, dash) in zip(wanted.items(), styles):
        if by_step := found.get(key):
            points = [(step, *mean_and_spread(values)) for step, values in sorted(by_step.items())]
            steps, means, spreads = (list(column) for column in zip(*points))
            axes.plot(steps, means, dash, color=colour, label=label)
            low, high = ([m + sign * s for m, s in zip(means, spreads)] for sign in (-1, 1))
            axes.fill_between(steps, low, high, color=colour, alpha=0.12, lw=0)
    axes.set(xlabel="training steps", ylabel="return")


def of_figure_2(found: dict[tuple[str, str], Any], system: str, ending: str) -> tuple[str, str]:
    """The system and options, of those in `found`, whose options end so."""
    return next((key for key in found if key[0] == system and key[1].endswith(ending)), (system, "missing"))


def draw_figure_2(figure: Figure) -> None:
    """World expert: cloning with Beta(6, 6) against uniform times; the whole loss with several steps of Eq. 5."""
    found = curves(RESULTS / "figure2.csv")
    key = functools.partial(of_figure_2, found)
    left, right = figure.subplots(1, 2, sharey=True)
    uniform, beta = "--xi 0 0 0 0", "--xi 5 5 0 0"
    wanted = {
        "paper's settings, Beta(6, 6)": key("om2p-paper", beta),
        "paper's settings, uniform": key("om2p-paper", uniform),
        "recommended, Beta(6, 6)": key("om2p", beta),
        "recommended, uniform": key("om2p", uniform),
    }
    draw_curves(left, wanted, found)
    left.set_title("cloning: distribution of times", fontsize=12)
    steps = [(step, "float64") for step in ("0.1", "1e-2", "1e-4", "1e-8", "1e-12")]
    steps += [("1e-3", "float32"), ("1e-8", "float32"), ("1e-12", "float32")]
    wanted = {f"{d}, {kind}": key("om2p-paper", f"--delta-r {d} --derivative-dtype {kind}") for d, kind in steps}
    draw_curves(right, wanted | {"exact derivative": key("om2p-paper", "--derivative exact")}, found)
    right.set_title(r"whole loss: step of the difference $\Delta r$", fontsize=12)
    for axes in (left, right):
        axes.axhline(data_returns()["world", "expert"], color="black", lw=1, ls=":", label="return of the data")
        axes.legend(fontsize=9)


def draw_figure_3(figure: Figure) -> None:
    """Return against eta on World, on raw Q (paper) and on normalised Q (recommended), a panel for each quality."""
    scores, data = finals(RESULTS / "figure3.csv"), data_returns()
    for axes, quality in zip(figure.subplots(1, 4, sharey=True), QUALITIES):
        for system, label in (("om2p-paper", "raw Q (paper)"), ("om2p", "normalised Q")):
            points = sorted(
                (float(options.split()[-1]), *mean_and_spread(values))
                for (cell, name, options), values in scores.items()
                if name == system and cell == f"world/{quality}"
            )
            if points:
                etas, means, spreads = zip(*points)
                axes.errorbar(etas, means, spreads, color=COLOURS[system], marker="o", capsize=2, label=label)
        axes.axhline(data["world", quality], color="black", lw=1, ls=":", label="return of the data")
        axes.set(xscale="log", xlabel=r"weight of Q, $\eta$")
        axes.set_title(quality, fontsize=12)
        axes.label_outer()
    figure.axes[0].set_ylabel("return")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


def draw_figure_4(figure: Figure) -> None:
    """Only Q, only cloning, uniform times, everything: on World, with the paper's settings and with ours."""
    scores, data = finals(RESULTS / "figure4.csv"), data_returns()
    colours = dict(zip(VARIANTS, (YELLOW, GREY, SKY, BLUE)))
    for axes, system in zip(figure.subplots(1, 2, sharey=True), ("om2p-paper", "om2p")):
        for k, quality in enumerate(QUALITIES):
            axes.plot([k - 0.42, k + 0.42], [data["world", quality]] * 2, color="black", lw=1, ls=":")
            for j, kind in enumerate(VARIANTS):
                for (cell, name, options), values in scores.items():
                    if (cell, name, variant(options)) == (f"world/{quality}", system, kind):
                        mean, spread = mean_and_spread(values)
                        axes.bar(k + (j - 1.5) * 0.2, mean, 0.18, yerr=spread, color=colours[kind], capsize=2)
        axes.set_xticks(range(len(QUALITIES)), QUALITIES)
        axes.set_title(NAMES[system], fontsize=12)
    for kind, label in VARIANTS.items():
        axes.bar([0], [0], color=colours[kind], label=label)
    axes.plot([], [], color="black", lw=1, ls=":", label="return of the data")
    figure.axes[0].set_ylabel("return")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=5)


T_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # Student's, two-sided, for 1, 2, ... degrees of freedom


def above(a: BySeed, b: BySeed) -> str:
    """How `a` stands to `b`, by the t-test of their differences, seed by seed, at 95%.

    Runs of one seed are scored on the same episodes; those of OM2P also start with the same weights.
    """
    if not a.keys() & b.keys():
        return "no seed in common"
    mean, error, told_apart = difference(a, b)
    count = len(a.keys() & b.keys())
    if count == 1:
        return f"{round(mean):+d} (one seed)"
    word = ("above" if mean > 0 else "below") if told_apart else "not told apart"
    return f"{with_error(mean, error)}, {word} ({count} seeds)"


def with_error(mean: float, error: float) -> str:
    """A difference and its standard error, in whole numbers unless the error is below 1."""
    digits = 1 if error < 1 else 0
    return f"{mean:+.{digits}f} +- {error:.{digits}f}"


def difference(a: BySeed, b: BySeed) -> tuple[float, float, bool]:
    """Mean of a - b over common seeds, its standard error (NaN for one seed), whether the t-test tells it from 0."""
    differences = [a[seed] - b[seed] for seed in a.keys() & b.keys()]
    mean, count = statistics.mean(differences), len(differences)
    error = statistics.stdev(differences) / count**0.5 if count > 1 else float("nan")
    return mean, error, count > 1 and abs(mean) > T_95[min(count, 10) - 2] * error


def verdicts_figure_2() -> list[str]:
    """Beta(6, 6) against uniform times, and every step of Eq. 5 against the exact derivative."""
    path = RESULTS / "figure2.csv"
    scores = {(system, options): v for (_, system, options), v in finals(path).items()}
    along = {key: average(by_step, list(by_step)) for key, by_step in curves(path).items()}

    def stands(a: tuple[str, str], b: tuple[str, str]) -> str:
        return f"{above(scores[a], scores[b])}; along the curve {above(along[a], along[b])}"

    lines = ["Figure 2, claim: Beta(6, 6) clones better than uniform times. Beta minus uniform:"]
    for system in ("om2p-paper", "om2p"):
        beta, uniform = (of_figure_2(scores, system, xi) for xi in ("--xi 5 5 0 0", "--xi 0 0 0 0"))
        lines += [f"    {NAMES[system]}: {stands(beta, uniform)}"] if {beta, uniform} <= scores.keys() else []
    lines += ["claim: a step of 1e-8 or less is as good as the exact derivative. Difference minus exact:"]
    exact = of_figure_2(scores, "om2p-paper", "--derivative exact")
    for key in scores:
        if exact in scores and "--delta-r" in key[1]:
            lines.append(f"    {key[1][key[1].index('--delta-r') :]}: {stands(key, exact)}")
    return lines


def verdicts_figure_3() -> list[str]:
    """The best weight of Q on every quality, and whether the largest beats the smallest."""
    scores = finals(RESULTS / "figure3.csv")
    lines = ["Figure 3, claim: large weights (1000) beat small ones. 1000 minus 0.1, and the best:"]
    for system in ("om2p-paper", "om2p"):
        for quality in QUALITIES:
            by_eta = {o.split()[-1]: v for (c, s, o), v in scores.items() if (c, s) == (f"world/{quality}", system)}
            if {"0.1", "1000"} <= by_eta.keys():
                best = max(by_eta, key=lambda eta: statistics.mean(by_eta[eta].values()))
                lines.append(f"    {NAMES[system]}, {quality}: {above(by_eta['1000'], by_eta['0.1'])}; best {best}")
    return lines


VARIANTS = {"q": "only Q", "bc": "only cloning", "--xi": "uniform times", "": "everything"}


def variant(options: str) -> str:
    """Which of Figure 4's variants a run is."""
    return next((kind for kind in VARIANTS if kind and kind in options.split()), "")


def verdicts_figure_4() -> list[str]:
    """What removing a part does to the average over the qualities that were run without it."""
    found: dict[tuple[str, str], dict[str, BySeed]] = {}
    for (cell, system, options), by_seed in finals(RESULTS / "figure4.csv").items():
        found.setdefault((system, variant(options)), {})[cell.split("/")[1]] = by_seed
    lines = ["Figure 4, claim: every part is needed. The average over qualities without it, minus with everything:"]
    for (system, kind), without in found.items():
        everything = found.get((system, ""), {})
        qualities = [q for q in QUALITIES if q in without and q in everything]
        if kind and qualities:
            text = above(*(average(by_quality, qualities) for by_quality in (without, everything)))
            where = "" if len(qualities) == len(QUALITIES) else f" on {', '.join(qualities)}"
            lines.append(f"    {NAMES[system]}, {VARIANTS[kind]}{where}: {text}")
    return lines


def average(by_quality: dict[Any, BySeed], qualities: list[Any]) -> BySeed:
    """The mean over these qualities (or steps), for the seeds that all of them have."""
    seeds = set.intersection(*(set(by_quality[q]) for q in qualities))
    return {seed: statistics.mean(by_quality[q][seed] for q in qualities) for seed in seeds}


def ablation_scores() -> dict[str, dict[str, BySeed]]:
    """The last return of every seed, by cell and by what is changed ("" for the default as it is)."""
    scores: dict[str, dict[str, BySeed]] = {}
    for (cell, system, options), by_seed in finals(RESULTS / "ablations.csv").items():
        change = options.removeprefix("--steps 1000").strip()
        if system == "ma-fql":
            change = "MA-FQL, best of eight" if "--candidates" in change else "MA-FQL"
        scores.setdefault(cell, {})[change] = by_seed
    return {cell: scores[cell] for cell in CELLS if cell in scores}


def ablation_changes(scores: dict[str, dict[str, BySeed]]) -> list[str]:
    """All that is changed in some cell, MA-FQL last."""
    changes = dict.fromkeys(change for by_change in scores.values() for change in by_change)
    return sorted(changes, key=lambda change: change.startswith("MA-FQL"))


def draw_ablations(figure: Figure) -> None:
    """A panel for each cell, a row for each change: mean and standard deviation over seeds; the default as a line."""
    scores = ablation_scores()
    changes = ablation_changes(scores)
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False).flat
    for axes, (cell, by_change) in zip(panels, scores.items()):
        for row, change in enumerate(changes):
            if change in by_change:
                colour = GREEN if change.startswith("MA-FQL") else ORANGE if change else BLUE
                mean, spread = mean_and_spread(by_change[change])
                axes.errorbar(mean, row, xerr=spread, color=colour, marker="o", ms=6, capsize=2)
        if default := by_change.get(""):
            axes.axvline(statistics.mean(default.values()), color=BLUE, lw=1, ls=":")
        env, quality = cell.split("/")
        axes.set_title(f"{TASKS[env]}\n{quality}", fontsize=11)
        axes.set_xlabel("return")
        axes.margins(x=0.15)
    axes.set_yticks(range(len(changes)), [change or "recommended" for change in changes])
    axes.invert_yaxis()


def verdicts_ablations() -> list[str]:
    """What every change alone does to the return in each cell: a table, with a star where the seeds tell it apart."""
    scores = ablation_scores()
    lines = ["Ablations: the default changed alone, minus the default (*: told apart; no error: one seed)"]
    lines.append(f"    {'':<24}" + "".join(f"{cell.replace('halfcheetah', 'cheetah'):>22}" for cell in scores))
    for change in filter(None, ablation_changes(scores)):
        line = f"    {change:<24}"
        for by_change in scores.values():
            line += f"{ablation_text(by_change.get(change, {}), by_change.get('', {})):>22}"
        lines.append(line)
    return lines


def ablation_text(changed: BySeed, default: BySeed) -> str:
    """The difference, its standard error, and a star where it is told apart from nothing."""
    if not changed.keys() & default.keys():
        return "-"
    mean, error, told_apart = difference(changed, default)
    return (with_error(mean, error) if error == error else f"{mean:+.0f}") + "*" * told_apart


PICTURES = {
    "table1": (draw_table_1, (11, 8)),
    "figure2": (draw_figure_2, (12, 4.5)),
    "figure3": (draw_figure_3, (12, 3.6)),
    "figure4": (draw_figure_4, (11, 4)),
    "ablations": (draw_ablations, (14, 5)),
}
VERDICTS = {"figure2": verdicts_figure_2, "figure3": verdicts_figure_3, "figure4": verdicts_figure_4}
VERDICTS["ablations"] = verdicts_ablations


def picture(name: str) -> Figure:
    """The picture of a table or figure."""
    draw, size = PICTURES[name]
    figure = Figure(figsize=size, layout="constrained")
    draw(figure)
    return figure


def main() -> None:
    """Draw what there are results for."""
    for name in PICTURES:
        if (RESULTS / f"{name}.csv").exists():
            picture(name).savefig(RESULTS / f"{name}.png", dpi=100)
    if (RESULTS / "table1.csv").exists():
        print(text_table_1(), *verdicts_table_1(), *verdicts_equal_time(), sep="\n")
    for verdicts in VERDICTS.values():
        print(*verdicts(), sep="\n")
    print(text_table_2())


if __name__ == "__main__":
    main()
