"""What students of few steps are asked to reach, each against the teacher on the same pairs, and 8 and 16 against 4."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dollar.studies.compare import Comparison, compare, reaches
from dollar.studies.few_step.figures import FORMS, LESS, NAMES, above_teacher, share_of_teacher
from dollar.studies.questions import Asker, Question, Wording
from dollar.studies.results import Results
from dollar.studies.rows import TEACHER, Row

WORDING = Wording(NAMES, FORMS, LESS)
FOUR, TWO, ONE, LONGER = "four", "two", "one", ("eight", "sixteen")
COMPARED = ("alignment", "frechet", "vendi")  # in which more steps must be no worse than four


class Bar(NamedTuple):
    """A row's figure as a share of the teacher's, both counted from `zero`, and the share that is asked for."""

    text: str
    row: str
    figure: str
    share: float
    zero: float = 0.0


FRECHET = Bar("Is the Fréchet distance of 4 steps (above floor) at most 1.25 of the teacher's?", FOUR, "frechet", 1.25)
BARS = (
    Bar("Is the alignment of 1 step at least 0.97 of the teacher's?", ONE, "alignment", 0.97),
    Bar("Is the diversity of 1 step (Vendi above 1) at least 0.85 of the teacher's?", ONE, "vendi", 0.85, 1.0),
    Bar("Does 1 step get at least 0.95 as many motions right as the teacher?", ONE, "right_motion", 0.95),
    Bar("Is the spread of speed of 1 step at least 0.95 of the teacher's?", ONE, "speed", 0.95),
)
BELOW = -0.01  # how far two steps may be from the teacher's alignment


def questions(results: Results, rows: Sequence[Row]) -> list[Question]:
    """All questions, answered with what is known."""
    ask = Asker(results, rows, WORDING)
    gap = reaches(
        "alignment, 2 steps minus the teacher",
        above_teacher(results, TWO, "alignment"),
        BELOW,
        show="{:+.3f}".format,
    )
    return [
        Question(
            "Is the alignment of 4 steps above the teacher's?",
            "",
            [_above(ask, FOUR, "alignment")],
            [ask.numbers("verifier", FOUR, TEACHER)],
            None,
        ),
        _asked(ask, FRECHET),
        Question(
            "Is the alignment of 2 steps at least the teacher's minus 0.01?",
            "",
            [gap],
            [ask.numbers("frechet", TWO, TEACHER), ask.numbers("vendi", TWO, TEACHER)],
            None,
        ),
        *(_asked(ask, bar) for bar in BARS),
        *(_no_worse(ask, name) for name in LONGER),
    ]


def _above(ask: Asker, name: str, figure: str) -> Comparison:
    """Whether a row's figure is above the teacher's beyond chance."""
    first, second = ((ask.labels.get(n, n), ask.spread(n, figure)) for n in (name, TEACHER))
    return compare(NAMES[figure], first, second, 1, WORDING.show(figure), above_teacher(ask.results, name, figure))


def _asked(ask: Asker, bar: Bar) -> Question:
    what = f"{NAMES[bar.figure]}{f' above {bar.zero:g}' if bar.zero else ''}, share of the teacher's"
    shares = share_of_teacher(ask.results, bar.row, bar.figure, bar.zero)
    found = reaches(what, shares, bar.share, bar.figure in LESS, "{:.2f}".format if bar is FRECHET else "{:.3f}".format)
    return Question(bar.text, "", [found], [ask.numbers(bar.figure, FOUR, TWO, ONE, TEACHER)], None)


def _no_worse(ask: Asker, name: str) -> Question:
    label, start = (ask.labels.get(n, n) for n in (name, FOUR))
    return Question(
        f"Are {label} no worse than {start}?",
        f"A student of {label} goes on from that of {start} for a few cycles.",
        [ask.no_worse(figure, name, FOUR) for figure in COMPARED],
        [ask.numbers("sharpness", name, FOUR), ask.numbers("right_motion", name, FOUR)],
        None,
    )
