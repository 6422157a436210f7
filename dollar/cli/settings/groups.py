"""The settings of the groups of conf/ that several commands share. Defaults, and what a key means, are in the yamls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dollar.cli.settings.base import Free, Place, Target


@dataclass
class Parallel:
    """conf/parallel."""

    device: Free[str]
    dtype: str
    teacher_dtype: str
    shard: Free[bool | Literal["auto"]]
    shard_teacher: Free[bool]
    micro_batch: Free[int | None]
    activation_checkpointing: Free[bool]
    timeout_minutes: Free[float]


@dataclass
class Student:
    """conf/student."""

    timesteps: list[float] | None
    steps: list[int]
    shares: list[float] | None
    between: Literal["renoise", "ddim"]
    input: Literal["simulate", "noised_data"]
    guided: bool
    lora: int | None
    parameterization: Literal["homogeneous", "heterogeneous"]


@dataclass
class Data:
    """conf/data; the further keys of its yamls are arguments of the objects below."""

    clips: Target
    samples: Target
    text: Target
    held_out: Target | None
    latents: bool
    pairs: bool


@dataclass
class Optimizer:
    """AdamW of one network."""

    lr: float
    betas: tuple[float, float]
    weight_decay: float


@dataclass
class StudentOptimizer(Optimizer):
    """The student's, whose matrices may have another."""

    muon_lr: float | None


@dataclass
class LatentRewardModel:
    """The latent reward model by itself."""

    backbone: Literal["cnn", "teacher", "pixels"]
    blocks: int
    noised: bool
    noise: tuple[float, float]
    fit: Literal["mse", "pairwise"]
    temporal: Literal["conv3d", "frames"]
    targets: Literal["auto", "frames", "clip"]
    text: bool | Literal["auto"]
    smooth: float
    width: int
    groups: int


@dataclass
class SmallDecoder:
    """The small decoder."""

    path: Place | None
    frames: int
    memory: int
    updates: int


@dataclass
class LatentReward(LatentRewardModel):
    """The latent reward model of a training."""

    mode: Literal["online", "pretrained", "frozen"]
    path: Place | None
    clips: int
    mismatched: bool
    memory: int
    updates: int
    warmup: int
    first: bool
