"""Against over-optimisation: watches whether what is pursued rises while what should hold falls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dollar.training.monitors.monitor import Verdict

ACTIONS = ("none", "warn", "lower", "stop")


@dataclass
class Guard:
    """Compares scores at every validation: `pursued`, to which the student is led, and what must hold (`held`).

    Of a validation's scores, those that begin with `predicted` (else `reward`) are pursued, and those of `reward` and
    `guard` that are not must hold.

    A check is troubled when one that must hold has fallen below its best by more than `tolerance` of the best's size,
    while `pursued` stands higher than it did there, or wasn't known there, as in a first look before any fit. After
    `patience` such checks in a row the guard acts: `warn` says so, `lower` multiplies the reward terms' weight by
    `factor`, `stop` ends the run.
    best_score: the score by which another monitor keeps a student; None where this one keeps that of each untroubled
    validation, to go back to under `stop`.
    rise: whether a check is troubled, too, where small steps up the latent reward's gradient since the last one were
    predicted to raise the reward (`rise_predicted`) and did not (`rise_true`).
    """

    action: str = "none"
    patience: int = 2
    tolerance: float = 0.02
    factor: float = 0.5
    best_score: str | None = None
    scale: float = 1.0
    troubled: int = 0
    rise: bool = False
    # Of each that must hold: its best, and what `pursued` was there, None where that was no number.
    best: dict[str, tuple[float, float | None]] = field(default_factory=dict)

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

    @property
    def prefers_kept(self) -> bool:
        """Whether it has ended the run, so that the student is the one before."""
        return self.stops

    def check(self, scores: list[str]) -> None:
        """Any validation will do: what it has to look at is settled where it is built."""

    def look(self, cycle: int, scores: Mapping[str, float]) -> Verdict:
        """Compare what is pursued, as it is predicted where it is, with what should hold."""
        kinds = ("predicted", "reward", "guard")
        found = {kind: [v for n, v in scores.items() if n.startswith(kind)] for kind in kinds}
        means = {kind: sum(values) / len(values) for kind, values in found.items() if values}
        pursued = next((kind for kind in kinds[:2] if kind in means), None)
        held = {kind: mean for kind, mean in means.items() if kind not in (pursued, "predicted")}
        misled = self._misled(scores)
        if not self.active or ((pursued is None or not held) and misled is None):
            return Verdict()
        note = self.compare(math.nan if pursued is None else means[pursued], held, misled or "")
        scalars = {"guard/scale": self.scale, "guard/troubled": float(self.troubled)}
        if self.stops:
            which = f"of the best {self.best_score}" if self.best_score else "of the last validation without it"
            return Verdict(ended=f"{note}, with the student {which}", note=note, scalars=scalars)
        measured = all(map(math.isfinite, held.values()))  # a student of which nothing is known isn't kept
        keeps = self.action == "stop" and self.troubled == 0 and self.best_score is None and measured
        return Verdict({"cycle": cycle} if keeps else None, note=note, scalars=scalars)

    def _misled(self, scores: Mapping[str, float]) -> str | None:
        """A sentence where the gradient leads nowhere, "" where it leads up; None where nobody looks or knows."""
        predicted, true = (scores.get(f"rise_{name}", math.nan) for name in ("predicted", "true"))
        if not self.rise or not math.isfinite(predicted + true):
            return None
        if predicted <= 0 or true > 0:
            return ""
        return (
            f"a small step up the latent reward's gradient is predicted to raise the reward by {predicted:.3g} and "
            f"changes it by {true:.3g}"
        )

    def compare(self, pursued: float, held: Mapping[str, float], misled: str = "") -> str:
        """Look at the scores of one validation; a sentence for the user, or "" where all is well.

        misled: a sentence where the gradient leads nowhere.
        """
        known = {name: score for name, score in held.items() if math.isfinite(score)}
        if not known and not misled and not self.rise:
            return ""  # what was not measured can't be compared
        at = pursued if math.isfinite(pursued) else None
        for name, score in known.items():
            # A later look at which `pursued` is no number, say for a reward that failed, is none to compare with.
            if name not in self.best or (at is not None and score >= self.best[name][0]):
                self.best[name] = (score, at)
        if at is None and not self.rise:
            return ""
        fallen = [name for name, score in known.items() if at is not None and self._fell(name, score, at)]
        self.troubled = self.troubled + 1 if fallen or misled else 0
        if not self.active or self.troubled < self.patience:
            return ""
        found = self._fall(fallen[0], known[fallen[0]], pursued) if fallen else misled
        found = f"over-optimisation: {found}; this is validation {self.troubled} in a row"
        if self.action == "lower":
            self.scale *= self.factor
            self.troubled, self.best = 0, {n: (score, pursued) for n, score in known.items()}
            return f"{found}; the reward's weight is now {self.scale:.3g} of what it was"
        if self.action == "stop":
            return f"{found}; the run ends here"
        return f"{found}; guard.action=lower or stop would act on it"

    def _fall(self, name: str, score: float, pursued: float) -> str:
        """How far what must hold has fallen, in words."""
        best, before = self.best[name]
        return (
            f"{name}, which should hold, fell from {best:.4g} to {score:.4g} while what is "
            f"pursued {'came' if before is None else f'rose from {before:.4g}'} to {pursued:.4g}"
        )

    def _fell(self, name: str, score: float, pursued: float) -> bool:
        """Whether what must hold fell for the sake of what is pursued."""
        best, before = self.best[name]
        return score < best - self.tolerance * abs(best) and (before is None or pursued > before)

    @property
    def stops(self) -> bool:
        """Whether the last check ends the run."""
        return self.action == "stop" and self.troubled >= self.patience

    def forget(self, cycle: int) -> None:
        """Compare later scores with each other alone; the reward's weight stays."""
        self.troubled, self.best = 0, {}

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint."""
        return {"scale": self.scale, "troubled": self.troubled, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a `state_dict`."""
        self.scale, self.troubled = state["scale"], state["troubled"]
        self.best = {name: (score, pursued) for name, (score, pursued) in state["best"].items()}
