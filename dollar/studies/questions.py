"""Questions of a study, each answered by a few comparisons of its rows' figures."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dollar.studies.compare import LEAST, Comparison, Gaps, Spread, compare, shown, spread_of, together
from dollar.studies.curves import Rise, rise_of, sooner
from dollar.studies.results import Results
from dollar.studies.rows import TEACHER, Row


class Question(NamedTuple):
    """What a study wants to know, the paper's answer, the comparisons that decide, and numbers that only accompany.

    expected: the paper's answer, yes or no; None where it gives none.
    """

    text: str
    paper: str
    decides: Sequence[Comparison]
    context: Sequence[str] = ()
    expected: str | None = "yes"


@dataclass(frozen=True)
class Wording:
    """How a study's figures are called and written.

    forms: of figures that three decimals don't tell apart; less: those of which less is better.
    """

    names: Mapping[str, str]
    forms: Mapping[str, str] = field(default_factory=dict)
    less: Collection[str] = ()

    def show(self, figure: str) -> Callable[[float], str]:
        """What writes a value of a figure."""
        return self.forms.get(figure, "{:.3f}").format


# Answers of comparisons together, as they are written, and what is to be said of them.
VERDICTS = {
    "yes": ("Yes", ""),
    "no": ("No", ""),
    "mixed": ("Partly", ""),
    "unshown": ("Not shown", "what is beyond chance speaks against it"),
    "undecided": ("Undecided", "the gap may be chance"),
    "met": ("Yes, by the mean", "the interval over seeds reaches beyond what is asked"),
    "missed": ("No, by the mean", "the interval over seeds reaches what is asked"),
    "unknown": ("Not measured yet", ""),
}
LEGEND = (
    "Yes and no are beyond chance over seeds; partly is one of each; undecided may be chance; not shown is a no beside "
    "what may be chance. Of what is to be no worse, or to hold, yes says only that it isn't worse beyond chance. "
    "An effect is the first's figure minus the second's."
)
BARS = " Where a bar is asked for, “by the mean” says that the mean decides and that the interval has both sides of it."


def verdict(question: Question) -> str:
    """A question's answer in a word or two."""
    return VERDICTS[together(question.decides)][0]


def verdicts(questions: Sequence[Question]) -> str:
    """All questions in a table: the answer, and each deciding comparison's effect with its interval."""
    lines = ["| question | answer | effect | 95 % interval |", "|---|---|---|---|"]
    for question in questions:
        known = [c for c in question.decides if c.effect]
        effects = "<br>".join(f"{c.what}: {c.effect}" for c in known) or "—"
        intervals = "<br>".join(c.interval or "—" for c in known) or "—"
        lines.append(f"| {question.text} | **{verdict(question)}** | {effects} | {intervals} |")
    by_mean = any(c.answer in ("met", "missed") for question in questions for c in question.decides)
    return "\n".join(lines) + f"\n\n{LEGEND}{BARS * by_mean}\n"


def markdown(question: Question, seeds: int) -> str:
    """A question with its deciding numbers and its verdict."""
    answer = together(question.decides)
    word, why = VERDICTS[answer]
    note = " (one seed)" if seeds == 1 and answer in ("yes", "no", "mixed", "met", "missed") else ""
    why = "" if note and answer in ("met", "missed") else why  # of one seed there may be no interval
    told = f"**{word}**{note}" + (f": {why}" if why else "") + "."
    if question.expected in ("yes", "no") and answer in ("yes", "no", "mixed") and answer != question.expected:
        told += " This contradicts the paper." if answer != "mixed" else " The paper says so without reserve."
    lines = [f"- {c.text} → {c.answer}" for c in question.decides] + [
        f"- beside it: {text}" for text in question.context
    ]
    paper = f" {question.paper}" if question.paper else ""
    return f"### {question.text}\n\n{told}{paper}\n\n" + "\n".join(lines) + "\n"


class Asker:
    """Compares rows by their names; `teacher` is one."""

    def __init__(self, results: Results, rows: Sequence[Row], wording: Wording) -> None:
        self.results = results
        self.rows = rows
        self.wording = wording
        self.labels = {row.name: row.label for row in rows}

    def spread(self, name: str, figure: str) -> Spread | None:
        """A figure of a row over its seeds, or the teacher's."""
        if name == TEACHER:
            return self.results.teacher(figure)
        return self.results.spread(name, figure)

    def better(self, figure: str, a: str, b: str) -> Comparison:
        """Whether a has the better figure."""
        return self._compare(self.wording.names[figure], figure, a, b, -1 if figure in self.wording.less else 1)

    def lower(self, figure: str, a: str, b: str) -> Comparison:
        """Whether a has the lower figure, be that better or not."""
        return self._compare(f"{self.wording.names[figure]} lower", figure, a, b, -1)

    def higher(self, figure: str, a: str, b: str) -> Comparison:
        """Whether a has the higher figure."""
        return self._compare(f"{self.wording.names[figure]} higher", figure, a, b, 1)

    def _compare(self, what: str, figure: str, a: str, b: str, better: int) -> Comparison:
        first, second = ((self.labels.get(n, n), self.spread(n, figure)) for n in (a, b))
        gaps = None if TEACHER in (a, b) else self.results.gaps(a, b, figure)  # the teacher has no seeds
        found = compare(what, first, second, better, self.wording.show(figure), gaps)
        return found._replace(what=self.wording.names[figure])  # the effect has a sign of its own

    def no_worse(self, figure: str, a: str, b: str) -> Comparison:
        """No where a's figure is worse than b's beyond chance, otherwise yes."""
        worse = 1 if figure in self.wording.less else -1
        found = self._compare(f"{self.wording.names[figure]} no worse", figure, a, b, worse)
        return found._replace(answer={"yes": "no", "unknown": "unknown"}.get(found.answer, "yes"))

    def alike(self, figure: str, a: str, b: str) -> Comparison:
        """No where the figures of a and b differ beyond chance, to either side, otherwise yes."""
        found = self._compare(f"{self.wording.names[figure]} alike", figure, a, b, 1)
        return found._replace(answer={"undecided": "yes", "unknown": "unknown"}.get(found.answer, "no"))

    def numbers(self, figure: str, *names: str) -> str:
        """A figure of several rows as text."""
        show = self.wording.show(figure)
        parts = (f"{self.labels.get(n, n)} {shown(self.spread(n, figure), show)}" for n in names)
        return f"{self.wording.names[figure]}: {', '.join(parts)}"

    def rises(self, name: str, held: float | None = None) -> dict[int, Rise]:
        """A row's true reward by seed; held: at validations that held this share of the start's mean margin."""
        return {r["seed"]: rise for r in self.results.of(name) if (rise := rise_of(r, held))}

    def sooner(self, a: str, b: str, held: float | None = None) -> Comparison:
        """Whether a needs fewer seconds than b to the highest true reward that both reach, seed by seed."""
        of_a, of_b = self.rises(a, held), self.rises(b, held)
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
        risen = ", ".join(
            f"{self.labels.get(n, n)} rises {LEAST:.0%} above it in {sum(g)} of {len(g)} seeds" for n, g in gets.items()
        )
        return Comparison(answer, f"{what}: it is the start's; {risen}")

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
