"""How the toy's networks are trained: on the mixture, and from pairs by SFT, DPO or both (V.I.P., Eq. 1-3)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dollar.losses.preference import departure, margin, preference
from dollar.losses.score_matching import native
from dollar.studies.toy.modes import Modes
from dollar.studies.toy.network import (
    PREDICTION,
    SCHEDULE,
    Perceptron,
    denoiser_of,
    native_of,
    noised,
    samples_of,
)
from dollar.training.lr_schedule import falling

FALLS_FROM = 0.5  # the share of a network's own training after which its learning rate falls
TRIES = 50  # draws of a batch of samples until there are pairs enough
AT_ONCE = 10000  # samples


@dataclass(frozen=True)
class Course:
    """How long and how fast is trained; ValueError for numbers that can't be."""

    updates: int
    batch: int
    lr: float

    def __post_init__(self) -> None:
        for key in ("updates", "batch"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; it must be at least 1")
        if not 0 < self.lr < 1:
            raise ValueError(f"lr is {self.lr}; it must be between 0 and 1")

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """AdamW without decay, which would pull small networks to 0."""
        return torch.optim.AdamW(network.parameters(), lr=self.lr, weight_decay=0.0, foreach=True)


class Pairs(NamedTuple):
    """Winners and losers [N, 2]."""

    winners: Tensor
    losers: Tensor


@dataclass(frozen=True)
class Objective:
    """A distillation's loss: with or without preference, and SFT on nothing, the winners, or all teacher's samples."""

    dpo: bool
    sft: str = ""  # "", winners or all


def fit(network: Perceptron, modes: Modes, course: Course, generator: torch.Generator) -> Iterator[int]:
    """Train a network on fresh samples of the mixture; yields after each update how many were made."""
    optimizer = course.optimizer(network)
    for update in range(course.updates):
        for group in optimizer.param_groups:
            group["lr"] = course.lr * falling(update, course.updates, FALLS_FROM)
        x_0 = modes.draw(course.batch, generator)
        (x_t,), noise, t = noised([x_0], generator)
        optimizer.zero_grad()
        native(network(x_t, t), PREDICTION.target(x_0, noise, t, SCHEDULE)).mean().backward()
        optimizer.step()
        yield update + 1


def find_pairs(
    teacher: Perceptron,
    student: Perceptron,
    modes: Modes,
    preferred: int,
    count: int,
    steps: int,
    generator: torch.Generator,
) -> Pairs:
    """The teacher's samples in the preferred mode, and the student's outside it; ValueError where there are too few."""
    kept: dict[str, Tensor] = {}
    for name, network, wins in (("teacher", teacher, True), ("base student", student, False)):
        found: list[Tensor] = []
        for _ in range(TRIES):
            points = samples_of(denoiser_of(network), AT_ONCE, steps, generator)
            found.append(points[(modes.of(points) == preferred) == wins])
            if sum(map(len, found)) >= count:
                break
        kept[name] = torch.cat(found)[:count]
        if len(kept[name]) < count:
            where = "in" if wins else "outside"
            raise ValueError(
                f"of {TRIES * AT_ONCE:,} samples of the {name} {len(kept[name])} are {where} mode {preferred}, and "
                f"pairs is {count}; lower pairs, or train the {name} for longer"
            )
    return Pairs(*kept.values())


class Errors(NamedTuple):
    """Errors of a student on pairs at one time and noise a pair, [B], and its and the teacher's outputs for winners."""

    winner: Tensor
    loser: Tensor
    winner_ref: Tensor
    loser_ref: Tensor
    output: Tensor
    reference: Tensor


def errors_of(student: Perceptron, teacher: Perceptron, pairs: Pairs, generator: torch.Generator) -> Errors:
    """The errors with times and noise drawn anew."""
    (x_w, x_l), noise, t = noised(pairs, generator)
    x_t, times = torch.cat([x_w, x_l]), torch.cat([t, t])
    output = student(x_t, times).chunk(2)
    with torch.no_grad():
        reference = teacher(x_t, times).chunk(2)
    e_w, e_l, r_w, r_l = (
        native(out, PREDICTION.target(x_0, noise, t, SCHEDULE))
        for outputs in (output, reference)
        for out, x_0 in zip(outputs, pairs, strict=True)
    )
    return Errors(e_w, e_l, r_w, r_l, output[0], reference[0])


def distance(student: nn.Module, teacher: nn.Module, points: Tensor, generator: torch.Generator) -> Tensor:
    """The mean squared distance of the outputs at noised points [B, 2], [B] (Eq. 2)."""
    (x_t,), _, t = noised([points], generator)
    with torch.no_grad():
        reference = teacher(x_t, t)
    return departure(student(x_t, t), reference)


@torch.no_grad()
def excess(network: nn.Module, modes: Modes, count: int, generator: torch.Generator) -> float:
    """The error of a network beyond that of the exact denoiser, which no network can be below in the mean."""
    (x_t,), _, t = noised([modes.draw(count, generator)], generator)
    exact = native_of(modes.denoiser(SCHEDULE), x_t, t)
    return float(native(network(x_t, t), exact).mean())


class Material(NamedTuple):
    """What students are distilled from: both networks, the pairs, and the teacher's samples of all modes [N, 2]."""

    teacher: Perceptron
    base: Perceptron
    pairs: Pairs
    everywhere: Tensor


def distil(
    material: Material,
    objective: Objective,
    course: Course,
    beta: float,
    sft_weight: float,
    generator: torch.Generator,
    apart: torch.Generator,
) -> Perceptron:
    """A student that starts from the base student and follows the objective.

    generator: of pairs with their times and noise; apart: of those of SFT on samples of all modes.
    """
    teacher, base, pairs, everywhere = material
    student = copy.deepcopy(base)
    optimizer = course.optimizer(student)
    for _ in range(course.updates):
        rows = torch.randint(len(pairs.winners), (course.batch,), generator=generator)
        errors = errors_of(student, teacher, Pairs(pairs.winners[rows], pairs.losers[rows]), generator)
        loss = torch.zeros(())
        if objective.dpo:
            loss = preference(margin(errors.winner, errors.loser, errors.winner_ref, errors.loser_ref), beta).mean()
        if objective.sft == "winners":
            loss = loss + sft_weight * departure(errors.output, errors.reference).mean()
        elif objective.sft == "all":
            rows = torch.randint(len(everywhere), (course.batch,), generator=apart)
            loss = loss + sft_weight * distance(student, teacher, everywhere[rows], apart).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return student
