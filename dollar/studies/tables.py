"""Tables of a study in markdown: a row a student and step count, a column a figure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dollar.studies.compare import shown
from dollar.studies.results import Results
from dollar.studies.rows import Row


class Column(NamedTuple):
    """A column of a table: its heading, the figure, and how that is written."""

    heading: str
    figure: str
    form: str


def markdown_table(columns: Sequence[Column], lines: Iterable[tuple[str, Sequence[str]]]) -> str:
    """A table of labelled lines of cells."""
    head = ["| |" + "|".join(column.heading for column in columns) + "|", "|---" * (len(columns) + 1) + "|"]
    return "\n".join([*head, *(f"| {label} | " + " | ".join(cells) + " |" for label, cells in lines)]) + "\n"


def table(
    columns: Sequence[Column],
    repeated: Sequence[Row],
    mine: Sequence[Row],
    results: Results,
    teacher: str,
    across: bool = False,
) -> str:
    """The teacher, real clips, rows of other groups in italics, and the group's own; a row a step count.

    teacher: the label of its line; where it is empty, the study has neither a teacher nor real clips. across: figures
    are the lines and students the columns, for many figures of few students.
    """
    lines: list[tuple[str, list[str]]] = []
    for label, figure_of in ((teacher, results.teacher), ("real clips", results.real)) if teacher else ():
        lines.append((label, [shown(figure_of(c.figure), c.form.format) for c in columns]))
    for row in [*repeated, *mine]:
        for steps in row.steps:
            one = row.steps == (results.steps,)
            told = f" {steps} step" in f" {row.label}"  # a label may tell it itself
            label = row.label if one or told else f"{row.label}, {steps} step{'s' * (steps != 1)}"
            cells = [shown(results.spread(row.name, c.figure, steps), c.form.format) for c in columns]
            lines.append((f"*{label}*" if row in repeated else label, cells))
    if across:
        turned = [(c.heading, [cells[k] for _, cells in lines]) for k, c in enumerate(columns)]
        return markdown_table([Column(label, "", "") for label, _ in lines], turned)
    return markdown_table(columns, lines)
