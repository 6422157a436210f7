"""The panel of all other rewards beside every result: what happened to those that a row was not trained for."""

from __future__ import annotations

from collections.abc import Sequence

from dollar.studies.ablation.figures import NAMES, PANEL
from dollar.studies.compare import Comparison, change, falls
from dollar.studies.questions import Question, Wording
from dollar.studies.results import Results
from dollar.studies.rows import Row
from dollar.studies.tables import Column, markdown_table


def others(row: Row) -> list[str]:
    """The panel's figures that a row was not trained for."""
    return [figure for figure in PANEL if figure != row.pursued]


def judged(rows: Sequence[Row], results: Results) -> list[Row]:
    """The rows with a control of which both are measured in a figure of the panel, which none was trained for."""
    return [
        row
        for row in rows
        if row.control and any(results.gaps(row.name, row.control, figure).values for figure in others(row))
    ]


def panel(rows: Sequence[Row], results: Results, wording: Wording) -> str:
    """A table of a group's rows: each other reward's change against the row's control; empty without any."""
    mine = judged(rows, results)
    if not mine:
        return ""
    measured = {figure for row in mine for figure in PANEL if results.gaps(row.name, row.control, figure).values}
    columns = [Column(name, figure, "") for figure, name in PANEL.items() if figure in measured]

    def cells(row: Row) -> list[str]:
        unsought = others(row)
        gaps = {c.figure: results.gaps(row.name, row.control, c.figure) for c in columns if c.figure in unsought}
        return [change(gaps[c.figure], wording.show(c.figure)) if c.figure in gaps else "*pursued*" for c in columns]

    about = "Rewards that were not optimised, against the row's control; what falls beyond chance is bold:\n"
    return f"{about}\n{markdown_table(columns, [(row.label, cells(row)) for row in mine])}\n"


def holding(rows: Sequence[Row], results: Results, title: str) -> Question:
    """Whether, of these rows, no reward falls that was not optimised."""
    return Question(
        f"Do the rewards hold that were not optimised ({title})?",
        "None of the panel's falls below the row's control beyond chance, which one of twenty would by chance.",
        [_holds(row, results) for row in rows],
        (),
        None,
    )


def _holds(row: Row, results: Results) -> Comparison:
    gaps = {figure: results.gaps(row.name, row.control, figure) for figure in others(row)}
    known = [figure for figure, found in gaps.items() if len(found.values) > 1]
    if not known:
        return Comparison("unknown", f"{row.label}: not measured over seeds", row.label)
    fallen = [figure for figure in known if falls(gaps[figure])]
    told = ", ".join(NAMES[figure] for figure in fallen)
    effect = f"{len(fallen)} of {len(known)} fall" + (f": {told}" if fallen else "")
    return Comparison("no" if fallen else "yes", f"{row.label}: {effect}", row.label, effect)
