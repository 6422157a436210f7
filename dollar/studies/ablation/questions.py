"""The questions that the ablation answers, each from a few comparisons of its figures."""

from __future__ import annotations

from collections.abc import Sequence

from dollar.studies.ablation.figures import FORMS, LESS, NAMES, PURSUED
from dollar.studies.ablation.panel import holding
from dollar.studies.ablation.reward_questions import few, pursuit, tradeoff
from dollar.studies.questions import Asker, Question, Wording
from dollar.studies.results import Results
from dollar.studies.rows import Row

WORDING = Wording(NAMES, FORMS, LESS)
# What a row of the group steps adds to its control, by the end of its name.
VARIANTS = {
    "adversarial": "an adversarial term",
    "anchor": "a diversity anchor on the first step",
    "intervals": "matching on each step's own noise interval",
    "moments": "a regulariser of the latents' mean and variance",
    "one_fake": "one fake update where there are five",
}


def questions(results: Results, rows: Sequence[Row]) -> list[Question]:
    """All questions, answered with what is known."""
    ask = Asker(results, rows, WORDING)
    ours = [row for row in rows if row.group == "tradeoff" and row.name.startswith("ours_")]
    led = [row for row in rows if row.group == "overoptimisation" and row.control]
    others = [row for row in rows if row.group == "few" and row.name.startswith(("ours_", "small_"))]
    held = ((PURSUED[_pursued(ours)], ours), ("JPEG size and motion", led), ("two steps and one", others))
    return [
        *tradeoff(ask),
        *pursuit(ask),
        *few(ask),
        *(holding(mine, results, title) for title, mine in held if mine),
        *_steps(ask),
        *_distillation(ask),
        *_rewards(ask),
        *_bodies(ask),
    ]


def _pursued(rows: Sequence[Row]) -> str:
    return rows[0].pursued if rows else "clip"


def _steps(ask: Asker) -> list[Question]:
    """Of each row whose name ends with a variant, whether it helps its control."""
    found = []
    for row in ask.rows:
        variant = next((end for end in VARIANTS if row.name.endswith(f"_{end}")), None)
        if row.group != "steps" or variant is None or not row.control:
            continue
        found.append(
            Question(
                f"Does {VARIANTS[variant]} help ({row.label})?",
                f"Against “{ask.labels[row.control]}”.",
                [ask.better("alignment", row.name, row.control), ask.no_worse("vendi", row.name, row.control)],
                [ask.numbers(f, row.name, row.control) for f in ("frechet", "vendi", "seconds_per_cycle")],
                None,
            )
        )
    return found


def _distillation(ask: Asker) -> list[Question]:
    return [
        Question(
            "Does CD restore diversity that VSD loses?",
            "The paper's Table 3: Vendi (Inception) 2.34 of the teacher, 1.91 with VSD, 2.14 with VSD + CD.",
            [ask.higher("vendi", "vsd_cd", "vsd")],
            [ask.numbers("vendi", "teacher", "cd")],
        ),
        Question(
            "Does CD keep motion that VSD alone loses, and colours that it overdraws?",
            "The paper's Tables 15 and 18: dynamic degree 58.6 with VSD, 90.3 with VSD + CD, 99.4 of the teacher.",
            [ask.higher("flow", "vsd_cd", "vsd"), ask.lower("saturation", "vsd_cd", "vsd")],
            [ask.numbers("flow", "teacher", "cd"), ask.numbers("saturation", "teacher", "cd")],
            None,
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
            "Does the paper's latent reward model raise the true CLIP reward of four steps?",
            "The paper says so; its tables print no reward of VSD alone, and Figure 8 shows what is predicted.",
            [ask.better("clip", "vsd_lrm", "vsd"), ask.better("clip", "vsd_cd_lrm", "vsd_cd")],
            [ask.numbers("alignment", "vsd", "vsd_lrm", "vsd_cd", "vsd_cd_lrm")],
        ),
        Question(
            "Does the latent reward model reach the CLIP reward sooner than DDPO, and a higher one?",
            "The paper's Table 5: HPSv2 0.276 against 0.271, PickScore 0.207 both.",
            [ask.sooner("vsd_lrm", "vsd_ddpo"), ask.better("clip", "vsd_lrm", "vsd_ddpo")],
            [ask.numbers("seconds_per_cycle", "vsd_lrm", "vsd_ddpo")],
        ),
        Question(
            "Does the latent reward model need less memory than the direct gradient through the decoder?",
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


def _bodies(ask: Asker) -> list[Question]:
    def buys(what: str, a: str, b: str) -> Question:
        gains = [ask.better(figure, a, b) for figure in ("held_rank", "held_pairwise", "clip")]
        costs = [ask.numbers(figure, a, b) for figure in ("climb_true", "peak_gib", "seconds_per_cycle")]
        return Question(what, "", gains, costs, None)

    return [
        buys("Do the teacher's blocks fit better than the CNN, and lead to a higher reward?", "lrm_teacher", "vsd_lrm"),
        buys("Does the CNN on noised latents fit better than on clean ones?", "lrm_noised", "vsd_lrm"),
        buys("Is a pairwise fit of the CNN better?", "lrm_pairwise", "vsd_lrm"),
        buys("Are the teacher's blocks with a pairwise fit better than the CNN?", "lrm_teacher_pairwise", "vsd_lrm"),
    ]
