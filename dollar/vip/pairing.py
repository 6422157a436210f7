"""From scored clips of a full and a smaller model to pairs: which clip of the full model is preferred to which."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dollar.vip.targets import scales_of

Scores = Mapping[str, float]  # of a clip, by property
# Why two clips are no pair, in the order in which it is looked at: the first that holds counts.
RULES = {
    "unscored": "lack a score that is a number",
    "not better": "have a clip of the full model that is not better on every target",
    "below the floor": "have a clip of the smaller model at or below the floor on the target",
    "not widest": "have a wider gap, or one as wide, in another property than the target",
}
LOOSER = {
    "unscored": "look at the reward by launch/evaluate.py",
    "not better": "give fewer targets, as target=[NAME], or more clips",
    "below the floor": "give a larger floor, or floor=null",
    "not widest": "give another target, or widest=false",
}


class Clips(NamedTuple):
    """What both models made of a prompt and a seed; `id` is that of both clips."""

    prompt: str
    seed: int
    id: str


class Pair(NamedTuple):
    """A line of pairs.jsonl: the ids of the clips, the target that they were chosen by, and its gap."""

    prompt: str
    seed: int
    winner: str
    loser: str
    target: str
    gap: float


class Paired(NamedTuple):
    """The pairs, what was left out by rule, and what the smaller model's clip had to be above on the target."""

    pairs: list[Pair]
    counts: dict[str, int]
    least: float = -math.inf


class Choice(NamedTuple):
    """How pairs are chosen.

    targets: properties, the first of them the one whose gap and floor count; floor: how many deviations below the mean
    of the smaller model's clips its clip may be on that, None for any; widest: whether that gap must be the widest;
    unit: that gaps are compared in, reward or sd.
    """

    targets: Sequence[str]
    floor: float | None = 0.3
    widest: bool = True
    unit: str = "reward"


def is_scored(*scores: Scores) -> bool:
    """Whether all values are numbers."""
    return all(math.isfinite(value) for clip in scores for value in clip.values())


def columns(clips: Sequence[Clips], scores: Mapping[str, Scores]) -> dict[str, list[float]]:
    """The values of some clips by property, each in the clips' order; scores: by id."""
    names = list(scores[clips[0].id]) if clips else []
    return {name: [scores[clip.id][name] for clip in clips] for name in names}


def pair_up(clips: Sequence[Clips], winners: Mapping[str, Scores], losers: Mapping[str, Scores], how: Choice) -> Paired:
    """The pairs among these clips, in their order; scores of the full model's and the smaller one's by id.

    ValueError where all clips are alike on the target.
    """
    scored = [clip for clip in clips if is_scored(winners[clip.id], losers[clip.id])]
    counts: Counter[str] = Counter({"unscored": len(clips) - len(scored)})
    target = how.targets[0]
    high, low = columns(scored, winners), columns(scored, losers)
    if scored and np.ptp([*high[target], *low[target]]) == 0:
        raise ValueError(
            f"all {2 * len(scored)} clips have the {target} {high[target][0]:g}, so none is better there; give another "
            "target"
        )
    least = -math.inf
    if how.floor is not None and scored:
        least = float(np.mean(low[target]) - how.floor * np.std(low[target]))
    scales = scales_of(high, low, how.unit)
    pairs = []
    for clip in scored:
        full, small = winners[clip.id], losers[clip.id]
        if (rule := _broken(full, small, how, least, scales)) is not None:
            counts[rule] += 1
            continue
        pairs.append(Pair(clip.prompt, clip.seed, clip.id, clip.id, target, full[target] - small[target]))
    return Paired(pairs, {rule: counts[rule] for rule in RULES}, least)


def _broken(full: Scores, small: Scores, how: Choice, least: float, scales: Mapping[str, float]) -> str | None:
    """The first rule that two clips break; None where they are a pair."""
    target = how.targets[0]
    if not all(full[name] > small[name] for name in how.targets):
        return "not better"
    if not small[target] > least:
        return "below the floor"
    gaps = {name: (full[name] - small[name]) / scales[name] for name in full}
    if how.widest and any(gaps[name] >= gaps[target] for name in gaps if name != target):
        return "not widest"
    return None


def all_pairs(clips: Sequence[Clips], winners: Mapping[str, Scores], losers: Mapping[str, Scores]) -> Paired:
    """All clips that have scores as pairs without a target, for training on the full model's clips alone."""
    scored = [clip for clip in clips if is_scored(winners[clip.id], losers[clip.id])]
    pairs = [Pair(clip.prompt, clip.seed, clip.id, clip.id, "", 0.0) for clip in scored]
    return Paired(pairs, {rule: (len(clips) - len(scored)) * (rule == "unscored") for rule in RULES})


def check_some(found: Paired, clips: int) -> None:
    """Raise ValueError, with the counts by rule and what to loosen, where no pair passed."""
    if not found.pairs:
        left = {rule: count for rule, count in found.counts.items() if count}
        ways = "; ".join(LOOSER[rule] for rule in left)
        raise ValueError(f"no pair passes: of {clips} pairs of clips {told(left)}. To have some, {ways}")


def told(counts: Mapping[str, Any]) -> str:
    """Counts by rule in words, nothing of those that are 0."""
    return ", ".join(f"{count} {RULES[rule]}" for rule, count in counts.items() if count)
