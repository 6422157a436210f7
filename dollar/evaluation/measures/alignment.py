"""How far clips of the shapes world show what their captions say."""

from __future__ import annotations

from dollar.data.shapes import Attributes
from dollar.rewards.shapes import Matches


def alignment(matches: Matches) -> dict[str, float | dict[str, float]]:
    """Fractions of the clips that are right, and their mean reward.

    alignment: all five attributes right; attributes: each one right, by name; reward: mean of the margins.
    """
    right = matches.right.float()
    return {
        "alignment": float(matches.right.all(1).float().mean()),
        "attributes": dict(zip(Attributes._fields, right.mean(0).tolist(), strict=True)),
        "reward": float(matches.margins.mean()),
    }
