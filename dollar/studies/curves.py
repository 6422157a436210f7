"""Curves of validations: a row's over its seeds, and how soon and how far a reward rises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dollar.studies.results import Results


class Line(NamedTuple):
    """A curve over seeds: x [N], mean [N], sd [N]."""

    x: np.ndarray
    mean: np.ndarray
    sd: np.ndarray


class Rise(NamedTuple):
    """The reward that one run pursues, at each validation, and the seconds of training until then."""

    seconds: list[float]
    values: list[float]


def line_of(results: Results, name: str, curve: str, over: str = "cycles") -> Line | None:
    """A row's curve at the cycles that all its seeds have, over cycles or mean seconds; None where there is none.

    Seconds are cycles times the row's seconds a cycle.
    """
    found = [(r["curves"][curve], r["seconds_per_cycle"]) for r in results.of(name) if curve in r["curves"]]
    if not found:
        return None
    common = sorted(set.intersection(*(set(cycles) for (cycles, _), _ in found)))
    values = np.array([[v[cycles.index(c)] for c in common] for (cycles, v), _ in found], dtype=float)
    x = np.array(common, dtype=float) * (1.0 if over == "cycles" else np.mean([pace for _, pace in found]))
    return Line(x, values.mean(0), values.std(0, ddof=1) if len(found) > 1 else np.zeros(len(x)))


def rise_of(result: Mapping[str, Any], held: float | None = None, steps: int = 4) -> Rise | None:
    """The reward of a result's samples of so many steps; None without any.

    held: without the validations at which the verifier's mean margin was below this share of the start's, which is
    that before the first cycle.
    """
    curves = result["curves"]
    cycles, values = curves.get(f"reward_{steps}", ([], []))
    margins = dict(zip(*curves.get(f"guard_{steps}", ([], [])), strict=True))
    if held is not None and margins.get(0) is None:
        return None
    kept = [
        (cycle * result["seconds_per_cycle"], value)
        for cycle, value in zip(cycles, values, strict=True)
        if value is not None and (held is None or (margins.get(cycle) or 0.0) >= held * margins[0])
    ]
    return Rise([second for second, _ in kept], [value for _, value in kept]) if kept else None


def sooner(a: Rise, b: Rise) -> tuple[float, float]:
    """Seconds until each of two first has the highest value that both reach."""
    level = min(max(a.values), max(b.values))
    return reached(a.seconds, a.values, level), reached(b.seconds, b.values, level)


def reached(at: Sequence[float], values: Sequence[float], level: float) -> float:
    """Where a curve first comes up to a level, on the straight line between two points; the level is one it reaches."""
    i = next(i for i, value in enumerate(values) if value >= level)
    if i == 0 or values[i] == values[i - 1]:
        return float(at[i])
    share = (level - values[i - 1]) / (values[i] - values[i - 1])
    return float(at[i - 1] + share * (at[i] - at[i - 1]))
