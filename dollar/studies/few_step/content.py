"""What the study of few steps adds to the engine: its page, its one table and its figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dollar.studies.compare import half_interval
from dollar.studies.content import Content
from dollar.studies.document import Layout, seeds_in
from dollar.studies.few_step.figures import (
    FORMS,
    LESS,
    NAMES,
    above_teacher,
    measured,
    measured_teacher,
    share_of_teacher,
)
from dollar.studies.few_step.questions import FOUR, ONE, TWO, questions
from dollar.studies.plots import BLUE, GREEN, ORANGE, PURPLE, RED, SKY, SQUARE, Plot
from dollar.studies.results import Results
from dollar.studies.rows import ALL, Row
from dollar.studies.tables import Column

MORE = ("alignment", "verifier", "vendi", "clip")  # of which more is better, whatever a teacher has
COLOURS = (BLUE, ORANGE, RED, GREEN, PURPLE, SKY)
ABOUT = """\
A student each for one number of steps: that of 4 starts from the teacher, that of 2 from the one of 4, that of 1 from
the one of 2, and those of 8 and 16 from the one of 4. Their recipes are `conf/experiment/four_steps.yaml`,
`two_steps.yaml` and `one_step.yaml`, which launch/train.py runs alone as well.

Alignment: the share of clips that show all five attributes of their caption, by image analysis; below it the share of
each. Reward: the verifier's mean margin. Fréchet: distance of random features to real clips, above that of real to
other real clips. Vendi: how many different clips there are among a prompt's eight, by such features; spread of
position (in pixels) and of speed (pixels a frame): how much these differ among them. Sharpness: of real clips of the
same prompts (the autoencoder alone leaves about 0.75). Saturation, contrast and flow are to be compared with the
teacher's and real clips'. CLIP reward: the tiny CLIP's score. JPEG compressibility: minus a frame's size, in kB.
Dynamic degree: the speed of the fastest pixels, in shorter sides a second. Steadiness: how little neighbouring frames
differ; frame consistency: how alike the tiny CLIP finds them. No student is trained for these rewards. The students of
4, 8 and 16 steps follow the verifier's margin, among other terms, by a latent reward (`beta_ft`).

Students, teacher and real clips are of the same (prompt, seed) pairs, the teacher's stored verdicts on them
(`make teacher-metrics`) among them. What those lack (saturation, contrast, flow and rewards, CLIP's to consistency) is
of the fewer clips that the evaluation made afresh, the first of the same pairs. Seconds a cycle: a thread's own.

An interval is Student's of the seeds' mean, and no narrower than two standard errors of the evaluation, where these are
known: of alignment they are the paired bootstrap's over prompts, of an attribute its share's. All seeds are measured on
the same pairs, so this error doesn't shrink with their number.
"""
LEAD = (
    "diversity",
    "Alignment against diversity: a point a step count, mean over seeds with standard deviations. Up and right is "
    "better.",
)


def columns_of(group: str, rows: Sequence[Row]) -> list[Column]:
    """All figures, which are the table's lines."""
    arrows = {**dict.fromkeys(MORE, " ↑"), **dict.fromkeys(LESS, " ↓")}
    return [Column(f"{text}{arrows.get(name, '')}", name, FORMS.get(name, "{:.3f}")) for name, text in NAMES.items()]


def scope(rows: Sequence[Row], results: Results) -> str:
    """What so many seeds can decide, by the intervals of what the verdicts are of."""
    labels, seeds = {row.name: row.label for row in rows}, len(seeds_in(results))
    gaps = {
        **{f"alignment of {labels.get(n, n)}": above_teacher(results, n, "alignment") for n in (FOUR, TWO, ONE)},
        "Fréchet of 4 steps, as a share of the teacher's": share_of_teacher(results, FOUR, "frechet"),
        "diversity of 1 step, as a share": share_of_teacher(results, ONE, "vendi", 1.0),
        "spread of speed of 1 step, as a share": share_of_teacher(results, ONE, "speed"),
    }
    halves = {name: half_interval(found) for name, found in gaps.items() if len(found.values) > 1}
    if not halves:
        return "**What this can decide.** One seed has no interval; what another would give is open.\n" if seeds else ""
    told = ", ".join(f"{name} ±{half:.3f}" for name, half in halves.items())
    return (
        f"**What {seeds} seeds can decide.** Half of a 95 % interval is {told}. With three seeds it is 2.5 times their "
        "standard deviation, so a bar that the mean reaches by less may be missed by other seeds: that is what “by the "
        "mean” says. Of Fréchet, Vendi and spreads the pairs' own error isn't known and isn't in the interval. “No "
        "worse” says that nothing worse is beyond chance, not that the two are the same. And all of this is one small "
        "teacher in a world of shapes.\n"
    )


def plots(rows: Sequence[Row], results: Results) -> Mapping[str, Plot]:
    """The one figure."""
    return {LEAD[0]: Plot([row.name for row in rows], lambda plt: plot(plt, rows, results))}


def plot(plt: Any, rows: Sequence[Row], results: Results) -> Any:
    """Alignment against Vendi, a point a row; the teacher's a square, real clips' a star."""
    figure, axes = plt.subplots(figsize=(6.6, 3.6))
    for row, colour in zip(rows, COLOURS, strict=False):
        x, y = (results.spread(row.name, name) for name in ("vendi", "alignment"))
        if x and y:
            error: dict[str, Any] = {"xerr": x.sd or None, "yerr": y.sd or None, "elinewidth": 0.8}
            axes.errorbar(x.mean, y.mean, **error, color=colour, marker="o", linestyle="", label=row.label)
    for figure_of, name, marker in ((results.teacher, "teacher", "s"), (results.real, "real clips", "*")):
        x, y = (figure_of(key) for key in ("vendi", "alignment"))
        if x and y:
            axes.plot(x.mean, y.mean, **{**SQUARE, "marker": marker}, label=name)
    axes.margins(0.1)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))  # names at the points would overlap
    axes.set_xlabel(f"{NAMES['vendi']} (diversity within a prompt)")
    axes.set_title(NAMES["alignment"])
    return figure


def shell(results: Results) -> list[str]:
    """The lines of shell that make the study and its page, which is of the dtypes that its rows were trained in."""
    dtypes = results.dtypes()
    return [
        "make few-step   # goes on where it was stopped; conf/few_step.yaml",
        f"python launch/few_step.py only_document=true{dtypes}   # the page anew from docs/few_steps/results.json",
    ]


FEW_STEPS = Content(
    name="few_steps",
    rewards={},  # conf/few_step.yaml names what all are measured by
    usual=ALL,
    measured=measured,
    measured_teacher=measured_teacher,
    layout=Layout(
        title="Students of few steps on the shapes world",
        about=ABOUT,
        commands=shell,
        columns=columns_of,
        teacher="teacher, 50 steps",
        across=True,
        lead=LEAD,
        scope=scope,
    ),
    questions=questions,
    plots=plots,
)
