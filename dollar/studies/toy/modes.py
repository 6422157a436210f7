"""A Gaussian mixture in the plane: its samples, which mode a point belongs to, and its exact denoiser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dollar.diffusion import DenoiseFunction, Schedule

OUTSIDE = 0  # what `Modes.of` says of a point that is in no mode; modes are counted from 1
FARTHEST = 3.0  # standard deviations from its centre that a mode reaches
WITHIN = 1 - math.exp(-(FARTHEST**2) / 2)  # the share of a round Gaussian in the plane that lies within


@dataclass(frozen=True)
class Modes:
    """Round Gaussians: their shares in any unit, centres (x, y) and standard deviations; ValueError for what can't be.

    Modes that reach into one another are refused, since a point between them would be of both.
    """

    weights: Sequence[float]
    centres: Sequence[Sequence[float]]
    sds: Sequence[float]

    def __post_init__(self) -> None:
        count = len(self.weights)
        if count < 2 or len(self.centres) != count or len(self.sds) != count:
            raise ValueError(
                f"there are {count} weights, {len(self.centres)} centres and {len(self.sds)} sds; "
                "give as many of each, two or more"
            )
        for key in ("weights", "sds"):
            if not all(0 < value < math.inf for value in getattr(self, key)):
                raise ValueError(f"{key} is {list(getattr(self, key))}; they must be positive numbers")
        if any(len(centre) != 2 or not all(map(math.isfinite, centre)) for centre in self.centres):
            raise ValueError(f"centres is {[list(c) for c in self.centres]}; give x and y of each, as [[-1,0],[1,0]]")
        for k in range(count):
            for other in range(k):
                reach = FARTHEST * (self.sds[k] + self.sds[other])
                if (apart := math.dist(self.centres[k], self.centres[other])) < reach:
                    raise ValueError(
                        f"the modes {other + 1} and {k + 1} are {apart:.3g} apart, and {FARTHEST:g} standard "
                        f"deviations of both are {reach:.3g}; move their centres apart, or make their sds smaller"
                    )

    @property
    def count(self) -> int:
        """How many modes there are."""
        return len(self.weights)

    @property
    def shares(self) -> Tensor:
        """The weights so that they sum up to 1, [K]."""
        weights = torch.tensor(self.weights, dtype=torch.float32)
        return weights / weights.sum()

    @property
    def places(self) -> Tensor:
        """The centres, [K, 2]."""
        return torch.tensor(self.centres, dtype=torch.float32)

    @property
    def scales(self) -> Tensor:
        """The standard deviations, [K]."""
        return torch.tensor(self.sds, dtype=torch.float32)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Exact samples, [count, 2]."""
        k = torch.multinomial(self.shares, count, replacement=True, generator=generator)
        noise = torch.randn(count, 2, generator=generator)
        return self.places[k] + self.scales[k, None] * noise

    def of(self, points: Tensor) -> Tensor:
        """The mode of each point [B, 2], counted from 1; OUTSIDE where it is farther than FARTHEST from all; int64 [B].

        What is no number, as samples of a network that has diverged, is outside.
        """
        distances = torch.cdist(points, self.places) / self.scales
        nearest = distances.min(dim=1)
        return torch.where(nearest.values <= FARTHEST, nearest.indices + 1, OUTSIDE)

    def counts(self, points: Tensor) -> list[int]:
        """How many points are outside, and in each mode, [K + 1]."""
        return torch.bincount(self.of(points), minlength=self.count + 1).tolist()

    def denoiser(self, schedule: Schedule) -> DenoiseFunction:
        """The mean of x_0 given x_t [B, 2] at t [B], exactly."""
        centres, variances = self.places, self.scales**2

        def denoise(x_t: Tensor, t: Tensor) -> Tensor:
            a, b = (c.to(x_t.dtype)[:, None] for c in schedule.coefficients(t))
            spread = a**2 * variances + b**2  # of x_t within each mode, [B, K]
            away = x_t[:, None] - a[..., None] * centres  # [B, K, 2]
            likelihood = self.shares.log() - spread.log() - away.square().sum(-1) / (2 * spread)
            means = centres + (a * variances / spread)[..., None] * away
            return (likelihood.softmax(1)[..., None] * means).sum(1)

        return denoise
