"""The settings of `train`, and of `plan`, which takes the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dollar.cli.settings.base import Free, Place, Target
from dollar.cli.settings.groups import Data, LatentReward, Optimizer, Parallel, Student


@dataclass
class Validation:
    """When and on how much a student is validated."""

    every: int
    first: bool
    prompts: int
    clips: int
    guidance_steps: int


@dataclass
class Guard:
    """What is done against over-optimisation."""

    reward: Target
    action: Literal["none", "warn", "lower", "stop"]
    patience: int
    tolerance: float
    factor: float


@dataclass
class Log:
    """What is logged beside the losses."""

    gradients_every: int


@dataclass
class Optimizers:
    """conf/optim, by network."""

    student: Optimizer
    fake: Optimizer
    lrm: Optimizer


@dataclass
class VSD:
    """Variational score distillation."""

    guidance_scale: float
    weighting: Literal["dmd", "score", "constant"]
    range: tuple[float, float]
    lower_half: float | None
    lower_half_over: tuple[float, float]


@dataclass
class CD:
    """Consistency distillation."""

    guidance_scale: float
    m: int
    grid: int
    target: Literal["student", "ema", "teacher"]
    distance: Literal["pseudo_huber", "mse"]


@dataclass
class Fake:
    """The fake score's loss."""

    loss: Literal["native", "cv"]


@dataclass
class FT:
    """Fine-tuning on the latent reward."""

    update: Literal["joint", "separate"]
    accumulate: int
    unit: Literal["reward", "sd"]


@dataclass
class Train:
    """conf/train.yaml with conf/loss: one value a run."""

    teacher: Target
    student: Student
    reward: Target
    data: Data
    optim: Optimizers
    parallel: Parallel

    run: Free[str]
    runs: Free[Place]
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

    beta_vsd: float
    beta_cd: float
    beta_ft: float
    balance: float | None
    fake_updates: int
    fake_warmup: int
    vsd: VSD
    cd: CD
    fake: Fake
    ft: FT
    lrm: LatentReward
    terms: dict[str, Target]


@dataclass
class Plan(Train):
    """conf/plan.yaml."""

    processes: int
    memory: float
