"""The ablation's document: what its figures mean, its columns and captions, and the tables beside a group's own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dollar.studies.ablation.figures import PURSUED, pursued_by
from dollar.studies.ablation.panel import panel
from dollar.studies.ablation.questions import WORDING
from dollar.studies.ablation.reward_questions import at_equal_reward
from dollar.studies.ablation.tradeoff import RISE
from dollar.studies.compare import LEAST, half_interval, shown
from dollar.studies.document import Layout, further_seeds, seeds_in
from dollar.studies.questions import Asker
from dollar.studies.readings import WARM
from dollar.studies.results import Results
from dollar.studies.rows import Row, start_of
from dollar.studies.tables import Column, markdown_table

ABOUT = """\
Alignment: the share of clips that show all five attributes of their caption, by image analysis. CLIP reward: the tiny
CLIP's score, which rows with LRM, DDPO or direct gradient are trained for where their table has no other reward. JPEG
compressibility: minus a frame's size, in kB. Dynamic degree: the speed of the fastest pixels, in shorter sides a
second. Fréchet: distance of random features to real clips, above that of real to other real clips. Vendi: how many
different clips there are among a prompt's eight. Figures of a row that the guard ended are of the student that it kept.

Seconds a cycle: a thread's own, so that other work on the machine doesn't count; the median over cycles, of which those
that log the terms' gradients take longer. Seconds of curves and answers are cycles times that: validation isn't in
them. Peak GiB: of the whole process while it trained, up to its first validation; that comes after the {warm}th cycle
or later, when the latent reward model has been in use, and after it the most would be validation's. A run with a
validation before its first cycle has none.

A step up its gradient: eight of the student's own clips, moved by 3 % of their latents' norm to where the latent
reward model says; what it predicts of that, and what the true reward does. (Results of before 2026-11-27 measured 10 %
and have none here.) A share: the size of the reward's gradient at x_hat as a multiple of VSD's, so that methods push
alike. Steadiness: how little neighbouring frames differ. Frame consistency: how alike the tiny CLIP finds them.
Saturation, contrast and flow (pixels a frame) are of the clips' pixels.

Rows of one seed share data and noise, so they are compared seed by seed: a difference counts where the 95 % interval of
its mean over seeds, in brackets, leaves out 0. It is Student's, and no narrower than two standard errors of the
evaluations, where these are known (of an alignment its share's, of a reward, rank correlation or step its clips'). One
of twenty such differences would be chance. Where a side has one seed only, as the teacher has, a difference counts
beyond two errors (over several seeds their standard deviation), and where these are not known beyond {least:.0%}.
"""
COLUMNS = (
    Column("alignment ↑", "alignment", "{:.3f}"),
    Column("CLIP reward ↑", "clip", "{:.4f}"),
    Column("Fréchet above floor ↓", "frechet", "{:.2f}"),
    Column("Vendi ↑", "vendi", "{:.2f}"),
    Column("sharpness ↑", "sharpness", "{:.2f}"),
    Column("seconds a cycle ↓", "seconds_per_cycle", "{:.2f}"),
)
PEAK = Column("peak GiB ↓", "peak_gib", "{:.2f}")
# Of the gradients at x_hat: how large they are, and how far the reward's goes VSD's way.
GRADIENTS = (
    Column("norm of VSD's", "norm_vsd", "{:.4f}"),
    Column("norm of the reward's", "norm_reward", "{:.4f}"),
    Column("cosine between them", "cosine", "{:.2f}"),
)
WORN = (Column("saturation", "saturation", "{:.3f}"), Column("flow ↑", "flow", "{:.2f}"))
# What a group has besides; rows with a guard have a validation before they train, and so no peak.
FURTHER = {
    "distillation": (*WORN, PEAK),
    "steps": (*WORN, PEAK),
    "lrm": (
        PEAK,
        Column("rank correlation, in training ↑", "rank_correlation", "{:.2f}"),
        Column("on held-out prompts ↑", "held_rank", "{:.2f}"),
        Column("pairwise accuracy there ↑", "held_pairwise", "{:.2f}"),
        Column("a step of 3 % up its gradient: predicted rise", "climb_predicted", "{:+.4f}"),
        Column("true rise ↑", "climb_true", "{:+.4f}"),
    ),
    "overoptimisation": (Column("cycles of the student", "kept", "{:.0f}"),),
    "tradeoff": (),
    "few": (),
}
# Rows of other groups that a group's table repeats.
REPEATED = {
    "reward": ("vsd", "vsd_cd"),
    "lrm": ("vsd_lrm",),
    "steps": ("vsd_cd",),
}
# Plots by the group that they follow, with what is seen in them.
CAPTIONS = {
    "reward": (
        "reward",
        "True CLIP reward of full 4-step samples on fixed held-out prompts, over cycles and over seconds of training. "
        "The one-step rewards that LRM and DDPO log while training are of other samples; these are not comparable and "
        "not shown.",
    ),
    "lrm": (
        "bodies",
        "How well each follows the CLIP reward on held-out prompts, of clips that teacher and student made in 1 to 50 "
        "steps, and what it gives and costs.",
    ),
    "overoptimisation": (
        "overoptimisation",
        "What is pursued, true (solid) and predicted (dashed), and alignment. Lines are validations; the square is the "
        "start and × the student that the guard keeps, as in the tables.",
    ),
}
LEAD = (
    "tradeoff",
    "What a reward costs. Each method goes on from the same student of VSD with growing push; a point is a row, the "
    "mean over seeds, with standard deviations; up is the true colourfulness above the control of the same seed, and "
    f"right is better in both. The dotted line is {RISE:+.2f}, where the first verdicts compare.",
)
DECIDED = ("alignment", "clip", "colourfulness", "frechet", "vendi")


def scope(rows: Sequence[Row], results: Results) -> str:
    """What so few cycles, clips and seeds can decide, by the intervals that rows have against their control or VSD."""
    pairs = [(row.name, row.control or "vsd") for row in rows if row.name != "vsd" and row.steps == (4,)]
    halves = {}
    for figure in DECIDED:
        gaps = [found for a, b in pairs if len((found := results.gaps(a, b, figure)).values) > 1]
        if gaps:
            halves[figure] = float(np.median([half_interval(found) for found in gaps]))
    page = results.path.parent.parent / "reward_curve.md"
    clips = f"How many scored clips each form needs is on [a page of its own]({page.name}).\n" if page.is_file() else ""
    if not halves:
        return clips
    told = ", ".join(f"{WORDING.names[f]} ±{WORDING.show(f)(half)}" for f, half in halves.items())
    return (
        "**What this can decide.** A row takes 64 cycles of 4 clips (32 more where it starts from another's student) "
        f"for each of {len(seeds_in(results))} seeds, and is measured on 256 clips. Half of a difference's 95 % "
        f"interval is typically {told}: what is smaller stays undecided, and “undecided” is not “no difference”. Such "
        "short runs tell which gradient leads where, and what it costs on the way; they can't tell where 40,000 "
        f"iterations end, what a larger model does, or what people would prefer. Of all comparisons at 95 %, one of "
        f"twenty is chance.\n\n{clips}"
    )


def why(rows: Sequence[Row], results: Results) -> str:
    """The reason for a trade-off with another reward than the CLIP's, in a sentence with its numbers."""
    start, real = results.spread(start_of(rows, "tradeoff"), "clip"), results.real("clip")
    pursued = pursued_by(rows, "tradeoff")
    if pursued == "clip" or start is None or real is None:
        return ""
    return (
        f"What is pursued here is {PURSUED[pursued]}, for which the teacher was not trained, "
        f"since the CLIP reward has little room where a student follows its prompts already: {start.mean:.3f} of the "
        f"start against {real.mean:.3f} of real clips.\n\n"
    )


def columns_of(group: str, rows: Sequence[Row]) -> list[Column]:
    """A group's columns: those of all, what its rows pursue, and its own."""
    pursued = {row.pursued for row in rows}
    further = [Column(f"{n} ↑", p, "{:.3f}") for p, n in PURSUED.items() if p in pursued and p != "clip"]
    return [*COLUMNS[:2], *further, *COLUMNS[2:], *FURTHER.get(group, (PEAK,))]


def beside(rows: Sequence[Row], results: Results) -> str:
    """What follows a group's table: losses at equal true reward, the panel, the gradients' sizes."""
    ask = Asker(results, rows, WORDING)
    equal = at_equal_reward(ask) if any(row.group == "tradeoff" for row in rows) else ""
    return equal + panel(rows, results, WORDING) + gradients(rows, results)


def gradients(rows: Sequence[Row], results: Results) -> str:
    """A table of the gradients' sizes of the rows whose reward has one at x_hat; empty without any."""
    led = [row for row in rows if results.spread(row.name, "norm_reward")]
    if not led:
        return ""

    def cells(row: Row) -> list[str]:
        return [shown(results.spread(row.name, c.figure), c.form.format) for c in GRADIENTS]

    sizes = markdown_table(GRADIENTS, [(row.label, cells(row)) for row in led])
    about = "Gradients at x_hat, weighted by their betas, medians over cycles; DDPO's reaches the student elsewhere:\n"
    return f"{about}\n{sizes}\n"


def shell(results: Results) -> list[str]:
    """The lines of shell that make the seeds of all rows, further ones of some, and the document."""
    seeds = len(seeds_in(results))
    return [
        f"make ablation{f' seeds={seeds}' if seeds > 1 else ''}   # goes on where it was stopped; conf/ablation.yaml",
        *(
            f"python launch/ablation.py seeds=[{','.join(map(str, more))}] only=[{','.join(names)}]"
            for more, names in further_seeds(results).items()
        ),
        "python launch/ablation.py only_document=true   # this document anew from docs/ablation/results.json",
    ]


LAYOUT = Layout(
    title="Ablation on the shapes world",
    about=ABOUT.format(warm=WARM, least=LEAST),
    commands=shell,
    columns=columns_of,
    teacher="teacher, 50 steps",
    repeated=REPEATED,
    captions=CAPTIONS,
    lead=LEAD,
    scope=scope,
    before=why,
    after=beside,
)
