"""Whether the cheap rankings agree with the reward's, of the units that may go."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.stats import spearmanr

from dollar.studies.compare import Comparison, Gaps, reaches
from dollar.studies.results import Results
from dollar.studies.vip.figures import rankings

AGREE = 0.7  # a rank correlation that a cheap ranking is asked for
SPARE = 0.5  # of the whole network's margin, what is left at least without a block that may go


def agreement(results: Results, measure: str) -> Comparison:
    """The rank correlation of a cheap measure with what a unit that may go costs by reward, seed by seed."""
    what = f"rank correlation of {measure} with the reward's loss, of blocks that may go"
    return reaches(what, Gaps(list(_correlations(results, measure, SPARE))), AGREE, show="{:.2f}".format)


def _correlations(results: Results, measure: str, share: float) -> Iterator[float]:
    """Seed by seed, of the units without which at least a share of the margin is left; of three of them or more."""
    for table in rankings(results.of("redpo")):
        least = -np.inf if table["whole"] is None else share * table["whole"]
        both = [(c, t) for c, t in zip(table[measure], table["total"], strict=True) if c is not None and t is not None]
        if len(pairs := [(c, t) for c, t in both if t >= least]) > 2:
            yield -float(spearmanr(*zip(*pairs, strict=True)).statistic)


def overlap(results: Results) -> str:
    """How many of the units that go a cheap measure would have chosen, and how it ranks all units."""
    parts = []
    for measure in ("prediction", "influence"):
        shared = []
        for table in rankings(results.of("redpo")):
            known = [(c, u) for c, u in zip(table[measure], table["units"], strict=True) if c is not None]
            shared.append(len({u for _, u in sorted(known)[: len(table["chosen"])]} & {*table["chosen"]}))
        whole = list(_correlations(results, measure, -np.inf))
        if whole:
            parts.append(f"{measure} {np.mean(shared):.1f}, its correlation over all blocks {np.mean(whole):.2f}")
    return f"of the blocks that go, a cheap ranking would have chosen: {'; '.join(parts) or '—'}"


def chosen(results: Results) -> str:
    """The units that went, and what is left of the margin without each unit, in the mean of seeds."""
    found = [", ".join(table["chosen"]) for table in rankings(results.of("redpo"))]
    means: dict[str, list[float]] = {}
    for table in rankings(results.of("redpo")):
        for unit, total in zip(table["units"], table["total"], strict=True):
            means.setdefault(unit, []).append(total)
    without = ", ".join(f"{unit} {np.mean(values):.3f}" for unit, values in means.items())
    return f"gone, seed by seed: {'; '.join(found) or '—'}; mean margin without {without or '—'}"
