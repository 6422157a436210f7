"""The settings of the commands that make a network smaller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dollar.cli.settings.base import Free, Place, Target
from dollar.cli.settings.groups import Parallel


@dataclass
class Prune:
    """conf/prune.yaml."""

    teacher: Target
    parallel: Parallel
    checkpoint: Place | None
    remove: list[str]
    out: Place | None
    overwrite: bool
    steps: list[int]
    repeats: int


@dataclass
class Rank:
    """conf/rank.yaml."""

    teacher: Target
    reward: Target
    parallel: Parallel
    checkpoint: Place | None
    units: Free[Literal["blocks", "halves"]]
    by: Free[Literal["reward", "prediction", "influence"]]
    shortlist: Free[int | None]
    k: Free[int]
    rule: Free[Literal["intersection", "total"]]
    properties: Free[list[str] | None]
    consistency: Free[str | None]
    prompts: Place | None
    clips: int
    steps: int | None
    looks: int
    seed: int
    batch: int
    out: Free[Place]


@dataclass
class Pairs:
    """conf/pairs.yaml."""

    teacher: Target
    reward: Target
    parallel: Parallel
    checkpoint: Place | None
    reference: Place | None
    steps: int | None
    smaller_steps: int | None
    prompts: Place | None
    words: tuple[int, int]
    chat: Place | None
    suited: dict[str, tuple[int, int]]
    clips: int
    probe: int
    seed: int
    batch: int
    target: Free[str | list[str] | None]
    targets: Free[int | None]
    floor: Free[float | None]
    widest: Free[bool]
    unit: Free[Literal["reward", "sd"]]
    winners: Free[Place | None]
    shown: Free[int]
    out: Free[Place]


@dataclass
class Score:
    """conf/score.yaml."""

    teacher: Target
    reward: Target
    parallel: Parallel
    checkpoints: Free[list[Place]]
    full: Free[bool]
    prompts: Place | None
    clips: int
    steps: int | None
    seed: int
    batch: int
    out: Free[Place]


@dataclass
class Vip:
    """conf/vip.yaml."""

    teacher: Target
    reward: Target
    parallel: Parallel
    out: Free[Place]
    checkpoint: Place | None
    stages: list[int]
    units: Literal["blocks", "halves"]
    steps: int
    seed: int
    online: bool
    fresh: bool
    unfallen: Literal["sft", "skip"]
    give_up: float
    processes: Free[int]
    repeats: Free[int]
    rank: list[str]
    prune: list[str]
    pairs: list[str]
    train: list[str]
    score: list[str]
    evaluate: list[str]
    export: list[str]
