"""Everything of one seed: teacher, base student, pairs, the distilled students, and what each of them makes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dollar.diffusion import Draws
from dollar.losses.preference import margin
from dollar.studies.toy.modes import Modes
from dollar.studies.toy.network import SCHEDULE, Perceptron, denoiser_of, new_perceptron, samples_of
from dollar.studies.toy.rows import BASE, EXACT, FULL, OBJECTIVES, distance_figure, mode_figure
from dollar.studies.toy.training import Course, Material, Pairs, distance, distil, errors_of, excess, find_pairs, fit

SHOWN = 400  # points of each row that results.json keeps for the picture
LOOKS = {"early": 0.75, "late": 1.0}  # shares of the updates after which a network's excess error is measured
Result = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """A network's hidden layers and their width, and its training on the mixture."""

    layers: int
    width: int
    course: Course

    def __post_init__(self) -> None:
        for key in ("layers", "width"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; it must be at least 1")


@dataclass(frozen=True)
class Setting:
    """All that a seed's results follow from; ValueError for what can't be.

    preferred: the mode, counted from 1, in which winners are and losers aren't; steps: of the sampler, for pairs and
    for what is counted; samples: that are counted of every model.
    """

    modes: Modes
    preferred: int
    teacher: Size
    base: Size
    distillation: Course
    pairs: int
    beta: float
    sft_weight: float
    samples: int
    steps: int

    def __post_init__(self) -> None:
        if not 1 <= self.preferred <= self.modes.count:
            raise ValueError(f"preferred is {self.preferred}; the modes are 1 to {self.modes.count}")
        for key in ("pairs", "samples", "steps"):
            if getattr(self, key) < 1:
                raise ValueError(f"{key} is {getattr(self, key)}; it must be at least 1")
        for key in ("beta", "sft_weight"):
            if not 0 < getattr(self, key) < math.inf:
                raise ValueError(f"{key} is {getattr(self, key)}; it must be a positive number")

    def plain(self) -> dict[str, Any]:
        """The same by the keys of conf/toy.yaml, as a json has it."""
        found = asdict(self)
        for name in ("teacher", "base"):
            found[name] |= found[name].pop("course")
        modes: dict[str, Any] = found.pop("modes")
        return {**found, **modes}


def generator_of(seed: int, purpose: str) -> torch.Generator:
    """Random numbers that depend on the seed and their purpose alone."""
    return torch.Generator().manual_seed(int(Draws(seed, 0, [0]).integers(purpose, 2**62)))


def one_seed(setting: Setting, seed: int, done: Callable[[str], None] = lambda name: None) -> dict[str, Result]:
    """Train and measure all models; row -> its figures. done: told of each row that is made."""
    results: dict[str, Result] = {}
    networks: dict[str, Perceptron] = {}
    modes, exact = setting.modes, setting.modes.denoiser(SCHEDULE)
    began = time.process_time()
    results[EXACT] = counted(setting, samples_of(exact, setting.samples, setting.steps, generator_of(seed, "samples")))
    done(EXACT)
    for name, size in ((FULL, setting.teacher), (BASE, setting.base)):
        networks[name], results[name] = trained(size, modes, seed, name, setting.samples)
        done(name)
    teacher, base = networks[FULL], networks[BASE]
    draws = generator_of(seed, "pairs")
    pairs = find_pairs(teacher, base, modes, setting.preferred, setting.pairs, setting.steps, draws)
    everywhere = samples_of(denoiser_of(teacher), setting.pairs, setting.steps, generator_of(seed, "all modes"))
    material = Material(teacher, base, pairs, everywhere)
    for name, objective in OBJECTIVES.items():
        # One purpose for all rows: their pairs, times and noise are the same.
        draws, apart = generator_of(seed, "distillation"), generator_of(seed, "distillation: all modes")
        networks[name] = distil(
            material, objective, setting.distillation, setting.beta, setting.sft_weight, draws, apart
        )
        results[name] = {}
        done(name)
    for name, network in networks.items():
        points = samples_of(denoiser_of(network), setting.samples, setting.steps, generator_of(seed, "samples"))
        results[name] |= counted(setting, points) | compared(setting, network, teacher, pairs, seed)
    for result in results.values():
        result["moved"] = moved(setting, result, results[FULL])
    results[EXACT]["seconds"] = time.process_time() - began  # of all rows: the clock's depend on its other work
    return results


def trained(size: Size, modes: Modes, seed: int, name: str, samples: int) -> tuple[Perceptron, Result]:
    """A network that has learnt the mixture, and its excess error at `LOOKS`."""
    start = int(Draws(seed, 0, [0]).integers(f"{name}: weights", 2**62))
    network = new_perceptron(size.layers, size.width, start)
    looks = {max(1, round(share * size.course.updates)): look for look, share in LOOKS.items()}
    learnt: Result = {}
    for update in fit(network, modes, size.course, generator_of(seed, f"{name}: training")):
        if update in looks:
            learnt[f"excess_{looks[update]}"] = excess(network, modes, samples, generator_of(seed, "excess"))
    return network, learnt


def counted(setting: Setting, points: Tensor) -> Result:
    """How many samples are outside and in each mode, and the first of them."""
    counts = {mode_figure(k): count for k, count in enumerate(setting.modes.counts(points))}
    return {**counts, "points": points[:SHOWN].tolist()}


def moved(setting: Setting, result: Mapping[str, Any], teacher: Mapping[str, Any]) -> float:
    """How many samples would have to change their mode, or go in or out, to have the teacher's counts."""
    figures = map(mode_figure, range(setting.modes.count + 1))
    return float(sum(abs(result[figure] - teacher[figure]) for figure in figures)) / 2


@torch.no_grad()
def compared(setting: Setting, network: Perceptron, teacher: Perceptron, pairs: Pairs, seed: int) -> Result:
    """Errors on the pairs beyond the teacher's, and the distance from the teacher on exact samples of each mode."""
    errors = errors_of(network, teacher, pairs, generator_of(seed, "errors"))
    above = margin(errors.winner, errors.loser, errors.winner_ref, errors.loser_ref)
    found: Result = {
        "winner": float((errors.winner - errors.winner_ref).mean()),
        "loser": float((errors.loser - errors.loser_ref).mean()),
        "accuracy": float((above < 0).float().mean()),
    }
    draws = generator_of(seed, "distances")
    points = setting.modes.draw(4 * setting.samples, draws)
    belongs = setting.modes.of(points)
    for k in range(1, setting.modes.count + 1):
        found[distance_figure(k)] = float(distance(network, teacher, points[belongs == k], draws).mean())
    return found
