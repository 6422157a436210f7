"""Curves of a training as small inline SVG figures."""

from __future__ import annotations

import math
from html import escape
from typing import Any, NamedTuple

import numpy as np

from dollar.evaluation.report.table import DASH, format_number

CURVE_POINTS = 240  # buckets that a long curve is thinned to
MEDIANS = 80  # of a long curve
PLOT_WIDTH, PLOT_HEIGHT, PLOT_MARGIN = 264, 126, 40  # SVG units; the margin holds the labels of the values


def curve(label: str, steps: np.ndarray, values: np.ndarray) -> str:
    """A figure with a small inline SVG: the curve, medians along it when it is long, axes, and the last value.

    The outermost hundredth of a long curve may leave the frame, so that one spike does not flatten the rest.
    """
    steps, values = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
    order = np.argsort(steps, kind="stable")
    steps, values = steps[order], values[order]
    kept = np.isfinite(values)
    lost = "" if kept.all() else f", {(~kept).sum()} not finite"
    last = DASH if not len(values) else format_number(values[-1]) if kept[-1] else str(values[-1])
    caption = f"<figcaption>{escape(label)}<b>{last}</b></figcaption>"
    steps, values = steps[kept], values[kept]
    if not len(values):
        return f"<figure>{caption}<p>{DASH}{lost}</p></figure>"
    hidden = 0.5 if len(values) > 100 else 0.0  # percent at either end
    low, high = np.percentile(values, (hidden, 100 - hidden))
    low, high = min(low, values[-1]), max(high, values[-1])
    spare = 0.05 * (high - low) or abs(low) / 20 or 1.0
    plot = _Plot(steps[0], max(steps[-1], steps[0] + 1), low - spare, high + spare)
    note = f"{len(values)} points from {values.min():.4g} to {values.max():.4g}{lost}"
    return f"<figure>{caption}{plot.svg(steps, values, note)}</figure>"


class _Plot(NamedTuple):
    """The frame of a small plot, in its own units: steps `left` to `right`, values `low` to `high`."""

    left: float
    right: float
    low: float
    high: float

    def x(self, step: np.ndarray | float) -> Any:
        return (step - self.left) / (self.right - self.left) * PLOT_WIDTH

    def y(self, value: np.ndarray | float) -> Any:
        return (self.high - value) / (self.high - self.low) * PLOT_HEIGHT

    def line(self, steps: np.ndarray, values: np.ndarray) -> str:
        """A polyline; a lone point becomes a short dash so that it can be seen."""
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(self.x(steps), self.y(values), strict=True))
        if len(steps) == 1:
            points += f" {self.x(steps[0]) + 6:.1f},{self.y(values[0]):.1f}"
        return f'<polyline points="{points}"/>'

    def svg(self, steps: np.ndarray, values: np.ndarray, note: str) -> str:
        """The picture: grid lines with their values, first and last step, the curve and its medians."""
        parts = [f"<title>{escape(note)}</title>"]
        for tick in ticks(self.low, self.high):
            y = self.y(tick)
            parts.append(f'<path class=rule d="M0 {y:.1f}h{PLOT_WIDTH}"/><text x=-6 y="{y + 3.5:.1f}">{tick:g}</text>')
        for x, kind, text in [
            (0, "from", f"{self.left:,.0f}"),
            (PLOT_WIDTH / 2, "mid", "step"),
            (PLOT_WIDTH, "to", f"{self.right:,.0f}"),
        ]:
            parts.append(f"<text class={kind} x={x} y={PLOT_HEIGHT + 15}>{text}</text>")
        lines = self.line(*thin(steps, values))
        if len(values) > 2 * MEDIANS:
            buckets = np.array_split(np.arange(len(values)), MEDIANS)
            medians = np.array([[np.median(steps[b]), np.median(values[b])] for b in buckets])
            lines = f"<g class=faint>{lines}</g>{self.line(*medians.T)}"
        parts.append(f"<svg width={PLOT_WIDTH} height={PLOT_HEIGHT}>{lines}</svg>")  # an inner svg cuts at its frame
        box = f"{-PLOT_MARGIN} -6 {PLOT_MARGIN + PLOT_WIDTH + 12} {PLOT_HEIGHT + 28}"
        return f'<svg viewBox="{box}" role=img>{"".join(parts)}</svg>'


def ticks(low: float, high: float) -> list[float]:
    """Two to five round values (1, 2 or 5 times a power of ten apart) inside [low, high]."""
    power = 10.0 ** math.floor(math.log10((high - low) / 2))
    step = next(power * m for m in (5, 2, 1) if (high - low) / (power * m) >= 2)
    return [round(step * k, 12) + 0.0 for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest point of each bucket of a long curve, so that no spike is lost; a short one as it is."""
    if len(values) <= 2 * CURVE_POINTS:
        return steps, values
    buckets = np.array_split(np.arange(len(values)), CURVE_POINTS)
    chosen = sorted({b[i] for b in buckets for i in (values[b].argmin(), values[b].argmax())})
    return steps[chosen], values[chosen]
