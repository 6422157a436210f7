"""The trade-off at equal true reward: what a method loses where it has raised what is pursued by the same amount."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from dollar.studies.ablation.figures import CONTROL, LESS, along_push
from dollar.studies.compare import Gaps
from dollar.studies.results import Results
from dollar.studies.rows import Row

# Of what is pursued, above the control of the same seed, at which methods are compared: what is asked for, and what the
# paper's form gets to in every seed.
RISES = (0.05, 0.03)
RISE = RISES[0]
LOST = {"alignment": "alignment lost", "frechet": "Fréchet gained", "vendi": "Vendi lost"}

Weighted = Mapping[str, float]  # rows, each with a weight: a student between two rows, or a difference of such


class Reach(NamedTuple):
    """A method of one seed: the most that it rises, and the student at the rise asked for, None where it has none."""

    most: float
    student: Weighted | None


class Tradeoff:
    """A method's points of one seed are the control, which is no push at all, and its rows in order of push."""

    def __init__(self, results: Results, rows: Sequence[Row], pursued: str, rise: float = RISE) -> None:
        self.results = results
        self.rows = rows
        self.pursued = pursued
        self.rise = rise

    def reaches(self, method: str) -> dict[int, Reach]:
        """By seed, where both the control and a row of the method are measured."""
        start, found = self.results.figure(CONTROL, self.pursued), dict[int, Reach]()
        by_row = {row: self.results.figure(row, self.pursued) for row in along_push(self.rows, method)}
        for seed, value in start.items():
            points = [(row, values[seed] - value) for row, values in by_row.items() if seed in values]
            if points:
                most = max(rise for _, rise in points)
                found[seed] = Reach(most, between([(CONTROL, 0.0), *points], self.rise))
        return found

    def students(self, method: str) -> dict[int, Weighted]:
        """By seed, the method's student at the rise, on the straight line between two of its points."""
        return {seed: reach.student for seed, reach in self.reaches(method).items() if reach.student is not None}

    def lost(self, method: str, figure: str) -> Gaps:
        """How much worse a figure is than the control's, seed by seed."""
        students = self.students(method)
        return self._gaps({seed: _less({CONTROL: 1.0}, student) for seed, student in students.items()}, figure)

    def beyond(self, a: str, b: str, figure: str, share: float = 1.0) -> Gaps:
        """How much more method a loses of a figure than a share of what b loses, of seeds in which both get there."""
        of_a, of_b = self.students(a), self.students(b)
        pairs = {seed: (of_a[seed], of_b[seed]) for seed in of_a if seed in of_b}
        control = {CONTROL: 1.0}
        parts = {seed: _less(_less(control, x), _less(control, y), share) for seed, (x, y) in pairs.items()}
        return self._gaps(parts, figure)

    def _gaps(self, parts: Mapping[int, Weighted], figure: str) -> Gaps:
        """Weighted sums of a figure, seed by seed, with the sign of a loss, and evaluation's error of their mean."""
        sign = -1.0 if figure in LESS else 1.0
        values, errors = [], []
        for seed, weights in parts.items():
            known = {row: self.results.figure(row, figure).get(seed) for row in weights}
            if any(value is None for value in known.values()):
                continue
            values.append(sign * sum(weights[row] * (value or 0.0) for row, value in known.items()))
            own = {row: self.results.figure(row, f"{figure}_se").get(seed, 0.0) for row in weights}
            errors.append(math.hypot(*(weights[row] * error for row, error in own.items())))
        return Gaps(values, math.hypot(*errors) / max(len(errors), 1))


def between(points: Sequence[tuple[str, float]], level: float) -> Weighted | None:
    """The weights of the two neighbouring points between which a level is first come up to; None where it never is.

    points: names and values in their order, of which the first is below the level.
    """
    for (before, low), (after, high) in pairwise(points):
        if high >= level:
            share = (level - low) / (high - low)
            return {before: 1 - share, after: share}
    return None


def _less(a: Weighted, b: Weighted, share: float = 1.0) -> Weighted:
    """a minus a share of b."""
    return {row: a.get(row, 0.0) - share * b.get(row, 0.0) for row in {**a, **b}}
