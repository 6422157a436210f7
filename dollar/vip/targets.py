"""Which properties a smaller model lost against the full one: those that pairs are chosen by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np


class Fall(NamedTuple):
    """By how much a property's mean is lower than the full model's, and the standard error of that difference."""

    mean: float
    error: float = math.inf


def falls_of(
    full: Mapping[str, Sequence[float]], pruned: Mapping[str, Sequence[float]], unit: str = "reward"
) -> dict[str, Fall]:
    """The fall of each property over clips of the same prompts and seeds; values [N] by property, all numbers.

    unit: reward, or sd for falls in each property's own deviation. ValueError where there is nothing to compare.
    """
    check_spread(full, pruned)
    found = {}
    for name, scale in scales_of(full, pruned, unit).items():
        difference = (np.asarray(full[name], float) - np.asarray(pruned[name], float)) / scale
        count = len(difference)
        error = float(difference.std(ddof=1)) / math.sqrt(count) if count > 1 else math.inf
        found[name] = Fall(float(difference.mean()), error)
    return found


def targets_in(falls: Mapping[str, Fall], most: int | None = None) -> list[str]:
    """The property that fell most, then the others that fell by more than their standard error, most first.

    None where nothing fell; most: how many at most, None for any number.
    """
    fallen = sorted((name for name, fall in falls.items() if fall.mean > 0), key=lambda name: -falls[name].mean)
    found = [name for i, name in enumerate(fallen) if i == 0 or falls[name].mean > falls[name].error]
    return found[:most]


def scales_of(
    full: Mapping[str, Sequence[float]], pruned: Mapping[str, Sequence[float]], unit: str
) -> dict[str, float]:
    """What each property's values are divided by before they are compared with another's: 1, or their deviation.

    The deviation is that of both models' clips together; where all are alike there are no gaps, and any will do.
    """
    if unit == "reward":
        return dict.fromkeys(full, 1.0)
    return {name: float(np.std([*full[name], *pruned[name]])) or 1.0 for name in full}


def check_spread(full: Mapping[str, Sequence[float]], pruned: Mapping[str, Sequence[float]]) -> None:
    """Raise ValueError where there are no values, or all of them are equal in every property."""
    count = len(next(iter(full.values()), ()))
    if not count:
        raise ValueError(
            "no pair of clips has scores that are numbers; look at the reward on the full model's clips by "
            "launch/evaluate.py"
        )
    if all(np.ptp([*full[name], *pruned[name]]) == 0 for name in full):
        raise ValueError(
            f"all scores of the {2 * count} clips are equal, so no clip is better than another; name another reward, "
            "or look at the clips"
        )
