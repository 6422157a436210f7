"""The study's plots: rankings, what trainings win back, errors of both sides, quality against size, and pairs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dollar.studies.compare import Spread
from dollar.studies.curves import Line, line_of
from dollar.studies.plots import BLUE, GREEN, INK, ORANGE, PURPLE, RED, SKY, SOFT, SQUARE, Plot, apart, draw, label_ends
from dollar.studies.results import Results
from dollar.studies.rows import Row
from dollar.studies.vip.figures import NAMES, RANKED, rankings

MEASURES = {
    "total": ("what the margin loses", BLUE),
    "consistency": ("1 - its consistency", GREEN),
    "prediction": ("change of the prediction", ORANGE),
    "influence": ("1 - cosine, in and out", PURPLE),
}
GAP = 0.055  # of alignment, between the names of rows whose costs are NEAR
NEAR = 2.0  # times the cost of the one before, up to which a row's name could lie on that one's
LEAST = 1e-4  # what a bar on a logarithmic axis shows at least
BELOW = 0.5  # of what pruning costs, how far below the pruned network's reward the axis goes
TRAINED = {"redpo": BLUE, "sft": GREEN, "dpo": RED, "safeguard": PURPLE}
STYLES = {"safeguard": "--"}  # of curves that may lie on another's
GROUPS = {"losses": BLUE, "weights": SKY, "stages": GREEN, "few": ORANGE}


def plots(rows: Sequence[Row], results: Results) -> Mapping[str, Plot]:
    """All plots by their names."""
    labels = {row.name: row.label for row in rows}
    return {
        "ranking": Plot([RANKED], lambda plt: plot_ranking(plt, results)),
        "recovered": Plot(list(TRAINED), lambda plt: plot_recovered(plt, results, labels)),
        "errors": Plot(list(TRAINED), lambda plt: plot_errors(plt, results, labels)),
        "size": Plot(list(labels), lambda plt: plot_size(plt, results, rows)),
        "pairs": Plot([RANKED], lambda plt: plot_pairs(plt, results)),
    }


def plot_ranking(plt: Any, results: Results) -> Any:
    """What each unit's absence costs, in the network's order, a panel a measure; means and deviations over seeds."""
    found = list(rankings(results.of(RANKED)))
    units, chosen = found[0]["units"], [unit for table in found for unit in table["chosen"]]
    figure, panels = plt.subplots(1, len(MEASURES), figsize=(10, 0.3 * len(units) + 1.1), sharey=True)
    for axes, (name, (title, colour)) in zip(panels, MEASURES.items(), strict=True):
        wholes = {"total": [table["whole"] for table in found], "consistency": [1.0] * len(found)}.get(name)
        values = np.array([[np.nan if v is None else v for v in table[name]] for table in found], dtype=float)
        costs = values if wholes is None else np.array(wholes, dtype=float)[:, None] - values
        spread = costs.std(0, ddof=1) if len(found) > 1 else None
        axes.barh(range(len(units)), costs.mean(0).clip(LEAST), xerr=spread, color=colour, height=0.7, ecolor=INK)
        axes.set_xscale("log")
        axes.set_title(title)
        axes.grid(axis="y", visible=False)
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(units)), [f"{unit} (goes {chosen.count(unit)}×)" for unit in units])
    panels[0].invert_yaxis()
    return figure


def plot_recovered(plt: Any, results: Results, labels: Mapping[str, str]) -> Any:
    """The mean margin on a validation's prompts over seconds of training, and the evaluation's at its end."""
    figure, axes = plt.subplots(figsize=(6.6, 3.4))
    ends: list[tuple[float, str, str]] = []
    known = {"pruned": results.spread("pruned", "verifier"), "teacher": results.teacher("verifier")}
    for name, style in (("pruned", ":"), ("teacher", "--")):
        if (value := known[name]) is not None:
            axes.axhline(value.mean, color=INK, linewidth=1, linestyle=style)
            ends.append((value.mean, name, INK))
    low = _lowest(known["pruned"], known["teacher"])
    for name, colour in TRAINED.items():
        if (line := line_of(results, name, "reward_10", "seconds")) is not None:
            draw(axes, line, colour, STYLES.get(name, "-"))
            end, label = float(line.mean[-1]), labels.get(name, name)
            ends.append((end, label, colour) if end >= low else (low, f"{label}: {end:.2f}", colour))
            measured = results.spread(name, "verifier")
            if measured is not None and measured.mean >= low:
                axes.plot(line.x[-1], measured.mean, marker="D", markerfacecolor="white", color=colour)
    if math.isfinite(low):
        axes.set_ylim(bottom=low)
    axes.set_xlabel("seconds of training")
    axes.set_title("mean margin")
    label_ends(axes, ends, 0.07)
    return figure


def _lowest(pruned: Spread | None, teacher: Spread | None) -> float:
    """Where the axis of rewards begins: what ends below has lost more than pruning did, however much it is."""
    if pruned is None or teacher is None:
        return -math.inf
    return pruned.mean - BELOW * abs(teacher.mean - pruned.mean)


def plot_errors(plt: Any, results: Results, labels: Mapping[str, str]) -> Any:
    """Both sides' errors above the reference's, over updates."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    for axes, curve in zip(panels, ("winner_error", "loser_error"), strict=True):
        ends: list[tuple[str, str, str]] = []
        for name, colour in TRAINED.items():
            if (line := line_of(results, name, curve)) is not None:
                draw(axes, line, colour, STYLES.get(name, "-"))
                ends.append((labels.get(name, name), colour, STYLES.get(name, "-")))
        axes.axhline(0, color=SOFT, linewidth=1)
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set_xlabel("updates")
        axes.set_title(curve.replace("_", "'s ") + " above the reference's")
        _named(axes, ends)
    return figure


def _named(axes: Any, ends: Sequence[tuple[str, str, str]]) -> None:
    """A legend of names, colours and styles, for on a logarithmic axis names at the ends would be misplaced."""
    handles = [axes.plot([], [], color=colour, linestyle=style)[0] for _, colour, style in ends]
    axes.legend(handles, [name for name, _, _ in ends], frameon=False, fontsize=8)


def plot_size(plt: Any, results: Results, rows: Sequence[Row]) -> Any:
    """Alignment against what a clip costs: parameters times forwards; a point a row."""
    figure, axes = plt.subplots(figsize=(7.2, 4))
    named: list[tuple[float, float, str]] = []
    for row in rows:
        parts = [results.spread(row.name, name) for name in ("parameters", "forwards", "alignment")]
        if all(parts):
            parameters, forwards, alignment = (part.mean for part in parts if part)
            axes.plot(parameters * forwards, alignment, marker="o", linestyle="", color=GROUPS.get(row.group, SOFT))
            if row.group in ("few", "stages") or row.name in ("pruned", "redpo", "sft", "dpo"):
                named.append((parameters * forwards, alignment, row.label))
    teacher = [results.teacher(name) for name in ("parameters", "forwards", "alignment")]
    if all(teacher):
        parameters, forwards, alignment = (part.mean for part in teacher if part)
        axes.plot(parameters * forwards, alignment, **SQUARE)
        named.append((parameters * forwards, alignment, "teacher"))
    for column in columns(sorted(named)):  # names of about one cost stand below each other
        heights = apart([place[1] for place in column], GAP)
        for (x, _, label), height in zip(column, heights, strict=True):
            axes.annotate(label, (x, height), xytext=(7, -3), textcoords="offset points")
    axes.set_xscale("log")
    axes.margins(x=0.25)
    axes.set_xlabel(f"{NAMES['parameters']} × {NAMES['forwards']}")
    axes.set_title("alignment")
    return figure


def columns(named: Sequence[tuple[float, float, str]]) -> list[list[tuple[float, float, str]]]:
    """Places by rising cost, in groups of those that are NEAR to the one before."""
    found: list[list[tuple[float, float, str]]] = []
    for place in named:
        if found and place[0] <= NEAR * found[-1][-1][0]:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def plot_pairs(plt: Any, results: Results) -> Any:
    """Some pairs of the first seed, and how wide the gaps of all are."""
    first = results.of(RANKED)[0]["pairs"][0]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), width_ratios=[2.4, 1])
    if first.get("picture"):
        from PIL import Image

        left.imshow(np.asarray(Image.open(io.BytesIO(base64.b64decode(first["picture"])))))
    left.set_axis_off()
    left.set_title("the full model's clip, preferred; the pruned one's of the same prompt and seed")
    for result in results.of(RANKED):
        gaps = np.sort(result["pairs"][0]["gaps"])
        draw(right, Line(np.arange(len(gaps)), gaps, np.zeros(len(gaps))), BLUE)
    right.set_xlabel("pairs")
    right.set_title(f"gap in {first['targets'][0] if first['targets'] else 'nothing'}")
    return figure
