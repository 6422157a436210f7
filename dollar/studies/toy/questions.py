"""What the appendix says of its toy, each claim a question that the counts answer, for both readings of its SFT."""

from __future__ import annotations

from dollar.studies.compare import Comparison
from dollar.studies.questions import Asker, Question, Wording
from dollar.studies.results import Results
from dollar.studies.toy.rows import (
    BASE,
    DPO,
    FULL,
    LABELS,
    READINGS,
    ROWS,
    distance_figure,
    mode_figure,
)
from dollar.studies.toy.seeds import Setting


def wording_of(setting: Setting) -> Wording:
    """How the figures are called and written."""
    modes = range(1, setting.modes.count + 1)
    counts = {mode_figure(k): f"samples in mode {k}" for k in modes} | {"outside": "samples outside"}
    counts |= {"moved": "samples to be moved"}
    others = {distance_figure(k): f"distance from the teacher in mode {k}" for k in modes}
    others |= {"winner": "winners' error above the teacher's", "loser": "losers' error above the teacher's"}
    others |= {"accuracy": "implicit accuracy"}
    forms = dict.fromkeys(counts, "{:.0f}") | dict.fromkeys(others, "{:.4f}") | {"accuracy": "{:.2f}"}
    return Wording(counts | others, forms, less=("outside", "moved"))


def questions(setting: Setting, results: Results) -> list[Question]:
    """All of them, answered with what is known."""
    ask = Asker(results, ROWS, wording_of(setting))
    preferred = mode_figure(setting.preferred)
    others = [k for k in range(1, setting.modes.count + 1) if k != setting.preferred]
    distances = [distance_figure(k) for k in range(1, setting.modes.count + 1)]
    found = [
        Question(
            f"Does the base student lack mode {setting.preferred}, and make more samples outside than its teacher?",
            "Appendix E: its learned distribution is imbalanced, for its capacity is limited.",
            [ask.lower(preferred, BASE, FULL), ask.higher("outside", BASE, FULL)],
        )
    ]
    found += [
        Question(
            f"Does SFT on {words} make more samples outside than the base student?",
            "Appendix E, finding 1: yes, by excessive smoothing.",
            [ask.higher("outside", sft, BASE)],
            [ask.numbers(figure, BASE, sft) for figure in distances],
        )
        for words, (sft, _) in READINGS.items()
    ]
    found += [
        Question(
            f"Does DPO alone lose mode {k}?",
            f"Appendix E, finding 2: it favours mode {setting.preferred} and degrades mode 1.",
            [ask.lower(mode_figure(k), DPO, BASE)],
            [ask.numbers(preferred, BASE, DPO, FULL), ask.numbers("outside", BASE, DPO)],
        )
        for k in others
    ]
    for words, (sft, both) in READINGS.items():
        found += [
            Question(
                f"Does DPO with SFT on {words} make the fewest samples outside?",
                "Appendix E, finding 3: fewer than the base student, SFT alone and DPO alone.",
                [beside(ask.lower("outside", both, other), other) for other in (BASE, sft, DPO)],
            ),
            Question(
                f"Does DPO with SFT on {words} follow the teacher's counts most closely?",
                "Appendix E, finding 3: yes.",
                [beside(ask.better("moved", both, other), other) for other in (BASE, sft, DPO)],
                [ask.numbers(figure, both, FULL) for figure in (preferred, *map(mode_figure, others))],
            ),
        ]
    return found


def beside(comparison: Comparison, other: str) -> Comparison:
    """The same comparison, which says what it is with, where a question has several."""
    return comparison._replace(what=f"{comparison.what} minus those of {LABELS[other]}")
