"""Monitors, which look at the scores of each validation, and may keep the student or end the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Verdict:
    """What a monitor concludes from a validation.

    keep: plain values stored with the student, which is kept as the best so far; None to keep none. ended: why the
    run ends here, or "". note: a sentence for the user, or "". scalars: to be logged.
    """

    keep: Mapping[str, Any] | None = None
    ended: str = ""
    note: str = ""
    scalars: Mapping[str, float] = field(default_factory=dict)


class Monitor(Protocol):
    """Looks at the scores of each validation, the same in every process; its state goes into the checkpoints.

    One that has `forget(cycle)` is told by it that later scores are of other prompts, and don't compare with earlier.
    One that has `watch(cycle, scalars)` is shown what each cycle logged, too, and gives a verdict on it.
    """

    @property
    def prefers_kept(self) -> bool:
        """Whether the finished student should be the one that was kept, not the last."""
        ...

    def check(self, scores: list[str]) -> None:
        """Raise ValueError where the scores that a validation measures lack what it looks at."""
        ...

    def look(self, cycle: int, scores: Mapping[str, float]) -> Verdict:
        """A validation's scores, after this many cycles."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a `state_dict`."""
        ...
