"""Keeps the student of the best score, and ends a run in which none comes for long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dollar.training.monitors.monitor import Verdict


@dataclass
class Best:
    """Keeps the student of the highest score `name`; ends the run after `patience` validations without a better one.

    every: cycles between validations; patience: None for never; key: what a configuration calls the name; best: the
    score and its cycle.
    """

    name: str
    every: int
    patience: int | None = None
    key: str = "keep_best"
    best: dict[str, float] = field(default_factory=dict)

    prefers_kept = True

    def check(self, scores: list[str]) -> None:
        if self.every == 0:
            raise ValueError(f"{self.key} is {self.name!r}, but validation.every is 0, so nothing is measured")
        if self.name not in scores:
            raise ValueError(f"{self.key} is {self.name!r}; validation measures {', '.join(scores)}")

    def look(self, cycle: int, scores: Mapping[str, float]) -> Verdict:
        if self.name not in scores:
            raise ValueError(f"{self.key} is {self.name!r}; validation measures {', '.join(sorted(scores))}")
        if scores[self.name] > self.best.get(self.name, float("-inf")):
            self.best = {self.name: scores[self.name], "cycle": cycle}
            return Verdict(keep=self.best)
        if self.patience is None or (cycle - int(self.best.get("cycle", 0))) / self.every < self.patience:
            return Verdict()
        if not self.best:
            return Verdict(ended=f"{self.name} was never a number")
        if self.name not in self.best:
            return Verdict(ended=f"{self.name} was no number since cycle {self.best['cycle']}")
        return Verdict(ended=f"no better {self.name} than {self.best[self.name]} of cycle {self.best['cycle']} since")

    def forget(self, cycle: int) -> None:
        """Take the next score as the best, and count the patience from this cycle."""
        self.best = {"cycle": cycle}

    def state_dict(self) -> dict[str, Any]:
        return dict(self.best)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = dict(state)
