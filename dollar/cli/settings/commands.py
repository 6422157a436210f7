"""The settings of all commands but `train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dollar.cli.settings.base import Free, Place, Prompt, Target
from dollar.cli.settings.groups import Data, LatentRewardModel, Optimizer, Parallel


@dataclass
class Sample:
    """conf/sample.yaml."""

    teacher: Target
    parallel: Parallel
    checkpoint: Place | None
    steps: int | None
    prompt: Prompt | list[Prompt] | None
    prompts: Place | None
    seed: int
    clips: int
    guidance_scale: float | None
    out: Place
    gif: bool
    batch: int
    frames: int | None
    height: int | None
    width: int | None
    fps: float | None
    dtype: Literal["float32", "bfloat16", "float16"] | None
    tiling: bool
    force: bool


@dataclass
class Evaluate:
    """conf/evaluate.yaml."""

    teacher: Target
    parallel: Parallel
    reward: Target
    checkpoint: Place | None
    also: list[Place]
    steps: list[int] | None
    clips: int
    teacher_clips: int
    teacher_steps: int
    teacher_metrics: Place
    real: bool
    untrained: bool
    training_clips: int
    cache: Place | None
    lrm_prompts: int
    repeats: int
    out: Place | None
    report: bool
    shown: int


@dataclass
class Export:
    """conf/export.yaml."""

    teacher: Target
    parallel: Parallel
    checkpoint: Place | None
    out: Place | None
    overwrite: bool
    weights: Literal["ema", "last"]
    steps: int | None
    form: Literal["dense", "slim"]
    dtype: Literal["float32", "bfloat16", "float16"]
    max_shard_size: str
    link: bool
    lora: int | None
    lora_names: Literal["diffusers", "original"]
    full: bool
    license: str | None
    verify: bool
    prompt: Prompt | None
    seed: int


@dataclass
class Clips:
    """The clips that `preprocess` reads."""

    path: Place | list[Place] | None
    video_column: str | None
    caption_column: str | None
    stills: Literal["repeat", "skip"]


@dataclass
class Preprocess:
    """conf/preprocess.yaml."""

    teacher: Target
    parallel: Parallel
    data: Clips
    out: Place | None
    same: list[str]
    buckets: Any  # a list of sizes, or null; checked where they are read
    windows: int
    batch: int
    latents_dtype: Literal["float32", "bfloat16", "float16"]
    text_dtype: Literal["float32", "bfloat16", "float16"]
    rows_per_shard: int
    readers: int
    ahead: int
    max_bad_fraction: float
    enlarge: bool
    retry_skipped: bool


@dataclass
class LatentRewardOptimizer:
    """The optimizers of a fit."""

    lrm: Optimizer
    decoder: Optimizer


@dataclass
class FittedAtOnce:
    """The small decoder of a latent reward model's own fit."""

    path: Place | None
    clips: int
    frames: int
    steps: int


@dataclass
class FitReward:
    """conf/fit_reward.yaml."""

    teacher: Target
    reward: Target
    data: Data
    parallel: Parallel
    out: Place
    observations: Place | None
    seed: int
    clips: int
    mismatched: bool
    made: list[int]
    made_clips: int
    held_out: float
    watched: float
    fit_on: int | None
    climb: int
    climb_noise: tuple[float, float] | None
    lrm: LatentRewardModel
    decoder: FittedAtOnce
    steps: int
    batch: int
    decay_from: float
    every: int
    tolerance: float
    save_every: int
    patience: int
    optim: LatentRewardOptimizer


@dataclass
class Stage:
    """One stage of pre-training."""

    steps: int
    batch: int
    lr: float
    clip_gradient: float
    decay_from: float


@dataclass
class TeacherStage(Stage):
    """The last of them, which alone has a warm-up of its own length."""

    steps: Free[int]
    warmup: int


@dataclass
class Pictures:
    """How many training clips the small CLIP's frames come from."""

    rendered: int
    decoded: int


@dataclass
class Processes:
    """How the processes of pre-training compute."""

    device: Free[str]
    dtype: str
    timeout_minutes: Free[float]


@dataclass
class DeepBody:
    """The deeper teacher's transformer."""

    blocks: int
    heads: int
    skipped: list[float]


@dataclass
class Pretrain:
    """conf/pretrain.yaml."""

    make: str  # teacher, deep or clip, checked by the command
    out: Free[Place]
    work: Free[Place]
    same: Free[list[str]]
    init: Place | None
    seed: int
    text_length: int
    clips: int
    loss: Literal["evened", "native", "cv"]
    drop_caption: float
    ema: float
    autoencoder: Place | None
    pictures: Pictures
    predictions_of: Place | None
    deep_body: DeepBody
    clip: Stage
    deep: TeacherStage
    decoder: Stage
    encoder: Stage
    joint: Stage
    finish: Stage
    sharpen: Stage
    teacher: TeacherStage
    parallel: Processes


@dataclass
class Study:
    """What every study has: its seeds and rows, and where it works."""

    seeds: int | list[int] | None
    only: list[str] | None
    again: bool
    workers: int
    work: Place
    out: Place
    only_document: bool


@dataclass
class Ablation(Study):
    """conf/ablation.yaml."""

    cycles: int
    further: int
    batch: int
    validations: int
    noise: str
    clips: int
    train: list[str]
    evaluation: list[str]
    student_evaluation: list[str]
    panel: list[str]
    groups: dict[str, Any]
    rows: list[Any]


@dataclass
class RewardCurve(Study):
    """conf/reward_curve.yaml."""

    counts: list[int]
    more: dict[int, list[str]]
    train: list[str]
    groups: dict[str, Any]
    forms: dict[str, Any]


@dataclass
class VipAblation(Study):
    """conf/vip_ablation.yaml."""

    clips: int
    smaller: str
    cycles: int
    less: int
    more: int
    few: int
    dtype: Literal["float32", "bfloat16"]
    teacher_dtype: Literal["float32", "bfloat16"]
    train: list[str]
    on_pairs: list[str]
    alone: list[str]
    vip: list[str]
    evaluation: list[str]
    student_evaluation: list[str]
    teacher_evaluation: list[str]
    groups: dict[str, Any]
    rows: list[Any]


@dataclass
class FewSteps(Study):
    """conf/few_step.yaml."""

    clips: int
    further: int
    dtype: Literal["float32", "bfloat16"]
    teacher_dtype: Literal["float32", "bfloat16"]
    train: list[str]
    evaluation: list[str]
    student_evaluation: list[str]
    teacher_evaluation: list[str]
    groups: dict[str, Any]
    rows: list[Any]


@dataclass
class BenchReward:
    """conf/bench_reward.yaml."""

    device: str
    dtype: Literal["auto", "float32", "bfloat16", "float16"]
    threads: int
    frames: list[int]
    measured: str | list[int]
    decoded: str | list[int]
    memory: str | float
    repeats: int
    patience: float
    out: Place
