"""docs/ablation.md from results.json: head, tables with their commands, plots, and the questions' answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dollar.media import atomically
from dollar.studies.plots import write_plots
from dollar.studies.questions import markdown, questions
from dollar.studies.results import LEAST, PURSUED, WARM, Results, Row, pursued_by, shown, start_of

BEGIN, END = "<!-- written by hand: begin -->", "<!-- written by hand: end -->"
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

A step up its gradient: eight of the student's own clips, moved by 10 % of their latents' norm to where the latent
reward model says; what it predicts of that, and what the true reward does.

Rows of one seed share data and noise, so they are compared seed by seed: a difference counts where the 95 % interval of
its mean over seeds, in brackets, leaves out 0. It is Student's, and no narrower than two standard errors of the
evaluations, where these are known (of an alignment its share's, of a reward, rank correlation or step its clips'). One
of twenty such differences would be chance. Where a side has one seed only, as the teacher has, a difference counts
beyond two errors (over several seeds their standard deviation), and where these are not known beyond {least:.0%}.
"""
HAND = "What stands between these two marks is kept when the document is written anew."


class Column(NamedTuple):
    """A column of the tables: its heading, the figure, and how that is written."""

    heading: str
    figure: str
    form: str


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
# What a group has besides; rows with a guard have a validation before they train, and so no peak.
FURTHER = {
    "lrm": (
        PEAK,
        Column("rank correlation, in training ↑", "rank_correlation", "{:.2f}"),
        Column("on held-out prompts ↑", "held_rank", "{:.2f}"),
        Column("pairs told right there ↑", "held_pairwise", "{:.2f}"),
        Column("a step up its gradient: predicted rise", "climb_predicted", "{:+.4f}"),
        Column("true rise ↑", "climb_true", "{:+.4f}"),
    ),
    "overoptimisation": (Column("cycles of the student", "kept", "{:.0f}"),),
    "tradeoff": (Column("cycles of the student", "kept", "{:.0f}"),),
}
# Rows of other groups that a group's table repeats, since they are what it is compared with; so is what it starts from.
REPEATED = {
    "reward": ("vsd", "vsd_cd"),
    "lrm": ("vsd_lrm",),
    "steps": ("vsd_cd",),
    "overoptimisation": ("control",),
}
# Plots by the group that they follow, with what is seen in them.
PLOTS = {
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
    "tradeoff": (
        "tradeoff",
        "Each method goes on from the same student of VSD with growing beta. × is the student that the guard keeps.",
    ),
    "overoptimisation": (
        "overoptimisation",
        "What is pursued, and what should hold: the student of VSD led by one measure alone, with a large beta. "
        "Lines are validations; the square is the start and × the student that the guard keeps, both as in the tables.",
    ),
}


def write_document(
    path: Path, rows: Sequence[Row], groups: Mapping[str, str], results: Results, stale: Sequence[str] = ()
) -> None:
    """The document and its plots, which go into the folder of results.json; what was written by hand is kept."""
    hand = by_hand(path)
    plots = write_plots(results.path.parent, rows, results)
    parts = [head(rows, results, stale), f"{BEGIN}\n{hand}\n{END}\n"]
    parts += [section(group, title, rows, results, plots) for group, title in groups.items()]
    parts.append("## Questions\n")
    parts += [markdown(question, len(seeds_of(results))) for question in questions(results, rows)]
    with atomically(path) as temporary:
        temporary.write_text("\n".join(parts), "utf-8")


def by_hand(path: Path) -> str:
    """What stands between the marks; ValueError where one of the two is gone, for it would be lost."""
    text = path.read_text("utf-8") if path.is_file() else f"{BEGIN}\n{END}"
    _, begin, rest = text.partition(BEGIN)
    hand, end, _ = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} lacks the line {BEGIN if not begin else END}; put it back, or remove the file")
    return hand.strip("\n") or f"<!-- {HAND} -->"


def seeds_of(results: Results) -> list[int]:
    """All seeds that a row was trained with."""
    return sorted({result["seed"] for result in results.stored["rows"].values()})


def head(rows: Sequence[Row], results: Results, stale: Sequence[str]) -> str:
    """What was run, on what, by which command, and what is missing."""
    seeds, stored = seeds_of(results), list(results.stored["rows"].values())
    machines = "; ".join(sorted({result["machine"] for result in stored}))
    hours = sum(result["seconds"] for result in [*stored, results.stored["teacher"]] if result) / 3600
    known, count = sum(bool(results.of(row.name)) for row in rows), len(seeds)
    chance = "; of one seed there is none" if count == 1 else ""
    lines = [
        "# Ablation on the shapes world\n",
        f"{known} of {len(rows)} rows, seed{'s' * (count != 1)} {', '.join(map(str, seeds)) or '—'}; made on "
        f"{machines or '—'}, by jobs of one thread each, side by side, whose durations sum up to {hours:.1f} hours. "
        f"Figures are mean ± standard deviation over seeds{chance}.\n",
        "```sh",
        f"make ablation{f' seeds={count}' if count > 1 else ''}   # goes on where it was stopped; conf/ablation.yaml",
        "python launch/ablation.py only_document=true   # this document anew from docs/ablation/results.json",
        "```\n",
        ABOUT.format(warm=WARM, least=LEAST),
    ]
    if stale:
        lines.append(f"Measured with other settings than those of now: {', '.join(sorted(stale))}.\n")
    return "\n".join(lines)


def section(group: str, title: str, rows: Sequence[Row], results: Results, plots: Sequence[str]) -> str:
    """A group's table, commands and plot."""
    mine = [row for row in rows if row.group == group]
    repeated = [row for row in rows if row.name in (*REPEATED.get(group, ()), start_of(rows, group))]
    tables = f"{table(group, repeated, mine, results)}\n{gradients(mine, results)}"
    text = f"## {title}\n\n{why(mine, results)}{tables}{commands(mine, results)}"
    plot, caption = PLOTS.get(group, ("", ""))
    return text + (f"\n![{caption}](ablation/{plot}.svg)\n\n{caption}\n" if plot in plots else "")


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
    further = [Column(f"{name} ↑", p, "{:.3f}") for p, name in PURSUED.items() if p in pursued and p != "clip"]
    return [*COLUMNS[:2], *further, *COLUMNS[2:], *FURTHER.get(group, (PEAK,))]


def table(group: str, repeated: Sequence[Row], mine: Sequence[Row], results: Results) -> str:
    """The teacher, real clips, rows of other groups in italics, and the group's own; a row a step count."""
    columns = columns_of(group, mine)
    lines = ["| |" + "|".join(column.heading for column in columns) + "|", "|---" * (len(columns) + 1) + "|"]

    def line(label: str, cells: Sequence[str]) -> None:
        lines.append(f"| {label} | " + " | ".join(cells) + " |")

    for label, figure_of in (("teacher, 50 steps", results.teacher), ("real clips", results.real)):
        line(label, [shown(figure_of(c.figure), c.form.format) for c in columns])
    for row in [*repeated, *mine]:
        for steps in row.steps:
            label = row.label if row.steps == (4,) else f"{row.label}, {steps} step{'s' * (steps != 1)}"
            cells = [shown(results.spread(row.name, c.figure, steps), c.form.format) for c in columns]
            line(f"*{label}*" if row in repeated else label, cells)
    return "\n".join(lines) + "\n"


def gradients(rows: Sequence[Row], results: Results) -> str:
    """A table of the gradients' sizes of the rows whose reward has one at x_hat; empty without any."""
    led = [row for row in rows if results.spread(row.name, "norm_reward")]
    if not led:
        return ""
    lines = [
        "Gradients at x_hat, weighted by their betas, medians over cycles; DDPO's reaches the student elsewhere:\n",
        "| |" + "|".join(column.heading for column in GRADIENTS) + "|",
        "|---" * (len(GRADIENTS) + 1) + "|",
    ]
    for row in led:
        cells = (shown(results.spread(row.name, c.figure), c.form.format) for c in GRADIENTS)
        lines.append(f"| {row.label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n\n"


def commands(rows: Sequence[Row], results: Results) -> str:
    """Each row's exact commands of its first seed, folded."""
    lines = ["<details><summary>The exact commands (first seed)</summary>\n", "```sh"]
    for row in rows:
        for result in results.of(row.name)[:1]:
            lines += [
                f"# {row.label}" + (f", from the student of {row.after}" if row.after else ""),
                *result["commands"],
            ]
    return "\n".join([*lines, "```\n", "</details>\n"])
