"""An alarm for what should not rise above where it began: it looks at what cycles log, and needs no validation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dollar.training.monitors.monitor import Verdict

ACTIONS = ("none", "warn", "stop")


@dataclass
class Alarm:
    """Averages a logged scalar over `every` cycles, a look; the first look is its start.

    A look is troubled when it lies above the start by more than `tolerance` of the start's size. After `patience` such
    looks in a row `warn` says so, once until it is well again, and `stop` ends the run with the student of the last
    look that was not troubled. A look at which the scalar is no number is none.
    keeps: whether it keeps the student of each look without trouble, to go back to under `stop`, or another does.
    name: what the cycles log it as; start: the first look; seen: this look's values; troubled: looks in a row.
    """

    name: str
    every: int = 10
    patience: int = 3
    tolerance: float = 0.1
    action: str = "warn"
    keeps: bool = True
    start: float | None = None
    troubled: int = 0
    seen: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"the alarm's action is {self.action!r}; use {', '.join(ACTIONS[:-1])} or {ACTIONS[-1]}")
        for key, least in (("every", 1), ("patience", 1), ("tolerance", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"the alarm's {key} is {getattr(self, key)}; it must be at least {least}")

    @property
    def prefers_kept(self) -> bool:
        """Whether it has ended the run, so that the student is the one before."""
        return self.action == "stop" and self.troubled >= self.patience

    def check(self, scores: list[str]) -> None:
        """Any validation will do: it looks at none."""

    def look(self, cycle: int, scores: Mapping[str, float]) -> Verdict:
        """A validation's scores are not what it looks at."""
        return Verdict()

    def watch(self, cycle: int, scalars: Mapping[str, float]) -> Verdict:
        """What a cycle logged, after this many cycles."""
        if self.action == "none" or self.name not in scalars:
            return Verdict()
        self.seen.append(scalars[self.name])
        if len(self.seen) < self.every:
            return Verdict()
        now, self.seen = sum(self.seen) / len(self.seen), []
        if not math.isfinite(now):
            return Verdict()
        self.start = now if self.start is None else self.start
        above = now > self.start + self.tolerance * abs(self.start)
        self.troubled = self.troubled + 1 if above else 0
        logged = {"alarm/look": now, "alarm/troubled": float(self.troubled)}
        if self.troubled == 0:
            return Verdict({"cycle": cycle} if self.action == "stop" and self.keeps else None, scalars=logged)
        if self.troubled < self.patience or (self.action == "warn" and self.troubled > self.patience):
            return Verdict(scalars=logged)
        note = (
            f"{self.name}, which should not rise, is {now:.4g} in the mean of {self.every} cycles and was "
            f"{self.start:.4g} at the start; this is look {self.troubled} above it in a row"
        )
        if self.action == "stop":
            which = "last look below" if self.keeps else "best score"
            return Verdict(ended=f"{note}, with the student of the {which}", note=note, scalars=logged)
        return Verdict(note=note, scalars=logged)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return {"start": self.start, "troubled": self.troubled, "seen": list(self.seen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a `state_dict`."""
        self.start, self.troubled, self.seen = state["start"], state["troubled"], list(state["seen"])
