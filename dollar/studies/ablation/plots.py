"""The ablation's plots: how soon a reward rises, the trade-off along beta, over-optimisation, the bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dollar.studies.ablation.figures import CONTROL, METHODS, PURSUED, along_beta, pursued_by
from dollar.studies.compare import Spread
from dollar.studies.curves import line_of
from dollar.studies.plots import (
    BLUE,
    CROSS,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    SOFT,
    SQUARE,
    Plot,
    draw,
    label_ends,
    point,
    references,
    spreads,
)
from dollar.studies.results import Results
from dollar.studies.rows import Row, start_of

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


def plots(rows: Sequence[Row], results: Results) -> dict[str, Plot]:
    """All plots by their names."""
    labels = {row.name: row.label for row in rows}
    tradeoff = [row.name for row in rows if row.group == "tradeoff"]
    return {
        "reward": Plot(list(REACHING), lambda plt: plot_reaching(plt, results, labels)),
        "tradeoff": Plot(tradeoff, lambda plt: plot_tradeoff(plt, results, rows)),
        "overoptimisation": Plot(OVERDONE, lambda plt: plot_overoptimisation(plt, results, rows)),
        "bodies": Plot(list(BODIES), lambda plt: plot_bodies(plt, results, labels)),
    }


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
        start = point(results, start_of(rows, "tradeoff"), other, pursued)
        for method, name in METHODS.items():
            names, colour = along_beta(rows, method), COLOURS[method]
            points = {r.rpartition("_")[2]: p for r in names if (p := spreads(results, r, other, pursued))}
            if not points:
                continue
            _draw_betas(axes, start, list(points.values()), colour)
            for row in (f"{r}_stop" for r in names):
                if any(r["ended"] for r in results.of(row)) and (at := point(results, row, other, pursued)):
                    axes.plot(*at, color=colour, **CROSS)
            axes.plot([], [], color=colour, marker="o", markersize=4, label=f"{name}: {', '.join(points)}")
        if start:
            axes.plot(*start, **SQUARE, label="start")
        if control := point(results, CONTROL, other, pursued):
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
                    if p := point(results, row, "kept", kind):
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
