"""Confidence interval of a difference between two samplers that were given the same prompts and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

CHUNK = 500  # draws at a time: bounds memory at a few megabytes for a thousand samples


class Interval(NamedTuple):
    """difference: mean of a - b; low and high: its percentile interval."""

    difference: float
    low: float
    high: float


def paired_interval(
    a: ArrayLike,
    b: ArrayLike,
    groups: Sequence[str] | None = None,
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval of the mean difference of a [n] and b [n], where a[i] and b[i] share a prompt and a seed.

    Resampling whole pairs keeps what they share (an easy prompt, a lucky seed) out of the interval. groups: the
    prompt of each pair; prompts are then resampled with all their pairs, since differences of one prompt are alike.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ValueError(
            f"got samples of shapes {a.shape} and {b.shape}; a paired interval needs two arrays [n], n >= 2, in the "
            f"same order of (prompt, seed). Score both samplers on the same list."
        )
    difference = a - b
    _, member = np.unique(np.arange(len(a)) if groups is None else np.asarray(groups), return_inverse=True)
    total, count = np.bincount(member, difference), np.bincount(member)
    rng = np.random.default_rng(seed)
    means = []
    for k in (min(CHUNK, draws - done) for done in range(0, draws, CHUNK)):
        drawn = rng.integers(len(total), size=(k, len(total)))
        means.append(total[drawn].sum(1) / count[drawn].sum(1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(difference.mean()), float(low), float(high))
