"""What the notebooks share: colours that colour-blind readers can tell apart, axes, animations, source, exercises."""

from __future__ import annotations

import base64
import inspect
import tempfile
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.figure import Figure

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
