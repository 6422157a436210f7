"""The meaning of a network's output, and the one place where it becomes x_0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dollar.diffusion.schedule import Schedule, expand_like

Formula = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Prediction:
    """One parameterisation: `target_of(x_0, eps, a, b)` and `x_0_of(x_t, output, a, b)`, inverse to each other."""

    name: str
    target_of: Formula
    x_0_of: Formula
    needs_signal: bool = False  # x_0 can't be found where a = 0

    def target(self, x_0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """What a perfect network would output for x_0, eps [B, ...] at t [B]."""
        a, b = schedule.coefficients(t)
        return self.target_of(x_0, eps, expand_like(a, x_0), expand_like(b, x_0))

    @property
    def is_negative(self) -> bool:
        """Whether the output is minus x_0, up to noise, where there is no signal (a = 0, b = 1)."""
        one = torch.ones(())
        return bool(self.target_of(one, 0 * one, 0 * one, one) < 0)

    def x_0(self, x_t: Tensor, output: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
        """x_0 from the network's output [B, ...] at t [B]; ValueError where the output can't determine it."""
        a, b = schedule.coefficients(t)
        if self.needs_signal and bool((a == 0).any()):
            raise ValueError(
                f"a network that predicts {self.name} says nothing of x_0 at a time without signal (a = 0). "
                "Use timesteps below the last one, or a teacher that predicts v."
            )
        return self.x_0_of(x_t, output, expand_like(a, x_t), expand_like(b, x_t))


EPSILON = Prediction(
    "epsilon",
    target_of=lambda x_0, eps, a, b: eps,
    x_0_of=lambda x_t, o, a, b: (x_t - b * o) / a,
    needs_signal=True,
)
# v = a eps - b x_0 (Eq. 3); x_0 = a x_t - b v because a^2 + b^2 = 1.
V = Prediction(
    "v",
    target_of=lambda x_0, eps, a, b: a * eps - b * x_0,
    x_0_of=lambda x_t, o, a, b: a * x_t - b * o,
)
SAMPLE = Prediction(
    "sample",
    target_of=lambda x_0, eps, a, b: x_0,
    x_0_of=lambda x_t, o, a, b: o,
)
FLOW = Prediction(
    "flow",
    target_of=lambda x_0, eps, a, b: eps - x_0,
    x_0_of=lambda x_t, o, a, b: x_t - b * o,
)
# The paper's own (Eq. 4 and 8): the velocity at the conjugate point of a rectified flow, on any schedule.
CONJUGATE_VELOCITY = Prediction(
    "conjugate_velocity",
    target_of=lambda x_0, eps, a, b: x_0 - eps,
    x_0_of=lambda x_t, o, a, b: (x_t + b * o) / (a + b),
)

PREDICTIONS = {p.name: p for p in (EPSILON, V, SAMPLE, FLOW, CONJUGATE_VELOCITY)}
