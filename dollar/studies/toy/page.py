"""The toy's page: whether the appendix's claims are had, the counts, the pictures, and why."""

from __future__ import annotations

from pathlib import Path

from dollar.media import atomically
from dollar.studies.plots import write_plots
from dollar.studies.questions import markdown, verdicts
from dollar.studies.results import Results
from dollar.studies.tables import Column, table
from dollar.studies.toy.modes import FARTHEST
from dollar.studies.toy.plots import plots
from dollar.studies.toy.questions import questions
from dollar.studies.toy.reasons import order, reasons
from dollar.studies.toy.rows import EXACT, ROWS, distance_figure, mode_figure
from dollar.studies.toy.seeds import Setting, Size

ABOUT = """\
All models predict the velocity of a rectified flow and are sampled by the same deterministic steps. “Exact score” is
the mixture's own denoiser in their place, so its samples outside are what mixture and sampler have by themselves (a
round Gaussian in the plane has 1.1 % of its mass farther than three standard deviations away).

What the appendix leaves open is read so:

- The mixture is ours: weights, centres and standard deviations are keys. The second mode is narrow, which the small
  network finds hard. Settings were chosen by teacher and base student alone, and once.
- The base student is trained on the mixture as the teacher is, not pruned; all others start from it.
- Winners and losers are independent samples, since there is no prompt that they could share. One time and one noise
  serve winner and loser. The reference is the teacher. All students see the same pairs, times and noise, for as many
  updates; an update of SFT alone needs half the forwards.
- SFT has two readings: on the winners (the paper's Eq. 2), which here lie in one mode alone, or on the teacher's
  samples of all modes, as distillation usually is. The appendix says only of DPO's students that they use the pairs.

Samples to be moved: how many would have to change their mode, or go in or out, to have the teacher's counts. Distances
are mean squared ones between outputs at noised exact samples of a mode; errors are those of the velocity, on the pairs
that were trained on, with new times and noise. Winners are of one mode alone, and the teacher, which knows of the
others, isn't the best model of them: a student's error on them gets below the teacher's as it believes more in that
mode.
"""


CAPTIONS = {
    "samples": f"Samples of one seed; circles are {FARTHEST:g} standard deviations of a mode, red is outside of all.",
    "counts": "Samples in each mode and outside, mean and standard deviation over seeds; dotted: the exact score's.",
}


def write_page(path: Path, setting: Setting, results: Results) -> None:
    """The page, and its pictures beside results.json."""
    folder = results.path.parent
    drawn = write_plots(folder, plots(setting.modes, results), results)
    asked = questions(setting, results)
    seeds = len(results.of(EXACT))
    parts = [
        head(setting, results),
        "## Is the order of the appendix had?\n",
        "\n".join(order(setting, results)) + "\n",
        verdicts(asked),
        *(f"![{CAPTIONS[name]}]({folder.name}/{name}.svg)\n\n{CAPTIONS[name]}\n" for name in drawn),
        f"## Samples\n\n{table(count_columns(setting), (), ROWS, results, '')}",
        f"## Why\n\n{chr(10).join(reasons(setting, results))}\n",
        table(error_columns(setting), (), [row for row in ROWS if row.name != EXACT], results, ""),
        f"## How it is made\n\n{described(setting)}\n{ABOUT}",
        "## Questions in full\n",
        *(markdown(question, seeds) for question in asked),
    ]
    with atomically(path) as temporary:
        temporary.write_text("\n".join(parts), "utf-8")


def head(setting: Setting, results: Results) -> str:
    """What it is, of how many seeds, made on what."""
    known = results.of(EXACT)
    machines = "; ".join(sorted({result["machine"] for result in known}))
    seconds = sum(result["seconds"] for result in known)
    numbers = ", ".join(str(result["seed"]) for result in known)
    return (
        "# Preference distillation in the plane\n\n"
        "The toy of V.I.P.'s appendix E: what SFT, DPO and both make of a small diffusion model whose teacher knows a "
        f"mixture of {setting.modes.count} Gaussians better. {setting.samples:,} samples of every model, seed"
        f"{'s' * (len(known) != 1)} {numbers or '—'}, mean ± standard deviation over them; {seconds:.0f} seconds of "
        f"one core ({machines or '—'}). Made by `make toy`; [all figures]({results.path.parent.name}/results.json).\n"
    )


def count_columns(setting: Setting) -> list[Column]:
    """The counts."""
    modes = [Column(f"mode {k}", mode_figure(k), "{:.0f}") for k in range(1, setting.modes.count + 1)]
    return [*modes, Column("outside ↓", "outside", "{:.0f}"), Column("to be moved ↓", "moved", "{:.0f}")]


def error_columns(setting: Setting) -> list[Column]:
    """What training did."""
    modes = range(1, setting.modes.count + 1)
    return [
        *(Column(f"distance from the teacher, mode {k}", distance_figure(k), "{:.4f}") for k in modes),
        Column("winners' error above the teacher's", "winner", "{:+.4f}"),
        Column("losers' error above the teacher's", "loser", "{:+.4f}"),
        Column("implicit accuracy", "accuracy", "{:.2f}"),
        Column("error beyond the exact score's", "excess_late", "{:.4f}"),
    ]


def described(setting: Setting) -> str:
    """The setting as a list."""
    shares = setting.modes.shares.tolist()
    modes = [
        f"mode {k}: weight {share:.2g}, centre ({centre[0]:g}, {centre[1]:g}), standard deviation {sd:g}"
        for k, (share, centre, sd) in enumerate(zip(shares, setting.modes.centres, setting.modes.sds, strict=True), 1)
    ]
    course = setting.distillation
    return "\n".join(
        [
            *(f"- {mode}" for mode in modes),
            f"- teacher: {network(setting.teacher)}",
            f"- base student: {network(setting.base)}",
            f"- distillation: {setting.pairs:,} pairs, winners the teacher's samples in mode {setting.preferred}, "
            f"losers the base student's outside it; {course.updates:,} updates of {course.batch} pairs by AdamW at "
            f"{course.lr:g}; beta {setting.beta:g}, SFT weight {setting.sft_weight:g}",
            f"- sampler: {setting.steps} steps",
            "",
        ]
    )


def network(size: Size) -> str:
    """A network and its training."""
    c = size.course
    trained = f"{c.updates:,} updates of {c.batch} samples by AdamW at {c.lr:g}, falling from half of them on"
    return f"{size.layers} hidden layers of width {size.width}, {trained}"
