"""The ablation's curves: a row's over its seeds, and how soon and how far a reward rises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dollar.evaluation.ablation import Results


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
    """A row's curve at the cycles that all its seeds have, over cycles or mean seconds; None where there is none."""
    found = [r["curves"][curve] for r in results.of(name) if curve in r["curves"]]
    if not found:
        return None
    common = sorted(set.intersection(*(set(cycles) for cycles, _, _ in found)))
    at = [[cycles.index(cycle) for cycle in common] for cycles, _, _ in found]
    values = np.array([[v[i] for i in places] for (_, _, v), places in zip(found, at, strict=True)], dtype=float)
    seconds = np.array([[s[i] for i in places] for (_, s, _), places in zip(found, at, strict=True)], dtype=float)
    x = np.array(common, dtype=float) if over == "cycles" else seconds.mean(0)
    return Line(x, values.mean(0), values.std(0, ddof=1) if len(found) > 1 else np.zeros(len(x)))


def rise_of(result: Mapping[str, Any], least: float | None = None) -> Rise | None:
    """The reward of a result's 4-step samples; None without any.

    least: without the validations whose alignment was lower.
    """
    curves = result["curves"]
    cycles, seconds, values = curves.get("reward_4", ([], [], []))
    alignment = dict(zip(*curves.get("alignment_4", [[], [], []])[::2], strict=True))
    kept = [
        (second, value)
        for cycle, second, value in zip(cycles, seconds, values, strict=True)
        if value is not None and (least is None or (alignment.get(cycle) or 0.0) >= least)
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
