"""Noise schedules: x_t = a(t) x_0 + b(t) eps.

A schedule is a small value. Times have shape [B]; a time may also be `schedule.clean`, where a = 1 and b = 0, so that
a walk can end on data without a special case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """a(t) and b(t), each [B], in the schedule's own precision."""

    a: Tensor
    b: Tensor


class Schedule(Protocol):
    """What the rest of the package needs of a schedule."""

    @property
    def clean(self) -> float:
        """The time at which x_t is x_0."""
        ...

    def coefficients(self, t: Tensor) -> Coefficients:
        """a(t), b(t) for t of shape [B]."""
        ...

    def grid(self, steps: int) -> Tensor:
        """The teacher's sampling times [steps + 1], from pure noise to `clean`."""
        ...

    def uniform(self, u: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Times [B] at the fractions low + (high - low) u of the range, u uniform in [0, 1)."""
        ...

    def fraction(self, t: Tensor) -> Tensor:
        """The inverse of `uniform`: times in (s, t] are those of the fractions between these of s and t."""
        ...

    def thousandths(self, t: Tensor) -> Tensor:
        """t on the 0..1000 scale that networks and the consistency boundary use, [B]."""
        ...


@dataclass(frozen=True, eq=False)
class VariancePreserving:
    """DDPM's schedule from a table of alpha_bar [T]: a = sqrt(alpha_bar), b = sqrt(1 - alpha_bar) (Eq. 1).

    Times are whole numbers 0..T-1 (int64); -1 is clean data. Shifts and zero terminal SNR are already in the table,
    which is taken as it is, precision included, so that the numbers are those of the scheduler that it came from.
    """

    alphas_cumprod: Tensor
    clean = -1

    def coefficients(self, t: Tensor) -> Coefficients:
        # Index -1 reaches the appended 1: clean data.
        table = torch.cat([self.alphas_cumprod, self.alphas_cumprod.new_ones(1)]).to(t.device)
        alpha_bar = table[t.long()]
        return Coefficients(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())

    def grid(self, steps: int) -> Tensor:
        total = len(self.alphas_cumprod)
        if not 1 <= steps <= total:
            raise ValueError(f"a grid of {steps} steps was requested, but this schedule has 1 to {total} of them")
        # The 'trailing' spacing: 50 steps of 1000 are 999, 979, ..., 19, and 4 are 999, 749, 499, 249.
        spaced = [round(total - i * total / steps) - 1 for i in range(steps)]
        return torch.tensor([*spaced, self.clean])

    def uniform(self, u: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        total = len(self.alphas_cumprod)
        return ((low + (high - low) * u.double()) * total).long().clamp(0, total - 1)

    def fraction(self, t: Tensor) -> Tensor:
        return (t.double() + 1) / len(self.alphas_cumprod)

    def thousandths(self, t: Tensor) -> Tensor:
        return t if len(self.alphas_cumprod) == 1000 else t * 1000 // len(self.alphas_cumprod)


@dataclass(frozen=True)
class RectifiedFlow:
    """a = 1 - t, b = t with t in [0, 1]; `shift` s moves a user's times u towards the noise, s u / (1 + (s - 1) u)."""

    shift: float = 1.0
    clean = 0.0

    def coefficients(self, t: Tensor) -> Coefficients:
        t = t if t.is_floating_point() else t.double()
        return Coefficients(1 - t, t)

    def shifted(self, u: Tensor) -> Tensor:
        """The schedule's time for the unshifted time u."""
        return self.shift * u / (1 + (self.shift - 1) * u)

    def unshifted(self, t: Tensor) -> Tensor:
        """The inverse of `shifted`."""
        return t / (self.shift - (self.shift - 1) * t)

    def grid(self, steps: int) -> Tensor:
        return self.shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64))

    def uniform(self, u: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
        return self.shifted(low + (high - low) * u.double())

    def fraction(self, t: Tensor) -> Tensor:
        return self.unshifted(t.double())

    def thousandths(self, t: Tensor) -> Tensor:
        return t * 1000


def expand_like(value: Tensor, x: Tensor) -> Tensor:
    """`value` [B] as [B, 1, ..., 1] in x's dtype and device, ready to multiply x [B, ...]."""
    if value.shape != x.shape[:1]:
        raise ValueError(f"one value a sample is needed: x has shape {tuple(x.shape)}, the values {tuple(value.shape)}")
    return value.to(device=x.device, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))


def mean_flat(x: Tensor) -> Tensor:
    """The mean over everything but the batch, [B]."""
    return x.flatten(1).mean(1)


def diffuse(x_0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """F(x_0, t) = a x_0 + b eps (Eq. 1); x_0, eps [B, ...], t [B]."""
    a, b = schedule.coefficients(t)
    return expand_like(a, x_0) * x_0 + expand_like(b, x_0) * eps
