"""The questions that the ablation answers, each from a few comparisons of its figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dollar.studies.curves import Rise, rise_of, sooner
from dollar.studies.results import (
    CONTROL,
    LEAST,
    METHODS,
    PURSUED,
    Comparison,
    Gaps,
    Results,
    Row,
    Spread,
    along_beta,
    compare,
    pursued_by,
    shown,
    spread_of,
    start_of,
    together,
)

NAMES = {
    **PURSUED,
    "alignment": "alignment",
    "verifier": "the verifier's mean margin",
    "frechet": "Fréchet above floor",
    "vendi": "Vendi",
    "sharpness": "sharpness",
    "peak_gib": "peak GiB",
    "seconds_per_cycle": "seconds a cycle",
    "held_rank": "rank correlation on held-out prompts",
    "held_pairwise": "pairs told right there",
    "climb_true": "true rise of a step up its gradient",
}
FORMS = {"clip": "{:.4f}", "climb_true": "{:+.4f}"}  # of figures that three decimals don't tell apart
LESS = ("frechet", "peak_gib", "seconds_per_cycle")  # of which less is better
HELD = 0.98  # the share of the start's mean margin that an aligned student keeps; guard.tolerance is the rest


class Question(NamedTuple):
    """What is asked, what the paper says, the comparisons that decide, and numbers that only stand beside.

    expected: the paper's answer; None where it gives none.
    """

    text: str
    paper: str
    decides: Sequence[Comparison]
    beside: Sequence[str] = ()
    expected: str | None = "yes"


def questions(results: Results, rows: Sequence[Row]) -> list[Question]:
    """All questions, answered with what is known."""
    ask = _Asker(results, rows)
    return [*_distillation(ask), *_rewards(ask), *_tradeoff(ask), *_overoptimisation(ask), *_bodies(ask)]


def markdown(question: Question, seeds: int) -> str:
    """A question with its deciding numbers and its verdict."""
    answer = together(question.decides)
    note = {1: " (one seed)"}.get(seeds, "")
    chance = "the gap may be chance" + (", of one seed" if seeds == 1 else "")
    told = {
        "yes": f"**Yes**{note}.",
        "no": f"**No**{note}.",
        "mixed": f"**Partly**{note}.",
        "unshown": "**Not shown**: what is beyond chance speaks against it.",
        "undecided": f"**Undecided**: {chance}.",
        "unknown": "**Not measured yet.**",
    }[answer]
    if question.expected in ("yes", "no") and answer in ("yes", "no", "mixed") and answer != question.expected:
        told += " This contradicts the paper." if answer != "mixed" else " The paper says so without reserve."
    lines = [f"- {c.text} → {c.answer}" for c in question.decides] + [
        f"- beside it: {text}" for text in question.beside
    ]
    paper = f" {question.paper}" if question.paper else ""
    return f"### {question.text}\n\n{told}{paper}\n\n" + "\n".join(lines) + "\n"


class _Asker:
    """Comparisons of rows by their names; `teacher` is one."""

    def __init__(self, results: Results, rows: Sequence[Row]) -> None:
        self.results = results
        self.rows = rows
        self.labels = {row.name: row.label for row in rows}

    def spread(self, name: str, figure: str) -> Spread | None:
        if name == "teacher":
            return self.results.teacher(figure)
        return self.results.spread(name, figure)

    def better(self, figure: str, a: str, b: str) -> Comparison:
        """Whether a has the better figure."""
        return self._compare(NAMES[figure], figure, a, b, -1 if figure in LESS else 1)

    def lower(self, figure: str, a: str, b: str) -> Comparison:
        """Whether a has the lower figure, be that better or not."""
        return self._compare(f"{NAMES[figure]} lower", figure, a, b, -1)

    def higher(self, figure: str, a: str, b: str) -> Comparison:
        """Whether a has the higher figure."""
        return self._compare(f"{NAMES[figure]} higher", figure, a, b, 1)

    def _compare(self, what: str, figure: str, a: str, b: str, better: int) -> Comparison:
        first, second = ((self.labels.get(n, n), self.spread(n, figure)) for n in (a, b))
        gaps = None if "teacher" in (a, b) else self.results.gaps(a, b, figure)  # the teacher has no seeds
        return compare(what, first, second, better, FORMS.get(figure, "{:.3f}").format, gaps)

    def beside(self, figure: str, *names: str) -> str:
        """A figure of several rows as text."""
        show = FORMS.get(figure, "{:.3f}").format
        parts = (f"{self.labels.get(n, n)} {shown(self.spread(n, figure), show)}" for n in names)
        return f"{NAMES[figure]}: {', '.join(parts)}"

    def rises(self, name: str, aligned: bool = False) -> dict[int, Rise]:
        """A row's true reward by seed; aligned: at validations that held HELD of the start's mean margin."""
        held = HELD if aligned else None
        return {r["seed"]: rise for r in self.results.of(name) if (rise := rise_of(r, held))}

    def sooner(self, a: str, b: str, aligned: bool = False) -> Comparison:
        """Whether a needs fewer seconds than b to the highest true reward that both reach, seed by seed."""
        of_a, of_b = self.rises(a, aligned), self.rises(b, aligned)
        pairs = [sooner(of_a[seed], of_b[seed]) for seed in of_a if seed in of_b]
        x, y = (spread_of([pair[i] for pair in pairs]) for i in (0, 1))
        what = "seconds to the highest true reward that both reach"
        if pairs and not any(x or y for x, y in pairs):
            return self._above_start(what, {a: of_a, b: of_b})
        named, gaps = ((self.labels.get(a, a), x), (self.labels.get(b, b), y)), Gaps([x - y for x, y in pairs])
        return compare(what, *named, -1, "{:.0f}".format, gaps)

    def _above_start(self, what: str, rises: dict[str, dict[int, Rise]]) -> Comparison:
        """The same where both reach no more than the start: whether only the first of two gets above it."""
        gets = {
            n: [max(rise.values) > rise.values[0] + LEAST * abs(rise.values[0]) for rise in found.values()]
            for n, found in rises.items()
        }
        a, b = gets.values()
        answer = "yes" if all(a) and not any(b) else "no" if all(b) and not any(a) else "undecided"
        told = ", ".join(
            f"{self.labels.get(n, n)} rises {LEAST:.0%} above it in {sum(g)} of {len(g)} seeds" for n, g in gets.items()
        )
        return Comparison(answer, f"{what}: it is the start's; {told}")

    def highest(self, method: str, pursued: str) -> tuple[str, Spread] | None:
        """A method's row of the trade-off, guarded or not, whose students got highest and are aligned in all seeds."""
        starts, found = self.results.figure(start_of(self.rows, "tradeoff"), "verifier"), dict[str, Spread]()
        for row in along_beta(self.rows, method, guarded=True):
            margins, spread = self.results.figure(row, "verifier"), self.spread(row, pursued)
            if spread and margins and all(seed in starts and m >= HELD * starts[seed] for seed, m in margins.items()):
                found[row] = spread
        return max(found.items(), key=lambda item: item[1].mean) if found else None

    def ended(self, name: str) -> str:
        """In how many seeds the guard ended a row, at which cycle, and which student it kept."""
        found = self.results.of(name)
        ended = [r for r in found if r["ended"]]
        after, kept = (", ".join(str(r[key]) for r in ended) for key in ("cycles", "kept"))
        at = f" after cycle {after}; kept is the student of cycle {kept}" if ended else ""
        return f"the guard ended {len(ended)} of {len(found)} runs of “{self.labels.get(name, name)}”{at}"

    def lowered(self, name: str) -> str:
        """To which share of its weight the guard brought the reward, seed by seed."""
        scales = ", ".join(f"{scale:.3g}" for scale in self.results.figure(name, "scale").values())
        return f"the guard left the reward of “{self.labels.get(name, name)}” {scales or '—'} of its weight"


def _distillation(ask: _Asker) -> list[Question]:
    return [
        Question(
            "Does CD restore diversity that VSD loses?",
            "The paper's Table 3: Vendi (Inception) 2.34 of the teacher, 1.91 with VSD, 2.14 with VSD + CD.",
            [ask.higher("vendi", "vsd_cd", "vsd")],
            [ask.beside("vendi", "teacher", "cd")],
        ),
        Question(
            "Does m = 5 beat m = 1?",
            "The paper's Table 7: total score 80.65 against 78.92.",
            [ask.better("alignment", "vsd_cd", "vsd_cd_m1"), ask.better("frechet", "vsd_cd", "vsd_cd_m1")],
            [ask.beside("vendi", "vsd_cd", "vsd_cd_m1"), ask.beside("seconds_per_cycle", "vsd_cd", "vsd_cd_m1")],
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
            [ask.beside("alignment", "vsd", "vsd_cd"), ask.beside("frechet", "vsd_cd_lrm", "teacher")],
        ),
    ]


def _rewards(ask: _Asker) -> list[Question]:
    return [
        Question(
            "Does a latent reward model raise the true reward?",
            "The paper's Table 5 and Figure 8 say so.",
            [ask.better("clip", "vsd_lrm", "vsd"), ask.better("clip", "vsd_cd_lrm", "vsd_cd")],
            [ask.beside("alignment", "vsd", "vsd_lrm", "vsd_cd", "vsd_cd_lrm")],
        ),
        Question(
            "Does the LRM reach a reward sooner than DDPO, and a higher one?",
            "The paper's Table 5: HPSv2 0.276 against 0.271, PickScore 0.207 both.",
            [ask.sooner("vsd_lrm", "vsd_ddpo"), ask.better("clip", "vsd_lrm", "vsd_ddpo")],
            [ask.beside("seconds_per_cycle", "vsd_lrm", "vsd_ddpo")],
        ),
        Question(
            "Does it need less memory than the direct gradient?",
            "The paper's Table 1: 17.8 MB against more than 90 GB, of a reward model of ViT-H's size.",
            [ask.better("peak_gib", "vsd_lrm", "vsd_direct")],
            [
                ask.beside("seconds_per_cycle", "vsd_lrm", "vsd_direct"),
                ask.beside("clip", "vsd_lrm", "vsd_direct"),
                "here memory is the whole process's, and both decoder and reward model are tiny; `make bench-reward` "
                "measures the paper's sizes",
            ],
        ),
    ]


def _tradeoff(ask: _Asker) -> list[Question]:
    pursued = pursued_by(ask.rows, "tradeoff")
    best = [found[0] for method in METHODS if (found := ask.highest(method, pursued))]
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
            [ask.beside(figure, start, CONTROL, *best) for figure in (pursued, "alignment", "verifier")],
        ),
        Question(
            f"Does an LRM fitted to noised latents raise {PURSUED[pursued]} further than one of clean latents?",
            "Compared in the same way. The paper's sees clean latents.",
            _further(ask, "noised", "lrm", pursued),
            [ask.beside(figure, start, CONTROL, *best) for figure in (pursued, "alignment", "verifier")],
            None,
        ),
        Question(
            f"Does the guard keep a better aligned student than the pursuit of {PURSUED[pursued]} leaves?",
            "",
            # A run that it never ended is the same with and without it.
            [ask.higher("alignment", f"{row}_stop", row) for row in guarded or most],
            [
                *(ask.ended(f"{row}_stop") for row in most),
                *(ask.beside(figure, start, *stopped) for figure in (pursued, "alignment", "vendi")),
            ],
            None,
        ),
    ]


def _further(ask: _Asker, a: str, b: str, pursued: str) -> list[Comparison]:
    """Whether a method's aligned students get further than another's and than without a reward, and sooner."""
    x, y, what = ask.highest(a, pursued), ask.highest(b, pursued), f"{NAMES[pursued]} of an aligned student"
    if x and y:
        (first, high), (second, low) = x, y
        named = (ask.labels.get(first, first), high), (ask.labels.get(second, second), low)
        gaps = ask.results.gaps(first, second, pursued)
        return [
            compare(what, *named, gaps=gaps),
            ask.higher(pursued, first, CONTROL),
            ask.sooner(first, second, aligned=True),
        ]
    rows = [along_beta(ask.rows, method) for method in (a, b)]
    if not all(any(ask.results.of(row) for row in mine) for mine in rows):
        return [Comparison("unknown", f"{what}: not measured")]
    told = [f"{METHODS[m]} {shown(found[1]) if found else 'none at any beta'}" for m, found in ((a, x), (b, y))]
    return [Comparison("yes" if x else "no" if y else "undecided", f"{what}: {', '.join(told)}")]


def _overoptimisation(ask: _Asker) -> list[Question]:
    start, found = start_of(ask.rows, "overoptimisation"), []
    for name, what in (("jpeg", "JPEG size"), ("motion", "motion")):
        rises = ask.higher(name, name, CONTROL)
        found.append(
            Question(
                f"Does over-optimising {what} ruin the clips?",
                "The paper's Figure 9: dynamic degree rises to 0.97 while the clips become a flow of noise.",
                [rises, ask.lower("alignment", name, CONTROL), ask.higher("frechet", name, CONTROL)],
                [ask.beside("sharpness", name, CONTROL), ask.beside(name, start)],
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
                    *(ask.beside(figure, CONTROL, name, *guarded) for figure in (name, "alignment")),
                ],
                None,
            )
        )
    pull = ask.higher("alignment", "jpeg_pull", "jpeg")
    beside = [ask.beside("jpeg", "jpeg", "jpeg_pull")]
    return [*found, Question("Does a pull towards the teacher hold it?", "", [pull], beside, None)]


def _bodies(ask: _Asker) -> list[Question]:
    def buys(what: str, a: str, b: str) -> Question:
        gains = [ask.better(figure, a, b) for figure in ("held_rank", "held_pairwise", "climb_true", "clip")]
        costs = [ask.beside(figure, a, b) for figure in ("peak_gib", "seconds_per_cycle")]
        return Question(what, "", gains, costs, None)

    return [
        buys("Do the teacher's blocks fit better than the CNN, and lead to a higher reward?", "lrm_teacher", "vsd_lrm"),
        buys("Does the CNN on noised latents?", "lrm_noised", "vsd_lrm"),
        buys("Does a pairwise fit?", "lrm_pairwise", "vsd_lrm"),
        buys("Do both together?", "lrm_teacher_pairwise", "vsd_lrm"),
    ]
