"""What a study adds to the engine: the figures of a run, the questions, and how its document looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dollar.studies.document import Layout
from dollar.studies.plots import Plot
from dollar.studies.questions import Question
from dollar.studies.results import Results
from dollar.studies.rows import Row


def no_plots(rows: Sequence[Row], results: Results) -> dict[str, Plot]:
    """Of a study without plots."""
    return {}


@dataclass(frozen=True)
class Content:
    """A study's content.

    name: of its document NAME.md and of the folder with results and plots. rewards: the figures that a row may pursue,
    each with the part of launch/evaluate.py's mixture that measures it; usual: the one that every row is measured by,
    and pursues where nothing else is said. measured: a trained and evaluated run's result, from its folder;
    measured_teacher: the teacher's, None of a study that has none; steps: the step count whose figures are meant where
    none is named; rows: makes them of the configuration, where that doesn't list them; embedded: the embedded networks
    that its rows come from.
    """

    name: str
    rewards: Mapping[str, str]
    usual: str
    measured: Callable[[Path], dict[str, Any]]
    measured_teacher: Callable[[Path], dict[str, Any]] | None
    layout: Layout
    questions: Callable[[Results, Sequence[Row]], Sequence[Question]]
    rows: Callable[[Mapping[str, Any]], list[dict[str, Any]]] | None = None
    plots: Callable[[Sequence[Row], Results], Mapping[str, Plot]] = no_plots
    steps: int = 4
    embedded: Sequence[str] = ("clip", "shapes")
