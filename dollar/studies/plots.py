"""A study's plots, as SVG whose letters stay letters: style, curves with bands, labels, and writing them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dollar.media import atomically
from dollar.studies.curves import Line
from dollar.studies.results import Results

# Okabe and Ito's colours, which the colour-blind tell apart; and what reads as ink and as a hint.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
INK, SOFT, LINE = "#23272e", "#6b7280", "#e6e8ec"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dollar",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": LINE,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "lines.linewidth": 1.8,
}
# The student that the guard keeps, and the one that rows start from.
CROSS: dict[str, Any] = {"marker": "X", "markersize": 10, "markeredgecolor": "white", "linestyle": "", "zorder": 3}
SQUARE: dict[str, Any] = {"color": INK, "marker": "s", "markersize": 6, "linestyle": "", "zorder": 3}


class Plot(NamedTuple):
    """A plot: the rows of which at least one must be measured, and what draws it, given pyplot."""

    rows: Collection[str]
    draw: Callable[[Any], Any]


def draw(axes: Any, line: Line, colour: str, style: str = "-") -> None:
    """A curve and a band of one standard deviation."""
    axes.plot(line.x, line.mean, color=colour, linestyle=style, marker="o", markersize=2.5)
    if line.sd.any():
        axes.fill_between(line.x, line.mean - line.sd, line.mean + line.sd, color=colour, alpha=0.15, linewidth=0)


def apart(places: Sequence[float], gap: float) -> list[float]:
    """The places moved as little as keeps their order and at least a gap between neighbours."""
    order = np.argsort(places, kind="stable")
    blocks: list[list[float]] = []  # [sum of wished beginnings, count]
    for k in order:
        blocks.append([places[k], 1])
        # Two blocks that would overlap become one around the mean of what their members wish for.
        while len(blocks) > 1 and _first(blocks[-2], gap) + blocks[-2][1] * gap > _first(blocks[-1], gap):
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    moved = [_first(block, gap) + i * gap for block in blocks for i in range(int(block[1]))]
    found = [0.0] * len(places)
    for k, place in zip(order, moved, strict=True):
        found[k] = float(place)
    return found


def _first(block: Sequence[float], gap: float) -> float:
    return block[0] / block[1] - (block[1] - 1) * gap / 2


def label_ends(axes: Any, ends: Sequence[tuple[float, str, str]], gap: float) -> None:
    """Names at the right of the axes, at the heights of the curves' ends: (height, name, colour); gap: of the axes."""
    low, high = axes.get_ylim()
    heights = apart([end[0] for end in ends], gap * (high - low))
    for (_, name, colour), height in zip(ends, heights, strict=True):
        axes.annotate(
            name,
            (1.0, (height - low) / (high - low)),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            annotation_clip=False,
        )


def references(axes: Any, results: Results, figure: str, ends: list[tuple[float, str, str]]) -> None:
    """Dashed lines of teacher and real clips, where they are known."""
    for value, name in ((results.teacher(figure), "teacher"), (results.real(figure), "real clips")):
        if value is not None:
            axes.axhline(value.mean, color=INK, linewidth=1, linestyle="--" if name == "teacher" else ":")
            ends.append((value.mean, name, INK))


def save(path: Path, draw: Callable[[Any], Any]) -> None:
    """Write as SVG the figure that `draw` makes, given pyplot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with matplotlib.rc_context(STYLE):
        figure = draw(plt)
        figure.set_layout_engine("constrained", w_pad=0.1)
        with atomically(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        plt.close(figure)


def write_plots(folder: Path, plots: Mapping[str, Plot], results: Results) -> list[str]:
    """All plots as SVG into a folder; their names, without those of which no row is measured."""
    written = [name for name, plot in plots.items() if any(results.of(row) for row in plot.rows)]
    for name in written:
        save(folder / f"{name}.svg", plots[name].draw)
    return written
