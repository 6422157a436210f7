"""What the study of V.I.P. adds to the engine: its rows, tables, page and figures."""

from __future__ import annotations

from collections.abc import Sequence

from dollar.studies.content import Content
from dollar.studies.document import Layout, seeds_in
from dollar.studies.results import Results
from dollar.studies.rows import ALL, Row
from dollar.studies.tables import Column
from dollar.studies.vip.figures import FORMS, LESS, NAMES, SHARES, measured, measured_teacher
from dollar.studies.vip.plots import plots
from dollar.studies.vip.questions import questions
from dollar.studies.vip.runs import rows_of

MORE = ("alignment", *SHARES, "verifier", "vendi", "clip", "speedup")  # of which more is better
SHOWN = ("alignment", *SHARES, "verifier", "frechet", "vendi", "motion", "flicker", "clip")
COST = ("parameters", "flops", "forwards", "seconds", "cycles", "trained_for")
SPEED = ("speedup", "ceiling")
ERRORS = ("winner_error", "loser_error", "cosine")
ABOUT = """\
All rows but the demo's are of `teacher=shapes_deep`, of 8 blocks, sampled in 10 guided steps, or in 4 without guidance
where a row is few-step. Three blocks go, by the ranking of that seed: rankings, pairs and trainings follow the seed,
and two seeds may lose the same blocks. All are measured on the same 256 prompts and noises, and stages on the same 64
clips. Rows of “Losses” and “Weight of SFT in ReDPO” train the same pruned network on the same pairs.

Alignment: the share of clips that show all five attributes of their caption, by image analysis; below it the share of
each. Reward: the verifier's mean margin, by which units are ranked and pairs are chosen. Fréchet: distance of random
features to real clips, above that of real to other real clips. Vendi: how many different clips there are among a
prompt's eight. Dynamic degree: the speed of the fastest pixels, in shorter sides a second. Steadiness: how little
neighbouring frames differ. CLIP reward: the tiny CLIP's score, which chose nothing.

Parameters and operations are the transformer's, operations of one clip's forward; a guided step is two forwards.
Seconds a clip: of all its steps, without text and decoding, while other rows ran, so that equal networks differ and a
speed-up may come out above the most there can be; speed-ups are over the row's own teacher in 50 guided steps. Updates
and seconds of training are of all stages, without those of a student that the row starts from. Errors: squared distance
from the target, the student's minus the reference's, in the last twelfth of the updates; above 0 where the clip is made
less likely.

SFT has as many forwards as ReDPO: its update takes 4 a pair (the student's and its backward, the reference's), ReDPO's
9. An interval is Student's of the seeds' mean, and no narrower than two standard errors of the evaluation. These are
known for shares of clips, CLIP reward, dynamic degree and steadiness; for the margin, Fréchet and Vendi the seeds alone
count.
"""
LEAD = (
    "size",
    "Alignment against what a clip costs; a point a row, the mean over seeds. Up and left is better. Dark blue: "
    "losses; light blue: weights of SFT; green: stages; orange: small and few-step.",
)
CAPTIONS = {
    "losses": (
        "recovered",
        "What trainings of the same pruned network win back. Curves are of validations on 32 held-out prompts; "
        "diamonds, and the lines of teacher and pruned network, are of the evaluation's 256 pairs, which are harder.",
    ),
    "weights": (
        "errors",
        "Errors above the reference's on winners and on losers, over updates.",
    ),
    "stages": (
        "ranking",
        "What it costs to leave each block out, in the network's order; means over seeds and their deviations. How "
        "often each goes is beside its name.",
    ),
    "few": ("pairs", "Pairs of the first seed, each clip by four frames, and the gaps of all seeds' pairs."),
}


def columns_of(group: str, rows: Sequence[Row]) -> list[Column]:
    """All figures, which are the table's lines."""
    arrows = {**dict.fromkeys(MORE, " ↑"), **dict.fromkeys(LESS, " ↓")}
    further = {"few": SPEED, "losses": ERRORS, "weights": ERRORS}.get(group, ())
    return [
        Column(f"{NAMES[name]}{arrows.get(name, '')}", name, FORMS.get(name, "{:.3f}"))
        for name in (*SHOWN, *COST, *further)
    ]


def won_back(rows: Sequence[Row], results: Results) -> str:
    """What each stage lost and won back, of rows that were made stage by stage."""
    lines = []
    for row in rows:
        for result in results.of(row.name):
            for i, stage in enumerate(result.get("stages") or (), 1):
                values = (f"{stage[name]:.4f}" for name in ("before", "pruned", "trained"))
                share = f"{stage['share']:.0%}"
                lines.append(f"| {row.label}, seed {result['seed']} | {i} | {' | '.join(values)} | {share} |")
    if not lines:
        return ""
    head = "| | stage | before | without the units | trained | won back |\n|---|---|---|---|---|---|"
    return (
        "\n".join(["\nThe mean margin on 64 held-out clips, the same in all stages and seeds:\n", head, *lines]) + "\n"
    )


def scope(rows: Sequence[Row], results: Results) -> str:
    """What so many seeds can decide."""
    seeds = len(seeds_in(results))
    if not seeds:
        return ""
    if seeds == 1:
        return "**What this can decide.** One seed has no interval; what another would give is open.\n"
    dtypes = f" Trainings ran with{results.dtypes()}; losses are in float32." if results.dtypes() else ""
    return (
        f"**What {seeds} seeds can decide.** An interval of three seeds is 2.5 times their standard deviation, to both "
        "sides. And all of this is one small teacher in a world of shapes, whose inner blocks were trained to be "
        f"dispensable.{dtypes}\n"
    )


def shell(results: Results) -> list[str]:
    """The lines of shell that make the study and its page, which is of the dtypes that its rows were trained in."""
    dtypes = results.dtypes()
    return [
        "make vip-ablation   # goes on where it was stopped; conf/vip_ablation.yaml",
        f"python launch/vip_ablation.py only_document=true{dtypes}   # the page anew from docs/vip/results.json",
    ]


VIP = Content(
    name="vip",
    rewards={},  # conf/vip_ablation.yaml names what all are measured by
    usual=ALL,
    measured=measured,
    measured_teacher=measured_teacher,
    layout=Layout(
        title="V.I.P. on the shapes world",
        about=ABOUT,
        commands=shell,
        columns=columns_of,
        teacher="teacher, 8 blocks, 10 guided steps",
        across=True,
        repeated={"weights": ("redpo",), "stages": ("redpo", "pruned")},
        captions=CAPTIONS,
        lead=LEAD,
        scope=scope,
        after=won_back,
    ),
    questions=questions,
    rows=rows_of,
    plots=plots,
    steps=10,
    embedded=("clip", "shapes", "shapes_deep"),
)
