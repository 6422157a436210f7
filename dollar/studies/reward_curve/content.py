"""What the study of scored clips adds to the engine: the figures of a fit, its page and its plot."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dollar.studies.content import Content
from dollar.studies.curves import Line
from dollar.studies.document import Layout
from dollar.studies.plots import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, Plot, draw
from dollar.studies.results import Results
from dollar.studies.reward_curve.grid import SCORED, grid
from dollar.studies.rows import Row
from dollar.studies.tables import Column

REWARDS = {"colourfulness": "colourfulness", "jpeg": "jpeg_compressibility"}
THROUGH = "_through"  # the end of the figures of a gradient that comes through the teacher
SHARES = {0.01: "rise_1", 0.03: "rise_3", 0.1: "rise_10"}
PANELS = {
    "cosine": "cosine with the true gradient",
    "rise_1": "true rise of a 1 % step",
    "rise_3": "of 3 %",
    "rise_10": "of 10 %",
    "r2": "R², held out",
}
COLOURS = (RED, BLUE, GREEN, ORANGE, PURPLE)  # of the forms, in their order
COLUMNS = (
    Column("cosine ↑", "cosine", "{:.2f}"),
    Column("true rise of 1 % ↑", "rise_1", "{:+.3f}"),
    Column("of 3 % ↑", "rise_3", "{:+.3f}"),
    Column("of 10 % ↑", "rise_10", "{:+.3f}"),
    Column("through the teacher: cosine ↑", f"cosine{THROUGH}", "{:.2f}"),
    Column("of 1 % ↑", f"rise_1{THROUGH}", "{:+.3f}"),
    Column("of 3 % ↑", f"rise_3{THROUGH}", "{:+.3f}"),
    Column("of 10 % ↑", f"rise_10{THROUGH}", "{:+.3f}"),
    Column("R², held out ↑", "r2", "{:.2f}"),
    Column("seconds", "fitting", "{:.0f}"),
)
ABOUT = """\
A row fits a latent reward model to so many scored clips and leaves it as it was at the update that followed the watched
of them best (15 %). They are drawn from 256 real clips and 2,700 that the teacher made, half of them in one step and
half in four; for the largest count from 256 and 4,880. Clips are scored once a seed, and a fifth is held out, on which
everything is measured: the same for all rows of a seed but those of the largest count. Rises are in standard deviations
of the held-out clips' reward, of steps up the model's gradient whose length is a share of a clip's norm; cosines are
with the reward's own gradient through the decoder, which JPEG size doesn't have. Through the teacher: the gradient of
the model at the teacher's x_0 of the noised clip. A small decoder is fitted to the same clips, 160 at most. Seconds: of
the fit alone.
"""


def measured(folder: Path) -> dict[str, Any]:
    """A fit's figures. OSError or ValueError for a folder that lacks them."""
    found = json.loads((folder / "lrm.json").read_text("utf-8"))["figures"]
    whole = found["held_out"]["all"]
    # The held-out clips' own deviation, from what of their variance is left over.
    sd = whole["error"] / math.sqrt(1 - whole["r2"]) if whole["r2"] is not None and whole["r2"] < 1 else math.nan
    figures = {"r2": whole["r2"], "fitting": found["seconds"], "scored": found["clips"] + found["watched"]}
    for key, end in (("climb", ""), ("climb_through", THROUGH)):
        for climb in found.get(key, ()):
            figures[f"{SHARES[climb['share']]}{end}"] = _over(climb["true"], sd)
            figures[f"{SHARES[climb['share']]}{end}_se"] = _over(climb["true_se"], sd)
            figures[f"cosine{end}"] = climb["cosine"]
    return {"figures": {}, "curves": {}, **figures}


def _over(value: float | None, sd: float) -> float | None:
    return None if value is None else value / sd


def forms_of(rows: Sequence[Row], group: str) -> dict[str, list[Row]]:
    """A group's rows by what their labels say of the form, in order of their counts."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        if row.group == group and not row.name.startswith(f"{group}_{SCORED}"):
            found.setdefault(row.label.rpartition(", ")[0], []).append(row)
    return found


def line_of(rows: Sequence[Row], results: Results, figure: str) -> Line | None:
    """A figure over the count of scored clips, mean and deviation over seeds; None where none is measured."""
    import numpy as np

    found = [(results.spread(row.name, "scored"), results.spread(row.name, figure)) for row in rows]
    points = [(count.mean, value.mean, value.sd) for count, value in found if count and value]
    return Line(*np.array(points, dtype=float).T) if points else None


def plots(rows: Sequence[Row], results: Results) -> Mapping[str, Plot]:
    """The one figure: a row of panels a reward, a curve a form."""
    groups = list(dict.fromkeys(row.group for row in rows))
    return {"curve": Plot([row.name for row in rows], lambda plt: plot(plt, rows, results, groups))}


def plot(plt: Any, rows: Sequence[Row], results: Results, groups: Sequence[str]) -> Any:
    """Every figure over the count of scored clips."""
    figure, panels = plt.subplots(len(groups), len(PANELS), figsize=(12, 2.5 * len(groups)), squeeze=False)
    for line, group in zip(panels, groups, strict=True):
        for axes, (name, title) in zip(line, PANELS.items(), strict=True):
            drawn = False
            for (form, mine), colour in zip(forms_of(rows, group).items(), COLOURS, strict=False):
                for end, shade, told in (("", colour, form), (THROUGH, SKY, f"{form}, through the teacher")):
                    if (curve := line_of(mine, results, f"{name}{end}")) is not None:
                        draw(axes, curve, shade)
                        axes.lines[-1].set_label(told)
                        drawn = True
            axes.set_visible(drawn)
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_title(title)
        line[1].set_ylabel(REWARDS.get(group, group).replace("_", " "))
    known = {curve.get_label(): curve for axes in panels.flat for curve in axes.get_legend_handles_labels()[0]}
    figure.legend(known.values(), known.keys(), frameon=False, loc="outside lower center", ncols=2)
    return figure


def shell(results: Results) -> list[str]:
    """The lines of shell that make the study and its page."""
    return [
        "make reward-curve   # goes on where it was stopped; conf/reward_curve.yaml",
        "python launch/reward_curve.py only_document=true   # the page anew from docs/reward_curve/results.json",
    ]


REWARD_CURVE = Content(
    name="reward_curve",
    rewards=REWARDS,
    usual="colourfulness",
    measured=measured,
    measured_teacher=None,
    layout=Layout(
        title="How many scored clips a latent reward model needs",
        about=ABOUT,
        commands=shell,
        columns=lambda group, rows: COLUMNS,
        teacher="",
        lead=("curve", "What the gradient is worth, over the count of scored clips; bands are a standard deviation."),
    ),
    rows=grid,
    plots=plots,
    questions=lambda results, rows: [],
)
