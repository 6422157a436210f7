"""How far clips of the shapes world show what their captions ask for."""

from __future__ import annotations

from dollar.data.shapes import Attributes
from dollar.rewards.shapes import Judgement


def alignment(judgement: Judgement) -> dict[str, float | dict[str, float]]:
    """Fractions of a judgement's clips that are right, and their mean reward.

    alignment: all five attributes right; attributes: each one right, by name; reward: mean of the margins.
    """
    right = judgement.right.float()
    return {
        "alignment": float(judgement.right.all(1).float().mean()),
        "attributes": dict(zip(Attributes._fields, right.mean(0).tolist(), strict=True)),
        "reward": float(judgement.margins.mean()),
    }
