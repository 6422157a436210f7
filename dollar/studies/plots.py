"""The ablation's plots, as SVG whose letters stay letters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dollar.media import atomically
from dollar.studies.curves import Line, line_of
from dollar.studies.results import CONTROL, METHODS, PURSUED, Results, Row, Spread, along_beta, pursued_by, start_of

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
# The rows whose true reward is drawn over cycles and seconds.
REACHING = {
    "vsd": SOFT,
    "vsd_lrm": BLUE,
    "lrm_noised": SKY,
    "vsd_ddpo": ORANGE,
    "vsd_direct": GREEN,
    "vsd_cd_lrm": PURPLE,
}
BODIES = {
    "vsd_lrm": BLUE,
    "lrm_noised": SKY,
    "lrm_teacher": ORANGE,
    "lrm_pairwise": GREEN,
    "lrm_teacher_pairwise": PURPLE,
}
COLOURS = {"lrm": BLUE, "noised": SKY, "ddpo": ORANGE, "direct": GREEN}  # of the trade-off's methods
OVERDONE = ("jpeg", "motion")
GUARDED = {
    "": ("no guard", RED),
    "_lower": ("guard lowers", ORANGE),
    "_stop": ("guard stops", BLUE),
    "_pull": ("pull", GREEN),
}
# The student that the guard keeps, and the one that rows start from.
CROSS: dict[str, Any] = {"marker": "X", "markersize": 10, "markeredgecolor": "white", "linestyle": "", "zorder": 3}
SQUARE: dict[str, Any] = {"color": INK, "marker": "s", "markersize": 6, "linestyle": "", "zorder": 3}


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


def plot_reaching(plt: Any, results: Results, labels: dict[str, str]) -> Any:
    """True reward of full samples over cycles and over seconds."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    for axes, over in zip(panels, ("cycles", "seconds"), strict=True):
        ends: list[tuple[float, str, str]] = []
        for name, colour in REACHING.items():
            line = line_of(results, name, "reward_4", over)
            if line is not None:
                draw(axes, line, colour)
                ends.append((line.mean[-1], labels.get(name, name), colour))
        references(axes, results, "clip", ends)
        axes.set_xlabel("cycles" if over == "cycles" else "seconds of training, a thread's own")
        if over == "seconds":
            label_ends(axes, ends, 0.06)
    panels[0].set_title("CLIP reward of 4-step samples")
    return figure


def plot_tradeoff(plt: Any, results: Results, rows: Sequence[Row]) -> Any:
    """What is pursued against alignment and against diversity, along beta, with where the guard stopped."""
    pursued = pursued_by(rows, "tradeoff")
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True)
    for axes, other, title in zip(panels, ("alignment", "vendi"), ("alignment", "Vendi score"), strict=True):
        start = _point(results, start_of(rows, "tradeoff"), other, pursued)
        for method, name in METHODS.items():
            names, colour = along_beta(rows, method), COLOURS[method]
            points = {r.rpartition("_")[2]: p for r in names if (p := _spreads(results, r, other, pursued))}
            if not points:
                continue
            _draw_betas(axes, start, list(points.values()), colour)
            for row in (f"{r}_stop" for r in names):
                if any(r["ended"] for r in results.of(row)) and (at := _point(results, row, other, pursued)):
                    axes.plot(*at, color=colour, **CROSS)
            axes.plot([], [], color=colour, marker="o", markersize=4, label=f"{name}: {', '.join(points)}")
        if start:
            axes.plot(*start, **SQUARE, label="start")
        if control := _point(results, CONTROL, other, pursued):
            axes.plot(*control, color=SOFT, marker="D", markersize=6, linestyle="", label="further without a reward")
        x, y = results.teacher(other), results.teacher(pursued)
        if x is not None and y is not None:
            axes.plot(x.mean, y.mean, color=INK, marker="*", markersize=10, linestyle="", label="teacher")
        axes.plot([], [], color=SOFT, **CROSS, label="where the guard stops")
        axes.set_xlabel(title)
    panels[0].set_title(PURSUED[pursued])
    panels[1].legend(
        frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5), title="betas: the larger the mark, the larger"
    )
    return figure


def _draw_betas(
    axes: Any, start: tuple[float, float] | None, points: Sequence[tuple[Spread, Spread]], colour: str
) -> None:
    """A way from the start through rows of growing beta, whose marks grow with it, ± one standard deviation."""
    means = [(x.mean, y.mean) for x, y in points]
    path = np.array([start, *means] if start else means)
    axes.plot(path[:, 0], path[:, 1], color=colour)
    for k, (x, y) in enumerate(points):
        error: dict[str, Any] = {"xerr": x.sd or None, "yerr": y.sd or None, "elinewidth": 0.8}
        axes.errorbar(x.mean, y.mean, **error, color=colour, marker="o", markersize=4 + 1.5 * k)


def _spreads(results: Results, name: str, *figures: str) -> tuple[Spread, Spread] | None:
    x, y = (results.spread(name, figure) for figure in figures)
    return None if x is None or y is None else (x, y)


def _point(results: Results, name: str, *figures: str) -> tuple[float, float] | None:
    found = _spreads(results, name, *figures)
    return (found[0].mean, found[1].mean) if found else None


def plot_overoptimisation(plt: Any, results: Results, rows: Sequence[Row]) -> Any:
    """Above what is pursued, true and predicted; below what should hold; marks are of students measured in full."""
    figure, panels = plt.subplots(2, 2, figsize=(9, 5.4), sharex="col")
    begun = start_of(rows, "overoptimisation")
    for column, pursued in zip(panels.T, OVERDONE, strict=True):
        ends: list[tuple[float, str, str]] = []
        for suffix, (name, colour) in GUARDED.items():
            row = pursued + suffix
            for axes, curve, style in zip(
                column[[0, 0, 1]], ("predicted_4", "reward_4", "alignment_4"), ("--", "-", "-"), strict=True
            ):
                line = line_of(results, row, curve)
                if line is not None:
                    draw(axes, line, colour, style)
                    if curve == "alignment_4":
                        ends.append((line.mean[-1], name, colour))
            if any(r["ended"] for r in results.of(row)):
                for axes, kind in zip(column, (pursued, "alignment"), strict=True):
                    if p := _point(results, row, "kept", kind):
                        axes.plot(*p, color=colour, **CROSS)
        for axes, kind in zip(column, (pursued, "alignment"), strict=True):
            if start := results.spread(begun, kind):
                axes.plot(0, start.mean, **SQUARE)
        column[0].set_title(f"{PURSUED[pursued]}: true (solid), predicted (dashed)")
        column[1].set_title("alignment")
        column[1].set_xlabel("cycles")
        label_ends(column[1], ends, 0.09)
    return figure


def plot_bodies(plt: Any, results: Results, labels: dict[str, str]) -> Any:
    """What the latent reward model's body and fit give and cost: mean ± sd, one panel a figure."""
    shown = {
        "held_rank": "rank correlation",
        "climb_true": "a step's true rise",
        "clip": PURSUED["clip"],
        "peak_gib": "peak GiB",
        "seconds_per_cycle": "seconds a cycle",
    }
    figure, panels = plt.subplots(1, len(shown), figsize=(9, 2.1), sharey=True)
    for axes, (name, title) in zip(panels, shown.items(), strict=True):
        for height, (row, colour) in enumerate(BODIES.items()):
            spread = results.spread(row, name)
            if spread is not None:
                axes.errorbar(spread.mean, -height, xerr=spread.sd or None, color=colour, marker="o", capsize=2)
        axes.set_title(title)
        axes.margins(x=0.25, y=0.2)
        axes.locator_params(axis="x", nbins=2)
        axes.set_yticks([-h for h in range(len(BODIES))], ["cnn, mse", *(labels.get(r, r) for r in list(BODIES)[1:])])
    return figure


def write_plots(folder: Path, rows: Sequence[Row], results: Results) -> list[str]:
    """All plots as SVG into a folder; their names, without those that nothing is known for."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels, measured = {row.name: row.label for row in rows}, {row.name for row in rows if results.of(row.name)}
    plots = {
        "reward": (REACHING.keys(), lambda: plot_reaching(plt, results, labels)),
        "tradeoff": ({r.name for r in rows if r.group == "tradeoff"}, lambda: plot_tradeoff(plt, results, rows)),
        "overoptimisation": (set(OVERDONE), lambda: plot_overoptimisation(plt, results, rows)),
        "bodies": (BODIES.keys(), lambda: plot_bodies(plt, results, labels)),
    }
    written = []
    for name, (needs, plot) in plots.items():
        if not measured & set(needs):
            continue
        with matplotlib.rc_context(STYLE):
            figure = plot()
            figure.set_layout_engine("constrained", w_pad=0.1)
            with atomically(folder / f"{name}.svg") as temporary:
                figure.savefig(temporary, format="svg", metadata={"Date": None})
            plt.close(figure)
        written.append(name)
    return written
