"""The settings of `train`, and of `plan`, which takes the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dollar.cli.settings.base import Free, Place, Target
from dollar.cli.settings.groups import Data, LatentReward, Optimizer, Parallel, SmallDecoder, Student, StudentOptimizer


@dataclass
class Validation:
    """When and on how much a student is validated."""

    every: int
    first: bool
    prompts: int
    prompts_file: Place | None
    clips: int
    mp4s: int
    guidance_steps: int


@dataclass
class Guard:
    """The guard against over-optimisation."""

    reward: Target
    action: Literal["none", "warn", "lower", "stop"]
    patience: int
    tolerance: float
    factor: float
    rise: bool


@dataclass
class Log:
    """What is logged in addition to the losses."""

    trackers: list[str]
    gradients_every: int


@dataclass
class Optimizers:
    """conf/optim, by network."""

    student: StudentOptimizer
    fake: Optimizer
    adversarial: Optimizer
    lrm: Optimizer
    decoder: Optimizer


@dataclass
class Fake:
    """The fake score's loss."""

    loss: Literal["native", "cv"]


@dataclass
class Preference:
    """Preference distillation from pairs."""

    dpo: float
    beta: float
    sft: float
    drop_caption: float
    times: Literal["uniform", "student"]
    noise: Literal["shared", "own"]
    safeguard: bool
    reference: Place | None


@dataclass
class Train:
    """conf/train.yaml with conf/loss: one value a run."""

    teacher: Target
    student: Student
    method: Target
    reward: Target
    monitors: dict[str, Target]
    data: Data
    optim: Optimizers
    parallel: Parallel

    run: Free[str]
    runs: Free[Place]
    same: Free[list[str]]
    seed: int
    cycles: Free[int]
    batch: int
    init: Place | None
    save_every: Free[int]
    keep: Free[int]
    clip_gradient: float
    decay_from: float
    ema: float
    validation: Free[Validation]
    keep_best: Free[str | None]
    patience: int | None
    guard: Guard
    log: Free[Log]

    balance: float | None
    fake_updates: int
    fake_warmup: int
    vsd: Target
    cd: Target
    ft: Target
    adversarial: Target
    moments: Target
    fake: Fake
    lrm: LatentReward
    decoder: SmallDecoder
    preference: Preference
    terms: dict[str, Target]


@dataclass
class Plan(Train):
    """conf/plan.yaml."""

    processes: int
    memory: float
