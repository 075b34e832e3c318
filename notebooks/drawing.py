"""What the notebooks share: colours that colour-blind readers can tell apart, axes, animations, source, exercises."""

from __future__ import annotations

import base64
import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path

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


def animate(figure: Figure, draw: Callable[[int], object], frames: int, fps: int = 12) -> object:
    """A GIF of `draw(0)` to `draw(frames - 1)`, each of which changes the figure."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "animation.gif"
        FuncAnimation(figure, draw, frames).save(path, PillowWriter(fps))
        plt.close(figure)
        return gif(path.read_bytes())


def gif(data: bytes) -> object:
    """Show the bytes of a GIF in place, so that the saved notebook needs no other file."""
    from IPython.display import HTML

    return HTML(f'<img src="data:image/gif;base64,{base64.b64encode(data).decode()}"/>')


def verdict(number: int, answer: object, check: Callable[[object], bool]) -> None:
    """Print whether the answer to an exercise passes its check; None is no answer yet."""
    print(f"{number}:", "not yet" if answer is None else "right" if check(answer) else "wrong")


# -------------------- lesson 1

CLUMPS = (BLUE, ORANGE, GREEN, PINK, YELLOW, SKY)


def action_axes(axes: Axes, title: str, limit: float) -> None:
    """Make `axes` a square picture of actions of two numbers, from -limit to limit."""
    axes.set(title=title, xlabel="action 0", ylabel="action 1", xlim=(-limit, limit), ylim=(-limit, limit), aspect=1)


def two_goals(play: Callable[[Tensor], object], recorded: Tensor, gaussian: Tensor) -> None:
    """The start and the mean recorded move of each half (left); the reward of every action, and two sets (right)."""
    line = torch.linspace(-1, 1, 41)
    grid, mean = torch.cartesian_prod(line, line), recorded.mean(0, keepdim=True)
    halves = torch.stack([recorded[(recorded.sum(1) > 0) == up].mean(0) for up in (True, False)])
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.4))
    play(recorded[:1], 0).draw(axes[0], 0)
    for end in play(halves).position[:, 0].tolist():
        axes[0].annotate("", end, (0, 0), arrowprops={"arrowstyle": "-|>", "lw": 2.5, "color": ORANGE})
    for agent, (x, y) in enumerate(play(recorded[:1], 0).position[0, :3].tolist()):
        axes[0].text(x + 0.2, y - 0.2, f"agent {agent}")
    axes[0].set(title="two good ways (green: landmarks)", xlim=(-1.4, 1.4), ylim=(-1.4, 1.4))
    reward = play(grid).rewards()[:, 0].view(41, 41)
    image = axes[1].pcolormesh(line, line, reward.T, cmap="Greys", shading="nearest", vmin=10)
    figure.colorbar(image, ax=axes[1], label="team's reward after five steps")
    axes[1].scatter(*gaussian.T, s=9, color=BLUE, label="Gaussian")
    axes[1].scatter(*recorded.T, s=9, color=ORANGE, label="recorded")
    axes[1].scatter(*mean.T, s=110, marker="X", color=YELLOW, edgecolor="black", label="their mean")
    action_axes(axes[1], "agent 0's action", 1.05)
    axes[1].legend(loc="upper left", fontsize=10, frameon=True, handletextpad=0.1, borderpad=0.2)


def clouds(named: dict[str, Tensor], limit: float, width: float = 3.3) -> None:
    """Each set of actions in a picture of its own: noise and data in grey, what a network made in blue."""
    figure, panels = plt.subplots(1, len(named), figsize=(width * len(named), width + 0.3), squeeze=False)
    for axes, (title, actions) in zip(panels[0], named.items()):
        axes.scatter(*actions.T, s=3, color=GREY if title.startswith(("noise", "data")) else BLUE)
        action_axes(axes, title, limit)
        axes.label_outer()


def straight_and_bent(noise: Tensor, action: Tensor, lines: Tensor, step: Tensor, nearest: Callable) -> None:
    """Straight paths from noise to action, the `lines` (steps, B, 2) of the flow, and one long step for a few."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 5))
    for i, (straight, bent) in enumerate(zip(nearest(action), nearest(lines[-1]))):
        axes[0].plot(*torch.stack([noise[i], action[i]]).T, color=CLUMPS[straight], lw=1)
        axes[1].plot(*lines[:, i].T, color=CLUMPS[bent], lw=1.5)
    for start, end in zip(noise, step):
        axes[1].plot(*torch.stack([start, end]).T, "--", color="black", lw=1)
    axes[1].scatter(*step.T, marker="x", s=60, color="black", zorder=4)
    for ax, title in zip(axes, ("straight paths (black: noise)", "following v_mean (dashed: one long step)")):
        ax.scatter(*noise.T, s=14, color="black", zorder=3)
        action_axes(ax, title, 2)


def against_evaluations(counts: list[int], measured: dict[str, dict[str, list[float]]]) -> None:
    """Print and draw each measure of each way to sample against the evaluations; one number alone is a level."""
    looks = {"flow matching": ("o-", ORANGE), "v_mean, Euler steps": (":", GREY), "mean flow": ("s-", BLUE)}
    figure, panels = plt.subplots(1, len(measured), figsize=(10, 4))
    print(f"{'evaluations':<22}" + "".join(f"{k:>6}" for k in counts))
    for axes, (label, ways) in zip(panels, measured.items()):
        print(label)
        for name, values in ways.items():
            print(f"  {name:<20}" + "".join(f"{x:6.2f}" for x in values))
            style, colour = looks.get(name, ("--", "black"))
            axes.plot(counts, values * (len(counts) // len(values)), style, color=colour, label=name)
        axes.set_xscale("log", base=2)
        axes.set(xlabel="network evaluations for one action", ylabel=label, xticks=counts, xticklabels=counts)
    panels[0].legend(loc="lower right")


def noise_to_data(frames: dict[str, list[Tensor]], clump: Tensor, hold: int = 8) -> object:
    """An animation of points that move, coloured by the clump they belong to; the last frame stays a while."""
    figure, panels = plt.subplots(1, len(frames), figsize=(3.2 * len(frames), 3.6))
    dots = []
    for axes, (title, places) in zip(panels, frames.items()):
        dots.append(axes.scatter(*places[0].T, s=7, c=[CLUMPS[i] for i in clump]))
        action_axes(axes, title, 2)
        axes.set(xticks=range(-2, 3), yticks=range(-2, 3))
        axes.label_outer()
    caption, last = panels[0].text(-1.85, 1.6, "", bbox={"color": "white"}), len(places) - 1

    def draw(k: int) -> None:
        k = min(k, last)
        caption.set_text(f"t = {k / last:.2f}")
        for dot, places in zip(dots, frames.values()):
            dot.set_offsets(places[k])

    return animate(figure, draw, last + 1 + hold, fps=6)


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
    """u (R, 2) as arrows from `points` of one path; its components against r (R,) with their slopes at r[here]."""
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
    for i, colour in enumerate((BLUE, GREEN)):
        right.plot(r, u[:, i], color=colour, label=f"u, component {i}")
        right.plot(r[near], u[here, i] + slope[i] * (r[near] - r[here]), "--", color=ORANGE, lw=2)
        right.plot(r[here], u[here, i], "o", color=ORANGE)
    right.plot([], [], "--", color=ORANGE, label=f"slope du/dr at r = {r[here]:.1f}")
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
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), dpi=70)
    left.plot(r, u, color=BLUE, label="u, component 0")
    (line,) = left.plot([], [], color=ORANGE, lw=2, label="slope by Eq. 5")
    (ends,) = left.plot([], [], "o", color=ORANGE)
    room = (u.max() - u.min()) / 2
    left.set(title=" ", xlabel=f"r (t = {t})", ylabel="u", ylim=(u.min() - room, u.max() + room))
    left.legend(fontsize=10)
    right.axhline(truth, color=GREEN, ls="--", label=f"exact, {truth:.2f}")
    (trace,) = right.semilogx([], [], "o-", color=ORANGE, ms=4, lw=1, label="Eq. 5, float32")
    right.set(xlabel="step $\\Delta r$", ylabel="du/dr", xlim=(1, 1e-13), ylim=(truth - 6, truth + 6))
    right.legend(loc="upper left", fontsize=10)
    seen = estimates.clip(truth - 5.9, truth + 5.9)

    def draw(frame: int) -> None:
        frame = min(frame, len(steps) - 1)
        d, estimate = steps[frame], estimates[frame]
        line.set_data([0, t], [u[here] - r[here] * estimate, u[here] + (t - r[here]) * estimate])
        ends.set_data([r[here], r[here] + d], [u[here], u[here] + d * estimate])
        trace.set_data(steps[: frame + 1], seen[: frame + 1])
        left.set_title(f"$\\Delta r$ = {d:.0e}, slope {estimate:.3g}")

    return animate(figure, draw, len(steps) + 8, fps=6)


def near_modes(samples: dict[str, np.ndarray], shares: dict[str, float]) -> None:
    """Actions (B, 2) as dots, a panel for each kind, with the share of them near a mode."""
    panels = plt.subplots(1, len(samples), figsize=(12, 3.7), sharex=True, sharey=True)[1]
    for axes, (name, action), colour in zip(panels, samples.items(), (GREY, BLUE, ORANGE, PINK)):
        axes.scatter(*action.T, s=6, alpha=0.4, color=colour)
        axes.set(title=f"{name}\n{shares[name]:.0%} near a mode", xlabel="action 0", aspect="equal", xlim=(-1.1, 1.1))
    panels[0].set(ylabel="action 1", ylim=(-1.1, 1.1))
    plt.show()


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
        axes.set(title=title, xticks=range(len(names)), yscale="log" if k < logarithmic else "linear")
        axes.set_xticklabels([name.replace(" ", "\n") for name in names], fontsize=11)
    row[0].set_ylabel("ratio to the difference")
    row[0].legend(loc="upper left", fontsize=10)
    plt.show()
