"""What the notebooks share: colours that colour-blind readers can tell apart, axes, animations, source, exercises."""

from __future__ import annotations

import base64
import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

BLUE, ORANGE, GREEN, PINK = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
YELLOW, SKY, GREY = "#e69f00", "#56b4e9", "#777777"

plt.rcParams.update(
    {
        "figure.dpi": 80,
        "figure.constrained_layout.use": True,
        "font.size": 12,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, GREY]),
        "legend.frameon": False,
    }
)


def source(thing: object) -> object:
    """The source of a function or class, as it stands in om2p.py."""
    from IPython.display import Code

    return Code(inspect.getsource(thing), language="python")


def animate(figure: Figure, draw: Callable[[int], object], frames: int, fps: int) -> object:
    """A GIF of `draw(0)` to `draw(frames - 1)`, each of which changes the figure; the notebook needs no other file."""
    from IPython.display import HTML

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "animation.gif"
        FuncAnimation(figure, draw, frames).save(path, PillowWriter(fps))
        plt.close(figure)
        return HTML(f'<img src="data:image/gif;base64,{base64.b64encode(path.read_bytes()).decode()}"/>')


def verdict(number: int, answer: object, check: Callable[[object], bool]) -> None:
    """Print whether the answer to an exercise passes its check; None is no answer yet."""
    print(f"{number}:", "not yet" if answer is None else "right" if check(answer) else "wrong")


# -------------------- lesson 1

CLUMPS = (BLUE, ORANGE, GREEN, PINK, YELLOW, SKY)


def action_axes(axes: Axes, title: str, limit: float) -> None:
    """Make `axes` a square picture of actions of two numbers, from -limit to limit."""
    axes.set(title=title, xlabel="action 0", ylabel="action 1", xlim=(-limit, limit), ylim=(-limit, limit), aspect=1)


def two_goals(play: Callable[[Tensor], object], recorded: Tensor, gaussian: Tensor) -> None:
    """The start, each half's mean recorded move (left); the reward of every action, a fifth of two sets (right)."""
    line = torch.linspace(-1, 1, 41)
    grid, mean = torch.cartesian_prod(line, line), recorded.mean(0, keepdim=True)
    halves = torch.stack([recorded[(recorded.sum(1) > 0) == up].mean(0) for up in (True, False)])
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.4))
    play(recorded[:1], 0).draw(axes[0], 0)
    for landmark in axes[0].patches[:3]:
        landmark.set_zorder(2)  # one lies under agent 1
    for end in play(halves).position[:, 0].tolist():
        axes[0].annotate("", end, (0, 0), arrowprops={"arrowstyle": "-|>", "lw": 2.5, "color": ORANGE})
    for agent, (x, y) in enumerate(play(recorded[:1], 0).position[0, :3].tolist()):
        axes[0].text(x + 0.2, y - 0.2, f"agent {agent}")
    axes[0].set(title="two good ways (green: landmarks)", xlim=(-1.4, 1.4), ylim=(-1.4, 1.4))
    reward = play(grid).rewards()[:, 0].view(41, 41)
    image = axes[1].pcolormesh(line, line, reward.T, cmap="Greys", shading="nearest", vmin=10)
    figure.colorbar(image, ax=axes[1], label="team's reward after five steps")
    axes[1].scatter(*gaussian[::5].T, s=9, color=BLUE, label="Gaussian")
    axes[1].scatter(*recorded[::5].T, s=9, color=ORANGE, label="recorded")
    axes[1].scatter(*mean.T, s=110, marker="X", color=YELLOW, edgecolor="black", label="their mean")
    action_axes(axes[1], f"agent 0's action ({len(recorded[::5])} of each)", 1.05)
    axes[1].set(xlabel="push along x", ylabel="push along y")
    axes[1].legend(loc="upper left", fontsize=10, frameon=True, handletextpad=0.1, borderpad=0.2)


def clouds(named: dict[str, Tensor], limit: float, width: float = 3.3) -> None:
    """A panel for each set of actions: noise and data in grey, flow matching in orange, mean flow in blue."""
    figure, panels = plt.subplots(1, len(named), figsize=(width * len(named), width + 0.3), squeeze=False)
    for axes, (title, actions) in zip(panels[0], named.items()):
        axes.scatter(*actions.T, s=3, color={"noise": GREY, "data": GREY, "flow": ORANGE}.get(title.split()[0], BLUE))
        action_axes(axes, title, limit)
        axes.label_outer()


def straight_and_bent(
    noise: Tensor, action: Tensor, lines: Tensor, step: Tensor, nearest: Callable, modes: Tensor
) -> None:
    """Straight paths from noise to action, the `lines` (steps, B, 2) of the flow, and one long step for a few."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 5))
    for i, (straight, bent) in enumerate(zip(nearest(action), nearest(lines[-1]))):
        axes[0].plot(*torch.stack([noise[i], action[i]]).T, color=CLUMPS[straight], lw=1)
        axes[1].plot(*lines[:, i].T, color=CLUMPS[bent], lw=1.5)
    for start, end in zip(noise, step):
        axes[1].plot(*torch.stack([start, end]).T, "--", color="black", lw=1)
    axes[1].scatter(*step.T, marker="x", s=60, color="black", zorder=4)
    titles = "straight paths (black: noise)", "following v_mean (dashed: one long step)"
    for ax, title, ends in zip(axes, titles, (action, lines[-1])):
        ax.scatter(*noise.T, s=14, color="black", zorder=3)
        ax.scatter(*ends.T, s=22, color=[CLUMPS[i] for i in nearest(ends)], edgecolor="black", lw=0.6, zorder=3)
        for mode in modes:
            ax.add_patch(plt.Circle(mode, 0.2, fill=False, color=GREY, lw=1.5))
        action_axes(ax, title, 2)


def against_evaluations(counts: list[int], measured: dict[str, dict[str, list[float]]]) -> None:
    """Print and draw each measure of each way to sample against the evaluations; one number alone is a level."""
    looks = {"flow matching": ("o-", ORANGE), "v_mean, Euler steps": (":", GREY), "mean flow": ("s-", BLUE)}
    looks["evenly on the outline"] = ("-.", GREEN)
    figure, panels = plt.subplots(1, len(measured), figsize=(10, 4))
    print(f"{'evaluations':<24}" + "".join(f"{k:>6}" for k in counts))
    for axes, (label, ways) in zip(panels, measured.items()):
        print(label)
        for name, values in ways.items():
            print(f"  {name:<22}" + "".join(f"{x:6.2f}" for x in values))
            style, colour = looks.get(name, ("--", "black"))
            axes.plot(counts, values * (len(counts) // len(values)), style, color=colour, label=name)
        axes.set_xscale("log", base=2)
        axes.set(xlabel="network evaluations for one action", ylabel=label, xticks=counts, xticklabels=counts)
    panels[0].legend(loc="lower right")


def noise_to_data(frames: dict[str, list[Tensor]], clump: Tensor, hold: int = 18) -> object:
    """An animation of points that move, coloured by the clump they belong to; the last frame stays a while."""
    figure, panels = plt.subplots(1, len(frames), figsize=(3.2 * len(frames), 3.9))
    dots = []
    for axes, (title, places) in zip(panels, frames.items()):
        dots.append(axes.scatter(*places[0].T, s=7, c=[CLUMPS[i] for i in clump]))
        action_axes(axes, title, 2)
        axes.set(xticks=range(-2, 3), yticks=range(-2, 3))
        axes.label_outer()
    caption, last = figure.suptitle("t = 0.00"), len(places) - 1

    def draw(k: int) -> None:
        k = min(k, last)
        caption.set_text(f"t = {k / last:.2f}")
        for dot, places in zip(dots, frames.values()):
            dot.set_offsets(places[k])

    return animate(figure, draw, last + 1 + hold, fps=6)


# -------------------- lesson 2


def densities(draws: dict[str, tuple[Tensor, Tensor]], grid: Tensor) -> None:
    """For each xi a histogram of its draws (bars) and its density at the times of `grid` (line)."""
    figure, panels = plt.subplots(1, len(draws), figsize=(13, 3), sharex=True, sharey=True)
    for axes, (xi, (t, p)) in zip(panels, draws.items()):
        axes.hist(t[:, 0].numpy(), bins=50, range=(0, 1), density=True, color=GREY, alpha=0.4)
        axes.plot(grid, p, color="black", lw=1.5)
        axes.set(title=f"xi = {xi}", xlabel="t")
    panels[0].set(ylabel="density", ylim=(0, None))


def times_square(axes: Axes, title: str) -> None:
    """Make `axes` the square of all pairs (r, t), with its diagonal and the jump that acting makes."""
    axes.plot([0, 1], [0, 1], "--", color=GREY, lw=1)
    axes.scatter(0, 1, marker="*", s=200, color="black", zorder=3)
    axes.set(title=title, xlabel="r, start of the jump", ylabel="t, end of the jump", aspect=1)
    axes.set(xlim=(-0.05, 1.05), ylim=(-0.05, 1.05))
    axes.label_outer()


def pairs_of_times(pairs: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Pairs (r, t) in the square: each title has a kind of times, a colon and xi; a row for each kind."""
    kinds = list(dict.fromkeys(title.split(":")[0] for title in pairs))
    columns = len(pairs) // len(kinds)
    figure, panels = plt.subplots(len(kinds), columns, figsize=(3.5 * columns, 7), sharex=True, sharey=True)
    for axes, (title, (r, t)) in zip(panels.flat, pairs.items()):
        axes.scatter(r, t, s=6, color=(ORANGE, BLUE)[kinds.index(title.split(":")[0])], alpha=0.5)
        times_square(axes, title)


def what_the_identity_sees() -> None:
    """The training times of both kinds in the square, and arrows along which du/dr looks."""
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 4.2))
    on_line = [(0.85, 0.15), (0.675, 0.325), (0.325, 0.675), (0.15, 0.85)]
    in_triangle = [(0.1, 0.3), (0.1, 0.6), (0.4, 0.6), (0.1, 0.85), (0.4, 0.85), (0.65, 0.85)]
    panels[0].plot([0, 1], [1, 0], color=ORANGE, lw=4)
    panels[1].fill_between([0, 1], [0, 1], 1, color=BLUE, alpha=0.3)
    panels[1].plot([0, 1], [0, 1], color=BLUE, lw=4)
    for axes, title, arrows in zip(panels, ("coupled", "ordered"), (on_line, in_triangle)):
        for r, t in arrows:
            axes.annotate("", (r + 0.15, t), (r, t), arrowprops={"arrowstyle": "-|>", "lw": 2, "color": "black"})
        times_square(axes, title)


def samples_and_losses(actions: dict[str, Tensor], losses: dict[str, Tensor], modes: Tensor, near: float) -> None:
    """One-step actions of each network, green if `near` a mode (top), and its largest loss in 20 steps (bottom)."""
    figure = plt.figure(figsize=(12, 6.4))
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.1, 1))
    for axes, (name, action) in zip(top.subplots(1, len(actions), sharey=True), actions.items()):
        close = torch.cdist(action, modes).amin(1) < near
        shown = torch.arange(len(action)) < 1000
        for mode in modes:
            axes.add_patch(plt.Circle(mode, near, fill=False, color=GREY))
        for part, colour in ((action[close & shown], GREEN), (action[~close & shown], YELLOW)):
            axes.scatter(*part.T, s=3, color=colour)
        action_axes(axes, f"{name}\n{close.float().mean():.2f} near a mode", 1.05)
        axes.label_outer()
    axes = bottom.subplots()
    for (name, each), colour, style in zip(losses.items(), (GREY, ORANGE, PINK, BLUE), ("-", "-", "--", "-")):
        axes.semilogy(range(20, len(each) + 1, 20), each.view(-1, 20).amax(1), style, color=colour, label=name)
    axes.set(xlabel="training step", ylabel="largest loss in 20 steps", xlim=(0, len(each)), ylim=(0.5, 5e4))
    axes.legend(ncols=4, loc="upper center")


def error_maps(errors: dict[str, Tensor], grid: Tensor, outlines: dict[str, list[list[float]]]) -> None:
    """The error of each network at every (t, r) of the grid, cut off at 1, with its training times outlined."""
    figure, panels = plt.subplots(1, len(errors), figsize=(13, 3.7), sharey=True)
    for axes, (name, error) in zip(panels, errors.items()):
        image = axes.pcolormesh(grid, grid, error.clamp(max=1), cmap="cividis_r", vmin=0, vmax=1, shading="nearest")
        axes.plot(*outlines[name], color=ORANGE, lw=1.5)
        axes.scatter(0, 1, marker="*", s=250, facecolor="none", edgecolor=ORANGE, lw=1.5, clip_on=False, zorder=3)
        axes.set(title=name, xlabel="r", aspect=1)
    panels[0].set_ylabel("t")
    figure.colorbar(image, ax=panels, label="relative error of u", shrink=0.8)


# -------------------- lesson 3


def path_slopes(
    noise: np.ndarray,
    action: np.ndarray,
    r: np.ndarray,
    points: np.ndarray,
    u: np.ndarray,
    slope: np.ndarray,
    here: int,
    t: float,
) -> None:
    """u (R, 2) as arrows from `points` of one path; u against r (R,) with its slopes at r[here]."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6))
    left.plot(*zip(noise, action), color=GREY, lw=1.5)
    left.plot(*noise, "o", color=GREY, label="noise, r = 0")
    left.plot(*action, "*", color=PINK, ms=14, label="action, r = 1")
    style = {"width": 0.008, "headwidth": 3.5, "headlength": 3.5, "headaxislength": 3.5, "zorder": 3}
    for j in range(0, len(r), 10):
        colour = ORANGE if j == here else BLUE
        left.quiver(*points[j], *(u[j] / 4), color=colour, angles="xy", scale_units="xy", scale=1, **style)
    left.plot([], [], color=BLUE, lw=3, label="u / 4, r = 0, 0.1, ...")
    left.plot([], [], color=ORANGE, lw=3, label=f"u / 4, r = {r[here]:.1f}")
    left.set(xlabel="action 0", ylabel="action 1", title=f"u along the path, t = {t} throughout")
    left.set_aspect("equal", adjustable="datalim")
    left.margins(0.2)
    left.legend(fontsize=10)
    near = slice(here - 20, here + 21)
    for i, (colour, other) in enumerate(((BLUE, ORANGE), (GREEN, YELLOW))):
        right.plot(r, u[:, i], color=colour, label=f"u, component {i}")
        tangent = u[here, i] + slope[i] * (r[near] - r[here])
        right.plot(r[near], tangent, "--", color=other, lw=2.5, label=f"its slope du/dr at r = {r[here]:.1f}")
        right.plot(r[here], u[here, i], "o", color=other)
    right.set(xlabel=f"r (t = {t})", ylabel="u (action units per unit of time)", title="the two components of u")
    right.legend(fontsize=10)
    plt.show()


def error_floors(
    steps: np.ndarray, errors: dict[str, list[float]], rounding: dict[str, np.ndarray], truncation: np.ndarray
) -> None:
    """Relative errors of Eq. 5 against its step, in both formats, with the lines of rounding and truncation."""
    axes = plt.subplots(figsize=(9, 5))[1]
    for name, colour, marker, size in (("float64", BLUE, ".", 7), ("float32", ORANGE, "o", 8)):
        axes.loglog(steps, errors[name], marker, color=colour, ms=size, mfc="none", label=f"Eq. 5 in {name}")
        axes.loglog(steps, rounding[name], "--", color=colour, lw=1.5, label=f"rounding in {name}")
    axes.loglog(steps, truncation, "--", color=GREEN, lw=1.5, label="truncation")
    for d, text in ((1e-12, "the paper,\nTable 4"), (1e-3, "the default\nhere")):
        axes.axvline(d, color=GREY, lw=1, zorder=0)
        axes.text(d * 1.25, 3e-9, text, color=GREY, fontsize=10, va="bottom")
    last = steps[np.array(errors["float32"]) == 1].max()
    arrow = {"arrowstyle": "->", "color": ORANGE}
    style = {"color": ORANGE, "fontsize": 10, "ha": "center", "arrowprops": arrow}
    axes.annotate("from here to the left\nall are exactly zero", (last, 0.6), (last, 0.01), **style)
    axes.set(xlabel="step $\\Delta r$", ylabel="relative error of du/dr", xlim=(6e-14, 0.2), ylim=(2e-9, 300))
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=10)
    plt.show()


def gaps_and_zeros(steps: np.ndarray, zeros: np.ndarray) -> None:
    """The gaps between floating-point numbers, and the share of elements of du/dr that are exactly 0, per step."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    x = np.logspace(-3, 0, 2000)[:-1]
    for dtype, colour, height in ((np.float32, ORANGE, 2e-10), (np.float64, BLUE, 1e-18)):
        left.loglog(x, np.spacing(x.astype(dtype)), color=colour)
        left.text(0.2, height, dtype.__name__, color=colour)
    for power in (-12, -3):
        left.axhline(10.0**power, color=GREY, ls="--")
        left.text(1.1e-3, 1.6 * 10.0**power, f"$\\Delta r = 10^{{{power}}}$", color=GREY)
    left.set(xlabel="r", ylabel="distance to the next number", ylim=(1e-20, 1e-1), title="gaps between numbers")
    right.semilogx(steps, 100 * zeros, "o-", color=ORANGE, ms=5)
    right.set(xlabel="step $\\Delta r$", ylabel="elements that are exactly 0, in %", title="Eq. 5 in float32")
    plt.show()


def shrinking_step(
    r: np.ndarray, u: np.ndarray, here: int, t: float, steps: np.ndarray, estimates: np.ndarray, truth: float
) -> object:
    """A GIF: the line through the two evaluations of u (R,) at r[here], and its slope, for every step."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8))
    left.plot(r, u, color=BLUE, label="u, component 0")
    (line,) = left.plot([], [], color=ORANGE, lw=2, label="slope by Eq. 5")
    (ends,) = left.plot([], [], "o", color=ORANGE)
    room = (u.max() - u.min()) / 2
    left.set(title=" ", xlabel=f"r (t = {t})", ylabel="u", ylim=(u.min() - room, u.max() + room))
    left.legend()
    right.axhline(truth, color=GREEN, ls="--", label=f"exact, {truth:.2f}")
    (trace,) = right.semilogx([], [], "o-", color=ORANGE, ms=4, lw=1, label="Eq. 5, float32")
    right.set(xlabel="step $\\Delta r$", ylabel="du/dr", xlim=(1e-13, 1), ylim=(truth - 6.6, truth + 6.6))
    right.legend(loc="lower right")
    seen = estimates.clip(truth - 6, truth + 6)

    def draw(frame: int) -> None:
        frame = min(frame, len(steps) - 1)
        d, estimate = steps[frame], estimates[frame]
        line.set_data([0, t], [u[here] - r[here] * estimate, u[here] + (t - r[here]) * estimate])
        ends.set_data([r[here], r[here] + d], [u[here], u[here] + d * estimate])
        trace.set_data(steps[: frame + 1], seen[: frame + 1])
        left.set_title(f"$\\Delta r$ = {d:.0e}, slope {estimate:.3g}")

    return animate(figure, draw, len(steps) + 8, fps=6)


def cost_bars(panels: dict[str, dict[int, dict[str, float]]], logarithmic: int) -> None:
    """Ratios to the first of the methods: a panel for each {width: {method: cost}}, the first ones logarithmic."""
    figure, row = plt.subplots(1, len(panels), figsize=(13.5, 4.2))
    for k, (axes, (title, widths)) in enumerate(zip(row, panels.items())):
        for (width, costs), offset, colour in zip(widths.items(), (-0.2, 0.2), (SKY, BLUE)):
            names, values = list(costs), np.array(list(costs.values()))
            bars = axes.bar(np.arange(len(names)) + offset, values / values[0], 0.38, color=colour)
            bars.set_label(f"hidden_dim {width}")
            digits = [2 if k >= logarithmic else 1 if x < 10 else 0 for x in values / values[0]]
            axes.bar_label(bars, [f"{x:.{n}f}" for x, n in zip(values / values[0], digits)], fontsize=10)
        scale = "log" if k < logarithmic else "linear"
        axes.set(title=title, xticks=range(len(names)), yscale=scale, ylabel=f"ratio to the difference ({scale} scale)")
        axes.set_xticklabels([name.replace(" ", "\n") for name in names], fontsize=11)
    row[0].legend(loc="upper left", fontsize=10)
    plt.show()


# -------------------- lesson 4


def field(world: Any, axes: Axes, episode: int) -> None:
    """Draw one episode of World with its prey larger than it is and outlined."""
    world.draw(axes, episode)
    prey = world.position[episode, world.num_agents].tolist()
    axes.add_patch(plt.Circle(prey, 0.075, facecolor=ORANGE, edgecolor="black", lw=1.2))


def task_and_data(world: Any, colours: dict[str, str], returns: Tensor, low: float, actions: Tensor) -> None:
    """A start of World; the returns of the recorded episodes beside that of random actions; one agent's actions."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 4.2), width_ratios=(1, 1.3, 1.1))
    field(world, left, 0)
    left.spines[:].set_visible(True)
    kinds = {"team": "predators", "prey": "prey", "obstacle": "obstacle", "food": "food", "forest": "forests"}
    for kind, name in kinds.items():
        edge = {"mec": "black"} if kind == "prey" else {}
        left.plot([], [], "o", color=colours[kind], label=name, **edge)
    left.legend(fontsize=10, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 0), columnspacing=1, handletextpad=0)
    left.set_title("a start")
    middle.hist(returns, bins=np.arange(-10, 171, 5), color=BLUE)
    middle.axvline(returns.mean(), color=ORANGE, ls="--", label=f"mean of the data, {returns.mean():.1f}")
    middle.axvline(low, color=GREY, ls=":", label=f"mean of random actions, {low:.1f}")
    middle.set(xlabel="return of an episode of 25 steps", ylabel="episodes")
    middle.legend(fontsize=10, loc="lower center", bbox_to_anchor=(0.5, 1))
    *_, image = right.hist2d(*actions.T, bins=50, cmap="cividis", norm="log")
    figure.colorbar(image, label="transitions")
    right.set(xlabel="push along x", ylabel="push along y", title="actions of agent 0", aspect="equal")
    plt.show()


def target_stacks(reward: np.ndarray, follows: np.ndarray, q: np.ndarray, gamma: float) -> None:
    """The target of some transitions (K,) as a stack, the reward on gamma times what follows; two critics' q (2, K)."""
    x, target = np.arange(len(reward)), reward + gamma * follows
    axes = plt.subplots(figsize=(10, 4.6))[1]
    style = {"width": 0.7, "lw": 1}
    base, least = gamma * follows, np.minimum(gamma * follows, target)
    axes.bar(x, least, color=SKY, label=f"what follows: {gamma} mean of $Q'_1, Q'_2$", **style)
    axes.bar(x, reward.clip(0), bottom=base, color=YELLOW, label="reward, on top of it", **style)
    cut = {"facecolor": "none", "edgecolor": YELLOW, "hatch": "////", "label": "reward below 0: taken off"}
    axes.bar(x, base - least, bottom=least, **cut, **style)
    axes.plot(x, target, "k_", ms=29, mew=2.5, label="target, their sum")
    for values, shift, mark, colour, name in zip(q, (-0.15, 0.15), "os", (BLUE, PINK), "12"):
        axes.plot(x + shift, values, mark, color=colour, mec="white", label=f"$Q_{name}(o, a)$")
    axes.set(xlabel=f"{len(x)} of the transitions, by reward", ylabel="reward, or sum of rewards", xticks=[])
    axes.margins(x=0.02)
    axes.legend(fontsize=10, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))


def velocities(noise: Tensor, action: Tensor, a_r: Tensor, r: Tensor, t: Tensor, arrows: dict[str, Tensor]) -> None:
    """A panel for each row: its path, and (t - r) times each of the velocities in `arrows` (K, 2) from a_r."""
    figure, panels = plt.subplots(1, len(noise), figsize=(12, 4.5))
    for k, axes in enumerate(panels):
        axes.plot(*zip(noise[k], action[k]), color=GREY, zorder=1)
        axes.plot(*noise[k], "o", color=GREY, label="noise")
        axes.plot(*action[k], "*", color=PINK, ms=15, label="action")
        axes.plot(*a_r[k], "ko", ms=6, zorder=4, label="$a_r$")
        for (name, x), colour in zip(arrows.items(), (GREEN, BLUE, ORANGE)):
            style = {"color": colour, "angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.012, "zorder": 3}
            axes.quiver(*a_r[k], *((t - r)[k] * x[k]), label=f"(t - r) {name}", **style)
        ends = torch.stack([noise[k], action[k], *(a_r[k] + (t - r)[k] * x[k] for x in arrows.values())])
        middle, half = (ends.amin(0) + ends.amax(0)) / 2, (ends.amax(0) - ends.amin(0)).max().item() / 2 + 0.3
        axes.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half), aspect="equal")
        axes.set(xlabel="action 0", title=f"r = {r[k].item():.2f}, t = {t[k].item():.2f}")
    panels[0].set_ylabel("action 1")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=11)


def q_maps(grid: Tensor, values: list[Tensor], acted: list[Tensor], recorded: Tensor, near: list[Tensor]) -> None:
    """A panel for each observation: Q of all actions (G, G), the policy's (K, 2), the recorded one, and those near."""
    figure, panels = plt.subplots(1, len(values), figsize=(12, 4.1), sharey=True)
    for k, axes in enumerate(panels):
        filled = axes.contourf(grid, grid, values[k], 14, cmap="cividis")
        figure.colorbar(filled, ax=axes, label="Q(o, action)" if axes is panels[-1] else None, shrink=0.8)
        dots = {"color": "white", "mec": "black", "mew": 0.5, "ms": 4, "clip_on": False}
        axes.plot(*acted[k].T, "o", label="one-step actions of the policy", **dots)
        axes.plot(*near[k].T, "D", label="recorded nearby", **dots | {"color": ORANGE, "ms": 5})
        axes.plot(*recorded[k], "*", color=ORANGE, mec="white", ms=17, clip_on=False, label="recorded here")
        axes.set(xlabel="action 0", aspect="equal", title=f"observation {k}")
    panels[0].set_ylabel("action 1")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3, facecolor="#999999", frameon=True)


def training(curve: np.ndarray, losses: np.ndarray, marks: dict[str, float]) -> None:
    """Returns (update, mean, standard error) with lines to compare; cloning loss and Q (updates, 2) of one agent."""
    steps, mean, error = curve.T
    panels = plt.subplots(1, 3, figsize=(13, 4), width_ratios=(1.5, 1, 1))[1]
    panels[0].plot(steps, mean, "o-", color=BLUE, label="OM2P")
    panels[0].fill_between(steps, mean - error, mean + error, color=BLUE, alpha=0.25, lw=0)
    for (name, value), colour, style in zip(marks.items(), (ORANGE, GREY), ("--", ":")):
        panels[0].axhline(value, color=colour, ls=style, label=name)
    panels[0].set(xlabel="update", ylabel="return (mean and standard error)")
    panels[0].legend(loc=(0.5, 0.25))
    smooth = losses.reshape(-1, 20, 2).mean(1)
    names = ("cloning loss $L_{bc}$ of agent 2", "mean Q of agent 2's actions")
    for axes, values, name, colour in zip(panels[1:], smooth.T, names, (GREEN, PINK)):
        axes.plot(np.arange(10, len(losses), 20), values, color=colour)
        axes.set(xlabel="update", ylabel=name, ylim=(0, None))
    plt.show()


def films(world: Any, plays: dict[str, tuple[Tensor, Tensor]]) -> object:
    """A GIF with a row for each team, a column for each episode; agent 0 is numbered, a ring is who left the picture.

    A play is positions (T, B, E, 2) of one particle world, the start first, and returns so far (T, B).
    """
    T, B = next(iter(plays.values()))[1].shape
    figure, panels = plt.subplots(len(plays), B, figsize=(3.3 * B, 3.6 * len(plays)), squeeze=False)

    def draw(frame: int) -> None:
        frame = min(max(frame - 4, 0), T - 1)  # the start stays a while, and the end
        figure.suptitle(f"step {frame}", fontsize=13)
        for row, (name, (places, returns)) in zip(panels, plays.items()):
            world.set_state(places[frame])
            for episode, axes in enumerate(row):
                axes.clear()
                field(world, axes, episode)
                team = places[frame, episode, : world.num_agents]
                inside, away = team.clamp(-1.22, 1.22), team.abs().amax(1) > 1.3
                axes.plot(*inside[away].T, "o", color=BLUE, mfc="none", ms=10, mew=2)
                axes.text(*inside[0], "0", color=BLUE if away[0] else "white", ha="center", va="center")
                axes.add_patch(plt.Rectangle((-1, -1), 2, 2, fill=False, color=GREY, ls=":", zorder=0))
                axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))
                axes.spines[:].set_visible(True)
                axes.set_title(f"return {returns[frame, episode]:.1f}", fontsize=12)
            row[0].set_ylabel(name)

    return animate(figure, draw, T + 10, fps=8)


# -------------------- lesson 5


def returns_by_kind(panels: dict[str, dict[str, Tensor]], colours: dict[str, str]) -> None:
    """Histograms of returns, one kind of data above the other, a panel for each task."""
    figure, all_axes = plt.subplots(1, len(panels), figsize=(13, 3.8))
    for axes, (title, kinds) in zip(all_axes, panels.items()):
        edges = np.histogram_bin_edges(torch.cat([*kinds.values()]).numpy(), 40)
        for row, (kind, returns) in enumerate(kinds.items()):
            count, _ = np.histogram(returns.numpy(), edges)
            axes.stairs(row + 0.85 * count / count.max(), edges, baseline=row, fill=True, color=colours[kind])
        axes.set_title(title, fontsize=12)
        axes.set(xlabel="return of an episode", yticks=range(len(kinds)), yticklabels=[])
    all_axes[0].set_yticks(range(len(colours)), colours, va="bottom")


def curves(named: dict[str, tuple[str, list[float]]], steps: list[int], level: float) -> None:
    """Scores against training steps, and the data's as a dotted line; each curve has a colour."""
    _, axes = plt.subplots(figsize=(7, 3.6))
    for label, (colour, scores) in named.items():
        axes.plot(steps, scores, "o-", color=colour, label=label)
    axes.axhline(level, color="black", lw=1, ls=":", label="the data")
    axes.set(xlabel="training steps", ylabel="normalised score", title="World, medium data", xticks=steps)
    axes.legend(fontsize=11)
