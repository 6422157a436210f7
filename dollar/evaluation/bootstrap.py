"""Confidence interval of a difference between two samplers that were given the same prompts and seeds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

CHUNK = 500  # draws at a time: bounds memory at a few megabytes for a thousand samples


class Interval(NamedTuple):
    """difference: mean of a - b; low and high: its percentile interval."""

    difference: float
    low: float
    high: float


def paired_interval(a: ArrayLike, b: ArrayLike, level: float = 0.95, draws: int = 10_000, seed: int = 0) -> Interval:
    """Bootstrap interval of the mean difference of a [n] and b [n], where a[i] and b[i] share a prompt and a seed.

    Resampling whole pairs keeps what they share (an easy prompt, a lucky seed) out of the interval.
    """
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if a.shape != b.shape or a.ndim != 1 or len(a) < 2:
        raise ValueError(
            f"got samples of shapes {a.shape} and {b.shape}; a paired interval needs two arrays [n], n >= 2, in the "
            f"same order of (prompt, seed). Score both samplers on the same list."
        )
    difference = a - b
    rng = np.random.default_rng(seed)
    chunks = [min(CHUNK, draws - done) for done in range(0, draws, CHUNK)]
    means = [difference[rng.integers(len(difference), size=(k, len(difference)))].mean(1) for k in chunks]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(difference.mean()), float(low), float(high))
