"""The questions that the ablation answers, each from a few comparisons of its figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from dollar.evaluation.ablation import Comparison, Results, Spread, compare, shown, sooner, spread_of, together

NAMES = {
    "alignment": "alignment",
    "reward": "CLIP reward",
    "frechet": "Fréchet above floor",
    "vendi": "Vendi",
    "sharpness": "sharpness",
    "peak_gib": "peak GiB",
    "seconds_per_cycle": "seconds a cycle",
    "held_rank": "rank correlation on held-out prompts",
    "held_pairwise": "pairs told right there",
    "own_reward": "pursued reward at the end",
}
LESS = ("frechet", "peak_gib", "seconds_per_cycle")  # of which less is better


class Question(NamedTuple):
    """What is asked, what the paper says, the comparisons that decide, and numbers that only stand beside.

    expected: the paper's answer; None where it gives none.
    """

    text: str
    paper: str
    decides: Sequence[Comparison]
    beside: Sequence[str] = ()
    expected: str | None = "yes"


def questions(results: Results, labels: dict[str, str]) -> list[Question]:
    """All questions, answered with what is known."""
    ask = _Asker(results, labels)
    return [*_distillation(ask), *_rewards(ask), *_overoptimisation(ask), *_bodies(ask)]


def markdown(question: Question, seeds: int) -> str:
    """A question with its deciding numbers and its verdict."""
    answer = together(question.decides)
    note = {1: " (one seed)"}.get(seeds, "")
    told = {
        "yes": f"**Yes**{note}.",
        "no": f"**No**{note}.",
        "mixed": f"**Partly**{note}.",
        "undecided": "**Undecided**: the means differ by less than their standard deviations.",
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

    def __init__(self, results: Results, labels: dict[str, str]) -> None:
        self.results = results
        self.labels = labels

    def spread(self, name: str, figure: str, steps: int = 4) -> Spread | None:
        if name == "teacher":
            return spread_of([self.results.teacher(figure)])
        return spread_of(list(self.results.figure(name, figure, steps).values()))

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
        named = [(self.labels.get(n, n), self.spread(n, figure)) for n in (a, b)]
        return compare(what, named[0], named[1], better)

    def beside(self, figure: str, *names: str) -> str:
        """A figure of several rows as text."""
        parts = (f"{self.labels.get(n, n)} {shown(self.spread(n, figure))}" for n in names)
        return f"{NAMES[figure]}: {', '.join(parts)}"

    def ends(self, name: str, curve: str) -> tuple[Spread | None, Spread | None]:
        """A curve's first and last values."""
        found: list[list[Any]] = [r["curves"][curve][2] for r in self.results.of(name) if curve in r["curves"]]
        return spread_of([values[0] for values in found]), spread_of([values[-1] for values in found])

    def sooner(self, a: str, b: str) -> Comparison:
        """Whether a needs fewer seconds than b to the highest true reward that both reach, seed by seed."""
        of_b = {r["seed"]: r for r in self.results.of(b)}
        pairs = [sooner(r, of_b[r["seed"]]) for r in self.results.of(a) if r["seed"] in of_b]
        kept = [pair for pair in pairs if pair is not None]
        x, y = (spread_of([pair[i] for pair in kept]) for i in (0, 1))
        what = "seconds to the highest true reward that both reach"
        return compare(what, (self.labels.get(a, a), x), (self.labels.get(b, b), y), -1, "{:.0f}".format)

    def ended(self, name: str) -> str:
        """In how many seeds the guard ended a row, and at which cycle."""
        found = self.results.of(name)
        cycles = [str(r["cycles"]) for r in found if r["ended"]]
        at = f" after cycle {', '.join(cycles)}" if cycles else ""
        return f"the guard ended {len(cycles)} of {len(found)} runs of “{self.labels.get(name, name)}”{at}"


def _distillation(ask: _Asker) -> list[Question]:
    return [
        Question(
            "Does CD restore diversity that VSD loses?",
            "The paper's Table 3: Vendi (Inception) 2.34 of the teacher, 1.91 with VSD, 2.14 with VSD + CD.",
            [ask.lower("vendi", "vsd", "teacher"), ask.higher("vendi", "vsd_cd", "vsd")],
            [ask.beside("vendi", "cd")],
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
            [ask.better("alignment", "vsd_cd_lrm", "teacher"), ask.better("reward", "vsd_cd_lrm", "teacher")],
            [ask.beside("alignment", "vsd", "vsd_cd"), ask.beside("frechet", "vsd_cd_lrm", "teacher")],
        ),
    ]


def _rewards(ask: _Asker) -> list[Question]:
    return [
        Question(
            "Does a latent reward model raise the true reward?",
            "The paper's Table 5 and Figure 8 say so.",
            [ask.better("reward", "vsd_lrm", "vsd"), ask.better("reward", "vsd_cd_lrm", "vsd_cd")],
            [ask.beside("alignment", "vsd", "vsd_lrm", "vsd_cd", "vsd_cd_lrm")],
        ),
        Question(
            "Does the LRM reach a reward sooner than DDPO, and a higher one?",
            "The paper's Table 5: HPSv2 0.276 against 0.271, PickScore 0.207 both.",
            [ask.sooner("vsd_lrm", "vsd_ddpo"), ask.better("reward", "vsd_lrm", "vsd_ddpo")],
            [ask.beside("seconds_per_cycle", "vsd_lrm", "vsd_ddpo")],
        ),
        Question(
            "Does it need less memory than the direct gradient?",
            "The paper's Table 1: 17.8 MB against more than 90 GB, of a reward model of ViT-H's size.",
            [ask.better("peak_gib", "vsd_lrm", "vsd_direct")],
            [
                ask.beside("seconds_per_cycle", "vsd_lrm", "vsd_direct"),
                ask.beside("reward", "vsd_lrm", "vsd_direct"),
                "here peak memory is the whole process's, and both decoder and reward model are tiny; "
                "`make bench-reward` measures the paper's sizes",
            ],
        ),
    ]


def _overoptimisation(ask: _Asker) -> list[Question]:
    found = []
    for name, what in (("jpeg", "JPEG size"), ("motion", "motion")):
        first, end = ask.ends(name, "reward_4")
        rises = compare("pursued reward higher", ("at the end", end), ("at the first validation", first))
        found.append(
            Question(
                f"Does over-optimising {what} ruin the clips?",
                "The paper's Figure 9: dynamic degree rises to 0.97 while the clips become a flow of noise.",
                [rises, ask.lower("alignment", name, "vsd_cd"), ask.higher("frechet", name, "vsd_cd")],
                [ask.beside("sharpness", name, "vsd_cd")],
            )
        )
        found.append(
            Question(
                f"Does the guard stop it ({what})?",
                "",
                [
                    ask.higher("alignment", f"{name}_stop", name),
                    ask.higher("alignment", f"{name}_lower", name),
                ],
                [ask.ended(f"{name}_stop"), ask.beside("own_reward", name, f"{name}_stop", f"{name}_lower")],
                None,
            )
        )
    pull = ask.higher("alignment", "jpeg_pull", "jpeg")
    beside = [ask.beside("own_reward", "jpeg", "jpeg_pull")]
    return [*found, Question("Does a pull towards the teacher hold it?", "", [pull], beside, None)]


def _bodies(ask: _Asker) -> list[Question]:
    def buys(what: str, a: str, b: str) -> Question:
        gains = [ask.better(figure, a, b) for figure in ("held_rank", "held_pairwise", "reward")]
        costs = [ask.beside(figure, a, b) for figure in ("peak_gib", "seconds_per_cycle")]
        return Question(what, "", gains, costs, None)

    return [
        buys("Do the teacher's blocks fit better than the CNN, and lead to a higher reward?", "lrm_teacher", "vsd_lrm"),
        buys("Does a pairwise fit?", "lrm_pairwise", "vsd_lrm"),
        buys("Do both together?", "lrm_teacher_pairwise", "vsd_lrm"),
    ]
