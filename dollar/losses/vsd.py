"""Variational score distillation: the student's samples follow the teacher's score minus their own (Eq. 10-13)."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dollar.diffusion.schedule import Schedule, expand_like, mean_flat
from dollar.diffusion.timesteps import FewStep
from dollar.losses.intervals import Noised, directly, interval, noised_in
from dollar.losses.term import (
    Context,
    Cost,
    Needs,
    Sample,
    check_choice,
    check_guidance,
    check_range,
    check_weight,
    guided,
)

WEIGHTINGS = ("dmd", "score", "constant")
SMALLEST_DISTANCE = 1e-6


def vsd(x: Tensor, x0_real: Tensor, x0_fake: Tensor, weight: Tensor) -> Tensor:
    """Surrogate whose gradient at x is the score difference (Eq. 12-13), weight (x0_fake - x0_real) / numel.

    x, x0_real, x0_fake: [B, C, F, H, W] student's sample, teacher's and fake score's x_0; weight: [B].
    Returns [B], float32. Only x carries a gradient.
    """
    x, x0_real, x0_fake = x.float(), x0_real.float(), x0_fake.float()
    gradient = expand_like(weight, x) * (x0_fake - x0_real)
    return 0.5 * mean_flat((x - (x - gradient).detach()) ** 2)


@torch.no_grad()
def vsd_weight(x: Tensor, x0_real: Tensor, t: Tensor, schedule: Schedule, weighting: str = "dmd") -> Tensor:
    """The weight [B] of the difference x0_fake - x0_real, float32.

    x, x0_real: [B, C, F, H, W] student's sample and teacher's x_0; t: [B] where they were compared. `dmd` makes the
    difference relative to the teacher's own correction, `score` is Eq. 13's, `constant` is 1.
    """
    if weighting == "dmd":
        # The floor only guards x = x0_real; nothing here makes a finite weight of a sample that is not finite.
        return 1 / mean_flat((x.float() - x0_real.float()).abs()).clamp(min=SMALLEST_DISTANCE)
    if weighting == "score":
        # s_real - s_fake = a (x0_real - x0_fake) / b^2, and x_t moves a times as much as x.
        a, b = schedule.coefficients(t)
        return (a**2 / b**2).to(x.device, torch.float32)
    if weighting == "constant":
        return torch.ones(len(x), device=x.device)
    raise ValueError(f"the weighting is {weighting!r}; use dmd, score or constant")


@dataclass
class VSD:
    """Variational score distillation at the student's sample (Eq. 12-13).

    guidance_scale: of the teacher; weighting: as in `vsd_weight`; range: where t is drawn, in fractions of T;
    lower_half: the share of t that comes to lie in the lower half of the range, None for an even spread;
    lower_half_over: the fractions of the run between which that share is reached. intervals: whether a step of the
    student is matched, and the fake score learns from it, between the times of its beginning and its end alone.
    """

    beta: float = 1.0
    guidance_scale: float = 4.5
    weighting: Literal["dmd", "score", "constant"] = "dmd"
    range: tuple[float, float] = (0.02, 0.98)
    lower_half: float | None = None
    lower_half_over: tuple[float, float] = (0.3, 0.7)
    intervals: bool = False
    step_counts: list[int] | None = None
    at: Literal["all", "first", "later"] = "all"
    needs: ClassVar[Needs] = Needs(fake=True)

    def __post_init__(self) -> None:
        self.range, self.lower_half_over = (self.range[0], self.range[1]), tuple(self.lower_half_over)  # type: ignore[assignment]
        check_weight("beta_vsd", self.beta)
        check_choice("vsd.weighting", self.weighting, WEIGHTINGS)
        check_range("vsd.range", self.range)
        if self.lower_half is not None and not 0 <= self.lower_half <= 1:
            raise ValueError(
                f"vsd.lower_half is {self.lower_half}; it is a share of the draws, 0 to 1, or null for even ones"
            )
        if not 0 <= self.lower_half_over[0] < self.lower_half_over[1] <= 1:
            raise ValueError(
                f"vsd.lower_half_over is {list(self.lower_half_over)}; give two rising fractions of the run, as "
                "[0.3, 0.7]"
            )
        check_guidance("vsd.guidance_scale", self.guidance_scale)
        if self.intervals and self.lower_half is not None:
            raise ValueError(
                f"vsd.lower_half is {self.lower_half}, but with vsd.intervals=true the times are those of the "
                "student's step; set vsd.lower_half=null, or vsd.intervals=false"
            )

    def check(self, samplers: Sequence[FewStep]) -> None:
        """Raise ValueError where a step's interval has nothing of the range."""
        for sampler in samplers if self.intervals else ():
            for k in builtins.range(sampler.steps):
                low, high = self.bounds(sampler, k)
                if low >= high:
                    raise ValueError(
                        f"vsd.range is {list(self.range)}, which leaves nothing to one of the student's "
                        f"{sampler.steps} steps; widen it, or set vsd.intervals=false"
                    )

    def cost(self, steps: int) -> Cost:
        return Cost(teacher=guided(self.guidance_scale), fake=1)

    def loss(self, context: Context, sample: Sample) -> Tensor:
        schedule, x_hat = context.schedule, sample.x_hat.detach()
        with torch.no_grad():
            bounds = self.bounds(context.sampler, sample.k)
            t = schedule.uniform(self.place(context.draws.uniform("vsd time"), *bounds, context.progress))
            noise = context.draws.normal("vsd noise", x_hat.shape[1:])
            x_t = self.noised(context.sampler, sample, noise, t, schedule).x_t
            x0_real = context.teacher(self.guidance_scale)(x_t, t)
            x0_fake = context.fake(x_t, t)
            weight = vsd_weight(x_hat, x0_real, t, schedule, self.weighting)
        return vsd(sample.x_hat, x0_real, x0_fake, weight)

    def bounds(self, sampler: FewStep, k: int) -> tuple[float, float]:
        """The fractions of T between which a sample of the student's k-th step is looked at."""
        if not self.intervals:
            return self.range
        low, high = interval(sampler, k)
        return max(low, self.range[0]), min(high, self.range[1])

    def fake_times(self, u: Tensor, progress: float, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Where the fake score learns, fractions of T [B]: over all of it (Eq. 4), and most where VSD reads it most."""
        return self.place(u, low, high, progress)

    def noised(self, sampler: FewStep, sample: Sample, noise: Tensor, t: Tensor, schedule: Schedule) -> Noised:
        """The student's sample at times t [B], with noise [B, ...]."""
        if self.intervals:
            return noised_in(sampler, sample, noise, t, schedule)
        return directly(sample.x_hat.detach(), noise, t, schedule)

    def fake_sample(
        self, sampler: FewStep, sample: Sample, u: Tensor, noise: Tensor, progress: float, schedule: Schedule
    ) -> Noised:
        """What the fake score learns of a sample, for draws u [B] in [0, 1) and noise [B, ...]."""
        bounds = interval(sampler, sample.k) if self.intervals else (0.0, 1.0)
        return self.noised(sampler, sample, noise, schedule.uniform(self.fake_times(u, progress, *bounds)), schedule)

    def place(self, u: Tensor, low: float, high: float, progress: float) -> Tensor:
        """Fractions of T [B] in [low, high) of draws u [B] in [0, 1): spread evenly, unless lower_half is given.

        Then that share of them comes to fall below the middle of `range`. It is reached from an even spread while
        `progress`, the fraction of the run that is done, passes lower_half_over.
        """
        even = low + (high - low) * u.double()
        if self.lower_half is None:
            return even
        first, last = self.lower_half_over
        done = min(max((progress - first) / (last - first), 0.0), 1.0)
        middle = sum(self.range) / 2
        at_first = (middle - low) / (high - low)
        share = at_first + done * (self.lower_half - at_first)
        below = low + (middle - low) * u.double() / share
        above = middle + (high - middle) * (u.double() - share) / (1 - share)
        return torch.where(u < share, below, above)
