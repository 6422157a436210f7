"""The headline table of an evaluation: systems by figures, as cells and as text for a terminal.

Nothing here computes a metric; missing figures are shown as an em dash.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

DASH = "—"
TABLE_WIDTH = 110  # letters in a terminal
MARKS = {1: " ↑", -1: " ↓", 0: ""}


class System(NamedTuple):
    """A column of the headline table: `label` such as "student 4", and its figures."""

    label: str
    figures: Mapping[str, Any]


class Figure(NamedTuple):
    """A row of the headline table: where its value lies, and which way is better (1 more, -1 less, 0 neither)."""

    label: str
    path: tuple[str, ...]
    better: int = 0
    unit: str = ""
    indented: bool = False


class Cell(NamedTuple):
    """A figure of a system; its difference from the teacher with its interval, if known; a tone: good, bad or none."""

    value: str
    difference: str = ""
    interval: str = ""
    tone: str = ""

    @property
    def note(self) -> str:
        """What stands under the value where room is short: the difference's interval if there is one."""
        return self.interval or self.difference


def format_table(metrics: Mapping[str, Any]) -> str:
    """The headline table as aligned text of at most 110 columns; many systems go into several blocks.

    Where a difference from the teacher is known, its interval (or else itself) stands under the value.
    """
    every = systems(metrics)
    figures = list(headline_figures(every))
    labels = ["  " * f.indented + f.label + MARKS[f.better] for f in figures]
    cells = {s.label: [cell(s, f) for f in figures] for s in every}
    widths = {name: max(len(name), *(max(len(c.value), len(c.note)) for c in column)) for name, column in cells.items()}
    label_width = max(map(len, labels))
    teacher, *left = widths
    blocks: list[str] = []
    while left or not blocks:
        names = [teacher]
        while left and (len(names) < 2 or label_width + sum(2 + widths[n] for n in [*names, left[0]]) <= TABLE_WIDTH):
            names.append(left.pop(0))
        lines = [_line("", names, names, widths, label_width)]
        for number, label in enumerate(labels):
            row = [cells[n][number] for n in names]
            lines.append(_line(label, [c.value for c in row], names, widths, label_width))
            if any(c.note for c in row):
                lines.append(_line("  minus teacher", [c.note for c in row], names, widths, label_width))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def systems(metrics: Mapping[str, Any]) -> list[System]:
    """The columns: teacher, real clips, then the student and the untrained student from most steps to fewest."""
    teacher, real = (metrics.get(name) or {} for name in ("teacher", "real"))
    found = [System(f"teacher {teacher.get('steps', 50)}", teacher)]
    if real:
        found.append(System("real clips", real))
    for name in ("student", "untrained"):
        by_steps = metrics.get(name) or {}
        found += [System(f"{name} {n}", by_steps[n] or {}) for n in sorted(by_steps, key=int, reverse=True)]
    return found


def headline_figures(columns: Sequence[System]) -> Iterator[Figure]:
    """The rows; every attribute that some system was scored on has one."""
    yield Figure("Alignment", ("alignment",), 1)
    for name in dict.fromkeys(a for s in columns for a in s.figures.get("attributes") or {}):
        yield Figure(name, ("attributes", name), 1, indented=True)
    yield Figure("Reward", ("reward",), 1)
    yield Figure("Fréchet distance", ("frechet", "distance"), -1)
    yield Figure("above its floor", ("frechet", "excess"), -1, indented=True)
    yield Figure("Sharpness", ("sharpness",))
    yield Figure("Saturation", ("saturation",))
    yield Figure("Contrast", ("contrast",))
    yield Figure("Flow, pixels a frame", ("flow",))
    yield Figure("Vendi score", ("vendi", "mean"), 1)
    for name in ("position", "phase", "speed"):
        yield Figure(f"Spread of {name}", ("spread", name))
    yield Figure("Seconds", ("seconds",), -1)
    for name in ("text", "diffusion", "decode"):
        yield Figure(name, ("seconds", name), -1, indented=True)
    yield Figure("Speedup", ("speedup",), 1, "×")
    yield Figure("at most possible", ("speedup_ceiling",), 0, "×", indented=True)
    yield Figure("Parameters", ("size", "parameters"))
    yield Figure("FLOPs of a forward", ("size", "flops"))
    yield Figure("forwards of a clip", ("size", "forwards"), indented=True)
    yield Figure("Clips", ("clips",))


def cell(system: System, figure: Figure) -> Cell:
    """A system's figure as text; its tone is set when the difference's interval leaves out zero."""
    found = _at(system.figures, figure.path)
    if isinstance(found, Mapping) and figure.path == ("seconds",):
        parts = [finite_number(x) for x in found.values()]
        found = None if None in parts or not parts else sum(parts)
    if (value := finite_number(found)) is None:
        return Cell(DASH)
    text = format_number(value) + figure.unit
    if figure.path == ("vendi", "mean") and (sd := finite_number(_at(system.figures, ("vendi", "sd")))) is not None:
        text += f" ± {format_number(sd)}"
    return Cell(text, *_difference(system, figure))


def format_number(value: float) -> str:
    """About three significant digits, never in powers of ten above one."""
    size = abs(value)
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    if size < 0.0005:
        return f"{value:.1e}"
    return f"{value:.1f}" if size >= 10 else f"{value:.2f}" if size >= 1 else f"{value:.3f}"


def _difference(system: System, figure: Figure) -> tuple[str, str, str]:
    """A cell's (difference, interval, tone); the metrics may name it by the whole path, or its first or last word."""
    table = system.figures.get("difference") or {}
    names = (figure.path, (".".join(figure.path),), figure.path[-1:], figure.path[:1] if not figure.indented else ())
    found = next((d for n in names if n and isinstance(d := _at(table, n), Mapping) and "difference" in d), {})
    difference, low, high = (finite_number(found.get(k)) for k in ("difference", "low", "high"))
    if difference is None:
        return "", "", ""
    text = ("+" if difference >= 0 else "") + format_number(difference)
    if low is None or high is None:
        return text, "", ""
    direction = figure.better * ((low > 0) - (high < 0))
    return text, f"[{format_number(low)}, {format_number(high)}]", {1: "good", -1: "bad", 0: ""}[direction]


def _at(figures: Any, path: Sequence[str]) -> Any:
    """What lies at a path of keys, or None; a bare number stands for its own first word (`frechet`: 3.1)."""
    for depth, key in enumerate(path):
        if not isinstance(figures, Mapping):
            return figures if depth == 1 and key in ("distance", "mean") else None
        figures = figures.get(key)
    return figures


def finite_number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _line(label: str, texts: Sequence[str], names: Sequence[str], widths: Mapping[str, int], label_width: int) -> str:
    cells = "".join(f"  {text:>{widths[name]}}" for name, text in zip(names, texts, strict=True))
    return f"{label:<{label_width}}{cells}".rstrip()
