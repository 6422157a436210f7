"""Whether a reward tells clips apart: one that gives all the same number leads a student by noise alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from dollar.surrogate.pixel_reward import alike

CYCLES = 10  # of scored clips after which a reward that tells none apart is named
WAYS_OUT = "Look at the reward by itself, or train without one by reward=none beta_ft=0"


@dataclass
class RewardSpread:
    """The range of the rewards seen so far, of all processes.

    clips: how many were numbers; cycles: in which there were any; flat: cycles in a row, the newest included, in each
    of which two clips or more got one number.
    """

    lowest: float = math.inf
    highest: float = -math.inf
    clips: int = 0
    cycles: int = 0
    flat: int = 0
    _last: int = -1  # cycle that was seen

    def see(self, cycle: int, reward: Tensor) -> None:
        """Take in the rewards [N] of a cycle's clips; what is no number is passed over. May be called again for it."""
        usable = reward[reward.isfinite()]
        if len(usable) == 0:
            return
        low, high = float(usable.min()), float(usable.max())
        self.lowest, self.highest = min(self.lowest, low), max(self.highest, high)
        new, self._last = cycle != self._last, cycle
        self.clips, self.cycles = self.clips + len(usable), self.cycles + new
        if not alike(low, high):
            self.flat = 0
        elif len(usable) > 1:
            self.flat += new

    @property
    def width(self) -> float:
        """How far the highest lies above the lowest; nan before any."""
        return self.highest - self.lowest if self.clips else math.nan

    def trouble(self) -> str:
        """A sentence where the reward tells no clips apart, or ""."""
        if self.cycles >= CYCLES and self.clips > 1 and alike(self.lowest, self.highest):
            return (
                f"the reward is {self.highest:g} for all {self.clips} clips of {self.cycles} cycles, so what is "
                f"learned from it is noise. {WAYS_OUT}"
            )
        if self.flat >= CYCLES:
            return (
                f"in each of the last {self.flat} cycles all clips got one and the same reward, though it differs from "
                f"cycle to cycle, so it tells no two clips of a batch apart. {WAYS_OUT}"
            )
        return ""

    def state(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        kept = asdict(self) | {"lowest": str(self.lowest), "highest": str(self.highest)}  # JSON has no infinity
        del kept["_last"]
        return kept

    def load(self, state: dict[str, Any]) -> None:
        """Take up a `state`."""
        self.lowest, self.highest = float(state["lowest"]), float(state["highest"])
        self.clips, self.cycles, self.flat, self._last = state["clips"], state["cycles"], state["flat"], -1
