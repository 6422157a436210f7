"""The ablation's plots: how soon a reward rises, the trade-off along its push, over-optimisation, the bodies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dollar.studies.ablation.figures import CONTROL, METHODS, NAMES, PURSUED, along_push, pursued_by
from dollar.studies.ablation.tradeoff import RISE
from dollar.studies.compare import Spread, spread_of
from dollar.studies.curves import line_of
from dollar.studies.plots import (
    BLUE,
    CROSS,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    SOFT,
    SQUARE,
    Plot,
    draw,
    label_ends,
    references,
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
# The curves of the trade-off's figure; the others are in its table.
COLOURS = {"direct": GREEN, "small": SKY, "ddpo": ORANGE, "paper": RED, "ours": BLUE}
OVERDONE = ("jpeg", "motion")
SHARES = (BLUE, ORANGE, GREEN, PURPLE, RED)  # of the rows that pursue one of them, in their order


def plots(rows: Sequence[Row], results: Results) -> dict[str, Plot]:
    """All plots by their names."""
    labels = {row.name: row.label for row in rows}
    tradeoff = [name for method in COLOURS for name in along_push(rows, method)]
    return {
        "reward": Plot(list(REACHING), lambda plt: plot_reaching(plt, results, labels)),
        "tradeoff": Plot(tradeoff, lambda plt: plot_tradeoff(plt, results, rows)),
        "overoptimisation": Plot(overdone(rows), lambda plt: plot_overoptimisation(plt, results, rows)),
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


def overdone(rows: Sequence[Row], pursued: str = "") -> list[str]:
    """The rows of the over-optimisation that pursue a figure, or any."""
    mine = [row for row in rows if row.group == "overoptimisation"]
    return [row.name for row in mine if pursued in ("", row.pursued)]


def plot_tradeoff(plt: Any, results: Results, rows: Sequence[Row]) -> Any:
    """The true rise above control against alignment and against Fréchet, a curve a method in order of push."""
    pursued = pursued_by(rows, "tradeoff")
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 3.8), sharey=True)
    for axes, other in zip(panels, ("alignment", "frechet"), strict=True):
        start = results.spread(CONTROL, other)
        for method, colour in COLOURS.items():
            found = (rise_and(results, name, pursued, other) for name in along_push(rows, method))
            if points := [point for point in found if point is not None]:
                _draw_curve(axes, start, points, colour)
                axes.plot([], [], color=colour, marker="o", markersize=4, label=METHODS[method])
        if start:
            axes.plot(start.mean, 0.0, **SQUARE, label="control: further without a reward")
        axes.axhline(RISE, color=SOFT, linewidth=1, linestyle=":")
        axes.set_xlabel(NAMES[other])
    panels[1].invert_xaxis()  # so that right is better in both
    panels[0].set_title(f"true {PURSUED[pursued]} above control")
    panels[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5), title="larger marks: more push")
    return figure


def rise_and(results: Results, name: str, pursued: str, other: str) -> tuple[Spread, Spread] | None:
    """Another figure of a row, and its true rise above the control of the same seed; None where one isn't known."""
    x, y = results.spread(name, other), spread_of(results.gaps(name, CONTROL, pursued).values)
    return None if x is None or y is None else (x, y)


def _draw_curve(axes: Any, start: Spread | None, points: Sequence[tuple[Spread, Spread]], colour: str) -> None:
    """From the control through rows of growing push, whose marks grow with it, ± one standard deviation."""
    means = [(x.mean, y.mean) for x, y in points]
    path = np.array([(start.mean, 0.0), *means] if start else means)
    axes.plot(path[:, 0], path[:, 1], color=colour)
    for k, (x, y) in enumerate(points):
        error: dict[str, Any] = {"xerr": x.sd or None, "yerr": y.sd or None, "elinewidth": 0.8}
        axes.errorbar(x.mean, y.mean, **error, color=colour, marker="o", markersize=4 + 1.5 * k)


def plot_overoptimisation(plt: Any, results: Results, rows: Sequence[Row]) -> Any:
    """Above what is pursued, true and predicted; below alignment."""
    figure, panels = plt.subplots(2, 2, figsize=(9, 5.4), sharex="col")
    begun, labels = start_of(rows, "overoptimisation"), {row.name: row.label for row in rows}
    for column, pursued in zip(panels.T, OVERDONE, strict=True):
        ends: list[tuple[float, str, str]] = []
        for row, colour in zip(overdone(rows, pursued), SHARES, strict=False):
            for axes, curve, style in zip(
                column[[0, 0, 1]], ("predicted_4", "reward_4", "alignment_4"), ("--", "-", "-"), strict=True
            ):
                line = line_of(results, row, curve)
                if line is not None:
                    draw(axes, line, colour, style)
                    if curve == "alignment_4":
                        ends.append((line.mean[-1], labels[row], colour))
            if any(r["ended"] for r in results.of(row)):
                for axes, kind in zip(column, (pursued, "alignment"), strict=True):
                    if (x := results.spread(row, "kept")) and (y := results.spread(row, kind)):
                        axes.plot(x.mean, y.mean, color=colour, **CROSS)
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
    shown = {name: title for name, title in shown.items() if any(results.spread(row, name) for row in BODIES)}
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
