"""Against over-optimisation: watches whether what is pursued rises while what should hold falls."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

ACTIONS = ("none", "warn", "lower", "stop")


@dataclass
class Guard:
    """Compares two scores at every validation: `pursued`, to which the student is led, and `held`, which must hold.

    A check is troubled when `held` has fallen below its best by more than `tolerance` of the best's size, while
    `pursued` stands higher than it did there. After `patience` such checks in a row the guard acts: `warn` says so,
    `lower` multiplies the reward terms' weight by `factor`, `stop` ends the run.
    """

    action: str = "none"
    patience: int = 2
    tolerance: float = 0.02
    factor: float = 0.5
    scale: float = 1.0
    troubled: int = 0
    best: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"guard.action is {self.action!r}; use {', '.join(ACTIONS[:-1])} or {ACTIONS[-1]}")
        if self.patience < 1:
            raise ValueError(f"guard.patience is {self.patience}; it must be at least 1 check")
        if self.tolerance < 0:
            raise ValueError(f"guard.tolerance is {self.tolerance}; it is a share of the best score, 0 or more")
        if not 0 <= self.factor < 1:
            raise ValueError(f"guard.factor is {self.factor}; it must lower the weight: 0 or more and below 1")

    @property
    def active(self) -> bool:
        return self.action != "none"

    def check(self, pursued: float, held: float) -> str:
        """Look at the scores of one validation; what is to be said, as a sentence, or "" where all is well."""
        if not (math.isfinite(pursued) and math.isfinite(held)):
            return ""  # nothing can be told of what was not measured
        if not self.best or held >= self.best["held"]:
            self.best = {"pursued": pursued, "held": held}
        fallen = held < self.best["held"] - self.tolerance * abs(self.best["held"])
        self.troubled = self.troubled + 1 if fallen and pursued > self.best["pursued"] else 0
        if not self.active or self.troubled < self.patience:
            return ""
        told = (
            f"over-optimisation: what is pursued rose from {self.best['pursued']:.4g} to {pursued:.4g} while what "
            f"should hold fell from {self.best['held']:.4g} to {held:.4g}, at {self.troubled} validations in a row"
        )
        if self.action == "lower":
            self.scale *= self.factor
            self.troubled, self.best = 0, {"pursued": pursued, "held": held}
            return f"{told}; the reward's weight is now {self.scale:.3g} of what it was"
        if self.action == "stop":
            return f"{told}; the run ends here"
        return f"{told}; guard.action=lower or stop would act on it"

    @property
    def stops(self) -> bool:
        """Whether the last check asked to end the run."""
        return self.action == "stop" and self.troubled >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return {"scale": self.scale, "troubled": self.troubled, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.scale, self.troubled, self.best = state["scale"], state["troubled"], dict(state["best"])
