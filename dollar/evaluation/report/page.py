"""The report of an evaluation: one html file that opens without a network, and its headline table for a terminal.

Nothing here computes a metric; missing figures are shown as an em dash.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dollar import media

DASH = "—"
TABLE_WIDTH = 110  # letters in a terminal
CLIP_PIXELS = 256  # longer side of a clip in the report
CURVE_POINTS = 240  # buckets that a long curve is thinned to
MEDIANS = 80  # of a long curve
PLOT_WIDTH, PLOT_HEIGHT, PLOT_MARGIN = 264, 126, 40  # SVG units; the margin holds the labels of the values
MARKS = {1: " ↑", -1: " ↓", 0: ""}


class SampleRow(NamedTuple):
    """One prompt's clips, uint8 [T, H, W, 3], by the name of their column; a missing column leaves a gap."""

    prompt: str
    seed: int
    clips: dict[str, np.ndarray]


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


def write_report(
    path: str | Path,
    metrics: Mapping[str, Any],
    scalars: Mapping[str, tuple[np.ndarray, np.ndarray]],
    samples: Sequence[SampleRow],
    title: str = "Distilled student",
    notes: Sequence[str] = (),
    fps: float = 8,
) -> None:
    """Write the report, in one atomic step.

    metrics: `teacher`, `student` and `untrained` (by step count), `lrm`; scalars: name -> (steps, values), the name's
    prefix (`loss/`) being its group; notes: a paragraph each.
    """
    notes = [notes] if isinstance(notes, str) else notes
    body = [
        f"<header><h1>{escape(title)}</h1>{''.join(f'<p>{escape(n)}</p>' for n in notes)}</header>",
        _section("Teacher and student", _headline(metrics)),
        _section("Moving samples", "".join(_sample(row, _columns(samples), fps) for row in samples)),
        _section("Latent reward model", _facts(metrics.get("lrm") or {})),
        _section("Training", _curves(scalars)),
    ]
    page = _PAGE.replace("{title}", escape(title)).replace("{body}", "\n".join(body))
    with media.atomically(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")


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
    """The columns: teacher, then the student and the untrained student from most steps to fewest."""
    teacher = metrics.get("teacher") or {}
    found = [System(f"teacher {teacher.get('steps', 50)}", teacher)]
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
    yield Figure("Vendi score", ("vendi", "mean"), 1)
    for name in ("position", "phase", "speed"):
        yield Figure(f"Spread of {name}", ("spread", name))
    yield Figure("Seconds", ("seconds",), -1)
    for name in ("text", "diffusion", "decode"):
        yield Figure(name, ("seconds", name), -1, indented=True)
    yield Figure("Speedup", ("speedup",), 1, "×")
    yield Figure("at most possible", ("speedup_ceiling",), 0, "×", indented=True)
    yield Figure("Clips", ("clips",))


def cell(system: System, figure: Figure) -> Cell:
    """A system's figure as text; its tone is set when the difference's interval leaves out zero."""
    found = _at(system.figures, figure.path)
    if isinstance(found, Mapping) and figure.path == ("seconds",):
        parts = [_number(x) for x in found.values()]
        found = None if None in parts or not parts else sum(parts)
    if (value := _number(found)) is None:
        return Cell(DASH)
    text = format_number(value) + figure.unit
    if figure.path == ("vendi", "mean") and (sd := _number(_at(system.figures, ("vendi", "sd")))) is not None:
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
    difference, low, high = (_number(found.get(k)) for k in ("difference", "low", "high"))
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


def _number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _line(label: str, texts: Sequence[str], names: Sequence[str], widths: Mapping[str, int], label_width: int) -> str:
    cells = "".join(f"  {text:>{widths[name]}}" for name, text in zip(names, texts, strict=True))
    return f"{label:<{label_width}}{cells}".rstrip()


def _section(heading: str, content: str) -> str:
    return f"<section><h2>{heading}</h2>{content or f'<p>{DASH}</p>'}</section>"


def _headline(metrics: Mapping[str, Any]) -> str:
    columns = systems(metrics)
    head = "".join("<th scope=col>{} <b>{}</b></th>".format(*escape(s.label).rsplit(" ", 1)) for s in columns)
    rows = []
    for figure in headline_figures(columns):
        label = f"{escape(figure.label)}<i>{MARKS[figure.better]}</i>"
        row = [cell(s, figure) for s in columns]
        values = "".join(f"<td>{c.value}<small class='{c.tone}'>{c.difference} {c.interval}</small></td>" for c in row)
        rows.append(f"<tr class='{'part' * figure.indented}'><th scope=row>{label}</th>{values}</tr>")
    legend = (
        "Numbers beside teacher and student count sampling steps. Small figures are differences from the teacher with "
        "their intervals, coloured where the interval leaves out zero. Arrows point to the better side."
    )
    table = f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f"<div class=wide>{table}</div><p class=legend>{legend}</p>"


def _facts(figures: Mapping[str, Any]) -> str:
    """A few named numbers, large."""
    numbers = [(name, _number(value)) for name, value in figures.items()]
    facts = (f"<div><dd>{DASH if x is None else format_number(x)}</dd><dt>{escape(n)}</dt></div>" for n, x in numbers)
    return f"<dl>{''.join(facts)}</dl>" if numbers else ""


def _columns(samples: Sequence[SampleRow]) -> list[str]:
    return list(dict.fromkeys(name for row in samples for name in row.clips))


def _sample(row: SampleRow, columns: Sequence[str], fps: float) -> str:
    """A prompt and its clips, each a GIF inside the page."""
    pictures = []
    for name in columns:
        if (clip := row.clips.get(name)) is None:
            picture = f"<div class=gap>{DASH}</div>"
        else:
            gif = base64.b64encode(media.gif_bytes(media.shrink(clip, CLIP_PIXELS), fps)).decode()
            picture = f'<img alt="{escape(f"{name}: {row.prompt}")}" src="data:image/gif;base64,{gif}">'
        pictures.append(f"<figure>{picture}<figcaption>{escape(name)}</figcaption></figure>")
    caption = f"<p>{escape(row.prompt)}<small>seed {row.seed}</small></p>"
    return f"<div class=sample>{caption}<div class=clips>{''.join(pictures)}</div></div>"


def _curves(scalars: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Small multiples, a heading for every prefix."""
    groups: dict[str, list[str]] = {}
    for name in sorted(scalars, key=lambda name: ("/" not in name, name)):
        prefix, slash, rest = name.partition("/")
        groups.setdefault(prefix if slash else "other", []).append(curve(rest or name, *scalars[name]))
    panels = "".join(f"<h3>{escape(g)}</h3><div class=panels>{''.join(c)}</div>" for g, c in groups.items())
    legend = "The number is the last value. A long curve is pale, with its medians dark; its rarest spikes are cut off."
    return panels and f"<p class=legend>{legend}</p>{panels}"


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


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root { --ink: #23272e; --soft: #6b7280; --line: #e6e8ec; --blue: #2f6690; --good: #2e7d4f; --bad: #b3493a; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3rem 1.5rem 5rem; max-width: 1120px; background: #fcfcfb; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { margin: 0 0 .5rem; font-size: 1.75rem; font-weight: 600; letter-spacing: -.01em; }
h2 { margin: 3rem 0 1rem; font-size: 1.15rem; font-weight: 600; }
h3 { margin: 1.5rem 0 .5rem; font-size: .9rem; font-weight: 600; color: var(--soft); }
p { margin: 0 0 .5rem; max-width: 46rem; }
small, .legend, figcaption, dt { font-size: .8rem; color: var(--soft); }
figure { margin: 0; }
.wide { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .75rem; text-align: right; vertical-align: top; white-space: nowrap; font-weight: 400; }
th[scope=row] { padding-left: 0; text-align: left; }
thead th { color: var(--soft); border-bottom: 1px solid var(--ink); }
thead td { border-bottom: 1px solid var(--ink); }
thead b { color: var(--ink); font-weight: 600; }
tbody tr + tr:not(.part) > * { border-top: 1px solid var(--line); }
tr.part > * { padding-top: 0; color: var(--soft); font-size: .88rem; }
tr.part th[scope=row] { padding-left: 1.1rem; }
i { font-style: normal; color: var(--soft); }
td small { display: block; }
.good { color: var(--good); }
.bad { color: var(--bad); }
.legend { margin-top: .75rem; }
.sample { display: grid; grid-template-columns: minmax(9rem, 13rem) 1fr; gap: 1.25rem; padding: 1rem 0;
  border-top: 1px solid var(--line); }
.sample p small { display: block; margin-top: .25rem; }
.sample p { overflow-wrap: anywhere; }
.clips { display: grid; grid-auto-flow: column; grid-auto-columns: minmax(0, 12rem); gap: .75rem; }
.clips img, .gap { display: block; width: 100%; border-radius: 4px; }
.gap { aspect-ratio: 1; display: grid; place-items: center; background: #f1f2f4; color: var(--soft); }
.clips figcaption { margin-top: .25rem; text-align: center; }
dl { display: flex; flex-wrap: wrap; gap: 1rem 3rem; margin: 0; }
dd { margin: 0; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 1.25rem 1.5rem; }
.panels figcaption { display: flex; justify-content: space-between; gap: 1rem; }
.panels figcaption b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
.panels > figure > svg { display: block; width: 100%; height: auto; overflow: visible; }
text { font-size: 10px; fill: var(--soft); text-anchor: end; }
text.from { text-anchor: start; }
text.mid { text-anchor: middle; }
.rule { stroke: var(--line); }
polyline { fill: none; stroke: var(--blue); stroke-linejoin: round; }
.panels svg svg { stroke-width: 1.5; }
.faint { opacity: .25; stroke-width: 1; }
@media (max-width: 720px) {
  body { padding: 1.5rem 1rem 3rem; }
  .sample { grid-template-columns: 1fr; gap: .5rem; }
}
</style>
</head>
<body>
{body}
</body>
</html>
"""
