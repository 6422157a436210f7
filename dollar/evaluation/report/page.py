"""The report of an evaluation: one html file that opens without a network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dollar import media
from dollar.evaluation.report.curves import curve
from dollar.evaluation.report.table import DASH, MARKS, cell, finite_number, format_number, headline_figures, systems

CLIP_PIXELS = 256  # longer side of a clip in the report


class SampleRow(NamedTuple):
    """One prompt's clips, uint8 [T, H, W, 3], by the name of their column; a missing column leaves a gap.

    remarks: small lines below the prompt.
    """

    prompt: str
    seed: int
    clips: dict[str, np.ndarray]
    remarks: Sequence[str] = ()


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

    metrics: `teacher`, `real`, `student` and `untrained` (by step count), `lrm`; scalars: name -> (steps, values), the
    name's prefix (`loss/`) being its group; notes: a paragraph each.
    """
    notes = [notes] if isinstance(notes, str) else notes
    sections = {
        "Teacher and student": _headline(metrics),
        "Moving samples": moving(samples, fps),
        "Latent reward model": _facts(metrics.get("lrm") or {}),
        "Training": curves(scalars),
    }
    write_page(path, title, notes, sections)


def write_page(path: str | Path, title: str, notes: Sequence[str], sections: Mapping[str, str]) -> None:
    """Write a page of its own, in one atomic step: a paragraph for each note, then sections of html by heading."""
    head = f"<header><h1>{escape(title)}</h1>{''.join(f'<p>{escape(n)}</p>' for n in notes)}</header>"
    body = [head, *(_section(heading, content) for heading, content in sections.items())]
    page = _PAGE.replace("{title}", escape(title)).replace("{body}", "\n".join(body))
    with media.atomically(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="replace")


def plain_table(columns: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """Rows of cells by their heading, below the columns' headings, as html."""
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in columns)
    lines = (
        f"<tr><th scope=row>{escape(name)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in rows.items()
    )
    return (
        f"<div class=wide><table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def moving(samples: Sequence[SampleRow], fps: float) -> str:
    """Clips side by side as moving pictures, as html."""
    return "".join(_sample(row, _columns(samples), fps) for row in samples)


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
    numbers = [(name, finite_number(value)) for name, value in figures.items()]
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
    small = "".join(f"<small>{escape(line)}</small>" for line in (f"seed {row.seed}", *row.remarks))
    caption = f"<p>{escape(row.prompt)}{small}</p>"
    return f"<div class=sample>{caption}<div class=clips>{''.join(pictures)}</div></div>"


def curves(scalars: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Small multiples as html, a heading for every prefix of a name."""
    groups: dict[str, list[str]] = {}
    for name in sorted(scalars, key=lambda name: ("/" not in name, name)):
        prefix, slash, rest = name.partition("/")
        groups.setdefault(prefix if slash else "other", []).append(curve(rest or name, *scalars[name]))
    panels = "".join(f"<h3>{escape(g)}</h3><div class=panels>{''.join(c)}</div>" for g, c in groups.items())
    legend = "The number is the last value. A long curve is pale, with its medians dark; its rarest spikes are cut off."
    return panels and f"<p class=legend>{legend}</p>{panels}"


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
