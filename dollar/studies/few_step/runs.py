"""What a row of the study runs: an experiment, whose yaml is part of what its result follows from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dollar.studies.content import Content
from dollar.studies.rows import Row, replaced
from dollar.studies.runs import Runs
from dollar.studies.settings import Settings

MEASURING = 300  # cycles that take about as long as an evaluation


class Recipes(Runs):
    """Rows that are trained as an experiment says; experiments: what these hold, as plain values, by their names."""

    def __init__(self, settings: Settings, content: Content, experiments: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(settings, content)
        self.experiments = experiments

    def overrides(self, row: Row) -> list[str]:
        """Of launch/train.py, without seed and folders; cycles and batch are the experiment's."""
        c = self.settings
        return replaced(replaced(c.train, c.groups[row.group].overrides), row.overrides)

    def recipe(self, row: Row) -> Any:
        """The settings of a row's training, what its experiment holds among them."""
        return [self.overrides(row), self.experiments[experiment_of(row)]]

    def size(self, row: Row | None) -> float:
        """How long a row takes compared with others, in cycles; None is the teacher's evaluation."""
        if row is None:
            return float(MEASURING)
        own = dict(override.partition("=")[::2] for override in row.overrides)
        return float(own.get("cycles", self.experiments[experiment_of(row)]["cycles"])) + MEASURING


def experiment_of(row: Row) -> str:
    """The experiment that a row names; ValueError where it names none."""
    for override in row.overrides:
        key, _, name = override.partition("=")
        if key == "experiment":
            return name
    raise ValueError(f"the row {row.name} names no experiment; give it one in its overrides, as experiment=four_steps")


def place_of_experiment(folder: Path, row: Row) -> Path:
    """The yaml of a row's experiment in a folder of experiments; ValueError where there is none."""
    place = folder / f"{experiment_of(row)}.yaml"
    if not place.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
        raise ValueError(f"the row {row.name} has experiment={experiment_of(row)}; there are {known}")
    return place
