"""The settings of the toy."""

from __future__ import annotations

from dataclasses import dataclass

from dollar.cli.settings.base import Place


@dataclass
class Distillation:
    """How the toy's students are trained."""

    updates: int
    batch: int
    lr: float


@dataclass
class ToyNetwork(Distillation):
    """A network of the toy, and its training on the mixture."""

    layers: int
    width: int


@dataclass
class Toy:
    """conf/toy.yaml."""

    seeds: int | list[int] | None
    out: Place
    samples: int
    steps: int
    weights: list[float]
    centres: list[list[float]]
    sds: list[float]
    preferred: int
    pairs: int
    beta: float
    sft_weight: float
    teacher: ToyNetwork
    base: ToyNetwork
    distillation: Distillation
