"""The questions that the ablation answers, each from a few comparisons of its figures."""

from __future__ import annotations

from collections.abc import Sequence

from dollar.studies.ablation.figures import (
    CONTROL,
    FORMS,
    LESS,
    METHODS,
    NAMES,
    PURSUED,
    along_beta,
    pursued_by,
)
from dollar.studies.compare import Comparison, Spread, compare, shown
from dollar.studies.questions import Asker, Question, Wording
from dollar.studies.results import Results
from dollar.studies.rows import Row, start_of

WORDING = Wording(NAMES, FORMS, LESS)
HELD = 0.98  # the share of the start's mean margin that an aligned student keeps; guard.tolerance is the rest


def questions(results: Results, rows: Sequence[Row]) -> list[Question]:
    """All questions, answered with what is known."""
    ask = Asker(results, rows, WORDING)
    return [*_distillation(ask), *_rewards(ask), *_tradeoff(ask), *_overoptimisation(ask), *_bodies(ask)]


def _highest(ask: Asker, method: str, pursued: str) -> tuple[str, Spread] | None:
    """A method's row of the trade-off, guarded or not, whose students got highest and are aligned in all seeds."""
    starts, found = ask.results.figure(start_of(ask.rows, "tradeoff"), "verifier"), dict[str, Spread]()
    for row in along_beta(ask.rows, method, guarded=True):
        margins, spread = ask.results.figure(row, "verifier"), ask.spread(row, pursued)
        if spread and margins and all(seed in starts and m >= HELD * starts[seed] for seed, m in margins.items()):
            found[row] = spread
    return max(found.items(), key=lambda item: item[1].mean) if found else None


def _distillation(ask: Asker) -> list[Question]:
    return [
        Question(
            "Does CD restore diversity that VSD loses?",
            "The paper's Table 3: Vendi (Inception) 2.34 of the teacher, 1.91 with VSD, 2.14 with VSD + CD.",
            [ask.higher("vendi", "vsd_cd", "vsd")],
            [ask.numbers("vendi", "teacher", "cd")],
        ),
        Question(
            "Does m = 5 beat m = 1?",
            "The paper's Table 7: total score 80.65 against 78.92.",
            [ask.better("alignment", "vsd_cd", "vsd_cd_m1"), ask.better("frechet", "vsd_cd", "vsd_cd_m1")],
            [ask.numbers("vendi", "vsd_cd", "vsd_cd_m1"), ask.numbers("seconds_per_cycle", "vsd_cd", "vsd_cd_m1")],
        ),
        Question(
            "Does the teacher's parameterization beat x_0 itself?",
            "The paper's Table 8: total score 80.65 against 80.05.",
            [ask.better("alignment", "vsd_cd", "heterogeneous"), ask.better("frechet", "vsd_cd", "heterogeneous")],
        ),
        Question(
            "Does the student pass its teacher?",
            "The paper's Table 2: total score 82.57 with VSD + CD + LRM against 80.25.",
            [ask.better("alignment", "vsd_cd_lrm", "teacher"), ask.better("clip", "vsd_cd_lrm", "teacher")],
            [ask.numbers("alignment", "vsd", "vsd_cd"), ask.numbers("frechet", "vsd_cd_lrm", "teacher")],
        ),
    ]


def _rewards(ask: Asker) -> list[Question]:
    return [
        Question(
            "Does a latent reward model raise the true reward?",
            "The paper's Table 5 and Figure 8 say so.",
            [ask.better("clip", "vsd_lrm", "vsd"), ask.better("clip", "vsd_cd_lrm", "vsd_cd")],
            [ask.numbers("alignment", "vsd", "vsd_lrm", "vsd_cd", "vsd_cd_lrm")],
        ),
        Question(
            "Does the LRM reach a reward sooner than DDPO, and a higher one?",
            "The paper's Table 5: HPSv2 0.276 against 0.271, PickScore 0.207 both.",
            [ask.sooner("vsd_lrm", "vsd_ddpo"), ask.better("clip", "vsd_lrm", "vsd_ddpo")],
            [ask.numbers("seconds_per_cycle", "vsd_lrm", "vsd_ddpo")],
        ),
        Question(
            "Does it need less memory than the direct gradient?",
            "The paper's Table 1: 17.8 MB against more than 90 GB, of a reward model of ViT-H's size.",
            [ask.better("peak_gib", "vsd_lrm", "vsd_direct")],
            [
                ask.numbers("seconds_per_cycle", "vsd_lrm", "vsd_direct"),
                ask.numbers("clip", "vsd_lrm", "vsd_direct"),
                "here memory is the whole process's, and both decoder and reward model are tiny; `make bench-reward` "
                "measures the paper's sizes",
            ],
        ),
    ]


def _tradeoff(ask: Asker) -> list[Question]:
    pursued = pursued_by(ask.rows, "tradeoff")
    best = [found[0] for method in METHODS if (found := _highest(ask, method, pursued))]
    start = start_of(ask.rows, "tradeoff")
    most = [betas[-1] for method in METHODS if (betas := along_beta(ask.rows, method))]
    guarded = [row for row in most if any(r["ended"] for r in ask.results.of(f"{row}_stop"))]
    stopped = [name for row in most for name in (row, f"{row}_stop")]
    return [
        Question(
            f"Does the LRM raise {PURSUED[pursued]} further than DDPO while the student stays aligned, and sooner?",
            "Of each method the student that gets highest, at any beta and with the guard or without, whose verifier's "
            f"mean margin is at least {HELD:.0%} of the start's (guard.tolerance is the rest); sooner is by the "
            "validations that hold as much. The paper's Table 5 and Figure 8 say so of HPSv2.",
            _further(ask, "lrm", "ddpo", pursued),
            [ask.numbers(figure, start, CONTROL, *best) for figure in (pursued, "alignment", "verifier")],
        ),
        Question(
            f"Does an LRM fitted to noised latents raise {PURSUED[pursued]} further than one of clean latents?",
            "Compared in the same way. The paper's sees clean latents.",
            _further(ask, "noised", "lrm", pursued),
            [ask.numbers(figure, start, CONTROL, *best) for figure in (pursued, "alignment", "verifier")],
            None,
        ),
        Question(
            f"Does the guard keep a better aligned student than the pursuit of {PURSUED[pursued]} leaves?",
            "",
            # A run that it never ended is the same with and without it.
            [ask.higher("alignment", f"{row}_stop", row) for row in guarded or most],
            [
                *(ask.ended(f"{row}_stop") for row in most),
                *(ask.numbers(figure, start, *stopped) for figure in (pursued, "alignment", "vendi")),
            ],
            None,
        ),
    ]


def _further(ask: Asker, a: str, b: str, pursued: str) -> list[Comparison]:
    """Whether a method's aligned students get further than another's and than without a reward, and sooner."""
    x, y, what = _highest(ask, a, pursued), _highest(ask, b, pursued), f"{NAMES[pursued]} of an aligned student"
    if x and y:
        (first, high), (second, low) = x, y
        named = (ask.labels.get(first, first), high), (ask.labels.get(second, second), low)
        gaps = ask.results.gaps(first, second, pursued)
        return [
            compare(what, *named, gaps=gaps),
            ask.higher(pursued, first, CONTROL),
            ask.sooner(first, second, held=HELD),
        ]
    rows = [along_beta(ask.rows, method) for method in (a, b)]
    if not all(any(ask.results.of(row) for row in mine) for mine in rows):
        return [Comparison("unknown", f"{what}: not measured")]
    known = [f"{METHODS[m]} {shown(found[1]) if found else 'none at any beta'}" for m, found in ((a, x), (b, y))]
    return [Comparison("yes" if x else "no" if y else "undecided", f"{what}: {', '.join(known)}")]


def _overoptimisation(ask: Asker) -> list[Question]:
    start, found = start_of(ask.rows, "overoptimisation"), []
    for name, what in (("jpeg", "JPEG size"), ("motion", "motion")):
        rises = ask.higher(name, name, CONTROL)
        found.append(
            Question(
                f"Does over-optimising {what} ruin the clips?",
                "The paper's Figure 9: dynamic degree rises to 0.97 while the clips become a flow of noise.",
                [rises, ask.lower("alignment", name, CONTROL), ask.higher("frechet", name, CONTROL)],
                [ask.numbers("sharpness", name, CONTROL), ask.numbers(name, start)],
            )
        )
        lower = [row for row in (f"{name}_lower",) if row in ask.labels]
        guarded = [f"{name}_stop", *lower]
        found.append(
            Question(
                f"Does the guard stop it ({what})?",
                "",
                [ask.higher("alignment", row, name) for row in guarded],
                [
                    ask.ended(f"{name}_stop"),
                    *map(ask.lowered, lower),
                    *(ask.numbers(figure, CONTROL, name, *guarded) for figure in (name, "alignment")),
                ],
                None,
            )
        )
    pull = ask.higher("alignment", "jpeg_pull", "jpeg")
    context = [ask.numbers("jpeg", "jpeg", "jpeg_pull")]
    return [*found, Question("Does a pull towards the teacher hold it?", "", [pull], context, None)]


def _bodies(ask: Asker) -> list[Question]:
    def buys(what: str, a: str, b: str) -> Question:
        gains = [ask.better(figure, a, b) for figure in ("held_rank", "held_pairwise", "climb_true", "clip")]
        costs = [ask.numbers(figure, a, b) for figure in ("peak_gib", "seconds_per_cycle")]
        return Question(what, "", gains, costs, None)

    return [
        buys("Do the teacher's blocks fit better than the CNN, and lead to a higher reward?", "lrm_teacher", "vsd_lrm"),
        buys("Does the CNN on noised latents?", "lrm_noised", "vsd_lrm"),
        buys("Does a pairwise fit?", "lrm_pairwise", "vsd_lrm"),
        buys("Do both together?", "lrm_teacher_pairwise", "vsd_lrm"),
    ]
