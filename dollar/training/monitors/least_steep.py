"""Chooses among models that score nearly alike the one whose gradient is smallest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dollar.training.monitors.best import Best
from dollar.training.monitors.monitor import Verdict


class Look(NamedTuple):
    """What was measured after a cycle."""

    cycle: int
    score: float
    steepness: float


@dataclass
class LeastSteep:
    """Keeps the models whose score is within `tolerance` of the best one so far; of those `chosen` is the least steep.

    A surrogate's score goes on rising while its gradient turns to what only distinguishes the clips that it was fitted
    to. So of models that predict alike the one that had to bend least is the one to follow; tolerance 0 is the best.
    best: the monitor of the score, which ends a run for lack of a better one; steepness: the name of the other score.
    """

    best: Best
    tolerance: float = 0.0
    steepness: str = "steepness"
    looks: list[Look] = field(default_factory=list)

    prefers_kept = True

    def check(self, scores: list[str]) -> None:
        self.best.check(scores)

    def look(self, cycle: int, scores: Mapping[str, float]) -> Verdict:
        verdict, score = self.best.look(cycle, scores), scores[self.best.name]
        self.looks.append(Look(cycle, score, scores[self.steepness]))
        kept = {self.best.name: score, "cycle": cycle} if self._is_near(score) else None
        return Verdict(keep=kept, ended=verdict.ended)

    def _is_near(self, score: float) -> bool:
        return score >= self.best.best.get(self.best.name, float("inf")) - self.tolerance

    @property
    def chosen(self) -> Look | None:
        """The least steep of those that are near the best, the first of equals; None where no score was a number."""
        return min(
            (look for look in self.looks if self._is_near(look.score)), key=lambda look: look.steepness, default=None
        )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best.state_dict(), "looks": [list(look) for look in self.looks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best.load_state_dict(state["best"])
        self.looks = [Look(*look) for look in state["looks"]]
