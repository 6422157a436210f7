"""The toy's pictures: where each model's samples lie, and how many are in each mode and outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dollar.studies.plots import BLUE, GREEN, INK, ORANGE, PURPLE, RED, SKY, SOFT, Plot
from dollar.studies.results import Results
from dollar.studies.toy.modes import FARTHEST, OUTSIDE, Modes
from dollar.studies.toy.rows import EXACT, LABELS, mode_figure

COLOURS = (BLUE, GREEN, PURPLE, SKY, ORANGE)  # of the modes, in their order; more begin anew
ACROSS = 4  # panels in a line
MARGIN = 0.3  # around the modes, as a share of their extent


def colour_of(mode: int) -> str:
    """Red outside, a colour of its own in each mode."""
    return RED if mode == OUTSIDE else COLOURS[(mode - 1) % len(COLOURS)]


def plots(modes: Modes, results: Results) -> Mapping[str, Plot]:
    """Both pictures."""
    names = list(LABELS)
    return {
        "samples": Plot(names, lambda plt: scatter(plt, modes, results)),
        "counts": Plot(names, lambda plt: bars(plt, modes, results)),
    }


def points_of(results: Results, name: str) -> np.ndarray:
    """The kept points of a row, [N, 2], without those that are no numbers."""
    found: list[Any] = next((r["points"] for r in results.of(name) if "points" in r), [])
    points = np.array(found, dtype=float).reshape(-1, 2)
    finite: np.ndarray = points[np.isfinite(points).all(1)]
    return finite


def scatter(plt: Any, modes: Modes, results: Results) -> Any:
    """A panel a row: its points by mode, and how far the modes reach."""
    lines = -(-len(LABELS) // ACROSS)
    size = {"figsize": (10, 2.1 * lines), "sharex": True, "sharey": True}
    figure, panels = plt.subplots(lines, ACROSS, squeeze=False, **size)
    low, high = extent(modes)
    for axes, (name, label) in zip(panels.flat, LABELS.items(), strict=False):
        points = points_of(results, name)
        belongs = modes.of(torch.tensor(points, dtype=torch.float32)).numpy()
        for mode in range(modes.count + 1):
            x, y = points[belongs == mode].T
            axes.scatter(x, y, s=3, color=colour_of(mode), linewidths=0, rasterized=True)
        for mode, (centre, sd) in enumerate(zip(modes.centres, modes.sds, strict=True), 1):
            reach = plt.Circle(centre, FARTHEST * sd, fill=False, edgecolor=SOFT, linewidth=0.8)
            axes.add_patch(reach)
            axes.annotate(str(mode), (centre[0], centre[1] + FARTHEST * sd), ha="center", va="bottom", color=INK)
        hidden = int(((points < low) | (points > high)).any(1).sum())
        axes.set_title(label)
        axes.set_axisbelow(True)
        if hidden:
            axes.text(0.02, 0.03, f"{hidden} off the picture", transform=axes.transAxes, color=SOFT, fontsize=7)
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    for axes in panels.flat[len(LABELS) :]:
        axes.set_visible(False)
    return figure


def extent(modes: Modes) -> tuple[np.ndarray, np.ndarray]:
    """The corners of the picture, around all modes."""
    centres, reach = np.array(modes.centres, dtype=float), FARTHEST * np.array(modes.sds)[:, None]
    low, high = (centres - reach).min(0), (centres + reach).max(0)
    return low - MARGIN * (high - low).max() / 2, high + MARGIN * (high - low).max() / 2


def bars(plt: Any, modes: Modes, results: Results) -> Any:
    """A panel a mode and one for outside: the counts of every row, with deviations over seeds."""
    figure, panels = plt.subplots(1, modes.count + 1, figsize=(10, 2.6), sharey=True)
    heights = np.arange(len(LABELS))
    for axes, mode in zip(panels, [*range(1, modes.count + 1), OUTSIDE], strict=True):
        spreads = [results.spread(name, mode_figure(mode)) for name in LABELS]
        means, sds = ([getattr(s, key) if s else 0.0 for s in spreads] for key in ("mean", "sd"))
        axes.barh(heights, means, xerr=sds, color=colour_of(mode), height=0.65, error_kw={"ecolor": INK, "lw": 1})
        if (exact := results.spread(EXACT, mode_figure(mode))) is not None:
            axes.axvline(exact.mean, color=INK, linewidth=1, linestyle=":")
        axes.set_title(f"samples in mode {mode}" if mode else "samples outside")
        axes.set_yticks(heights, list(LABELS.values()))
        axes.grid(axis="y", visible=False)
        axes.set_axisbelow(True)
        axes.locator_params(axis="x", nbins=5)
    panels[0].invert_yaxis()
    return figure
